"""What every engine offers."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vaultml_worker.yolo import Candidates


class Engine(Protocol):
    """A network loaded and ready on some device."""

    name: str

    def warm_up(self) -> None:
        """Run once on nothing, so that the first recording doesn't pay for start-up."""
        ...

    def detect(self, frames: NDArray[np.uint8]) -> list[Candidates]:
        """Candidates of each frame; `frames` is uint8 RGB (n, height, width, 3) of the network's size. Thread-safe."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...
