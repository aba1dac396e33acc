"""Child processes that decode: a recording that crashes, hangs or bloats FFmpeg costs one child, not the worker."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from pebble import ProcessExpired, ProcessPool

from vaultml_worker import video
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.memory import SharedMemory
from vaultml_worker.records import Sample
from vaultml_worker.retries import ONCE, Retries

_GRACE_S = 30.0
"""A child that does not begin, or should have been killed for being late, and wasn't, is given up after this long."""
_LOOK_S = 1.0
"""How often the one who waits looks whether the pool still works."""
_POOLS = 3
"""How many pools may break before one takes a call."""
_NICE = 10
"""Decoders take what the rest leaves: that feeds the device, and on a CPU it is the device."""
_NO_PIXELS = np.empty((0, 0, 3), np.uint8)
_UNAVAILABLE = Cause.DECODER_UNAVAILABLE
_AGAIN = (Cause.DECODER_CRASHED, Cause.DECODER_TIMEOUT, _UNAVAILABLE)
_T = TypeVar("_T")


class Decoders:
    """Decoder processes, one call each at a time.

    Each call may take `seconds` and its process `memory` bytes. A child that dies or is late is replaced and the call
    tried once more; then it is a Failure. A transient one of a sample is retried as `retries` says. Thread-safe. Close
    it when done.
    """

    def __init__(
        self,
        *,
        processes: int,
        seconds: float,
        memory: int,
        limits: video.Limits | None = None,
        retries: Retries = ONCE,
    ) -> None:
        self._limits = limits or video.Limits()
        self._retries = retries
        self._children = [_Child(seconds, memory) for _ in range(processes)]
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in self._children:
            self._free.put(child)

    def sample(self, data: bytes, count: int, network: tuple[int, int]) -> Sample:
        """`video.sample` in a child process; the frames' pixels lie one after the other in one array."""
        sample, _ = self._sampled(data, network, None, count)
        return sample

    def sample_all(self, data: bytes, first: int, count: int, network: tuple[int, int]) -> tuple[Sample, int]:
        """`video.sample_all` in a child process; pixels as those of `sample`."""
        return self._sampled(data, network, first, count)

    def _sampled(self, data: bytes, network: tuple[int, int], first: int | None, count: int) -> tuple[Sample, int]:
        def call(child: _Child) -> tuple[Sample, int]:
            sample, total = child.run(_sample, (len(data), first, count, network, self._limits), data)
            return child.frames(sample, network), total

        return self._retries.call(lambda: self._lend(call))

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call any importable function that decodes in a child, under the same limits; gives what it gives.

        Raises what it raises, and Failure DECODER_CRASHED, DECODER_TIMEOUT, DECODER_MEMORY or DECODER_UNAVAILABLE.
        """
        return self._lend(lambda child: child.run(function, args))

    def _lend(self, call: "Callable[[_Child], _T]") -> _T:
        """Make a call with a child that is free, and once more where that one crashed or was late."""
        child = self._free.get()
        try:
            return call(child)
        except Failure as failure:
            if failure.cause not in _AGAIN:
                raise
            return call(child)
        finally:
            child.memory.shrink()
            self._free.put(child)

    def warm_up(self) -> None:
        """Start all processes now, so that the first recordings needn't wait for their imports."""
        concurrent.futures.wait([child.start() for child in self._children])

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()


class _PoolBrokeError(Exception):
    """A pool has ended, or takes no calls: not what a call itself raised."""


