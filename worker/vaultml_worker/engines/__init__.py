"""Engines: what runs a network. A new one is a file here and a line in `_ENGINES`."""

from collections.abc import Callable

from vaultml_worker.engines.base import Engine
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.records import InvalidInput, Model

_ENGINES: dict[str, Callable[[Model], Engine]] = {"onnxruntime": OnnxEngine}


def create(name: str, model: Model) -> Engine:
    """The engine of that name, loaded with the model; `auto` takes the best one there is.

    Raises InvalidInput for one that this version does not have: a GPU that was asked for is never replaced by a CPU.
    """
    engine = _ENGINES.get("onnxruntime" if name == "auto" else name)
    if engine is None:
        raise InvalidInput(f"ENGINE={name}: this version has no such engine yet: set ENGINE=onnxruntime to use the CPU")
    return engine(model)


__all__ = ["Engine", "create"]
