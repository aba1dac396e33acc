"""From a network description (.cfg) to its layers."""

from collections.abc import Sequence
from pathlib import Path

from vaultml_worker.darknet.layers import (
    Convolutional,
    Layer,
    MaxPool,
    Network,
    Route,
    Shape,
    Shortcut,
    Upsample,
    Yolo,
)
from vaultml_worker.darknet.syntax import Section, sections
from vaultml_worker.darknet.text import read_lines
from vaultml_worker.records import InvalidInput

ACTIVATIONS = ("leaky", "linear", "logistic", "mish", "relu", "swish")
_LARGEST_INPUT, _LARGEST_SIDE = 8192, 1 << 20
_OTHER_NAMES = {"network": "net", "conv": "convolutional", "max": "maxpool"}


def read_cfg(path: Path) -> Network:
    """Read a network description. Raises InvalidInput that names the line or section that is wrong."""
    lines = read_lines(path, "a Darknet cfg")
    try:
        found = list(sections(lines))
        return _network(path.stem, found)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _network(name: str, found: Sequence[Section]) -> Network:
    for section in found:
        section.kind = _OTHER_NAMES.get(section.kind, section.kind)
    if not found or found[0].kind != "net":
        raise InvalidInput("a Darknet cfg begins with the section [net]")
    net = found[0]
    ignored = list(net.ignored())
    try:
        shape = _input(net)
        layers: list[Layer] = []
        for index, section in enumerate(found[1:]):
            section.title = f"layer {index} [{section.kind}]"
            if section.kind not in _BUILDERS:
                raise section.error(f"is not one of the layers that are supported ({', '.join(_BUILDERS)})")
            ignored += section.ignored()
            layers.append(_layer(section, layers[-1].outputs if layers else shape, layers))
    except InvalidInput as error:
        if not ignored:
            raise
        raise InvalidInput(f"{error} ({ignored[0]})") from None
    channels, height, width = shape
    network = Network(name, width, height, channels, tuple(layers), tuple(ignored))
    if not network.heads:
        raise InvalidInput("there is no [yolo] layer, so nothing would be detected")
    if len({head.classes for head in network.heads}) > 1:
        raise InvalidInput("the [yolo] layers differ in classes")
    return network


def _input(net: Section) -> Shape:
    width, height, channels = (net.whole(key, 0) for key in ("width", "height", "channels"))
    if not (0 < width <= _LARGEST_INPUT and 0 < height <= _LARGEST_INPUT and channels in (1, 3)):
        raise net.error(
            f"needs width and height up to {_LARGEST_INPUT}, and channels=3 (RGB) or channels=1 (grey), "
            f"not width={width}, height={height}, channels={channels}"
        )
    return channels, height, width


def _layer(section: Section, inputs: Shape, layers: list[Layer]) -> Layer:
    layer = _BUILDERS[section.kind](section, inputs, layers)
    channels, height, width = layer.outputs
    if min(layer.outputs) < 1 or max(layer.outputs) > _LARGEST_SIDE:
        raise section.error(f"its output would be {width} x {height} x {channels}")
    return layer


