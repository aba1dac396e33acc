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
# The last is the form in which TensorRT for RTX is on PyPI.
_FLAVOURS = ("tensorrt", RTX, "tensorrt_rtx_bindings")
# Those bindings bring no libraries; this package does, and nothing tells the loader so.
_RTX_LIBRARIES_IN = "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_LIBRARIES = ("libcudart.so*", "libtensorrt_rtx.so*", "libtensorrt_onnxparser_rtx.so*")


@dataclass(frozen=True, slots=True)
class Bindings:
    """`trt`: the module `tensorrt` or `tensorrt_rtx`; `cuda`: `pycuda.driver`; `flavour`: which TensorRT it is."""

    trt: Any
    cuda: Any
    flavour: str

    @property
    def version(self) -> str:
        """TensorRT's version."""
        return str(self.trt.__version__)


def load() -> Bindings:
    """Both libraries, with a driver and at least one GPU behind them.

    Raises InvalidInput that says what is missing and what to do.
    """
    cuda = _pycuda()
    trt, flavour = tensorrt()
    return Bindings(trt, cuda, flavour)


def missing() -> str | None:
    """None when the GPU engine can run here, else a sentence that says what is missing."""
    try:
        load()
    except InvalidInput as error:
        return str(error)
    return None


def tensorrt() -> tuple[Any, str]:
    """The TensorRT there is, and its flavour: `tensorrt`, else `tensorrt_rtx`. Needs no GPU.

    Raises InvalidInput when there is none.
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
    raise InvalidInput(f"TensorRT {why}: use the worker's GPU image, or pip install 'vaultml[gpu]'")


def _pycuda() -> Any:
    try:
        cuda = importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{error.name} is not installed: use the worker's GPU image, or pip install 'vaultml[gpu]'"
        ) from None
    except ImportError as error:
        if "libcuda.so" in str(error):
            raise InvalidInput(
                "the NVIDIA driver's libcuda.so.1 is not here: give the container a GPU (--gpus all, or a limit on "
                "nvidia.com/gpu), or install the driver"
            ) from None
        raise InvalidInput(f"pycuda can't be loaded ({error}): install it anew for this CUDA") from None
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise InvalidInput(
            f"the NVIDIA driver finds no usable GPU ({error}): look at nvidia-smi, and whether this container was "
            "given a GPU"
        ) from None
    if count == 0:
        raise InvalidInput("there is no GPU: look at nvidia-smi, NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES")
    return cuda


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
