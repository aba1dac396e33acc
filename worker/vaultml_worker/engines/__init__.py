"""Engines: what runs a network. A new one is a file here and a line in `_ENGINES`."""

from collections.abc import Callable

from vaultml_worker.engines.base import Engine
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.records import Model

_ENGINES: dict[str, Callable[[Model], Engine]] = {"onnxruntime": OnnxEngine}


def create(name: str, model: Model) -> Engine:
    """The engine of that name, loaded with the model; `auto` takes the best one there is."""
    return _ENGINES["onnxruntime" if name == "auto" else name](model)


__all__ = ["Engine", "create"]
