import ctypes
import errno
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pebble import ProcessFuture, ProcessPool
from pebble.pool.base_pool import PoolStatus

from tests.recordings import clip
from vaultml_worker import decoders as decoders_
from vaultml_worker import video
from vaultml_worker.decoders import Decoders
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.memory import SharedMemory
from vaultml_worker.records import Frame, Sample
from vaultml_worker.retries import Retries

NETWORK = (96, 96)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    pool = Decoders(processes=2, seconds=2, memory=1 << 30)
    yield pool
    pool.close()


def crash() -> None:
    """What a bug in FFmpeg's C code does."""
    ctypes.string_at(0)


def hang() -> None:
    threading.Event().wait()


def bloat() -> int:
    return int(np.ones(4 << 30, np.uint8).sum())


def killed(*_: object) -> None:
    """What the kernel does where a container has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return "fine"


def fails(decoders: Decoders, function: object) -> Cause:
    with pytest.raises(Failure) as caught:
        decoders.run(function)  # type: ignore[arg-type]
    return caught.value.cause


def works(decoders: Decoders) -> Sample:
    return decoders.sample(clip(1), 2, NETWORK)


def test_frames_come_back(decoders: Decoders) -> None:
    result = works(decoders)
    assert [frame.pixels.shape for frame in result.frames] == [(96, 96, 3)] * 2


def test_frames_are_those_of_the_recording_in_one_block(decoders: Decoders) -> None:
    data = clip(2)
    ours, theirs = decoders.sample(data, 4, NETWORK), video.sample(data, 4, NETWORK, video.Limits())
    assert len(ours.frames) == 4
    for one, other in zip(ours.frames, theirs.frames, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.timestamp == other.timestamp
    assert ours.pixels() is ours.frames[2].pixels.base
    np.testing.assert_array_equal(ours.pixels(), theirs.pixels())
    backwards = replace(ours, frames=ours.frames[::-1])
    np.testing.assert_array_equal(backwards.pixels(), theirs.pixels()[::-1])
    np.testing.assert_array_equal(replace(ours, frames=ours.frames[1:]).pixels(), theirs.pixels()[1:])
    later = decoders.sample(clip(1), 1, NETWORK)  # does not touch what was given out before
    assert later.frames
    np.testing.assert_array_equal(ours.frames[0].pixels, theirs.frames[0].pixels)
    everything, total = decoders.sample_all(data, 3, 5, NETWORK)
    expected, count = video.sample_all(data, 3, 5, NETWORK, video.Limits())
    assert total == count
    np.testing.assert_array_equal(everything.pixels(), expected.pixels())


def test_nothing_stays_behind() -> None:
    """No file descriptors, and little memory after a large recording."""

    def files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    pool = Decoders(processes=1, seconds=20, memory=1 << 30)
    try:
        assert works(pool).frames
        before = files()
        with pytest.raises(Failure):
            pool.sample(b"nonsense" * (4 << 20), 2, NETWORK)
        (child,) = pool._children
        assert os.fstat(child.memory.fd).st_blocks * 512 <= 8 << 20
        for _ in range(3):
            assert fails(pool, crash) is Cause.DECODER_CRASHED
            assert works(pool).frames
        assert files() <= before + 2
    finally:
        pool.close()
    assert child.memory.fd == -1


def test_a_process_that_was_given_up_keeps_its_own_memory() -> None:
    pool = Decoders(processes=1, seconds=20, memory=1 << 30)
    try:
        assert works(pool).frames
        (child,) = pool._children
        before = os.fstat(child.memory.fd).st_ino
        child._replace()
        assert os.fstat(child.memory.fd).st_ino != before
        assert works(pool).frames
    finally:
        pool.close()


def silent(*_: object) -> tuple[Sample, int]:
    """What a process says that has lost its frames."""
    frame = Frame(np.empty((0, 0, 3), np.uint8), 0.0)
    return Sample((frame,) * 3, 3, 96, 96, 1000.0), 3


def test_frames_that_are_missing_are_a_crash(monkeypatch: pytest.MonkeyPatch, decoders: Decoders) -> None:
    monkeypatch.setattr(decoders_, "_sample", silent)
    with pytest.raises(Failure) as caught:
        Decoders.sample(decoders, b"tiny", 3, (999, 999))
    assert caught.value.cause is Cause.DECODER_CRASHED


def test_no_memory_for_a_recording_is_said(monkeypatch: pytest.MonkeyPatch, decoders: Decoders) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(Failure) as caught:
            works(decoders)
    assert caught.value.cause is Cause.DECODER_UNAVAILABLE
    assert works(decoders).frames


def test_a_refusal_comes_back_as_itself(decoders: Decoders) -> None:
    with pytest.raises(Failure, match="neither a video") as caught:
        decoders.sample(b"nonsense" * 10, 2, NETWORK)
    assert caught.value.cause is Cause.NOT_A_VIDEO


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (crash, Cause.DECODER_CRASHED),
        (hang, Cause.DECODER_TIMEOUT),
        (bloat, Cause.DECODER_MEMORY),
        (killed, Cause.DECODER_UNAVAILABLE),
    ],
)
def test_a_child_that_goes_wrong_costs_only_itself(decoders: Decoders, function: object, cause: Cause) -> None:
    assert fails(decoders, function) is cause
    assert works(decoders).frames


def test_a_recording_waits_while_the_system_kills_or_starts_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with too little memory, or too few processes, is our fault: it costs no recording."""
    heard: list[str] = []
    held: list[tuple[Cause, int]] = []
    real_sample, real_schedule = decoders_._sample, ProcessPool.schedule

    def none(*_: Any, **__: Any) -> Any:
        raise RuntimeError

    def on_retry(failure: Failure, _wait: float) -> None:
        heard.append(failure.message)
        monkeypatch.setattr(decoders_, "_sample", real_sample)
        monkeypatch.setattr(ProcessPool, "schedule", none if len(heard) == 1 else real_schedule)

    retries = Retries(max_wait=0.01, on_retry=on_retry, on_held=lambda cause, change: held.append((cause, change)))
    pool = Decoders(processes=1, seconds=20, memory=1 << 30, retries=retries)
    monkeypatch.setattr(decoders_, "_sample", killed)
    try:
        assert works(pool).frames
    finally:
        pool.close()
    assert heard == ["the decoder process was killed (SIGKILL), twice", "no decoder process could be started"]
    assert held == [(Cause.DECODER_UNAVAILABLE, +1), (Cause.DECODER_UNAVAILABLE, -1)]


