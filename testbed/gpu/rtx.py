"""The real TensorRT for RTX, whose parser and builder need no GPU; installed once (519 MB) and kept in the cache."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from testbed.process import cache

_LOCK = Path(__file__).parents[2] / "requirements" / "testbed-tensorrt.txt"


def available() -> str | None:
    """Return None when it is here or can be had for this machine, else one sentence that says what is missing."""
    if _folder().is_dir() or (sys.platform == "linux" and sys.maxsize > 1 << 32):
        return None
    return "TensorRT for RTX needs Linux on a 64-bit processor."


def installed() -> Path:
    """The folder to put on the path for `import tensorrt_rtx_bindings`, fetching it when it is not there yet.

    The folder appears whole or not at all. Raises RuntimeError with pip's words.
    """
    folder = _folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as scratch:
        made = Path(scratch) / "tensorrt-rtx"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", made, "-r", _LOCK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"TensorRT for RTX could not be fetched:\n{done.stdout[-4000:]}")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same
                raise
    return folder


def _folder() -> Path:
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    return cache() / f"tensorrt-rtx-{python}-{hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:16]}"
