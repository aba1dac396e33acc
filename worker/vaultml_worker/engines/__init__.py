"""Engines: what runs a network. A new one is a file here and a line in `_ENGINES`."""

from collections.abc import Callable

from vaultml_worker.engines import tensorrt
from vaultml_worker.engines.base import (
    MAX_BATCH,
    Engine,
    EngineStopped,
    Gpu,
    Observer,
    Options,
    Silent,
)
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.onnx_graph import Precision
from vaultml_worker.records import InvalidInput, Model

_ENGINES: dict[str, Callable[[Model, Options], Engine]] = {
    "onnxruntime": lambda model, _: OnnxEngine(model),
    "tensorrt": tensorrt.TensorRtEngine,
}
_PRECISIONS: dict[str, Precision] = {"onnxruntime": "fp32", "tensorrt": "fp16"}


def choose(name: str) -> tuple[str, str | None]:
    """The engine that `name` means here, and why `auto` does not mean the GPU (None when it does, or another is named).

    Raises InvalidInput for one that can't run here: a GPU that was asked for is never replaced by a CPU.
    """
    if name == "onnxruntime":
        return name, None
    missing = tensorrt.missing()
    if missing is None:
        return "tensorrt", None
    if name == "auto":
        return "onnxruntime", missing
    raise InvalidInput(f"ENGINE={name}: {missing}; or set ENGINE=onnxruntime to use the CPU")


def precision(name: str) -> Precision:
    """The precision that suits an engine (as `choose` gives it) best."""
    return _PRECISIONS[name]


def create(name: str, model: Model, options: Options | None = None) -> Engine:
    """The engine of that name, loaded with the model; `auto` takes the best one there is.

    Raises InvalidInput for what the user can mend, EngineError for an engine that can't start, EngineStopped.
    """
    chosen, _ = choose(name)
    return _ENGINES[chosen](model, options or Options())


__all__ = [
    "MAX_BATCH",
    "Engine",
    "EngineStopped",
    "Gpu",
    "Observer",
    "Options",
    "Silent",
    "choose",
    "create",
    "precision",
]
