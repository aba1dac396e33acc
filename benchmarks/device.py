"""`python -m benchmarks.device …` is `vaultml …` with a simulated device, for measuring what is around the engine.

DEVICE_FRAMES is how many frames it takes a second (empty: the CPU engine stays), DECODING_CORES for how many cores
there are decoders.
"""

import os
import threading
import time

import numpy as np
from numpy.typing import NDArray

from vaultml_worker import app, cli, engines
from vaultml_worker.records import Model
from vaultml_worker.yolo import Candidates

_CANDIDATES, _SEEN = 1000, 5


class Device:
    """An engine that only takes time: so many frames a second, in the order in which they come."""

    name = "simulated"
    gpu = None
    busy_seconds = 0.0

    def __init__(self, model: Model, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0
        self._lock = threading.Lock()
        random = np.random.default_rng(1)
        corner = random.uniform(0, [model.width / 2, model.height / 2] * 2, (_CANDIDATES, 4)).astype(np.float32)
        corner[:, 2:] += [model.width / 2, model.height / 2]
        scores = np.linspace(0.3, 0, _CANDIDATES, dtype=np.float32)
        scores[:_SEEN] = 0.9
        self._found = Candidates(corner, scores, random.integers(0, len(model.labels), _CANDIDATES))

    def warm_up(self) -> None:
        """See Engine."""

    def detect(self, frames: NDArray[np.uint8]) -> list[Candidates]:
        """See Engine."""
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + len(frames) / self._rate
            done = self._free_at
        time.sleep(max(0.0, done - time.perf_counter()))
        return [self._found] * len(frames)

    def close(self) -> None:
        """See Engine."""


def main() -> None:
    """Put the device in the place of the CPU engine, and run the command."""
    if rate := os.environ.get("DEVICE_FRAMES"):
        engines._ENGINES["onnxruntime"] = lambda model, _: Device(model, float(rate))
    if cores := os.environ.get("DECODING_CORES"):
        setattr(app, "cpus", lambda: int(cores))  # noqa: B010 - it is not exported
    cli.main()


if __name__ == "__main__":
    main()
