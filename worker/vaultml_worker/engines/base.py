"""What every engine offers, and what it reports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vaultml_worker.yolo import Candidates

MAX_BATCH = 16
"""Frames of a full batch, unless the settings say otherwise."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that an engine runs on.

    `uuid` begins with GPU- or MIG-; `memory` is in bytes; `driver` is the driver's own version, empty where it can't be
    read; `compute_capability` is (major, minor); `runtime` is what runs on it, with its version.
    """

    name: str
    uuid: str
    memory: int
    driver: str
    compute_capability: tuple[int, int]
    runtime: str


class Engine(Protocol):
    """A network loaded and ready on some device."""

    name: str

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that it runs on; None: on the CPU."""
        ...

    @property
    def busy_seconds(self) -> float:
        """For how long a GPU has worked on the batch that it has; 0: it has none, or the network runs on the CPU."""
        ...

    def warm_up(self) -> None:
        """Run once on nothing, so that the first recording doesn't pay for start-up."""
        ...

    def detect(self, frames: NDArray[np.uint8]) -> list[Candidates]:
        """Candidates of each frame; `frames` is uint8 RGB (n, height, width, 3) of the network's size. Thread-safe."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...


class EngineStopped(Exception):  # noqa: N818 - no error: it was asked to
    """The worker is to end: the engine that was being built won't be."""


class Observer(Protocol):
    """Who hears what an engine does. Called from any thread; must not raise."""

    def gpu(self, gpu: Gpu) -> None:
        """The GPU in use is known."""
        ...

    def building(self, part: float) -> None:
        """So much of an engine is built, 0..1."""
        ...

    def batch(self, frames: int) -> None:
        """The largest batch is now so many frames."""
        ...

    def info(self, message: str) -> None:
        """Something that is worth a line."""
        ...

    def warning(self, message: str) -> None:
        """Something that somebody should look at."""
        ...


class Silent:
    """An observer that nobody listens to."""

    def gpu(self, gpu: Gpu) -> None:
        """See Observer."""

    def building(self, part: float) -> None:
        """See Observer."""

    def batch(self, frames: int) -> None:
        """See Observer."""

    def info(self, message: str) -> None:
        """See Observer."""

    def warning(self, message: str) -> None:
        """See Observer."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Options:
    """How an engine is set up.

    `cache`: folder for built engines, None keeps none; `max_batch`: frames in a full batch, at least 1; `stopped` says
    whether the worker is to end, which gives up a build.
    """

    cache: Path | None = None
    max_batch: int = MAX_BATCH
    observer: Observer = field(default_factory=Silent)
    stopped: Callable[[], bool] = _never
