"""The CPU engine: onnxruntime."""

import os
import threading

import numpy as np
from numpy.typing import NDArray

from vaultml_common.machine import cpus
from vaultml_worker.records import InvalidInput, Model
from vaultml_worker.yolo import Candidates

# onnxruntime reports to its maker from the moment it is imported, unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

_BATCH = 4  # on a CPU a larger batch only takes memory


class OnnxEngine:
    """Runs the graph on this machine's CPU with `threads` threads (default: as many as the container may use)."""

    name = "onnxruntime"
    gpu = None
    busy_seconds = 0.0

    def __init__(self, model: Model, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cpus()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Waiting threads sleep instead of spinning: the decoders need those cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model.onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common public base
            raise InvalidInput(f"model {model.name}: onnxruntime can't load it: {error}") from None
        self._size = (model.height, model.width)
        self._one_at_a_time = threading.Lock()

    def warm_up(self) -> None:
        """Run one grey frame."""
        self.detect(np.full((1, *self._size, 3), 128, np.uint8))

    def detect(self, frames: NDArray[np.uint8]) -> list[Candidates]:
        """See Engine."""
        found: list[Candidates] = []
        for first in range(0, len(frames), _BATCH):
            with self._one_at_a_time:
                outputs = self._session.run(["boxes", "scores", "classes"], {"frames": frames[first : first + _BATCH]})
            found += [Candidates(*parts) for parts in zip(*outputs, strict=True)]
        return found

    def close(self) -> None:
        """Nothing to give back."""


def version() -> str:
    """The version of onnxruntime."""
    return str(onnxruntime.__version__)
