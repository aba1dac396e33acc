"""The CPU engine: onnxruntime."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaultml_common.machine import cpus
from vaultml_worker.records import InvalidInput, Model
from vaultml_worker.yolo import Candidates

# onnxruntime reports to its maker from the moment it is imported, unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

_LONGEST = 400
"""Characters of onnxruntime's own words in a message."""
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
            raise InvalidInput(f"model {model.name}: onnxruntime can't load it: {_one_line(error)}") from None
        self._name = model.name
        self._size = (model.height, model.width)
        self._one_at_a_time = threading.Lock()

    def warm_up(self) -> None:
        """Run one grey frame. Raises InvalidInput when the graph can't be run, or gives what no detector gives."""
        try:
            (found,) = self.detect(np.full((1, *self._size, 3), 128, np.uint8))
        except Exception as error:  # as above
            raise InvalidInput(f"model {self._name}: onnxruntime can't run it: {_one_line(error)}") from None
        n = len(found.scores) if found.scores.ndim == 1 else -1
        if found.boxes.shape != (n, 4) or found.classes.shape != (n,) or found.classes.dtype.kind not in "iu":
            raise InvalidInput(
                f"model {self._name}: of one frame it gives boxes {list(found.boxes.shape)}, scores "
                f"{list(found.scores.shape)}, classes {list(found.classes.shape)} ({found.classes.dtype}), not boxes "
                "[n, 4], scores [n], classes [n] (whole numbers): see docs/models.md"
            )

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


def run_once(
    path: Path, graph: bytes, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
) -> list[NDArray[Any]]:
    """Run the serialized graph of the model at `path` once. Raises InvalidInput with onnxruntime's reason."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return [np.asarray(output) for output in session.run(list(outputs), dict(inputs))]
    except Exception as error:  # onnxruntime's own exceptions have no common public base
        raise InvalidInput(f"{path}: onnxruntime can't run it: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def version() -> str:
    """The version of onnxruntime."""
    return str(onnxruntime.__version__)
