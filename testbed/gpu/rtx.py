"""The real TensorRT for RTX, whose parser and builder need no GPU; installed once (519 MB) and kept in the cache."""

import hashlib
import sys
from pathlib import Path

from testbed.cache import cache, kept
from testbed.gpu.pip import pip

_LOCK = Path(__file__).parents[2] / "requirements" / "testbed-tensorrt.txt"


def available() -> str | None:
    """Return None when it is here or can be had for this machine, else one sentence that says what is missing."""
    if _folder().is_dir() or (sys.platform == "linux" and sys.maxsize > 1 << 32):
        return None
    return "TensorRT for RTX needs Linux on a 64-bit processor."


def installed() -> Path:
    """The folder to put on the path for `import tensorrt_rtx_bindings`, fetching it when it is not there yet.

    Raises RuntimeError with pip's words.
    """
    return kept(_folder(), _fetch)


def _fetch(scratch: Path) -> Path:
    made = scratch / "tensorrt-rtx"
    pip("install", "--only-binary", ":all:", "--target", str(made), "-r", str(_LOCK))
    return made


def _folder() -> Path:
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    return cache() / f"tensorrt-rtx-{python}-{hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:16]}"
