import ctypes
import os
import signal
import threading
from collections.abc import Iterator
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
from vaultml_worker.records import Sample

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


def test_a_refusal_comes_back_as_itself(decoders: Decoders) -> None:
    with pytest.raises(Failure, match="neither a video") as caught:
        decoders.sample(b"nonsense" * 10, 2, NETWORK)
    assert caught.value.cause is Cause.NOT_A_VIDEO


@pytest.mark.parametrize(
    ("function", "cause"),
    [(crash, Cause.DECODER_CRASHED), (hang, Cause.DECODER_TIMEOUT), (bloat, Cause.DECODER_MEMORY)],
)
def test_a_child_that_goes_wrong_costs_only_itself(decoders: Decoders, function: object, cause: Cause) -> None:
    assert fails(decoders, function) is cause
    assert works(decoders).frames


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
    return [child.pid for server in me.children() for child in server.children()]
