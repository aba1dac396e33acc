"""Child processes that decode: a recording that crashes, hangs or bloats FFmpeg costs one child, not the worker."""

import concurrent.futures
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from vaultml_worker import video
from vaultml_worker.records import Cause, PermanentFailure, Sample


class Decoders:
    """A pool of decoder processes.

    Each call may take `seconds` and its process `memory` bytes. A child that dies or is late is replaced and the call
    tried once more; then it is a PermanentFailure. Thread-safe. Close it when done.
    """

    def __init__(self, *, processes: int, seconds: float, memory: int, limits: video.Limits | None = None) -> None:
        self._seconds = seconds
        self._limits = limits or video.Limits()
        # Not fork: the worker has threads (librdkafka's among them). A child is renewed now and then, so that what
        # FFmpeg leaks on odd files doesn't add up.
        self._pool = ProcessPool(
            max_workers=processes,
            max_tasks=500,
            context=multiprocessing.get_context("forkserver"),
            initializer=_prepare,
            initargs=(memory, self._limits.pixels, os.getpid()),
        )

    def sample(self, data: bytes, count: int, network: tuple[int, int]) -> Sample:
        """`video.sample` in a child process."""
        result: Sample = self.run(video.sample, data, count, network, self._limits)
        return result

    def sample_all(self, data: bytes, first: int, count: int, network: tuple[int, int]) -> tuple[Sample, int]:
        """`video.sample_all` in a child process."""
        result: tuple[Sample, int] = self.run(video.sample_all, data, first, count, network, self._limits)
        return result

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Any importable function that decodes, under the same limits."""
        failure = self._once(function, args)
        if isinstance(failure, PermanentFailure) and failure.cause in (Cause.DECODER_CRASHED, Cause.DECODER_TIMEOUT):
            failure = self._once(function, args)
        if isinstance(failure, PermanentFailure):
            raise failure
        return failure

    def warm_up(self) -> None:
        """Start the processes now, so that the first recording needn't wait for their imports."""
        self.run(_ready)

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def _once(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        try:
            return self._pool.schedule(function, args=args, timeout=self._seconds).result()
        except PermanentFailure as failure:
            return failure
        except ProcessExpired:
            return PermanentFailure(Cause.DECODER_CRASHED, "decoding ended its process, twice")
        except concurrent.futures.TimeoutError:
            return PermanentFailure(
                Cause.DECODER_TIMEOUT, f"decoding took longer than DECODER_SECONDS ({self._seconds:g}), twice"
            )
        except MemoryError:
            return PermanentFailure(Cause.DECODER_MEMORY, "decoding needs more memory than DECODER_BYTES")


def _ready() -> None:
    """Nothing: running it proves that a child is up."""


def _prepare(memory: int, pixels: int, parent: int) -> None:
    """Bound this child before it reads anything: memory beyond what its imports took, and OpenCV's pictures."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with(parent)
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(pixels)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with(parent: int) -> None:
    """End this process when the worker is gone, however it went (kill -9 leaves no time to tell)."""

    def watch() -> None:
        while _alive(parent):
            done.wait(1)
        os._exit(1)

    done = threading.Event()
    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
