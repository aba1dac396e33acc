"""Networks of any size with random weights that they survive: for timing and comparing engines without trained ones."""

import re
from pathlib import Path

import numpy as np

import vaultml_worker
from vaultml_worker import fetch
from vaultml_worker.darknet import Convolutional, Network, Shortcut, read_cfg

_VERSION = np.array([0, 2, 0], "<i4")
_SEEN = np.array([0], "<u8")


def prepared(name: str, folder: Path) -> tuple[Path, Path]:
    """Cfg and weights in `folder` of a network such as yolov3-608: yolov3-tiny's trained ones, for others random ones.

    Raises InvalidInput when yolov3-tiny can't be had.
    """
    kind, _, side = name.rpartition("-")
    into = folder / name
    into.mkdir()
    if kind == "yolov3-tiny":
        tiny = fetch.model(kind)
        return resized(tiny / f"{kind}.cfg", into, int(side), int(side)), tiny / f"{kind}.weights"
    cfg = resized(Path(vaultml_worker.__file__).parent / "data" / f"{kind}.cfg", into, int(side), int(side))
    weights = cfg.with_suffix(".weights")
    write_random(read_cfg(cfg), weights, seed=1)
    return cfg, weights


def resized(cfg: Path, folder: Path, width: int, height: int) -> Path:
    """Put a copy of a Darknet cfg into `folder` that takes one frame of `width` x `height` pixels."""
    text = cfg.read_text()
    for key, value in {"batch": 1, "subdivisions": 1, "width": width, "height": height}.items():
        text = re.sub(rf"^{key}\s*=.*$", f"{key}={value}", text, flags=re.MULTILINE)
    path = folder / cfg.name
    path.write_text(text)
    return path


def write_random(network: Network, path: Path, seed: int) -> None:
    """Write a Darknet weights file whose activations stay between about 1 and 100 from the first layer to the last.

    Kernels are He-normal; batch norms have scales and variances around 1, so that nothing is near their epsilon (where
    Darknet and OpenCV differ). What is added to a shortcut is scaled down to 0.3, else 23 of them multiply the signal
    by 2^11; the heads to 0.1, so that box sizes, which are exponentials, stay finite.
    """
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(_VERSION.tobytes() + _SEEN.tobytes())
        for layer, following in zip(network.layers, (*network.layers[1:], None), strict=True):
            if not isinstance(layer, Convolutional):
                continue
            n, inputs = layer.filters, layer.inputs[0] // layer.groups * layer.size**2
            gain = 0.3 if isinstance(following, Shortcut) else 1.0
            numbers = [random.uniform(-0.2, 0.2, n)]
            if layer.batch_normalize:
                numbers += [gain * random.uniform(0.7, 1.3, n), random.uniform(-0.2, 0.2, n)]
                numbers += [random.uniform(0.7, 1.3, n)]
            else:
                gain *= 0.1
            kernel = random.standard_normal(n * inputs, np.float32) * np.sqrt(2 / inputs)
            numbers.append(kernel if layer.batch_normalize else gain * kernel)
            for part in numbers:
                file.write(part.astype("<f4").tobytes())
