import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultml_operator.workqueue import Outcome, Queue

Handler = Callable[[str], Awaitable[float | None]]


class FastLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer as soon as nothing else is to be done: hours pass in milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self._skipped = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None) -> Any:
            ready = select(0)
            if timeout is None and not ready:
                raise AssertionError("the test waits for what can't come")
            if timeout and not ready:
                self._skipped += timeout
            return ready

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._skipped


def fast(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    with asyncio.Runner(loop_factory=FastLoop) as runner:
        runner.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


async def process(queue: Queue[str], seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await queue.run()


class Recorder:
    """A handler that notes its runs and checks that no key runs twice at once."""

    def __init__(self, work: Handler | None = None) -> None:
        self.runs: list[tuple[str, float]] = []
        self.running: set[str] = set()
        self.most = 0
        self._work = work

    async def __call__(self, key: str) -> float | None:
        assert key not in self.running
        self.running.add(key)
        self.most = max(self.most, len(self.running))
        self.runs.append((key, now()))
        try:
            return await self._work(key) if self._work else None
        finally:
            self.running.discard(key)

    def times(self, key: str) -> list[float]:
        return [time for ran, time in self.runs if ran == key]


async def a_second(_key: str) -> None:
    await asyncio.sleep(1)


def test_keys_added_before_the_start_run_once_each_in_order() -> None:
    async def test() -> None:
        handler = Recorder()
        queue = Queue(handler, concurrency=1)
        for key in ("b", "a", "b", "c"):
            queue.add(key)
        assert queue.depth == 3
        await process(queue, 5)
        assert [key for key, _ in handler.runs] == ["b", "a", "c"]
        assert queue.keys == {"a", "b", "c"}
        assert (queue.depth, queue.oldest) == (0, 0)

    fast(test)


def test_adds_during_a_run_give_exactly_one_more() -> None:
    async def test() -> None:
        handler = Recorder(a_second)
        queue = Queue(handler)
        queue.add("a")
        for moment in (0.2, 0.5, 0.8):
            asyncio.get_running_loop().call_later(moment, queue.add, "a")
        await process(queue, 10)
        assert handler.times("a") == pytest.approx([0, 1])

    fast(test)


def test_no_more_than_the_given_number_is_in_work() -> None:
    async def test() -> None:
        handler = Recorder(a_second)
        queue = Queue(handler, concurrency=4)
        for number in range(20):
            queue.add(str(number))
        await process(queue, 4.5)
        assert handler.most == 4
        assert len(handler.runs) == 20

    fast(test)


def test_failures_back_off_with_jitter_up_to_the_cap_and_success_starts_anew() -> None:
    delays: list[float] = []
    good = False

    async def work(_key: str) -> None:
        if not good:
            raise OSError("no")

    async def test() -> None:
        nonlocal good
        queue = Queue(Recorder(work), rng=_High(), on_error=lambda _key, _error, delay: delays.append(delay))
        queue.add("a")
        await process(queue, 300)
        assert delays[:9] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
        good = True
        queue = Queue(Recorder(work))
        queue.add("a")
        await process(queue, 300)

    fast(test)

    async def once_good() -> None:
        outcomes = iter([OSError(), OSError(), None, OSError(), None])
        seen: list[float] = []

        async def handler(_key: str) -> None:
            if error := next(outcomes):
                raise error

        queue = Queue(handler, rng=_High(), on_error=lambda _key, _error, delay: seen.append(delay), resync=100)
        queue.add("a")
        await process(queue, 200)
        assert seen == [0.5, 1, 0.5]

    fast(once_good)


class _High(random.Random):
    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return b


def test_backoff_is_spread_over_the_whole_range() -> None:
    delays: list[float] = []

    async def work(_key: str) -> None:
        raise OSError

    async def test() -> None:
        queue = Queue(work, on_error=lambda _key, _error, delay: delays.append(delay))
        for number in range(400):
            queue.add(str(number))
        await process(queue, 0.0001)

    fast(test)
    first = delays[:400]
    assert 0 <= min(first) < 0.05
    assert 0.45 < max(first) <= 0.5


def test_an_error_may_say_when_to_come_back() -> None:
    class ThrottledError(Exception):
        retry_after = 30

    async def work(_key: str) -> None:
        raise ThrottledError

    async def test() -> None:
        handler = Recorder(work)
        queue = Queue(handler)
        queue.add("a")
        await process(queue, 100)
        times = handler.times("a")
        assert len(times) == 4
        assert all(30 <= later - earlier <= 33.001 for earlier, later in pairwise(times))

    fast(test)


@pytest.mark.parametrize("nonsense", ["soon", float("nan"), float("inf"), -1, None, True])
def test_a_nonsensical_retry_after_is_no_reason_to_stop(nonsense: object) -> None:
    async def test() -> None:
        error = OSError()
        error.retry_after = nonsense  # type: ignore[attr-defined]

        async def work(_key: str) -> None:
            raise error

        handler = Recorder(work)
        queue = Queue(handler)
        queue.add("a")
        await process(queue, 60)
        assert len(handler.runs) > 3

    fast(test)


def test_the_handler_says_when_to_run_again() -> None:
    async def work(_key: str) -> float:
        return 15

    async def test() -> None:
        handler = Recorder(work)
        queue = Queue(handler)
        queue.add("a")
        asyncio.get_running_loop().call_later(20, queue.add, "a")
        await process(queue, 55)
        # An event's run in between counts: what the last run said goes.
        assert handler.times("a") == pytest.approx([0, 15, 20, 35, 50])

    fast(test)


def test_of_delayed_adds_the_earliest_counts_and_runs_in_between_do_not_cancel_it() -> None:
    async def test() -> None:
        handler = Recorder()
        queue = Queue(handler)
        for seconds in (40, 30, 50):
            queue.add_after("a", seconds)
        asyncio.get_running_loop().call_later(10, queue.add, "a")
        await process(queue, 100)
        assert handler.times("a") == pytest.approx([10, 30])
        queue.add_after("b", 0)
        assert queue.depth == 1

    fast(test)


def test_what_was_added_goes_before_what_was_to_be_later() -> None:
    async def test() -> None:
        async def work(_key: str) -> float | None:
            await asyncio.sleep(10)
            return None

        handler = Recorder(work)
        queue = Queue(handler, concurrency=1)
        queue.add("first")
        queue.add_after("echo", 1)
        asyncio.get_running_loop().call_later(5, queue.add, "changed")
        await process(queue, 25)
        assert [key for key, _ in handler.runs] == ["first", "changed", "echo"]

    fast(test)


def test_known_keys_are_looked_at_again_and_spread_out() -> None:
    async def test() -> None:
        handler = Recorder()
        queue = Queue(handler, resync=600)
        for number in range(100):
            queue.add(str(number))
        await process(queue, 3000)
        for number in range(100):
            times = handler.times(str(number))
            assert len(times) >= 5
            assert all(480 <= later - earlier <= 720 for earlier, later in pairwise(times))
        second = sorted(handler.times(str(number))[1] for number in range(100))
        assert second[-1] - second[0] > 120

    fast(test)


def test_a_forgotten_key_runs_no_more_whatever_it_waited_for() -> None:
    async def test() -> None:
        async def work(key: str) -> float | None:
            if key == "failing":
                raise OSError
            if key == "gone":
                queue.add("gone")
                queue.forget("gone")
            return 5 if key == "again" else None

        handler = Recorder(work)
        queue = Queue(handler)
        queue.forget("unknown")
        queue.add("waiting")
        queue.forget("waiting")
        queue.add_after("later", 10)
        for key in ("failing", "again", "gone"):
            queue.add(key)
        for key in ("failing", "again", "later"):
            asyncio.get_running_loop().call_later(1, queue.forget, key)
        await process(queue, 5000)
        assert {key for key, _ in handler.runs} == {"failing", "again", "gone"}
        assert len(handler.times("again")) == len(handler.times("gone")) == 1
        assert max(time for _, time in handler.runs) < 1
        assert queue.keys == set()
        queue.add("gone")
        assert queue.keys == {"gone"}

    fast(test)


def test_a_forgotten_key_that_is_added_during_its_last_run_runs_again() -> None:
    async def test() -> None:
        handler = Recorder(a_second)
        queue = Queue(handler)
        queue.add("a")
        loop = asyncio.get_running_loop()
        loop.call_later(0.3, queue.forget, "a")
        loop.call_later(0.6, queue.add, "a")
        await process(queue, 10)
        assert handler.times("a") == pytest.approx([0, 1])
        assert queue.keys == {"a"}

    fast(test)


def test_one_event_among_a_thousand_resyncs_is_served_at_once() -> None:
    async def test() -> None:
        handler = Recorder(a_second)
        queue = Queue(handler, concurrency=2, resync=1)
        for number in range(1000):
            queue.add(str(number))
        loop = asyncio.get_running_loop()
        loop.call_later(700.5, queue.add, "event")
        loop.call_later(800.5, queue.add, "7")  # it waits for its resync: it moves up
        await process(queue, 900)
        assert queue.depth > 900
        assert handler.times("event")[0] < 702
        assert any(800.5 <= time <= 802 for time in handler.times("7"))

    fast(test)


def test_a_storm_of_events_does_not_stop_the_clock() -> None:
    async def test() -> None:
        async def work(key: str) -> float | None:
            await asyncio.sleep(0.1)
            if key == "polled":
                return 1
            queue.add(key)  # for ever
            return None

        handler = Recorder(work)
        queue = Queue(handler, concurrency=2)
        queue.add("polled")
        for number in range(50):
            queue.add(f"storm{number}")
        await process(queue, 60)
        assert len(handler.times("polled")) > 10

    fast(test)


def test_a_run_that_takes_too_long_is_cancelled_and_tried_again() -> None:
    done: list[tuple[str, Outcome, float]] = []

    async def work(_key: str) -> None:
        await asyncio.sleep(1000)

    async def test() -> None:
        handler = Recorder(work)
        queue = Queue(handler, deadline=120, on_done=lambda *args: done.append(args))
        queue.add("a")
        asyncio.get_running_loop().call_later(100, lambda: ages.append(queue.oldest))
        await process(queue, 250)
        assert len(handler.runs) >= 2
        assert ages == [pytest.approx(100)]

    ages: list[float] = []
    fast(test)
    assert done[0][:2] == ("a", "timeout")
    assert done[0][2] == pytest.approx(120)


def test_outcomes_are_told() -> None:
    done: list[tuple[str, Outcome]] = []

    async def work(key: str) -> None:
        if key == "own timeout":
            raise TimeoutError
        if key == "cancelled":
            other = asyncio.ensure_future(asyncio.sleep(10))
            other.cancel()
            await other

    async def test() -> None:
        queue = Queue(work, on_done=lambda key, outcome, _seconds: done.append((key, outcome)))
        for key in ("fine", "own timeout", "cancelled"):
            queue.add(key)
        await process(queue, 0.0001)

    fast(test)
    assert done[:3] == [("fine", "success"), ("own timeout", "error"), ("cancelled", "error")]


def test_oldest_counts_waiting_keys_too() -> None:
    async def test() -> None:
        queue = Queue(Recorder(a_second), concurrency=1)
        for number in range(10):
            queue.add(str(number))
        asyncio.get_running_loop().call_later(5.5, lambda: seen.append((queue.depth, queue.oldest)))
        await process(queue, 6)

    seen: list[tuple[int, float]] = []
    fast(test)
    ((depth, oldest),) = seen
    assert depth == 4
    assert oldest == pytest.approx(5.5)


def test_a_standby_that_starts_to_work_is_not_late_from_the_first_moment() -> None:
    async def test() -> None:
        queue = Queue(Recorder(a_second), concurrency=1)
        for number in range(10):
            queue.add(str(number))
        await asyncio.sleep(3600)
        assert queue.oldest == pytest.approx(3600)
        asyncio.get_running_loop().call_later(2.5, lambda: seen.append(queue.oldest))
        await process(queue, 3)

    seen: list[float] = []
    fast(test)
    assert seen == [pytest.approx(2.5)]


def test_the_end_cancels_what_is_in_work_and_leaves_no_timer() -> None:
    async def test() -> None:
        ended: list[str] = []

        async def work(key: str) -> float:
            try:
                await asyncio.sleep(0 if key == "quick" else 100)
            finally:
                await asyncio.sleep(0.5)
                ended.append(key)
            return 10

        handler = Recorder(work)
        queue = Queue(handler)
        for key in ("quick", "slow"):
            queue.add(key)
        queue.add_after("later", 5)
        await process(queue, 2)
        assert ended == ["quick", "slow"]
        await asyncio.sleep(1000)
        assert len(handler.runs) == 2
        assert len(asyncio.all_tasks()) == 1

    fast(test)


MOMENTS = st.floats(0, 20, allow_nan=False)
ADDS = st.lists(st.tuples(MOMENTS, st.sampled_from("abcde"), st.sampled_from(["add", "after", "forget"])), max_size=60)


@settings(max_examples=200, print_blob=True)
@given(ADDS, st.integers(1, 4), st.integers(0, 2**32))
def test_no_key_runs_twice_at_once_and_each_add_is_followed_by_a_run(
    schedule: list[tuple[float, str, str]], concurrency: int, seed: int
) -> None:
    rng = random.Random(seed)

    async def work(_key: str) -> float | None:
        await asyncio.sleep(rng.choice([0, 0.01, 0.3, 2]))
        if rng.random() < 0.3:
            raise OSError
        return rng.choice([None, 0, 1, 5])

    async def test() -> None:
        handler = Recorder(work)  # asserts that no key runs twice at once
        failed: list[BaseException] = []
        queue = Queue(
            handler,
            concurrency=concurrency,
            rng=rng,
            on_error=lambda _key, error, _delay: failed.append(error),
        )
        loop = asyncio.get_running_loop()
        for moment, key, what in schedule:
            if what == "add":
                loop.call_at(moment, queue.add, key)
            elif what == "after":
                loop.call_at(moment, queue.add_after, key, 3.0)
            else:
                loop.call_at(moment, queue.forget, key)
        await process(queue, 200)
        assert not [error for error in failed if isinstance(error, AssertionError)]
        forgotten = {
            key: max((m for m, k, w in schedule if k == key and w == "forget"), default=-1.0) for key in "abcde"
        }
        for moment, key, what in schedule:
            if what != "forget" and moment > forgotten[key]:
                # A timer may fire a clock tick early.
                assert any(time >= moment - 1e-6 for time in handler.times(key)), (key, moment)

    fast(test)
