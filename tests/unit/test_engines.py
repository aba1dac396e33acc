"""Which engine is chosen, and what is said where there is no GPU."""

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vaultml_worker import engines
from vaultml_worker.engines.tensorrt import bindings
from vaultml_worker.records import InvalidInput


class CudaError(Exception):
    pass


def pycuda(*, fails: str = "", devices: int = 1) -> Any:
    """As much of pycuda.driver as is asked before anything else."""

    def init() -> None:
        if fails:
            raise CudaError(fails)

    return SimpleNamespace(Error=CudaError, init=init, Device=SimpleNamespace(count=lambda: devices))


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What can be imported: a module, or the error that importing it raises; nothing else can."""
    there: dict[str, Any] = {}
    whole = importlib.import_module

    def import_module(name: str) -> Any:
        if name.partition(".")[0] not in ("pycuda", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
            return whole(name)
        found = there.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0]))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", import_module)
    return there


LIBRARY = "{}: cannot open shared object file: No such file or directory"
MISSING = {
    "pycuda": ({}, "pycuda is not installed: .*GPU image.*vaultml.gpu"),
    "the driver": ({"pycuda.driver": ImportError(LIBRARY.format("libcuda.so.1"))}, "driver's libcuda.so.1 is not here"),
    "another library": ({"pycuda.driver": ImportError(LIBRARY.format("libfoo.so"))}, "pycuda can't be loaded.*libfoo"),
    "a usable GPU": (
        {"pycuda.driver": pycuda(fails="cuInit failed: no device")},
        "no usable GPU.*no device.*nvidia-smi",
    ),
    "a visible GPU": ({"pycuda.driver": pycuda(devices=0)}, "there is no GPU.*CUDA_VISIBLE_DEVICES"),
    "TensorRT": ({"pycuda.driver": pycuda()}, "TensorRT is not installed"),
    "TensorRT's library": (
        {"pycuda.driver": pycuda(), "tensorrt": ImportError(LIBRARY.format("libnvinfer.so.11"))},
        "TensorRT can't be loaded .tensorrt: libnvinfer.so.11",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_said_and_the_cpu_never_taken_silently(modules: dict[str, Any], what: str) -> None:
    there, text = MISSING[what]
    modules.update(there)
    with pytest.raises(InvalidInput, match=rf"^ENGINE=tensorrt: .*{text}.*; or set ENGINE=onnxruntime to use the CPU$"):
        engines.choose("tensorrt")
    chosen, why = engines.choose("auto")
    assert chosen == "onnxruntime"
    assert why is not None


def test_tensorrt_goes_before_its_rtx_flavour(modules: dict[str, Any]) -> None:
    trt, rtx = ModuleType("tensorrt"), ModuleType("tensorrt_rtx")
    modules.update({"pycuda.driver": pycuda(), "tensorrt_rtx": rtx})
    assert bindings.load().trt is rtx
    assert bindings.load().flavour == bindings.RTX
    modules["tensorrt"] = trt
    assert bindings.load().trt is trt
    assert engines.choose("auto") == ("tensorrt", None)
