"""Pure: a decision as it is published in `.status.autoscaling`, and read back from there.

Numbers are rounded, and one that has hardly changed is not published anew: a status that is written with every poll
costs the API server more than it tells anyone.
"""

from typing import Any

from vaultml_operator.api import AutoscalingStatus, Clamped
from vaultml_operator.autoscaler.lag import Reading
from vaultml_operator.autoscaler.rates import RATE_STEP, Rates
from vaultml_operator.autoscaler.records import Backlog, Decision, Observation

_NEAR = 0.1
_NEAR_PROCESSED = 0.05
"""Shares by which a number must differ from the published one to be published anew, while something waits."""
_LEAST = {"arrival_per_second": RATE_STEP}
"""And by how much at least: a rate fades by shares for ever."""
_MEASURED = ("lag", "oldest_seconds", "arrival_per_second", "service_per_second", "startup_seconds", "stuck")
_FEW = 10
"""Lags up to so many come and go with each recording."""
_TOLD = (
    "message",
    "clamps",
    "account",
    "oldest",
    "rate",
    "last_active",
    "ready",
    "current",
    "lagging_partitions",
)
"""Words that hold measured numbers: they go along with a change, and are none."""
_COUNTED = ("processed", "needed")
"""What is exact at rest, and changes with each recording."""
_GPUS = ("slots", "holders")
"""What others hold changes all the time: told exactly while GPUs limit the number of workers, else later will do."""
_EXPIRING = 0.75
"""The share of a topic's retention at which the oldest recording is said to be in danger."""
_LIMITS = ("vault", "gpus", "max", "partitions", "paused", "scaleOutRate", "scaleInRate")


def status(
    seen: Observation, decision: Decision, known: Rates, reading: Reading | None, processed: int
) -> AutoscalingStatus:
    """The whole `.status.autoscaling`."""
    backlog, rates = seen.backlog, known.to_status()
    found: dict[str, Any] = {
        "desired": decision.replicas,
        "needed": decision.needed,
        "message": decision.reason[:1024],
        "clamp": limit(decision),
        "clamps": tuple(
            Clamped(rule=each.name, before=each.before, after=each.after, message=each.phrase[:512])
            for each in decision.clamps
        ),
        "account": tuple(each[:256] for each in decision.steps[:24]),
        "current": seen.replicas,
        "ready": seen.ready,
        "slots": seen.slots,
        "holders": seen.holders[:512] or None,
        "trouble": seen.trouble[:512] or None if backlog is None else None,
        "processed": processed,
        "dead": None if reading is None else reading.dead,
        "rate": None if rates.arrival_per_second is None else f"{rates.arrival_per_second:.2g}/s",
    }
    if backlog is not None:
        oldest, retention = _oldest(backlog, reading), None if reading is None else reading.retention
        last_active = decision.history.last_active
        found |= {
            "lag": rounded(backlog.lag),
            "oldest_seconds": None if backlog.oldest_seconds is None else rounded(backlog.oldest_seconds),
            "oldest": None if oldest is None else duration(oldest),
            "partitions": backlog.parallelism,
            "lagging_partitions": backlog.lagging,
            "stuck_partitions": backlog.stuck_partitions or None,
            "stuck": backlog.stuck or None,
            "retention_seconds": None if retention is None else round(retention),
            "expiring": None if retention is None else (oldest or 0.0) >= _EXPIRING * retention,
            # While something waits it would change with every poll, and a restarted operator sees for itself.
            "last_active": None if backlog.lag or last_active is None else round(last_active),
        }
    return AutoscalingStatus.model_validate(rates.model_dump(exclude_none=True) | found)


def _oldest(backlog: Backlog, reading: Reading | None) -> float | None:
    """How long the oldest of all has waited, in seconds. Unlike for a decision, in stuck partitions too: it expires."""
    since = [] if reading is None else [part.oldest for part in reading.partitions if part.oldest is not None]
    return backlog.oldest_seconds if reading is None or not since else max(0.0, reading.time - min(since))


def limit(decision: Decision) -> str | None:
    """The rule that keeps the pipeline from what it needs, if one does."""
    return next((each.name for each in reversed(decision.clamps) if each.name in _LIMITS), None)


def differs(
    published: AutoscalingStatus | None, new: AutoscalingStatus, *, fresh: bool = False, late: bool = False
) -> bool:
    """Whether what is published no longer tells the truth.

    `fresh`: it was published a moment ago, so that measured numbers can wait, but for a lag that counts; `late`: it has
    been there for minutes.
    """
    if published is None:
        return True
    before, after = (each.model_dump(exclude_none=True, exclude={*_TOLD}) for each in (published, new))
    if fresh:
        lags = [each.lag or 0 for each in (published, new)]
        for name in {*_MEASURED, *_COUNTED} - ({"lag"} if max(lags) > _FEW else set()):
            before.pop(name, None)
            after.pop(name, None)
    if before.keys() != after.keys():
        return True
    exact = late or "gpus" in (published.clamp, new.clamp)
    for name, value in after.items():
        if name in _GPUS and not exact:
            continue
        was = before[name]
        near = _NEAR if name in _MEASURED else _NEAR_PROCESSED if name == "processed" and new.lag else 0.0
        if near:
            if (was == 0) != (value == 0) or abs(value - was) > max(near * abs(was), _LEAST.get(name, 0.0)):
                return True
        elif was != value:
            return True
    return False


def observation(published: AutoscalingStatus) -> Observation:
    """What was seen, from what was published of it: for explaining a decision elsewhere, with its roundings."""
    backlog = None
    if published.lag is not None:
        backlog = Backlog(
            lag=published.lag,
            oldest_seconds=published.oldest_seconds,
            parallelism=published.partitions,
            lagging=published.lagging_partitions,
            stuck=published.stuck or 0,
            stuck_partitions=published.stuck_partitions or 0,
        )
    holders = published.holders or ""
    return Observation(
        backlog=backlog,
        trouble=published.trouble or "",
        arrival=published.arrival_per_second,
        service=published.service_per_second,
        replicas=published.current or 0,
        ready=published.ready or 0,
        startup_seconds=published.startup_seconds,
        slots=published.slots,
        holders=holders,
        bound="CPU slots" if "CPU slot" in holders else "GPUs",
    )


def rounded(value: float) -> int:
    """Whole, to two digits from a hundred on."""
    whole = round(value)
    return whole if whole < 100 else int(float(f"{whole:.2g}"))


def duration(seconds: float) -> str:
    """As people say it: 12s, 3m, 2h, 4d."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
