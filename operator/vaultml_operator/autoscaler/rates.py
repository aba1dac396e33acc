"""Pure: how fast recordings arrive, how fast a worker handles them, how long it takes to start."""

import math
from dataclasses import dataclass, replace

from vaultml_operator.api import AutoscalingStatus

ARRIVAL_HALF_LIFE = 60.0
"""Seconds after which what was seen counts half."""
RECENT_HALF_LIFE = 15.0
"""The same for the second, quicker view of arrivals."""
SERVICE_HALF_LIFE = 120.0
RULE_OF_THREE = 3.0
"""Nothing in t seconds: with 95 % confidence, no more than 3/t per second arrive."""
RATE_STEP = 0.01
"""Recordings per second: less counts as none where people read it."""
LONGEST_START = 900.0
"""Seconds that a worker takes to start, at most: what took longer waited for a GPU."""
SHORTEST, LONGEST = 0.1, 900.0
"""Seconds between two samples; what is further apart is a jump of the clock or a night without an operator."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one poll counted.

    - `time`: seconds; `end`: sum of the partitions' log ends; `done`: recordings that were done, since any beginning.
    - `lag`: recordings that wait; `busy`: workers that have something to do; `ready`: workers that run. Without what is
      stuck: it moves for nobody.
    - `partitions`: how many were counted; 0: not known.
    """

    time: float
    end: int
    done: int
    lag: int
    busy: int
    ready: int
    partitions: int = 0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What is known; None: not yet.

    - `steady`, `recent`: recordings that arrive per second, seen through two half-lives.
    - `service`: recordings per second and busy worker.
    - `startup_seconds`: from asked for to ready.
    - `arrival_seconds`, `service_seconds`: for how long each was watched.
    - `quiet_seconds`: for how long nothing has arrived or waited.
    - `still_seconds`: for how long workers had work and finished nothing; `still_work`: worker-seconds of that;
      `before_still`: the service rate before.
    - `time`: of the last sample that counted.
    """

    steady: float | None = None
    recent: float | None = None
    service: float | None = None
    startup_seconds: float | None = None
    arrival_seconds: float = 0.0
    service_seconds: float = 0.0
    quiet_seconds: float = 0.0
    still_seconds: float = 0.0
    still_work: float = 0.0
    before_still: float | None = None
    time: float | None = None

    @property
    def arrival(self) -> float | None:
        """Recordings per second that keep arriving: the lower of both views, since a burst is a backlog and no rate.

        While nothing arrives or waits, not more than the silence allows.
        """
        if self.steady is None or self.recent is None:
            return None
        allowed = RULE_OF_THREE / self.quiet_seconds if self.quiet_seconds else math.inf
        return min(self.steady, self.recent, allowed)

    def to_status(self) -> AutoscalingStatus:
        """What is known, to two significant digits: more would change, and be written, with every poll."""
        arrival = 0.0 if self.arrival is not None and self.arrival < RATE_STEP else self.arrival
        return AutoscalingStatus(
            arrival_rate=_two_digits(arrival),
            service_rate=_two_digits(self.service),
            startup_seconds=_two_digits(self.startup_seconds),
        )

    @classmethod
    def from_status(cls, status: AutoscalingStatus) -> "Rates":
        """Read what `to_status` gave; what is not a positive number, or zero arrivals, is unknown."""
        arrival, service = _number(status.arrival_rate), _number(status.service_rate) or None
        return cls(
            steady=arrival,
            recent=arrival,
            service=service,
            startup_seconds=_number(status.startup_seconds) or None,
            # It was watched for long, by another.
            arrival_seconds=0.0 if arrival is None else ARRIVAL_HALF_LIFE,
            service_seconds=0.0 if service is None else SERVICE_HALF_LIFE,
        )


def update(rates: Rates, before: Sample | None, after: Sample) -> Rates:
    """What is known after one more sample; an interval that makes no sense changes nothing.

    Arrivals are growth of the log ends; the service rate is what was done per busy worker, counted only while something
    waited at both ends of the interval, since a worker without work is not slow.
    """
    if before is None or not SHORTEST <= after.time - before.time <= LONGEST:
        return rates
    elapsed = after.time - before.time
    rates = replace(rates, time=after.time)
    arrived, done = after.end - before.end, after.done - before.done
    # Fewer partitions, or an end that went back: the topic was made anew.
    if arrived >= 0 and after.partitions >= before.partitions:
        watched, seen = rates.arrival_seconds + elapsed, arrived / elapsed
        rates = replace(
            rates,
            steady=_blend(rates.steady, seen, elapsed, watched, ARRIVAL_HALF_LIFE),
            recent=_blend(rates.recent, seen, elapsed, watched, RECENT_HALF_LIFE),
            arrival_seconds=min(watched, 1e6),
            quiet_seconds=0.0 if arrived or after.lag else min(rates.quiet_seconds + elapsed, 1e6),
        )
    worked = min(before.busy, after.busy, before.lag, after.lag) > 0
    if not worked:
        return replace(rates, still_seconds=0.0, still_work=0.0)
    # More done than can have been there is a commit that somebody set by hand.
    if arrived < 0 or not 0 <= done <= before.lag + arrived or after.partitions != before.partitions:
        return rates
    return _served(rates, done, elapsed, elapsed * (before.busy + after.busy) / 2)


def _served(rates: Rates, done: int, elapsed: float, work: float) -> Rates:
    """The service rate after so many worker-seconds of work.

    Time in which nothing is finished (slow recordings, or a Vault that is away) is judged together with the recording
    that ends it; until then it says no more than the rule of three, and can halve the rate, however long it is.
    """
    known = rates.before_still if rates.still_seconds else rates.service
    seconds, work = rates.still_seconds + elapsed, rates.still_work + work
    counted = min(seconds, SERVICE_HALF_LIFE)
    watched = rates.service_seconds + counted
    seen = done / work if done else min(known or 0.0, RULE_OF_THREE / work)
    service = _blend(known, seen, counted, watched if done else math.inf, SERVICE_HALF_LIFE) or None
    if done:
        still: dict[str, float] = {"still_seconds": 0.0, "still_work": 0.0, "service_seconds": min(watched, 1e6)}
        return replace(rates, service=service, **still)
    return replace(rates, service=service, still_seconds=seconds, still_work=work, before_still=known)


def started(rates: Rates, seconds: float) -> Rates:
    """What is known after a worker became ready so many seconds after it was asked for; half of it is the new one."""
    if not (math.isfinite(seconds) and seconds > 0):
        return rates
    before, seconds = rates.startup_seconds, min(seconds, LONGEST_START)
    return replace(rates, startup_seconds=seconds if before is None else (before + seconds) / 2)


def _blend(known: float | None, seen: float, elapsed: float, watched: float, half_life: float) -> float:
    """Exponentially weighted by time; early on by what was watched so far, so that the first interval is no truth."""
    if known is None:
        known = 0.0
    return known + (seen - known) * _weight(elapsed, half_life) / _weight(watched, half_life)


def _weight(seconds: float, half_life: float) -> float:
    return float(1 - 0.5 ** (seconds / half_life))


def _two_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.2g}")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        return None
    return float(value)
