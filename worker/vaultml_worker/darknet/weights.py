"""Darknet's weights files: what they hold for each convolution, with the batch norm folded in."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaultml_worker.darknet.layers import Convolutional, Network
from vaultml_worker.records import InvalidInput

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Convolution:
    """What the weights file holds for one convolution; the batch norm is folded into kernel and bias.

    `kernel` is (filters, channels / groups, size, size), `bias` is (filters,), both float32.
    """

    kernel: Floats = field(repr=False)
    bias: Floats = field(repr=False)


def read_weights(network: Network, path: Path) -> tuple[list[Convolution], str]:
    """Return the convolutions in layer order, and the file's sha256.

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
            f"{'the file is cut off, or ' if len(body) < wanted else ''}these weights belong to another cfg"
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
