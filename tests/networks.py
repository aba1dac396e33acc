"""Small Darknet networks with every kind of layer and key that YOLOv3, YOLOv4 and YOLOv7-tiny have."""

import struct
from pathlib import Path

import numpy as np

from vaultml_worker.darknet import Convolutional, Floats, Network

CFG = """
[net]
batch=64
subdivisions=16
width=32
height=32
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=8
size=1
stride=1
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=16
size=3
stride=1
pad=1
activation=leaky

[shortcut]
from=-3
activation=linear

[maxpool]
size=2
stride=1

[maxpool]
size=5
stride=1

[convolutional]
size=1
stride=1
pad=1
filters=24
activation=linear

[yolo]
mask = 0,1,2
anchors = 4,5,  8,9,  12,20,  30,31,  40,44,  60,50
classes=3
num=6

[route]
layers = -3

[upsample]
stride=2

[route]
layers = -1, 1

[convolutional]
size=1
stride=1
pad=1
filters=24
activation=linear

[yolo]
mask = 3,4,5
anchors = 4,5,  8,9,  12,20,  30,31,  40,44,  60,50
classes=3
num=6
"""


_TRAINING = """batch=64
subdivisions=16
momentum=0.949
decay=0.0005
angle=0
saturation=1.5
exposure=1.5
hue=.1
learning_rate=0.0013
burn_in=1000
max_batches=500500
policy=steps
steps=400000,450000
scales=.1,.1
mosaic=1
letter_box=1
ema_alpha=0.9998
"""
_HEAD = """classes=3
num=9
jitter=.3
ignore_thresh = .7
truth_thresh = 1
iou_thresh=0.213
cls_normalizer=1.0
obj_normalizer=1.0
iou_normalizer=0.07
iou_loss=ciou
nms_kind=greedynms
beta_nms=0.6
max_delta=5
random=1
resize=1.5
objectness_smooth=1
anchors = 4,5,  8,9,  12,20,  30,31,  40,44,  60,50,  42,46, 32,43, 59,51
"""


def described(*layers: str, size: int = 64) -> str:
    """A cfg from one line a layer, such as `conv 8 3 2 mish`, `route -1 groups=2`, `yolo 0,1,2 new_coords=1`."""
    text = f"[net]\n{_TRAINING}width={size}\nheight={size}\nchannels=3\n"
    for layer in layers:
        kind, *given = layer.split()
        keys = [part for part in given if "=" in part]
        values = [part for part in given if "=" not in part]
        names: tuple[str, ...]
        match kind:
            case "conv":
                names = ("filters", "size", "stride", "activation")
                text += f"[convolutional]\nbatch_normalize={int(values[0] != '24')}\npad=1\n"
            case "max":
                names, text = ("size", "stride"), f"{text}[maxpool]\n"
            case "short":
                names, text = ("from",), f"{text}[shortcut]\nactivation=linear\n"
            case "route":
                names, text = ("layers",), f"{text}[route]\n"
            case "up":
                names, text = (), f"{text}[upsample]\nstride=2\n"
            case _:
                names, text = ("mask",), f"{text}[yolo]\n{_HEAD}"
        text += "".join(f"{name}={value}\n" for name, value in zip(names, values, strict=True))
        text += "".join(f"{key}\n" for key in keys)
    return text


YOLOV4 = described(
    *("conv 8 3 1 mish", "conv 16 3 2 mish"),
    *("conv 8 1 1 mish", "route -2", "conv 8 1 1 mish", "conv 8 1 1 mish", "conv 8 3 1 mish", "short -3"),
    *("conv 8 1 1 mish stopbackward=800", "route -1,-7", "conv 16 1 1 mish"),
    *("conv 16 3 2 mish", "conv 16 3 2 mish", "conv 16 3 2 mish", "conv 16 3 2 mish"),
    *("conv 8 1 1 leaky", "max 5 1", "route -2", "max 9 1", "route -4", "max 13 1", "route -1,-3,-5,-6"),
    *("conv 8 1 1 leaky", "up", "route -11", "conv 8 1 1 leaky", "route -1,-3", "conv 8 3 1 leaky"),
    *("conv 24 1 1 linear", "yolo 0,1,2 scale_x_y=1.2"),
    *("route -3", "conv 8 3 2 leaky", "route -1,-10", "conv 8 3 1 leaky", "conv 24 1 1 linear"),
    "yolo 6,7,8 scale_x_y=1.05",
)
"""YOLOv4 in little: mish, cross-stage parts, pyramid pooling, paths up and down, scale_x_y."""

YOLOV4_TINY = described(
    *("conv 8 3 2 leaky", "conv 8 3 2 leaky", "conv 16 3 1 leaky", "route -1 groups=2 group_id=1", "conv 8 3 1 leaky"),
    *("conv 8 3 1 leaky", "route -1,-2", "conv 16 1 1 leaky", "route -6,-1", "max 2 2", "conv 16 3 2 leaky"),
    *("conv 8 1 1 leaky", "conv 24 1 1 linear", "yolo 3,4,5 scale_x_y=1.05", "route -3"),
    *("conv 8 1 1 leaky", "up", "route -1,9", "conv 24 1 1 linear", "yolo 1,2,3 scale_x_y=1.05"),
)
"""YOLOv4-tiny in little: halves of routes."""

YOLOV7_TINY = described(
    *("conv 8 3 2 leaky", "conv 8 3 2 leaky", "conv 8 1 1 leaky", "route -2", "conv 8 1 1 leaky", "conv 8 3 1 leaky"),
    *("conv 8 3 1 leaky", "route -1,-2,-3,-5", "conv 16 1 1 leaky", "max 2 2", "conv 16 3 1 swish", "max 2 2"),
    *("conv 8 1 1 leaky", "max 5 1", "route -2", "max 9 1", "route -1,-3", "conv 8 3 1 relu", "up", "route -1,10"),
    *("conv 24 1 1 logistic", "yolo 0,1,2 scale_x_y=2.0 new_coords=1"),
    *("route 17", "conv 24 1 1 logistic", "yolo 3,4,5 scale_x_y=2.0 new_coords=1"),
)
"""YOLOv7-tiny in little: new_coords behind logistic convolutions; swish and relu as in its larger kin."""

MIXED = described(
    *("conv 8 3 2 leaky", "conv 8 3 2 swish", "conv 8 3 2 relu", "conv 24 1 1 linear", "yolo 0,1,2 scale_x_y=1.1"),
    *("route 2", "conv 24 1 1 logistic", "yolo 3,4,5 scale_x_y=2.0 new_coords=1"),
)
"""One head of each kind."""


def tiny_weights(network: Network, path: Path, seed: int) -> Floats:
    """Write random weights with sane batch-norm statistics; gives the floats behind the header."""
    random = np.random.default_rng(seed)
    parts = []
    for layer in network.layers:
        if isinstance(layer, Convolutional):
            n = layer.filters
            fan_in = layer.inputs[0] // layer.groups * layer.size**2
            parts.append(random.normal(0, 0.3, n))
            if layer.batch_normalize:
                parts += [random.uniform(0.7, 1.3, n), random.normal(0, 0.3, n), random.uniform(0.5, 1.5, n)]
            kernel = layer.weights - n * (4 if layer.batch_normalize else 1)
            parts.append(random.normal(0, (2 / fan_in) ** 0.5, kernel))
    values: Floats = np.concatenate(parts).astype(np.float32)
    path.write_bytes(struct.pack("<iiiq", 0, 2, 0, 0) + values.tobytes())
    return values
