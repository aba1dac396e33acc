"""A level-triggered work queue: one run per key at a time, coalescing, backoff with jitter, resync.

Like client-go's, in one asyncio loop. A key is a name, not a message: however often it is added, the handler looks at
the world as it is when it runs, and every add is followed by a run that starts after it.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

K = TypeVar("K", bound=Hashable)

Outcome = Literal["success", "error", "timeout"]

_CLOCK_EVERY = 8
"""While both lanes hold keys, each eighth run is the clock's: a storm of events must not stop polling for good."""


@dataclass(slots=True)
class _State:
    """What is known of one key."""

    running: bool = False
    known: bool = True
    again: float | None = None
    """When the key was added during its run, in loop time; None: it was not."""
    since: float = 0.0
    """Since when the run that is in work had waited, in loop time."""
    failures: int = 0
    timer: asyncio.TimerHandle | None = None
    """By `add_after`: stays until it fires."""
    clock: asyncio.TimerHandle | None = None
    """By the last run (again, retry, resync): replaced by each run."""

    def cancel_clock(self) -> None:
        if self.clock is not None:
            self.clock.cancel()
            self.clock = None

    def cancel(self) -> None:
        self.cancel_clock()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Queue(Generic[K]):
    """Runs `handler(key)` for keys that were added, or whose time has come.

    - The handler's result: None, or seconds after which to run again. An exception is retried after a random time
      up to `backoff[0]` s, doubled with each failure up to `backoff[1]` s; an exception's attribute `retry_after`
      (seconds) goes before that. Success resets the backoff.
    - `deadline` seconds bound one run: it is then cancelled and retried. A handler that ignores its cancellation
      keeps its place, which `oldest` shows.
    - Every known key runs at least each `resync` seconds, ±20 %. A key is known from its first add until `forget`.
    - At most `concurrency` keys are in work. Keys that were added go before keys whose time has come, by `add_after`
      or by themselves.
    - `on_done(key, outcome, seconds)` hears of each run, `on_error(key, error, retry_in)` of each that failed. What
      they raise ends `run`: hooks must not fail.

    Not thread-safe: everything is called in the loop that runs `run`. Times are the loop's.
    """

    def __init__(
        self,
        handler: Callable[[K], Awaitable[float | None]],
        *,
        concurrency: int = 16,
        deadline: float = 120.0,
        resync: float = 600.0,
        backoff: tuple[float, float] = (0.5, 60.0),
        on_done: Callable[[K, Outcome, float], None] | None = None,
        on_error: Callable[[K, BaseException, float], None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._handler = handler
        self._concurrency = concurrency
        self._deadline = deadline
        self._resync = resync
        self._backoff = backoff
        self._on_done = on_done
        self._on_error = on_error
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._states: dict[K, _State] = {}
        # Two FIFO lanes of the keys that wait, each with the loop time at which it began to; a key is in one at most.
        self._events: dict[K, float] = {}
        self._due: dict[K, float] = {}
        self._working = 0
        self._served = 0
        self._started = -math.inf
        self._group: asyncio.TaskGroup | None = None

    @property
    def depth(self) -> int:
        """How many keys wait to be served (not those whose time has not come)."""
        return len(self._events) + len(self._due)

    @property
    def oldest(self) -> float:
        """Age in seconds of the key that has waited, or been in work, longest; 0 when idle.

        Counted from the start of `run`: a standby's keys may have waited for hours by then.
        """
        since = [*self._events.values(), *self._due.values()]
        since += [state.since for state in self._states.values() if state.running]
        return max(0.0, _now() - max(self._started, min(since))) if since else 0.0

    @property
    def keys(self) -> frozenset[K]:
        """The known keys."""
        return frozenset(key for key, state in self._states.items() if state.known)

    def add(self, key: K) -> None:
        """Run `key` as soon as there is a free place, once more if it is in work; also before `run` is called."""
        state = self._know(key)
        if state.running:
            state.again = state.again if state.again is not None else _now()
        else:
            self._events.setdefault(key, self._due.pop(key, _now()))
            self._pump()

    def add_after(self, key: K, seconds: float) -> None:
        """Run `key` in so many seconds, behind those that are added; of several such calls the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        state, loop = self._know(key), asyncio.get_running_loop()
        if state.timer is not None:
            if state.timer.when() <= loop.time() + seconds:
                return
            state.timer.cancel()
        state.timer = loop.call_later(seconds, self._timer_fired, key, state)

    def forget(self, key: K) -> None:
        """Know `key` no longer: it waits for nothing, and a run that is in work (perhaps the caller) is the last."""
        state = self._states.get(key)
        if state is None:
            return
        state.cancel()
        state.known, state.again, state.failures = False, None, 0
        self._events.pop(key, None)
        self._due.pop(key, None)
        if not state.running:
            del self._states[key]

    async def run(self) -> None:
        """Process keys until cancelled; runs in work are then cancelled and waited for. To be called once."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._started = _now()
            try:
                self._pump()
                await asyncio.get_running_loop().create_future()  # until cancelled
            finally:
                self._group = None
                for state in self._states.values():
                    state.cancel()

    def _know(self, key: K) -> _State:
        state = self._states.setdefault(key, _State())
        state.known = True
        return state

    def _timer_fired(self, key: K, state: _State) -> None:
        state.timer = None
        if state.running:
            self.add(key)
        else:
            self._fall_due(key)

    def _clock_fired(self, key: K, state: _State) -> None:
        state.clock = None
        if not state.running:
            self._fall_due(key)

    def _fall_due(self, key: K) -> None:
        if key not in self._events:
            self._due.setdefault(key, _now())
            self._pump()

    def _pump(self) -> None:
        """Start as many runs as there are free places."""
        while self._group is not None and self._working < self._concurrency and (self._events or self._due):
            clock = not self._events or (self._due and self._served % _CLOCK_EVERY == _CLOCK_EVERY - 1)
            lane = self._due if clock else self._events
            self._served += 1
            key = next(iter(lane))
            state = self._states[key]
            state.since = lane.pop(key)
            state.cancel_clock()
            state.running = True
            self._working += 1
            self._group.create_task(self._process(key, state))

    async def _process(self, key: K, state: _State) -> None:
        started = _now()
        again: float | None = None
        error: BaseException | None = None
        outcome: Outcome = "success"
        try:
            async with asyncio.timeout(self._deadline) as limit:
                again = await self._handler(key)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # `run` ends
            outcome, error = "error", cancelled  # something that the handler waited for was cancelled
        except Exception as raised:  # noqa: BLE001, RUF100 - whatever it is, it is retried
            outcome, error = "timeout" if limit.expired() else "error", raised
        finally:
            state.running = False
            self._working -= 1
        delay = self._plan(key, state, again, error)
        if self._on_done is not None:
            self._on_done(key, outcome, _now() - started)
        if self._on_error is not None and error is not None:
            self._on_error(key, error, delay)
        self._pump()

    def _plan(self, key: K, state: _State, again: float | None, error: BaseException | None) -> float:
        """When the key runs next, in seconds from now."""
        if not state.known:
            del self._states[key]
            return math.inf
        if error is None:
            state.failures = 0
            delay = math.inf if again is None else max(0.0, again)
        else:
            delay = self._retry_in(state.failures, error)
            state.failures += 1
        delay = min(delay, self._resync * self._rng.uniform(0.8, 1.2))
        if state.again is not None:
            self._events[key] = state.again
            state.again = None
            return 0.0
        state.clock = asyncio.get_running_loop().call_later(delay, self._clock_fired, key, state)
        return delay

    def _retry_in(self, failures: int, error: BaseException) -> float:
        wanted = getattr(error, "retry_after", None)
        if isinstance(wanted, int | float) and math.isfinite(wanted) and wanted >= 0:
            return float(wanted) * self._rng.uniform(1.0, 1.1)  # never sooner than asked
        first, most = self._backoff
        return self._rng.uniform(0.0, min(most, first * 2 ** min(failures, 32)))


def _now() -> float:
    return asyncio.get_running_loop().time()
