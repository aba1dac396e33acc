"""Variables by which processes find a GPU."""

import os
from pathlib import Path

from testbed.gpu import driver, pycuda

_ROOT = Path(__file__).parents[2]
_FINDS_GPU = ("LD_LIBRARY_PATH", "PYTHONPATH", "CUDA_VISIBLE_DEVICES")


def available() -> str | None:
    """Return None when the stand-in is here or can be made, else one sentence that says what is missing."""
    return driver.available() or pycuda.available()


def stand_in() -> dict[str, str]:
    """Those of the stand-in, with the real pycuda and the double of TensorRT on it."""
    paths = [_ROOT / "testbed" / "gpu" / "site", _ROOT, _ROOT / "worker", pycuda.installed()]
    return {
        "PYTHONPATH": ":".join(map(str, paths)),
        "LD_LIBRARY_PATH": str(driver.build([pycuda.library()])),
        "ENGINE": "tensorrt",
    }


def own() -> dict[str, str]:
    """This process's own, for a process that is to find the same GPU, be it real or the stand-in."""
    return {name: os.environ[name] for name in _FINDS_GPU if name in os.environ}
