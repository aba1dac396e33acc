"""TensorRT and pycuda, imported late: everything else must install and run where there is no GPU."""

import ctypes
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultml_worker.records import InvalidInput

RTX = "tensorrt_rtx"
OLDEST = (7, 5)
"""Compute capability of the oldest GPUs that TensorRT 11 builds for: Turing."""
# The last is the form in which TensorRT for RTX is on PyPI.
_FLAVOURS = ("tensorrt", RTX, "tensorrt_rtx_bindings")
# Those bindings bring no libraries; this package does, and nothing tells the loader so.
_RTX_LIBRARIES_IN = "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_LIBRARIES = ("libcudart.so*", "libtensorrt_rtx.so*", "libtensorrt_onnxparser_rtx.so*")


_GET_IT = "use the worker's GPU image, or pip install 'vaultml[gpu]'"


class Missing(InvalidInput):
    """Something that the GPU engine needs is not here: `found` says what, `advice` what to do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}: {advice}")
        self.found = found
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Bindings:
    """`trt`: the module `tensorrt` or `tensorrt_rtx`; `cuda`: `pycuda.driver`; `flavour`: which TensorRT it is."""

    trt: Any
    cuda: Any
    flavour: str

    @property
    def runtime(self) -> str:
        """TensorRT's flavour and version."""
        return f"{self.flavour} {self.trt.__version__}"


def load() -> Bindings:
    """Both libraries, with a driver and at least one GPU behind them.

    Raises Missing.
    """
    cuda = pycuda()
    count(cuda)
    trt, flavour = tensorrt()
    supported(cuda, trt, flavour)
    return Bindings(trt, cuda, flavour)


def missing() -> str | None:
    """None when the GPU engine can run here, else a sentence that says what is missing."""
    try:
        load()
    except Missing as error:
        return str(error)
    return None


def libcuda() -> ctypes.CDLL:
    """The NVIDIA driver's library. Raises Missing."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise _no_driver() from None


def tensorrt() -> tuple[Any, str]:
    """The TensorRT there is, and its flavour: `tensorrt`, else `tensorrt_rtx`. Needs no GPU.

    Raises Missing.
    """
    broken = []
    for name in _FLAVOURS:
        try:
            if name == _FLAVOURS[-1]:
                _open_rtx_libraries()
            return importlib.import_module(name), name.removesuffix("_bindings")
        except ModuleNotFoundError as error:
            if error.name != name:
                broken.append(f"{name}: {error}")
        except (ImportError, OSError) as error:
            broken.append(f"{name}: {error}")
    why = f"can't be loaded ({'; '.join(broken)})" if broken else "is not installed"
    raise Missing(f"TensorRT {why}", _GET_IT)


def pycuda() -> Any:
    """The module `pycuda.driver`; it needs the driver's library, but no GPU. Raises Missing."""
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise Missing(f"{error.name} is not installed", _GET_IT) from None
    except ImportError as error:
        if "libcuda.so" in str(error):
            raise _no_driver() from None
        raise Missing(f"pycuda can't be loaded ({error})", "install it anew for this CUDA") from None


def pycuda_version() -> str:
    """The version of the pycuda that is installed, whether or not it can be loaded. Raises Missing."""
    try:
        return str(importlib.import_module("pycuda").VERSION_TEXT)
    except ModuleNotFoundError:
        raise Missing("pycuda is not installed", _GET_IT) from None


def count(cuda: Any) -> int:
    """How many GPUs the driver, set up by this, shows to this process: at least one. Raises Missing."""
    try:
        cuda.init()
        found = int(cuda.Device.count())
    except cuda.Error as error:
        raise Missing(
            f"the NVIDIA driver finds no usable GPU ({error})",
            "look at nvidia-smi, and whether this container was given a GPU",
        ) from None
    if found == 0:
        raise Missing("there is no GPU", "look at nvidia-smi, NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES")
    return found


def supported(cuda: Any, trt: Any, flavour: str) -> None:
    """Raises Missing when TensorRT can't use the first GPU; needs `count` before, and no context."""
    try:
        device = cuda.Device(0)
        name, capability = device.name(), tuple(device.compute_capability())
    except cuda.Error:
        return  # a GPU that fails is no missing one: whoever claims it hears of that
    major, minor = capability
    if capability < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise Missing(
            f"{name} has compute capability {major}.{minor}, and TensorRT needs {needed}", "use a newer GPU, or the CPU"
        )
    if flavour == RTX and not hasattr(trt.ComputeCapability, f"SM{major}{minor}"):
        raise Missing(
            f"TensorRT for RTX {trt.__version__} does not know {name} (compute capability {major}.{minor})",
            "use TensorRT itself, as the worker's GPU image does",
        )


def _no_driver() -> Missing:
    return Missing(
        "the NVIDIA driver's libcuda.so.1 is not here",
        "give the container a GPU (--gpus all, or a limit on nvidia.com/gpu), or install the driver",
    )


def _open_rtx_libraries() -> None:
    """Open the libraries that the RTX bindings are linked to, where a package brings them."""
    spec = importlib.util.find_spec(_RTX_LIBRARIES_IN)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for library in _found(Path(folder), _RTX_LIBRARIES):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _found(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The first file for each pattern, in the patterns' order, which is that in which they need each other."""
    matches = (sorted(folder.rglob(pattern)) for pattern in patterns)
    return [found[0] for found in matches if found]
