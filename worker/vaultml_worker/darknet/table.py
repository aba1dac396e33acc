"""The layer table that Darknet prints when it loads a network."""

from vaultml_worker.darknet.layers import Convolutional, Layer, MaxPool, Network, Route, Shortcut, Upsample


def layer_table(network: Network) -> str:
    """Return the table that Darknet prints when it loads the network, byte for byte.

    What the original Darknet doesn't know is added in its style: `/2x1` for strides that differ (horizontal first), and
    `1/2` behind a route that takes part 1 of 2 (from 0) of the channels.
    """
    rows = ["layer     filters    size              input                output"]
    rows += [f"{index:5d} {_row(layer)}" for index, layer in enumerate(network.layers)]
    return "\n".join(rows) + "\n"


def _row(layer: Layer) -> str:
    (c, h, w), (oc, oh, ow) = layer.inputs, layer.outputs
    sizes = f"{w:4d} x{h:4d} x{c:4d}   ->  {ow:4d} x{oh:4d} x{oc:4d}"
    match layer:
        case Convolutional(filters=n, size=k, strides=strides, groups=groups):
            operations = 2.0 * n * k * k * c / groups * oh * ow / 1e9
            return f"conv  {n:5d} {k:2d} x{k:2d} /{_stride(strides, 2)}  {sizes}  {operations:5.3f} BFLOPs"
        case MaxPool(size=k, strides=strides):
            return f"max          {k} x {k} / {_stride(strides, 1)}  {sizes}"
        case Shortcut(source=source):
            return f"res  {source:3d}                {sizes}"
        case Upsample(stride=stride):
            return f"upsample           {stride:2d}x  {sizes}"
        case Route(sources=sources, groups=groups, group=group):
            part = f"  {group}/{groups}" if groups > 1 else ""
            return "route " + "".join(f" {source}" for source in sources) + part
        case _:
            return "yolo"


def _stride(strides: tuple[int, int], width: int) -> str:
    vertical, horizontal = strides
    return f"{horizontal:{width}d}" if vertical == horizontal else f"{horizontal}x{vertical}"
