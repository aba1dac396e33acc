"""Pure: numbers that a decision can be made with, whatever came in."""

import math
from dataclasses import replace

from vaultml_operator.autoscaler.records import History, Observation

MANY = 10**6
LONG = 1e9
"""No count of workers, no time in seconds is larger: what is, was not meant, and must not overflow."""
ENTRIES = 1000
"""Needs and steps that are kept at most: a window of hours at the usual polling."""
_FAR = 1e15
"""A clock in seconds beyond this no longer counts the seconds."""


def inputs(
    polling_seconds: float, observation: Observation, history: History, now: float
) -> tuple[Observation, History, float]:
    """All of it with numbers that are finite and in their range; what makes no sense counts as unknown."""
    if not math.isfinite(now):
        now = history.time if history.time is not None and math.isfinite(history.time) else 0.0
    now = min(max(now, -_FAR), _FAR)
    observation = _observation(observation)
    return observation, _history(polling_seconds, observation, history, now), now


def _history(polling_seconds: float, seen: Observation, history: History, now: float) -> History:
    """The history without what can't be: times to come, and anything from before a gap that nobody watched."""
    last = history.time if _finite(history.time) else None
    last_active = history.last_active if _finite(history.last_active) else None
    last_active = None if last_active is None else min(last_active, now)
    failures = _count(history.failures)
    gap = 60.0 + 10 * polling_seconds
    if last is None or not 0 <= now - last <= gap:
        # The first look: the workers there are count as needed, so that no window is taken as empty.
        kept = last_active if last is None else now
        return History(last_active=kept, failures=failures, needs=((now, seen.replicas),))
    steps = [(time, delta) for time, delta in history.steps if time <= now]
    if history.replicas is not None and seen.replicas != history.replicas:
        # Counted when it is seen, not when it is decided: what nobody carried out is no step.
        steps.append((last, seen.replicas - _count(history.replicas)))
    needs = tuple((time, _count(need)) for time, need in history.needs if time <= now)
    return replace(history, last_active=last_active, failures=failures, needs=needs, steps=tuple(steps))


def _observation(seen: Observation) -> Observation:
    backlog = seen.backlog
    if backlog is not None:
        lag = _count(backlog.lag, MANY**2)
        backlog = replace(
            backlog,
            lag=lag,
            oldest_seconds=_seconds(backlog.oldest_seconds),
            # A topic without partitions is not there yet: that is no bound.
            parallelism=_count(backlog.parallelism or 0) or None,
            lagging=None if backlog.lagging is None else _count(backlog.lagging),
            stuck=min(_count(backlog.stuck, MANY**2), lag),
            stuck_partitions=_count(backlog.stuck_partitions),
        )
    return replace(
        seen,
        backlog=backlog,
        arrival=_positive(seen.arrival),
        service=_positive(seen.service),
        replicas=_count(seen.replicas),
        ready=_count(seen.ready),
        startup_seconds=_positive(seen.startup_seconds),
        slots=None if seen.slots is None else _count(seen.slots),
    )


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _count(value: int, most: int = MANY) -> int:
    return min(max(value, 0), most)


def _seconds(value: float | None) -> float | None:
    return min(value, LONG) if value is not None and math.isfinite(value) and value >= 0 else None


def _positive(value: float | None) -> float | None:
    """A positive number of a usual size; anything else is unknown."""
    return min(value, LONG) if value is not None and math.isfinite(value) and value > 1 / LONG else None
