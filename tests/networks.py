"""A small Darknet network with every kind of layer that YOLOv3 has."""

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