def raises() -> None:
    raise RecursionError("a bug of ours")  # a RuntimeError, as a broken pool raises it


def full() -> None:
    """Leave no memory for the frames of the next recording."""
    assert decoders_._shared is not None
    decoders_._shared = Full(decoders_._shared.fd)


class Full(SharedMemory):
    def write(self, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_a_call_raises_is_no_broken_pool(decoders: Decoders) -> None:
    """It would be retried for ever as if no process could be started."""
    with pytest.raises(RecursionError, match="a bug of ours"):
        decoders.run(raises)
    assert works(decoders).frames


def test_no_memory_for_the_frames_is_no_fault_of_the_recording() -> None:
    pool = Decoders(processes=1, seconds=20, memory=1 << 30)
    try:
        pool.run(full)
        with pytest.raises(Failure, match="no memory for the frames") as caught:
            works(pool)
    finally:
        pool.close()
    assert caught.value.cause is Cause.DECODER_UNAVAILABLE


def test_a_child_gets_a_second_chance(decoders: Decoders, tmp_path: Path) -> None:
    assert decoders.run(crash_once, str(tmp_path / "marker")) == "fine"


def test_limits_reach_the_children() -> None:
    pool = Decoders(processes=1, seconds=20, memory=1 << 30, limits=video.Limits(pixels=1000))
    try:
        with pytest.raises(Failure) as caught:
            pool.sample(clip(1), 2, NETWORK)
        assert caught.value.cause is Cause.TOO_MANY_PIXELS
    finally:
        pool.close()


def test_children_shot_while_idle_or_at_work_are_replaced() -> None:
    """As the kernel does when memory runs out: whatever they were doing, the next call works."""
    pool = Decoders(processes=2, seconds=10, memory=1 << 30)
    try:
        pool.warm_up()
        for _ in range(3):
            for child in _decoders():
                os.kill(child, signal.SIGKILL)
            assert works(pool).frames
    finally:
        pool.close()


def test_children_that_never_begin_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that can't get a lock that another took with it when it was shot: they live, and take no call."""
    monkeypatch.setattr(decoders_, "_GRACE_S", 1.0)
    pool = Decoders(processes=2, seconds=1000, memory=1 << 30)
    try:
        pool.warm_up()
        for child in _decoders():
            os.kill(child, signal.SIGSTOP)
        assert works(pool).frames
        assert works(pool).frames
    finally:
        pool.close()


def test_a_call_that_a_pool_gets_as_it_breaks_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a pool has told the calls that it knew, and is silent on this one."""
    broken: list[ProcessPool] = []

    class Breaking(ProcessPool):
        def schedule(self, *args: Any, **options: Any) -> Any:
            future = super().schedule(*args, **options)
            if broken:
                return future
            broken.append(self)
            self._context.status = PoolStatus.ERROR
            return ProcessFuture()

    monkeypatch.setattr(decoders_, "ProcessPool", Breaking)
    pool = Decoders(processes=1, seconds=1000, memory=1 << 30)
    try:
        assert works(pool).frames
        assert broken
    finally:
        pool.close()


def _decoders() -> list[int]:
    """Children of the fork server that belong to this process."""
    me = psutil.Process()
    # Other tests of this run may have left a cluster or a broker running.
    servers = [each for each in me.children() if "multiprocessing.forkserver" in " ".join(each.cmdline())]
    return [child.pid for server in servers for child in server.children()]
