"""Darknet's own files: the network description (.cfg), its layer table, and the weights."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaultml_worker.records import InvalidInput

Floats = NDArray[np.float32]
Shape = tuple[int, int, int]
"""Channels, height, width."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer with the shapes that go in and come out, as (channels, height, width)."""

    inputs: Shape
    outputs: Shape


@dataclass(frozen=True, slots=True)
class Convolutional(Layer):
    """A convolution, its batch norm and its activation."""

    filters: int
    size: int
    stride: int
    pad: int
    groups: int
    batch_normalize: bool
    activation: str

    @property
    def weights(self) -> int:
        """How many floats the weights file holds for it."""
        kernel = self.filters * (self.inputs[0] // self.groups) * self.size**2
        return kernel + self.filters * (4 if self.batch_normalize else 1)


@dataclass(frozen=True, slots=True)
class MaxPool(Layer):
    """A max pool; `pad` is the padding of both sides together, in pixels."""

    size: int
    stride: int
    pad: int


@dataclass(frozen=True, slots=True)
class Shortcut(Layer):
    """The sum of the previous layer and layer number `source`."""

    source: int
    activation: str


@dataclass(frozen=True, slots=True)
class Route(Layer):
    """The outputs of `sources`, one after the other along the channels."""

    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Upsample(Layer):
    """Each pixel `stride` × `stride` times."""

    stride: int


@dataclass(frozen=True, slots=True)
class Yolo(Layer):
    """A detection head; `anchors` are (width, height) in network pixels, `mask` says which of them it uses."""

    mask: tuple[int, ...]
    anchors: tuple[tuple[float, float], ...]
    classes: int


@dataclass(frozen=True, slots=True)
class Network:
    """A network description: the input's size in pixels, and the layers in order."""

    name: str
    width: int
    height: int
    channels: int
    layers: tuple[Layer, ...]

    @property
    def heads(self) -> tuple[Yolo, ...]:
        """The detection heads in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Yolo))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.heads[0].classes


@dataclass(frozen=True, slots=True)
class Convolution:
    """What the weights file holds for one convolution; the batch norm is folded into kernel and bias.

    `kernel` is (filters, channels / groups, size, size), `bias` is (filters,), both float32.
    """

    kernel: Floats = field(repr=False)
    bias: Floats = field(repr=False)


def read_cfg(path: Path) -> Network:
    """Read a network description. Raises InvalidInput that names the line or section that is wrong."""
    try:
        sections = list(_sections(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: can't be read as a Darknet cfg ({type(error).__name__})") from None
    if not sections or sections[0][0] not in ("net", "network"):
        raise InvalidInput(f"{path}: a Darknet cfg begins with the section [net]")
    try:
        return _network(path.stem, sections)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def layer_table(network: Network) -> str:
    """The table that Darknet prints when it loads the network, byte for byte."""
    rows = ["layer     filters    size              input                output"]
    rows += [f"{index:5d} {_row(layer)}" for index, layer in enumerate(network.layers)]
    return "\n".join(rows) + "\n"


def read_weights(network: Network, path: Path) -> tuple[list[Convolution], str]:
    """The convolutions in layer order, and the file's sha256.

    Raises InvalidInput, with the sizes wanted and found, when the file belongs to another network.
    """
    try:
        body = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: can't be read ({error.strerror})") from None
    layers = [layer for layer in network.layers if isinstance(layer, Convolutional)]
    header = _header_size(body)
    wanted = header + 4 * sum(layer.weights for layer in layers)
    if len(body) != wanted:
        raise InvalidInput(
            f"{path}: {len(body):,} bytes, but {network.name}.cfg needs {wanted:,}: "
            f"{'the file is cut off, or' if len(body) < wanted else 'these weights'} belong to another cfg"
        )
    values = np.frombuffer(body, "<f4", offset=header)
    if not np.isfinite(values).all():
        raise InvalidInput(f"{path}: holds values that are not numbers: the file is damaged")
    convolutions, place = [], 0
    for layer in layers:
        convolutions.append(_fold(layer, values[place : place + layer.weights]))
        place += layer.weights
    return convolutions, hashlib.sha256(body).hexdigest()


def _header_size(body: bytes) -> int:
    major, minor = np.frombuffer(body[:8].ljust(8, b"\0"), "<i4")
    return 20 if int(major) * 10 + int(minor) >= 2 and major < 1000 and minor < 1000 else 16


def _fold(layer: Convolutional, values: Floats) -> Convolution:
    n = layer.filters
    bias, rest = values[:n], values[n:]
    shape = (n, layer.inputs[0] // layer.groups, layer.size, layer.size)
    if not layer.batch_normalize:
        return Convolution(rest.reshape(shape), bias)
    scale, mean, variance, kernel = rest[:n], rest[n : 2 * n], rest[2 * n : 3 * n], rest[3 * n :].reshape(shape)
    # Darknet adds 1e-6 to the standard deviation, not to the variance.
    factor = scale / (np.sqrt(np.maximum(variance, 0)) + np.float32(1e-6))
    return Convolution(
        (kernel * factor[:, None, None, None]).astype(np.float32), (bias - mean * factor).astype(np.float32)
    )


def _sections(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Darknet's dialect: sections repeat, `#` and `;` begin comment lines, spaces mean nothing."""
    kind, options = "", dict[str, str]()
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"\s", "", line)
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            if kind:
                yield kind, options
            kind, options = line[1:-1].lower(), {}
        elif "=" in line and kind:
            key, _, value = line.partition("=")
            options[key] = value
        else:
            raise InvalidInput(f"line {number} is neither [section] nor key=value")
    if kind:
        yield kind, options