class _Child:
    """One decoder process and its successors.

    A pool of one: in a larger one, a child killed from outside (out of memory, say) can take a shared lock with it,
    and all others with that.
    """

    def __init__(self, seconds: float, memory: int) -> None:
        self._seconds = seconds
        self._memory = memory
        self.memory = SharedMemory()
        self._pool = self._make()

    def start(self) -> "concurrent.futures.Future[Any]":
        future: concurrent.futures.Future[Any] = self._pool.schedule(_ready)
        return future

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], data: bytes = b"") -> Any:
        """One try, with `data` in the shared memory; pools that break before they begin with it don't count as one.

        Raises as `Decoders.run`.
        """
        try:
            for _ in range(_POOLS):
                self._write(data)
                future = self._schedule(function, args)
                if future is not None and self._ended(future):
                    return future.result()
                self._replace()
            raise _PoolBrokeError  # noqa: TRY301 - one answer to all that breaks
        except TimeoutError:
            late = f"decoding took longer than DECODER_SECONDS ({self._seconds:g}), twice"
            raise Failure(Cause.DECODER_TIMEOUT, late) from None
        except MemoryError:
            raise Failure(Cause.DECODER_MEMORY, "decoding needs more memory than DECODER_BYTES") from None
        except ProcessExpired as error:
            if error.exitcode == -signal.SIGKILL:  # not ours: a call that is late raises TimeoutError
                raise Failure(_UNAVAILABLE, "the decoder process was killed (SIGKILL), twice") from None
            raise Failure(Cause.DECODER_CRASHED, "decoding ended its process, twice") from None
        except (_PoolBrokeError, concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError):
            self._replace()
            raise Failure(_UNAVAILABLE, "no decoder process could be started") from None

    def frames(self, sample: Sample, network: tuple[int, int]) -> Sample:
        """Return a sample with the pixels that the process has left in the memory."""
        try:
            pixels = np.empty((len(sample.frames), network[1], network[0], 3), np.uint8)
            self.memory.read(pixels)
        except MemoryError:
            raise Failure(_UNAVAILABLE, "there is no memory for the frames") from None
        except EOFError:
            raise Failure(Cause.DECODER_CRASHED, "decoding ended without its frames, twice") from None
        return replace(
            sample, frames=tuple(replace(frame, pixels=each) for frame, each in zip(sample.frames, pixels, strict=True))
        )

    def _write(self, data: bytes) -> None:
        try:
            self.memory.write(data)
        except OSError as error:
            raise Failure(_UNAVAILABLE, f"there is no memory for the recording ({error.strerror})") from None

    def _schedule(self, function: Callable[..., Any], args: tuple[Any, ...]) -> "concurrent.futures.Future[Any] | None":
        """Hand a call to the pool; None when that broke while idle, or breaks as it starts."""
        try:
            future: concurrent.futures.Future[Any] = self._pool.schedule(function, args=args, timeout=self._seconds)
        except RuntimeError:
            return None
        return future

    def _ended(self, future: "concurrent.futures.Future[Any]") -> bool:
        """Wait for the end of a call. False when it never began: the pool broke as it came, or a lock is lost.

        Raises _PoolBrokeError when the pool broke later, TimeoutError when it should have ended the call, and didn't.
        """
        start = time.monotonic()
        while True:
            active = self._pool.active
            concurrent.futures.wait([future], timeout=_LOOK_S)
            waited = time.monotonic() - start
            if future.done():
                return True
            if not future.running() and (not active or waited > _GRACE_S):
                return False
            if not active:
                raise _PoolBrokeError
            if waited > self._seconds + 2 * _GRACE_S:
                self._replace()
                raise TimeoutError

    def close(self) -> None:
        end(self._pool)
        self.memory.close()

    def _make(self) -> ProcessPool:
        # Not fork: the worker has threads (librdkafka's among them). A child is renewed now and then, so that what
        # FFmpeg leaks on odd files doesn't add up.
        return ProcessPool(
            max_workers=1,
            max_tasks=500,
            context=multiprocessing.get_context("forkserver"),
            initializer=_prepare,
            initargs=(self._memory, self.memory),
        )

    def _replace(self) -> None:
        # What is left of the old process may still write: it keeps its own memory.
        self.memory.close()
        self.memory = SharedMemory()
        broken, self._pool = self._pool, self._make()
        # Ending a broken pool may block on the lock that broke it.
        threading.Thread(target=end, args=(broken,), name="end-decoder", daemon=True).start()


def end(pool: ProcessPool) -> None:
    """End its processes, whatever they do."""
    pool.stop()  # type: ignore[no-untyped-call]
    with contextlib.suppress(TimeoutError):
        pool.join(timeout=10)


def _ready() -> None:
    """Nothing: running it proves that a child is up."""


_shared: SharedMemory | None = None
"""In a child: the memory that it shares with the worker."""


def _sample(
    size: int, first: int | None, count: int, network: tuple[int, int], limits: video.Limits
) -> tuple[Sample, int]:
    """Sample the recording of `size` bytes in the shared memory, and leave the pixels there; gives the rest.

    `first` None spreads the frames over the recording; the number behind the sample is then of no meaning.
    """
    assert _shared is not None
    data = _shared.read_bytes(size)
    if first is None:
        sample, total = video.sample(data, count, network, limits), count
    else:
        sample, total = video.sample_all(data, first, count, network, limits)
    try:
        _shared.write(*(frame.pixels for frame in sample.frames))
    except OSError as error:
        raise Failure(_UNAVAILABLE, f"there is no memory for the frames ({error.strerror})") from None
    return replace(sample, frames=tuple(replace(frame, pixels=_NO_PIXELS) for frame in sample.frames)), total


def _prepare(memory: int, shared: SharedMemory) -> None:
    """Bound this child before it reads anything: to `memory` bytes beyond what its imports took."""
    global _shared
    _shared = shared
    cv2.setNumThreads(1)  # the processes already use all cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_the_worker()
    os.nice(_NICE)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with_the_worker() -> None:
    """End this process when the worker is gone, however it went: its fork server, our parent, ends with it."""
    parent, never = os.getppid(), threading.Event()

    def watch() -> None:
        while os.getppid() == parent:
            never.wait(1)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
