"""Darknet's own files: the network description (.cfg), its layer table, and the weights."""

from vaultml_worker.darknet.cfg import ACTIVATIONS, read_cfg
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
from vaultml_worker.darknet.table import layer_table
from vaultml_worker.darknet.text import read_lines
from vaultml_worker.darknet.weights import Convolution, Floats, read_weights

__all__ = [
    "ACTIVATIONS",
    "Convolution",
    "Convolutional",
    "Floats",
    "Layer",
    "MaxPool",
    "Network",
    "Route",
    "Shape",
    "Shortcut",
    "Upsample",
    "Yolo",
    "layer_table",
    "read_cfg",
    "read_lines",
    "read_weights",
]
