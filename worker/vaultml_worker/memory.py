"""Memory shared with a decoder process: a recording goes in, its frames come out, and neither is pickled.

It is a file in memory without a name (memfd): it needs no /dev/shm, counts as memory of this container, and is gone
with the processes that have it, however they end. It is read and written by calls, not mapped: a file that is too
short is an error then, not a signal that ends the process.
"""

import os
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEPT = 8 << 20
"""Bytes that stay allocated for the next use."""
_AT_ONCE = 1 << 30
"""Bytes that one call reads or writes: Linux takes just under 2 GiB."""


class SharedMemory:
    """Bytes that two processes write and read in turn; can be passed to a child as it is started."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("vaultml-frames") if fd is None else fd

    def __reduce__(self) -> tuple[Callable[[Any], "SharedMemory"], tuple[Any]]:
        return _received, (reduction.DupFd(self.fd),)

    def write(self, *parts: "bytes | NDArray[np.uint8]") -> None:
        """Write the parts one after the other from the beginning."""
        place = 0
        for part in parts:
            view = _bytes_of(part)
            while view:
                count = os.pwrite(self.fd, view[:_AT_ONCE], place)
                place, view = place + count, view[count:]

    def read(self, into: NDArray[np.uint8]) -> None:
        """Fill an array from the beginning. Raises EOFError when there is less."""
        view, place = _bytes_of(into), 0
        while view:
            count = os.preadv(self.fd, [view[:_AT_ONCE]], place)
            if not count:
                raise EOFError
            place, view = place + count, view[count:]

    def read_bytes(self, size: int) -> bytes:
        """Return so many bytes from the beginning. Raises EOFError when there are less."""
        if size <= _AT_ONCE:
            found = os.pread(self.fd, size, 0)
            if len(found) < size:
                raise EOFError
            return found
        into = np.empty(size, np.uint8)
        self.read(into)
        return into.tobytes()

    def shrink(self) -> None:
        """Give memory back that only a large recording needed."""
        if os.fstat(self.fd).st_size > _KEPT:
            os.ftruncate(self.fd, _KEPT)

    def close(self) -> None:
        """Give it up in this process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _bytes_of(part: Any) -> memoryview:
    view = memoryview(part)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _received(duplicate: Any) -> SharedMemory:
    return SharedMemory(duplicate.detach())
