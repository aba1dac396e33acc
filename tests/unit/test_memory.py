import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vaultml_worker import memory as memory_
from vaultml_worker.memory import SharedMemory


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    shared = SharedMemory()
    yield shared
    shared.close()


def double(shared: SharedMemory, size: int) -> None:
    """In a child: what is there, twice."""
    shared.write(shared.read_bytes(size) * 2)


def test_a_child_reads_and_writes_it(memory: SharedMemory) -> None:
    memory.write(b"recording")
    child = multiprocessing.get_context("forkserver").Process(target=double, args=(memory, 9))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert memory.read_bytes(18) == b"recordingrecording"


def test_parts_lie_one_after_the_other(memory: SharedMemory) -> None:
    parts = [np.full((2, 3), number, np.uint8) for number in range(3)]
    memory.write(*parts)
    into = np.empty((3, 2, 3), np.uint8)
    memory.read(into)
    np.testing.assert_array_equal(into, np.stack(parts))


def test_large_parts_take_several_calls(memory: SharedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_, "_AT_ONCE", 10)
    body = bytes(range(256))
    memory.write(body, b"", b"end")
    assert memory.read_bytes(259) == body + b"end"
    into = np.empty(256, np.uint8)
    memory.read(into)
    assert into.tobytes() == body


def test_what_is_not_there_is_not_read(memory: SharedMemory) -> None:
    memory.write(b"short")
    for size in (6, 1 << 20):
        with pytest.raises(EOFError):
            memory.read_bytes(size)
        with pytest.raises(EOFError):
            memory.read(np.empty(size, np.uint8))
    memory.read(np.empty(0, np.uint8))


def test_only_a_little_stays_allocated(memory: SharedMemory) -> None:
    memory.write(b"x" * (20 << 20))
    memory.shrink()
    assert os.fstat(memory.fd).st_blocks * 512 <= 8 << 20
    assert memory.read_bytes(5) == b"xxxxx"


def test_it_has_no_name_and_can_be_closed_twice(memory: SharedMemory) -> None:
    assert str(Path(f"/proc/self/fd/{memory.fd}").readlink()).startswith("/memfd:")
    assert not os.get_inheritable(memory.fd)
    memory.close()
    memory.close()
