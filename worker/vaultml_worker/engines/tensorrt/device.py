"""The GPU's context and facts. Everything here belongs to the thread that claimed the GPU."""

import ctypes
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaultml_worker.engines.base import Gpu
from vaultml_worker.engines.tensorrt.bindings import libcuda
from vaultml_worker.records import EngineError

_DRIVER_VERSION = Path("/sys/module/nvidia/version")


class OutOfMemory(EngineError):  # noqa: N818 - answered by a smaller batch before it is an error
    """The GPU, or page-locked host memory, has not enough left; the text says for what and how much."""


@contextmanager
def claimed(cuda: Any, runtime: str) -> Iterator[Gpu]:
    """The first GPU that CUDA shows this process, its primary context current on this thread within the block.

    `cuda` is pycuda.driver, initialized; `runtime` what is to run there.
    TensorRT's own runtime uses the primary context, so ours must be that one. Whatever lives in it must be freed
    before the block ends: after the pop, pycuda can't free anything any more. Raises pycuda's errors.
    """
    device = cuda.Device(0)
    context = device.retain_primary_context()
    try:
        context.push()
        try:
            yield _facts(device, runtime)
        finally:
            context.pop()
    finally:
        # Detached here, on the thread that retained it: from any other, pycuda would leave it retained for ever.
        context.detach()


def _facts(device: Any, runtime: str) -> Gpu:
    name = str(device.name())
    return Gpu(
        name=name,
        uuid=_uuid(name),
        memory=int(device.total_memory()),
        driver=driver_version(),
        compute_capability=tuple(device.compute_capability()),
        runtime=runtime,
    )


def _uuid(name: str) -> str:
    """The UUID as nvidia-smi writes it; pycuda has no call for it, and version 2 of this one knows MIG."""
    raw = (ctypes.c_ubyte * 16)()
    status = libcuda().cuDeviceGetUuid_v2(ctypes.byref(raw), ctypes.c_int(0))
    if status != 0:
        return ""
    return f"{'MIG' if ' MIG ' in name else 'GPU'}-{uuid.UUID(bytes=bytes(raw))}"


def driver_version() -> str:
    """The NVIDIA driver's own version; empty where it can't be read."""
    try:
        found = re.match(r"[\d.]+", _DRIVER_VERSION.read_text())
    except OSError:
        return ""
    return found[0] if found else ""


def megabytes(size: int) -> str:
    """A size in bytes for people."""
    return f"{size / (1 << 20):,.0f} MiB"
