"""`python -m testbed.parts`: builds and fetches, once, the real parts that this machine can have.

Tests and `make cluster` would do so by themselves; but a test has a time limit, and Kubernetes takes minutes.
"""

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import typer

from testbed.gpu import environment, rtx
from testbed.kafka import distribution as kafka
from testbed.kubernetes import distribution as kubernetes

_TELL_S = 1.0

_PARTS: dict[str, tuple[Callable[[], str | None], Callable[[], object]]] = {
    "Kubernetes": (kubernetes.available, kubernetes.binaries),
    "Kafka": (kafka.available, kafka.jars),
    "pycuda and the stand-in for the GPU driver": (environment.available, environment.stand_in),
    "TensorRT for RTX": (rtx.available, rtx.installed),
}


def main() -> None:
    """Get all that can be had, side by side; what fails is told, and left to the tests that need it."""
    with ThreadPoolExecutor() as pool:
        for told in pool.map(_get, _PARTS):
            if told:
                typer.echo(told, err=True)


def _get(name: str) -> str:
    """What to say of a part; nothing when it was there, or can't be had here."""
    available, get = _PARTS[name]
    if available() is not None:
        return ""
    start = time.monotonic()
    try:
        get()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"{name}: {error}"
    seconds = time.monotonic() - start
    return f"{name}: made in {seconds:.0f} s" if seconds >= _TELL_S else ""


if __name__ == "__main__":
    main()
