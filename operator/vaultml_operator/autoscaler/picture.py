"""Pure: a decision as it is published in `.status.autoscaling`, and read back from there.

Numbers are rounded, and one that has hardly changed is not published anew: a status that is written with every poll
costs the API server more than it tells anyone.
"""

from collections.abc import Mapping
from typing import Any

from vaultml_operator.autoscaler.lag import Reading
from vaultml_operator.autoscaler.rates import RATE_STEP, Rates
from vaultml_operator.autoscaler.records import Backlog, Decision, Observation

_NEAR = 0.1
_NEAR_PROCESSED = 0.05
"""Shares by which a number must differ from the published one to be published anew, while something waits."""
_LEAST = {"arrivalPerSecond": RATE_STEP}
"""And by how much at least: a rate fades by shares for ever."""
_MEASURED = ("lag", "oldestSeconds", "arrivalPerSecond", "servicePerSecond", "startupSeconds", "stuck")
_FEW = 10
"""Lags up to so many come and go with each recording."""
_TOLD = (
    "message",
    "clamps",
    "account",
    "oldest",
    "rate",
    "lastActive",
    "ready",
    "current",
    "laggingPartitions",
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
) -> dict[str, Any]:
    """The whole `.status.autoscaling`; what is not known is left out."""
    backlog = seen.backlog
    found: dict[str, Any] = {
        "desired": decision.replicas,
        "needed": decision.needed,
        "message": decision.reason[:1024],
        "clamp": limit(decision),
        "clamps": [
            {"rule": each.name, "before": each.before, "after": each.after, "message": each.phrase[:512]}
            for each in decision.clamps
        ],
        "account": [each[:256] for each in decision.steps[:24]],
        "current": seen.replicas,
        "ready": seen.ready,
        "slots": seen.slots,
        "holders": seen.holders[:512] or None,
        "trouble": seen.trouble[:512] or None if backlog is None else None,
        "processed": processed,
        "dead": None if reading is None else reading.dead,
        **known.to_status(),
    }
    if backlog is not None:
        found |= {
            "lag": rounded(backlog.lag),
            "oldestSeconds": None if backlog.oldest_seconds is None else rounded(backlog.oldest_seconds),
            "oldest": None if (oldest := _oldest(backlog, reading)) is None else duration(oldest),
            "partitions": backlog.parallelism,
            "laggingPartitions": backlog.lagging,
            "stuckPartitions": backlog.stuck_partitions or None,
            "stuck": backlog.stuck or None,
        }
        if reading is not None and reading.retention is not None:
            found["retentionSeconds"] = round(reading.retention)
            found["expiring"] = (oldest or 0.0) >= _EXPIRING * reading.retention
        # While something waits it would change with every poll, and a restarted operator sees for itself.
        if backlog.lag == 0 and decision.history.last_active is not None:
            found["lastActive"] = round(decision.history.last_active)
    if known.arrival is not None:
        found["rate"] = f"{found['arrivalPerSecond']:.2g}/s"
    return {name: value for name, value in found.items() if value is not None}


def _oldest(backlog: Backlog, reading: Reading | None) -> float | None:
    """How long the oldest of all has waited, in seconds. Unlike for a decision, in stuck partitions too: it expires."""
    since = [] if reading is None else [part.oldest for part in reading.partitions if part.oldest is not None]
    return backlog.oldest_seconds if reading is None or not since else max(0.0, reading.time - min(since))


def limit(decision: Decision) -> str | None:
    """The rule that keeps the pipeline from what it needs, if one does."""
    return next((each.name for each in reversed(decision.clamps) if each.name in _LIMITS), None)


def differs(
    published: Mapping[str, Any] | None, new: Mapping[str, Any], *, fresh: bool = False, late: bool = False
) -> bool:
    """Whether what is published no longer tells the truth.

    `fresh`: it was published a moment ago, so that measured numbers can wait, but for a lag that counts; `late`: it has
    been there for minutes.
    """
    if published is None:
        return True
    if fresh:
        lags = [each.get("lag", 0) for each in (published, new)]
        waits = {*_MEASURED, *_COUNTED} - ({"lag"} if max(lags) > _FEW else set())
        published = {name: value for name, value in published.items() if name not in waits}
        new = {name: value for name, value in new.items() if name not in waits}
    if {*published} - {*_TOLD} != {*new} - {*_TOLD}:
        return True
    exact = late or "gpus" in (published.get("clamp"), new.get("clamp"))
    for name, value in new.items():
        if name in _TOLD or (name in _GPUS and not exact):
            continue
        before = published[name]
        near = _NEAR if name in _MEASURED else _NEAR_PROCESSED if name == "processed" and new.get("lag") else 0.0
        if near:
            if (before == 0) != (value == 0) or abs(value - before) > max(near * abs(before), _LEAST.get(name, 0.0)):
                return True
        elif before != value:
            return True
    return False


def observation(published: Mapping[str, Any]) -> Observation:
    """What was seen, from what was published of it: for explaining a decision elsewhere, with its roundings."""
    backlog = None
    if "lag" in published:
        backlog = Backlog(
            lag=published["lag"],
            oldest_seconds=published.get("oldestSeconds"),
            parallelism=published.get("partitions"),
            lagging=published.get("laggingPartitions"),
            stuck=published.get("stuck") or 0,
            stuck_partitions=published.get("stuckPartitions") or 0,
        )
    return Observation(
        backlog=backlog,
        trouble=published.get("trouble") or "",
        arrival=published.get("arrivalPerSecond"),
        service=published.get("servicePerSecond"),
        replicas=published.get("current") or 0,
        ready=published.get("ready") or 0,
        startup_seconds=published.get("startupSeconds"),
        slots=published.get("slots"),
        holders=published.get("holders") or "",
        bound="CPU slots" if "CPU slot" in (published.get("holders") or "") else "GPUs",
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
