"""The layers of a Darknet network, with the shapes that go in and come out."""

from dataclasses import dataclass, field

Shape = tuple[int, int, int]
"""Channels, height, width."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer with the shapes that go in and come out, as (channels, height, width)."""

    inputs: Shape
    outputs: Shape


@dataclass(frozen=True, slots=True)
class Convolutional(Layer):
    """A convolution, its batch norm and its activation; `strides` are (vertical, horizontal)."""

    filters: int
    size: int
    strides: tuple[int, int]
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
    """A max pool; `strides` are (vertical, horizontal), `pad` is the padding of both sides together, in pixels."""

    size: int
    strides: tuple[int, int]
    pad: int


@dataclass(frozen=True, slots=True)
class Shortcut(Layer):
    """The sum of the previous layer and layer number `source`."""

    source: int
    activation: str


@dataclass(frozen=True, slots=True)
class Route(Layer):
    """The outputs of `sources`, one after the other along the channels.

    Of each only part number `group` (from 0) of `groups` equal parts of its channels.
    """

    sources: tuple[int, ...]
    groups: int
    group: int


@dataclass(frozen=True, slots=True)
class Upsample(Layer):
    """Each pixel `stride` × `stride` times."""

    stride: int


@dataclass(frozen=True, slots=True)
class Yolo(Layer):
    """A detection head; `anchors` are (width, height) in network pixels, `mask` says which of them it uses.

    `scale_xy` stretches the centre's offset about the middle of its cell. `new_coords`: the layer before has applied
    the logistic function to everything, and sizes are squares instead of exponentials.
    """

    mask: tuple[int, ...]
    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale_xy: float
    new_coords: bool


@dataclass(frozen=True, slots=True)
class Network:
    """A network description: the input's size in pixels, and the layers in order.

    `channels` is 3 for RGB, 1 for grey. `ignored` are sentences on keys in it that Darknet ignores.
    """

    name: str
    width: int
    height: int
    channels: int
    layers: tuple[Layer, ...]
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @property
    def heads(self) -> tuple[Yolo, ...]:
        """The detection heads in order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Yolo))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.heads[0].classes
