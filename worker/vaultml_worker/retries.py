"""Retrying what fails for a cause that is ours, until it works: the recording is held meanwhile."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import tenacity

from vaultml_worker.failures import Cause, Failure

_T = TypeVar("_T")
GiveUp = Callable[[tenacity.RetryCallState], bool]


def _ignore(*_: Any) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Retries:
    """How a transient failure is retried: with backoff and jitter, at most `max_wait` seconds apart.

    It ends when `stop` is set, or after so many `attempts`; None: only with `stop`. `on_retry(failure, seconds)` is
    called before each wait; `on_held(cause, +1)` when a recording begins to wait for a cause, `on_held(cause, -1)` when
    that ends. Thread-safe if these two are.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    attempts: int | None = None
    max_wait: float = 30.0
    on_retry: Callable[[Failure, float], None] = _ignore
    on_held: Callable[[Cause, int], None] = _ignore

    def call(self, function: Callable[..., _T], *args: Any, give_up: GiveUp | None = None) -> _T:
        """Return what the function returns.

        Raises its permanent Failure at once; its transient one when stopped, out of attempts, or as `give_up` says.
        """
        held: list[Cause] = []

        def hold(*causes: Cause) -> None:
            if held != [*causes]:
                for cause in held:
                    self.on_held(cause, -1)
                for cause in causes:
                    self.on_held(cause, +1)
                held[:] = causes

        def before_sleep(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, Failure):
                hold(error.cause)
                self.on_retry(error, state.upcoming_sleep)

        def ends(state: tenacity.RetryCallState) -> bool:
            return (
                self.stop.is_set()
                or (self.attempts is not None and state.attempt_number >= self.attempts)
                or (give_up is not None and give_up(state))
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Failure) and not error.cause.permanent),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=self.max_wait),
            stop=ends,
            sleep=tenacity.sleep_using_event(self.stop),
            before_sleep=before_sleep,
            reraise=True,
        )
        try:
            return retrying(function, *args)
        finally:
            hold()


ONCE = Retries(attempts=1)
"""Nothing is retried."""
