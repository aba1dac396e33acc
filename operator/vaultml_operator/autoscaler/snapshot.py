"""Pure: a decision as it is published in `.status.autoscaling`, and read back from there.

Numbers are rounded, and one that has hardly changed is not published anew: a status that is written with every poll
costs the API server more than it tells anyone.
"""

from typing import Any

from vaultml_operator.api import AppliedLimit, AutoscalingStatus
from vaultml_operator.autoscaler.lag import Reading
from vaultml_operator.autoscaler.rates import RATE_STEP, Rates
from vaultml_operator.autoscaler.records import Backlog, Decision, Observation

_NEAR = 0.1
_NEAR_PROCESSED = 0.05
"""Shares by which a number must differ from the published one to be published anew, while something waits."""
_LEAST = {"arrival_rate": RATE_STEP}
"""And by how much at least: a rate fades by shares for ever."""
_MEASURED = ("lag", "oldest_message_age_seconds", "arrival_rate", "service_rate", "startup_seconds", "stuck_lag")
_FEW = 10
"""Lags up to so many come and go with each recording."""
_TOLD = (
    "message",
    "limits",
    "trace",
    "oldest_message_age",
    "rate",
    "last_active",
    "ready_replicas",
    "current_replicas",
    "lagging_partitions",
)
"""Words that hold measured numbers: they go along with a change, and are none."""
_COUNTED = ("processed", "needed_replicas")
"""What is exact at rest, and changes with each recording."""
_GPUS = ("gpu_limit", "held_by")
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
        "desired_replicas": decision.replicas,
        "needed_replicas": decision.needed,
        "message": decision.reason[:1024],
        "limited_by": limit(decision),
        "limits": tuple(
            AppliedLimit(rule=each.name, before=each.before, after=each.after, message=each.phrase[:512])
            for each in decision.limits
        ),
        "trace": tuple(each[:256] for each in decision.steps[:24]),
        "current_replicas": seen.replicas,
        "ready_replicas": seen.ready,
        "gpu_limit": seen.slots,
        "held_by": seen.holders[:512] or None,
        "error": seen.trouble[:512] or None if backlog is None else None,
        "processed": processed,
        "dead_letters": None if reading is None else reading.dead,
        "rate": None if rates.arrival_rate is None else f"{rates.arrival_rate:.2g}/s",
    }
    if backlog is not None:
        oldest, retention = _oldest(backlog, reading), None if reading is None else reading.retention
        last_active = decision.history.last_active
        found |= {
            "lag": rounded(backlog.lag),
            "oldest_message_age_seconds": None if backlog.oldest_seconds is None else rounded(backlog.oldest_seconds),
            "oldest_message_age": None if oldest is None else duration(oldest),
            "partitions": backlog.parallelism,
            "lagging_partitions": backlog.lagging,
            "stuck_partitions": backlog.stuck_partitions or None,
            "stuck_lag": backlog.stuck or None,
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
    return next((each.name for each in reversed(decision.limits) if each.name in _LIMITS), None)


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
    exact = late or "gpus" in (published.limited_by, new.limited_by)
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
            oldest_seconds=published.oldest_message_age_seconds,
            parallelism=published.partitions,
            lagging=published.lagging_partitions,
            stuck=published.stuck_lag or 0,
            stuck_partitions=published.stuck_partitions or 0,
        )
    holders = published.held_by or ""
    return Observation(
        backlog=backlog,
        trouble=published.error or "",
        arrival=published.arrival_rate,
        service=published.service_rate,
        replicas=published.current_replicas or 0,
        ready=published.ready_replicas or 0,
        startup_seconds=published.startup_seconds,
        slots=published.gpu_limit,
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
