"""Whether the GPU engine could run here: driver, CUDA, pycuda, TensorRT and device, each judged for itself."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from vaultml_worker.engines.tensorrt import bindings
from vaultml_worker.engines.tensorrt.bindings import Missing
from vaultml_worker.engines.tensorrt.device import claimed, driver_version, megabytes
from vaultml_worker.records import Finding, State

T = TypeVar("T")


def check() -> tuple[list[Finding], bool]:
    """Five findings, in this order, and whether nothing is missing, so that ENGINE=auto would take the GPU.

    What can't be told because something else is missing is State.INFO.
    Claims the GPU for a moment. For a process of its own: a broken driver can hang or end the one that calls it.
    """
    driver, library = _judge(
        "driver", bindings.libcuda, lambda _: f"libcuda.so.1, version {driver_version() or 'unknown'}"
    )
    pycuda, cuda = _judge("pycuda", bindings.pycuda, lambda _: bindings.pycuda_version())
    if library is None:
        pycuda, _ = _judge("pycuda", bindings.pycuda_version, lambda version: f"{version}; needs the driver")
        pycuda = replace(pycuda, state=State.INFO) if pycuda.state is State.OK else pycuda
    judged = _judge("TensorRT", bindings.tensorrt, _runtime)
    tensorrt, trt = judged
    return [driver, _cuda(cuda), pycuda, tensorrt, _device(cuda, trt)], bindings.missing() is None


def _judge(name: str, find: Callable[[], T], say: Callable[[T], str]) -> tuple[Finding, T | None]:
    try:
        found = find()
        return Finding(name, State.OK, say(found)), found
    except Missing as missing:
        return Finding(name, State.WRONG, missing.found, missing.advice), None


def _runtime(found: tuple[Any, str]) -> str:
    trt, flavour = found
    return f"{flavour} {trt.__version__}"


def _cuda(cuda: Any) -> Finding:
    if cuda is None:
        return Finding("CUDA", State.INFO, "can't be told without driver and pycuda")
    number = cuda.get_driver_version()
    driver, built = (number // 1000, number % 1000 // 10), tuple(cuda.get_version()[:2])
    newest, wanted = (".".join(map(str, version)) for version in (driver, built))
    found = f"{newest} by the driver; pycuda was built for {wanted}"
    if driver >= built:
        return Finding("CUDA", State.OK, found)
    if driver[0] == built[0]:
        return Finding("CUDA", State.INFO, f"{found}: the driver is older, which within a major version works")
    return Finding("CUDA", State.WRONG, f"{found}: the driver is older", f"install one for CUDA {built[0]} or newer")


def _device(cuda: Any, trt: tuple[Any, str] | None) -> Finding:
    if cuda is None:
        return Finding("device", State.INFO, "can't be told without driver and pycuda")
    try:
        visible = bindings.count(cuda)
        if trt is not None:
            bindings.supported(cuda, *trt)
        with claimed(cuda, "") as gpu:
            free, _ = cuda.mem_get_info()
    except Missing as missing:
        return Finding("device", State.WRONG, missing.found, missing.advice)
    except cuda.Error as error:
        return Finding("device", State.WRONG, f"the GPU failed: {error}", "look at nvidia-smi and the kernel's log")
    capability = ".".join(map(str, gpu.compute_capability))
    return Finding(
        "device",
        State.OK,
        f"{gpu.name}, {gpu.uuid}, {megabytes(gpu.memory)}, {megabytes(free)} free, compute capability {capability}; "
        f"first of {visible} visible",
    )