def _convolutional(section: Section, inputs: Shape, _layers: list[Layer]) -> Layer:
    filters, size = section.whole("filters", 1, 1), section.whole("size", 1, 1)
    groups = section.whole("groups", 1, 1)
    pad = size // 2 if section.whole("pad", 0) else section.whole("padding", 0, 0)
    if inputs[0] % groups or filters % groups:
        raise section.error(f"groups={groups} must divide {inputs[0]} channels and {filters} filters", "groups")
    strides = _strides(section)
    height, width = ((side + 2 * pad - size) // stride + 1 for side, stride in zip(inputs[1:], strides, strict=True))
    normalized = bool(section.whole("batch_normalize", 0))
    activation = _activation(section, "logistic")
    return Convolutional(inputs, (filters, height, width), filters, size, strides, pad, groups, normalized, activation)


def _maxpool(section: Section, inputs: Shape, _layers: list[Layer]) -> Layer:
    strides = _strides(section)
    size = section.whole("size", strides[1], 1)
    pad = section.whole("padding", size - 1, 0)
    height, width = ((side + pad - size) // stride + 1 for side, stride in zip(inputs[1:], strides, strict=True))
    return MaxPool(inputs, (inputs[0], height, width), size, strides, pad)


def _shortcut(section: Section, inputs: Shape, layers: list[Layer]) -> Layer:
    listed = section.ints("from")
    if len(listed) != 1:
        raise section.error("from must name one layer", "from")
    source = _earlier(section, listed[0], layers, "from")
    if layers[source].outputs != inputs:
        raise section.error(f"adds layer {source} of another shape", "from")
    return Shortcut(inputs, inputs, source, _activation(section, "linear"))


def _route(section: Section, inputs: Shape, layers: list[Layer]) -> Layer:
    sources = tuple(_earlier(section, number, layers, "layers") for number in section.ints("layers"))
    if not sources:
        raise section.error("needs layers=")
    groups = section.whole("groups", 1, 1)
    group = section.whole("group_id", 0, 0)
    if group >= groups:
        raise section.error(f"group_id={group} must be less than groups={groups}", "group_id")
    outputs = [layers[source].outputs for source in sources]
    if len({shape[1:] for shape in outputs}) > 1:
        raise section.error("joins layers of different sizes", "layers")
    if any(shape[0] % groups for shape in outputs):
        raise section.error(f"groups={groups} must divide the channels of each layer", "groups")
    channels = sum(shape[0] // groups for shape in outputs)
    return Route(inputs, (channels, *outputs[0][1:]), sources, groups, group)


def _upsample(section: Section, inputs: Shape, _layers: list[Layer]) -> Layer:
    stride = section.whole("stride", 2, 1)
    return Upsample(inputs, (inputs[0], inputs[1] * stride, inputs[2] * stride), stride)


def _yolo(section: Section, inputs: Shape, _layers: list[Layer]) -> Layer:
    values = section.floats("anchors")
    anchors = tuple(zip(values[::2], values[1::2], strict=False))
    mask = tuple(section.ints("mask")) or tuple(range(section.whole("num", len(anchors), 1)))
    classes = section.whole("classes", 20, 1)
    if not anchors or len(values) % 2 or any(not 0 <= index < len(anchors) for index in mask):
        raise section.error("mask must name pairs of anchors", "mask")
    if inputs[0] != len(mask) * (classes + 5):
        raise section.error(
            f"the layer before has {inputs[0]} filters, "
            f"but {len(mask)} anchors x ({classes} classes + 5) need {len(mask) * (classes + 5)}"
        )
    scale = section.real("scale_x_y", 1)
    if not 0 < scale < 100:
        raise section.error("scale_x_y must be a number above 0", "scale_x_y")
    return Yolo(inputs, inputs, mask, anchors, classes, scale, bool(section.whole("new_coords", 0)))


def _strides(section: Section) -> tuple[int, int]:
    """Return the vertical and the horizontal stride; as in Darknet, `stride` stands for what is below 1."""
    stride = section.whole("stride", 1, 1)
    vertical, horizontal = (section.whole(key, stride) for key in ("stride_y", "stride_x"))
    return (vertical if vertical >= 1 else stride), (horizontal if horizontal >= 1 else stride)


def _activation(section: Section, default: str) -> str:
    activation = section.text("activation", default)
    if activation not in ACTIVATIONS:
        advice = ": a comment needs a line of its own" if activation.startswith(ACTIVATIONS) else ""
        raise section.error(
            f"activation={activation} is not one that is supported ({', '.join(ACTIVATIONS)}){advice}", "activation"
        )
    return activation


def _earlier(section: Section, number: int, layers: list[Layer], key: str) -> int:
    index = number if number >= 0 else len(layers) + number
    if not 0 <= index < len(layers):
        raise section.error(f"there is no layer {number} before it", key)
    return index


_BUILDERS = {
    "convolutional": _convolutional,
    "maxpool": _maxpool,
    "shortcut": _shortcut,
    "route": _route,
    "upsample": _upsample,
    "yolo": _yolo,
}