class _Options:
    """One section's options with Darknet's defaults; the section's name goes into every error."""

    def __init__(self, section: str, values: Mapping[str, str]) -> None:
        self._section = section
        self._values = values

    def text(self, key: str, default: str) -> str:
        return self._values.get(key, default)

    def whole(self, key: str, default: int, least: int | None = None) -> int:
        number = self._number(self._values.get(key, str(default)), key)
        if number != int(number) or (least is not None and number < least):
            raise InvalidInput(f"{self._section}: {key} must be a whole number{f' from {least}' if least else ''}")
        return int(number)

    def floats(self, key: str) -> list[float]:
        return [self._number(part, key) for part in self._values.get(key, "").split(",") if part]

    def ints(self, key: str) -> list[int]:
        return [int(value) for value in self.floats(key)]

    def _number(self, text: str, key: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not abs(number) < 1e9:
            raise InvalidInput(f"{self._section}: {key}={text} is not a number")
        return number


def _network(name: str, sections: list[tuple[str, dict[str, str]]]) -> Network:
    net = _Options("[net]", sections[0][1])
    width, height, channels = (net.whole(key, 0) for key in ("width", "height", "channels"))
    if not (0 < width <= 8192 and 0 < height <= 8192 and channels == 3):
        raise InvalidInput("[net] needs width and height up to 8192, and channels=3")
    layers: list[Layer] = []
    shape = (channels, height, width)
    for index, (kind, values) in enumerate(sections[1:]):
        options = _Options(f"layer {index} [{kind}]", values)
        if kind not in _BUILDERS:
            raise InvalidInput(f"layer {index}: [{kind}] is not a layer of YOLOv3 ({', '.join(_BUILDERS)})")
        layers.append(_BUILDERS[kind](options, shape, layers))
        shape = layers[-1].outputs
        if min(shape) < 1 or max(shape) > 1 << 20:
            raise InvalidInput(f"layer {index} [{kind}]: its output would be {shape[2]} x {shape[1]} x {shape[0]}")
    network = Network(name, width, height, channels, tuple(layers))
    if not network.heads:
        raise InvalidInput("there is no [yolo] layer, so nothing would be detected")
    if len({head.classes for head in network.heads}) > 1:
        raise InvalidInput("the [yolo] layers differ in classes")
    return network


def _convolutional(options: _Options, inputs: Shape, _layers: list[Layer]) -> Layer:
    filters, size = options.whole("filters", 1, 1), options.whole("size", 1, 1)
    stride, groups = options.whole("stride", 1, 1), options.whole("groups", 1, 1)
    pad = size // 2 if options.whole("pad", 0) else options.whole("padding", 0)
    activation = options.text("activation", "logistic")
    if activation not in ("leaky", "linear"):
        raise InvalidInput(f"{options._section}: activation={activation} is not one of YOLOv3's (leaky, linear)")
    if inputs[0] % groups or filters % groups:
        raise InvalidInput(
            f"{options._section}: groups={groups} must divide {inputs[0]} channels and {filters} filters"
        )
    height, width = ((side + 2 * pad - size) // stride + 1 for side in inputs[1:])
    normalized = bool(options.whole("batch_normalize", 0))
    return Convolutional(inputs, (filters, height, width), filters, size, stride, pad, groups, normalized, activation)


def _maxpool(options: _Options, inputs: Shape, _layers: list[Layer]) -> Layer:
    stride = options.whole("stride", 1, 1)
    size = options.whole("size", stride, 1)
    pad = options.whole("padding", size - 1, 0)
    height, width = ((side + pad - size) // stride + 1 for side in inputs[1:])
    return MaxPool(inputs, (inputs[0], height, width), size, stride, pad)


def _shortcut(options: _Options, inputs: Shape, layers: list[Layer]) -> Layer:
    source = _earlier(options, options.whole("from", 0), layers)
    if layers[source].outputs != inputs:
        raise InvalidInput(f"{options._section}: adds layer {source} of another shape")
    activation = options.text("activation", "linear")
    if activation not in ("leaky", "linear"):
        raise InvalidInput(f"{options._section}: activation={activation} is not one of YOLOv3's (leaky, linear)")
    return Shortcut(inputs, inputs, source, activation)


def _route(options: _Options, inputs: Shape, layers: list[Layer]) -> Layer:
    sources = tuple(_earlier(options, number, layers) for number in options.ints("layers"))
    if not sources:
        raise InvalidInput(f"{options._section}: needs layers=")
    outputs = [layers[source].outputs for source in sources]
    if len({shape[1:] for shape in outputs}) > 1:
        raise InvalidInput(f"{options._section}: joins layers of different sizes")
    return Route(inputs, (sum(shape[0] for shape in outputs), *outputs[0][1:]), sources)


def _upsample(options: _Options, inputs: Shape, _layers: list[Layer]) -> Layer:
    stride = options.whole("stride", 2, 1)
    return Upsample(inputs, (inputs[0], inputs[1] * stride, inputs[2] * stride), stride)


def _yolo(options: _Options, inputs: Shape, _layers: list[Layer]) -> Layer:
    values = options.floats("anchors")
    anchors = tuple(zip(values[::2], values[1::2], strict=False))
    mask = tuple(options.ints("mask")) or tuple(range(len(anchors)))
    classes = options.whole("classes", 20, 1)
    if not anchors or len(values) % 2 or any(not 0 <= index < len(anchors) for index in mask):
        raise InvalidInput(f"{options._section}: mask must name pairs of anchors")
    if inputs[0] != len(mask) * (classes + 5):
        raise InvalidInput(
            f"{options._section}: the layer before has {inputs[0]} filters, "
            f"but {len(mask)} anchors x ({classes} classes + 5) need {len(mask) * (classes + 5)}"
        )
    return Yolo(inputs, inputs, mask, anchors, classes)


def _earlier(options: _Options, number: int, layers: list[Layer]) -> int:
    index = number if number >= 0 else len(layers) + number
    if not 0 <= index < len(layers):
        raise InvalidInput(f"{options._section}: there is no layer {number} before it")
    return index


_BUILDERS = {
    "convolutional": _convolutional,
    "conv": _convolutional,
    "maxpool": _maxpool,
    "shortcut": _shortcut,
    "route": _route,
    "upsample": _upsample,
    "yolo": _yolo,
}


def _row(layer: Layer) -> str:
    (c, h, w), (oc, oh, ow) = layer.inputs, layer.outputs
    sizes = f"{w:4d} x{h:4d} x{c:4d}   ->  {ow:4d} x{oh:4d} x{oc:4d}"
    match layer:
        case Convolutional(filters=n, size=k, stride=stride, groups=groups):
            operations = 2.0 * n * k * k * c / groups * oh * ow / 1e9
            return f"conv  {n:5d} {k:2d} x{k:2d} /{stride:2d}  {sizes}  {operations:5.3f} BFLOPs"
        case MaxPool(size=k, stride=stride):
            return f"max          {k} x {k} / {stride}  {sizes}"
        case Shortcut(source=source):
            return f"res  {source:3d}                {sizes}"
        case Upsample(stride=stride):
            return f"upsample           {stride:2d}x  {sizes}"
        case Route(sources=sources):
            return "route " + "".join(f" {source}" for source in sources)
        case _:
            return "yolo"
