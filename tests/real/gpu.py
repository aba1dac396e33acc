"""The GPU engine on the stand-in: what its tests share."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.networks import CFG, tiny_weights
from vaultml_worker import darknet, model
from vaultml_worker.engines import Gpu
from vaultml_worker.records import Model
from vaultml_worker.yolo import Candidates

Frames = NDArray[np.uint8]


@contextmanager
def importable(folder: Path, package: str) -> Iterator[None]:
    """Within the block `package` can be imported from `folder`; afterwards ENGINE=auto must not find it any more."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


@dataclass
class Heard:
    """An observer that remembers."""

    gpus: list[Gpu] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def gpu(self, gpu: Gpu) -> None:
        self.gpus.append(gpu)

    def building(self, part: float) -> None:
        self.progress.append(part)

    def batch(self, frames: int) -> None:
        self.batches.append(frames)

    def info(self, message: str) -> None:
        self.lines.append(message)

    def warning(self, message: str) -> None:
        self.warnings.append(message)


def small_model(folder: Path, seed: int) -> Model:
    """A network of 32 × 32 with every kind of layer, and random weights."""
    cfg = folder / "small.cfg"
    cfg.write_text(CFG)
    tiny_weights(darknet.read_cfg(cfg), folder / "small.weights", seed)
    (folder / "small.names").write_text("one\ntwo\nthree\n")
    return model.load(cfg)


def noise(loaded: Model, count: int, seed: int) -> Frames:
    """Random frames of the model's size."""
    shape = (count, loaded.height, loaded.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def same(found: Sequence[Candidates], wanted: Sequence[Candidates]) -> bool:
    """Whether two engines say the same: both run on onnxruntime here, so only its batching may show."""
    return len(found) == len(wanted) and all(_close(one, other) for one, other in zip(found, wanted, strict=True))


def _close(one: Candidates, other: Candidates) -> bool:
    return (
        np.allclose(one.scores, other.scores, atol=1e-4)
        and np.allclose(one.boxes, other.boxes, rtol=1e-3, atol=1e-2)
        and np.array_equal(one.classes, other.classes)
    )


def chunks(frames: Frames, sizes: Sequence[int]) -> Iterator[Frames]:
    """The frames in pieces of these sizes, over and over."""
    first = turn = 0
    while first < len(frames):
        size = sizes[turn % len(sizes)]
        yield frames[first : first + size]
        first, turn = first + size, turn + 1
