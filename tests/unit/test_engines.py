"""Which engine is chosen, and what is said where there is no GPU."""

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vaultml_worker import engines
from vaultml_worker.engines import tensorrt
from vaultml_worker.engines.tensorrt import bindings
from vaultml_worker.records import InvalidInput, State


class CudaError(Exception):
    pass


def pycuda(*, fails: str = "", devices: int = 1) -> Any:
    """As much of pycuda.driver as is asked before anything else."""

    def init() -> None:
        if fails:
            raise CudaError(fails)

    class Device:
        def __init__(self, _number: int) -> None:
            pass

        @staticmethod
        def count() -> int:
            return devices

        def name(self) -> str:
            return "GPU"

        def compute_capability(self) -> tuple[int, int]:
            return (8, 9)

    return SimpleNamespace(Error=CudaError, init=init, Device=Device)


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


def test_each_part_is_judged_whatever_else_is_missing(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "libcuda", object)
    modules["tensorrt"] = SimpleNamespace(__version__="11.4")
    modules["pycuda.driver"] = ImportError(LIBRARY.format("libfoo.so"))
    found, complete = tensorrt.check()
    told = {one.name: (one.state, one.found) for one in found}
    assert told["TensorRT"] == (State.OK, "tensorrt 11.4")
    assert told["pycuda"][0] is State.WRONG
    assert "libfoo.so" in told["pycuda"][1]
    assert {told[name][0] for name in ("CUDA", "device")} == {State.INFO}
    assert not complete


@pytest.mark.parametrize(("driver", "state"), [(13000, State.WRONG), (14000, State.INFO), (14020, State.OK)])
def test_a_driver_older_than_pycuda_is_told(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, driver: int, state: State
) -> None:
    monkeypatch.setattr(bindings, "libcuda", object)
    cuda = pycuda(devices=0)
    cuda.get_driver_version, cuda.get_version = lambda: driver, lambda: (14, 2, 0)
    modules.update({"pycuda.driver": cuda, "pycuda": SimpleNamespace(VERSION_TEXT="2026.1")})
    found = {one.name: one for one in tensorrt.check()[0]}
    assert found["CUDA"].state is state
    assert ("the driver is older" in found["CUDA"].found) == (state is not State.OK)
    assert found["device"].state is State.WRONG
    assert "CUDA_VISIBLE_DEVICES" in found["device"].advice


def test_tensorrt_goes_before_its_rtx_flavour(modules: dict[str, Any]) -> None:
    trt, rtx = ModuleType("tensorrt"), ModuleType("tensorrt_rtx")
    rtx.ComputeCapability = SimpleNamespace(SM89=1)  # type: ignore[attr-defined]
    modules.update({"pycuda.driver": pycuda(), "tensorrt_rtx": rtx})
    assert bindings.load().trt is rtx
    assert bindings.load().flavour == bindings.RTX
    modules["tensorrt"] = trt
    assert bindings.load().trt is trt
    assert engines.choose("auto") == ("tensorrt", None)
