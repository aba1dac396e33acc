"""Pure: a pipeline's status and Events, from what was observed.

Ready follows the Deployment's `Available`: the workers that there were count, not additional ones that are starting or
can't start. Which workers there were is read from the previous status, so that it survives a restart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vaultml_operator import api, manifests
from vaultml_operator.autoscaler.snapshot import duration
from vaultml_operator.pods import Problem
from vaultml_operator.probes import Outcome
from vaultml_operator.reasons import BY_NAME, Reason

Status = dict[str, Any]
Condition = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one reconcile saw.

    `blocking` keeps the operator from doing what the spec says; `pods` keeps pods from becoming ready, and `mounting`
    says that one waits for its volumes or image. `queue` and `vault` are the checks' outcomes: None when the first one
    hasn't ended. `monitored` is None when it isn't asked for.
    `wanted` is the number of workers, whoever set it; `scaling` is what the scaler publishes, None: nothing yet.
    """

    generation: int
    spec: api.Spec | None
    paused: bool = False
    wanted: int = 0
    deployment: Mapping[str, Any] | None = None
    image: str | None = None
    selector: str | None = None
    blocking: Problem | None = None
    pods: Problem | None = None
    mounting: bool = False
    queue: Outcome | None = None
    vault: Outcome | None = None
    monitored: Problem | None = None
    scaling: api.AutoscalingStatus | None = None


class Note(NamedTuple):
    """An Event to post: Normal or Warning, reason, sentence."""

    kind: str
    reason: Reason
    message: str


class _State(NamedTuple):
    status: str
    reason: Reason
    message: str


_SETTLED = (Reason.COMPLETE, Reason.NOT_READY)
"""Reasons of Progressing of a pipeline whose workers were all ready once."""
_UNSETTLED = (Reason.STARTING, Reason.ROLLING, Reason.NOT_READY, Reason.STUCK)
"""Reasons of Progressing while the workers that count are not ready; with all others they are."""


def compute(previous: Mapping[str, Any], seen: Observation, now: str) -> Status:
    """The whole status; `previous` is the one there is, `now` an RFC 3339 time.

    A condition keeps its time while its status stays the same.
    """
    deployment = (seen.deployment or {}).get("status") or {}
    before = {each["type"]: each for each in previous.get("conditions") or []}
    states = dict(_states(seen, before, _History.of(previous)))
    conditions = [
        {
            "type": kind,
            "status": state.status,
            "observedGeneration": seen.generation,
            "lastTransitionTime": before[kind]["lastTransitionTime"]
            if kind in before and before[kind]["status"] == state.status
            else now,
            "reason": state.reason.value,
            "message": state.message[:2000],
        }
        for kind, state in states.items()
    ]
    status: Status = {
        "observedGeneration": seen.generation,
        "conditions": conditions,
        "replicas": deployment.get("replicas", 0),
        "readyReplicas": deployment.get("readyReplicas", 0),
    }
    if seen.spec is not None:
        status["workers"] = f"{status['readyReplicas']}/{seen.wanted}"
        status["gpu"] = manifests.gpu(seen.spec)
    if seen.image is not None:
        status["image"] = seen.image
    if seen.selector is not None:
        status["selector"] = seen.selector
    if seen.scaling is not None:
        status["autoscaling"] = seen.scaling.write()
    return status


class _History(NamedTuple):
    """What the previous status says of the workers: how many were desired, and how many of them were ready.

    `kept` is None unless those that were ready are the workers that count; `settled`: all were ready once.
    """

    wanted: int | None
    kept: int | None
    settled: bool

    @classmethod
    def of(cls, previous: Mapping[str, Any]) -> "_History":
        reason = _reason(previous, "Progressing")
        _, _, text = str(previous.get("workers") or "").partition("/")
        wanted = int(text) if text.isdecimal() else None
        if reason is None or reason in _UNSETTLED or wanted is None:
            return cls(wanted, None, reason in _SETTLED)
        return cls(wanted, min(int(previous.get("readyReplicas") or 0), wanted), reason in _SETTLED)


def _reason(status: Mapping[str, Any], kind: str) -> Reason | None:
    """Return the reason of a condition; None where there is none, or one of another version of the operator."""
    found = next((each["reason"] for each in status.get("conditions") or [] if each["type"] == kind), None)
    return BY_NAME.get(str(found))


def notes(previous: Mapping[str, Any], current: Status) -> Iterator[Note]:
    """One Event for each transition between two statuses: a condition that changed its status or reason."""
    before = {each["type"]: each for each in previous.get("conditions") or []}
    ready = next(each for each in current["conditions"] if each["type"] == "Ready")
    blocked = BY_NAME[ready["reason"]].blocks
    causes = {each["reason"] for each in current["conditions"] if each["type"] not in ("Ready", "Progressing")}
    for condition in current["conditions"]:
        old = before.get(condition["type"])
        status, reason = condition["status"], BY_NAME[condition["reason"]]
        if old is not None and (old["status"], old["reason"]) == (status, reason):
            continue
        match condition["type"]:
            case "Ready" if reason not in causes and reason is not Reason.CHECKING:
                yield Note("Normal" if status == "True" or reason.expected else "Warning", reason, condition["message"])
            case "Progressing" if ready["status"] == "True" and status == "False" and reason is not Reason.COMPLETE:
                yield Note("Warning", reason, condition["message"])
            case "QueueReachable" | "VaultReachable" | "Monitored" if status == "False":
                yield Note("Warning", reason, condition["message"])
            case "QueueReachable" | "VaultReachable" | "Monitored" if old is not None and old["status"] == "False":
                yield Note("Normal", reason, condition["message"])
            case "ScalingLimited" if reason in _LIMITS.values():
                yield Note("Normal", reason, condition["message"])
            case "ScalingLimited" if reason is Reason.LAG_UNKNOWN and not blocked:
                yield Note("Warning", reason, condition["message"])
            case "EventsExpiring" if status == "True":
                yield Note("Warning", reason, condition["message"])
            case "EventsExpiring" if old is not None and old["status"] == "True":
                yield Note("Normal", reason, condition["message"])
            case "Paused" if status == "True" or old is not None:
                yield Note("Normal", reason, condition["message"])


def _states(seen: Observation, before: Mapping[str, Condition], history: _History) -> Iterator[tuple[str, _State]]:
    queue = _checked(seen.queue, seen, before.get("QueueReachable"))
    vault = (
        _State("Unknown", Reason.PER_EVENT, "each event names its own Vault")
        if seen.spec is not None and seen.spec.vault is None
        else _checked(seen.vault, seen, before.get("VaultReachable"))
    )
    progress, stable = _progress(seen, history)
    yield "Ready", _ready(seen, queue, vault, progress, stable=stable)
    yield "Progressing", progress
    yield "QueueReachable", queue
    yield "VaultReachable", vault
    if seen.spec is not None:
        yield "ScalingLimited", _limited(seen, seen.spec)
        if seen.scaling is not None and seen.scaling.retention_seconds is not None:
            yield "EventsExpiring", _expiring(seen.scaling, seen.scaling.retention_seconds)
    if seen.monitored is not None:
        good = seen.monitored.reason is Reason.MONITOR_CREATED
        yield "Monitored", _State("True" if good else "False", seen.monitored.reason, seen.monitored.message)
    elif seen.paused and (known := before.get("Monitored")) is not None and known["reason"] in BY_NAME:
        yield "Monitored", _State(known["status"], BY_NAME[known["reason"]], known["message"])
    yield (
        "Paused",
        _State("True", Reason.PAUSED_BY_ANNOTATION, f"nothing is changed until the annotation {api.PAUSED} is removed")
        if seen.paused
        else _State("False", Reason.NOT_PAUSED, "the pipeline is reconciled"),
    )


_LIMITS = {
    "gpus": Reason.GPUS_TAKEN,
    "max": Reason.AT_MAXIMUM,
    "partitions": Reason.TOO_FEW_PARTITIONS,
    "paused": Reason.SCALING_PAUSED,
    "scaleOutRate": Reason.RATE_LIMITED,
    "scaleInRate": Reason.RATE_LIMITED,
    "vault": Reason.VAULT_UNREACHABLE,
}


def _limited(seen: Observation, spec: api.Spec) -> _State:
    """Whether something keeps the number of workers from what is needed."""
    scaling = seen.scaling
    if spec.suspend:
        return _State("False", Reason.NOT_LIMITED, "spec.suspend is true: no workers run")
    if scaling is None:
        return _State("Unknown", Reason.CHECKING, "the queue's lag is not known yet")
    message = scaling.message or ""
    if scaling.error is not None:
        return _State("Unknown", Reason.LAG_UNKNOWN, message)
    if (mode := spec.autoscaling.mode) != "Auto":
        return _State("False", Reason.NOT_LIMITED, f"spec.replicas is used in {mode} mode; Auto: {message}")
    if scaling.limited_by == "vault" and seen.vault is not None and not seen.vault.ok:
        return _State("True", BY_NAME[seen.vault.reason], message)
    if (limit := _LIMITS.get(scaling.limited_by or "")) is not None:
        return _State("True", limit, message)
    return _State("False", Reason.NOT_LIMITED, message)


def _expiring(scaling: api.AutoscalingStatus, retention: int) -> _State:
    kept = duration(retention)
    if not scaling.expiring:
        return _State("False", Reason.WITHIN_RETENTION, f"the topic keeps events for {kept}")
    return _State(
        "True",
        Reason.EVENTS_EXPIRE,
        f"the oldest recording has waited for {scaling.oldest_message_age}, and the topic keeps events for {kept}: add "
        "workers, or raise its retention.ms, or recordings are lost",
    )


def _checked(outcome: Outcome | None, seen: Observation, before: Condition | None) -> _State:
    if outcome is not None:
        return _State("True" if outcome.ok else "False", BY_NAME[outcome.reason], outcome.message)
    if seen.blocking is not None and seen.blocking.reason.blocks:
        return _State("Unknown", Reason.BLOCKED, "not checked: see the condition Ready")
    known = before is not None and before["reason"] in BY_NAME.keys() - {Reason.BLOCKED}
    if before is not None and known and before["observedGeneration"] == seen.generation:
        # A restarted operator doesn't take back what is known.
        return _State(before["status"], BY_NAME[before["reason"]], before["message"])
    return _State("Unknown", Reason.CHECKING, "the first check has not ended yet")


def _ready(seen: Observation, queue: _State, vault: _State, progress: _State, *, stable: bool) -> _State:
    """Return the first thing to look at; `stable`: the workers that there were are ready, others may be missing."""
    spec = seen.spec
    if seen.blocking is not None:
        return _State("False", seen.blocking.reason, seen.blocking.message)
    if spec is None:
        raise ValueError("a pipeline without a readable spec is blocked")
    if spec.suspend and progress.reason is Reason.COMPLETE:
        return _State("False", Reason.SUSPENDED, "spec.suspend is true: no workers run")
    for state in (queue, vault):
        if state.status == "False":
            return state
    if seen.pods is not None and not spec.suspend and not stable:
        return _State("False", seen.pods.reason, f"{_count(seen)}; {seen.pods.message}")
    if progress.reason is Reason.STOPPING:
        # Those that stay work on while others finish.
        works = not spec.suspend and _ready_workers(seen) >= seen.wanted
        return _State("True" if works else "False", progress.reason, progress.message)
    if progress.reason is not Reason.COMPLETE and not stable:
        return _State("False", progress.reason, progress.message)
    if queue.reason is Reason.CHECKING:
        return _State("Unknown", Reason.CHECKING, "workers are ready; the queue's first check has not ended yet")
    limit = _limited(seen, spec)
    if seen.wanted == 0 and spec.autoscaling.mode == "Auto" and limit.status != "False":
        # Ready would say that no worker is needed.
        unknown = limit.reason is Reason.CHECKING
        return _State("Unknown" if unknown else "False", limit.reason, f"0 workers: {limit.message}")
    if seen.wanted == 0:
        cause = "replicas is 0" if spec.autoscaling.mode != "Auto" else _backlog(seen)
        return _State("True", Reason.SCALED_TO_ZERO, f"0 workers: {cause}")
    return _State("True", Reason.RUNNING, _count(seen))


def _backlog(seen: Observation) -> str:
    """Return why the autoscaler wants no worker."""
    lag, message = (seen.scaling.lag, seen.scaling.message) if seen.scaling is not None else (None, None)
    if not lag:
        return "no recording waits"
    waiting = "1 recording waits" if lag == 1 else f"{lag} recordings wait"
    return f"{waiting}; {message}" if message else waiting


def _ready_workers(seen: Observation) -> int:
    return int(((seen.deployment or {}).get("status") or {}).get("readyReplicas", 0))


def _count(seen: Observation) -> str:
    return f"{_ready_workers(seen)} of {seen.wanted} workers ready"


def _progress(seen: Observation, history: _History) -> tuple[_State, bool]:
    """Return how far the workers are, and whether those that there were are ready and only others are missing."""
    if seen.spec is None or seen.deployment is None:
        return _State("False", Reason.STARTING, "there are no workers yet"), False
    wanted = seen.wanted
    deployment, status = seen.deployment, seen.deployment.get("status") or {}
    found = {each["type"]: each for each in status.get("conditions") or []}
    total, updated, ready = (status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas"))
    current = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    current = current and deployment["spec"].get("replicas") == wanted
    if _is_stable(seen, history):
        if seen.pods is not None:
            return _State("False", seen.pods.reason, f"{_count(seen)}; {seen.pods.message}"), True
        return _State("True", Reason.SCALING_OUT, f"{_count(seen)}; {wanted - ready} starting"), True
    progressing = found.get("Progressing", {})
    if progressing.get("reason") == "ProgressDeadlineExceeded" and ready < wanted:
        return _State("False", Reason.STUCK, f"{_count(seen)}; {progressing.get('message', '')}"), False
    if total > wanted:
        surplus = total - wanted
        verb = "worker is" if surplus == 1 else "workers are"
        return _State("True", Reason.STOPPING, f"{surplus} surplus {verb} finishing"), False
    if current and ready == updated == total == wanted:
        return _State("False", Reason.COMPLETE, f"{wanted} of {wanted} workers match the current spec"), False
    if total > updated:
        message = f"{updated} of {wanted} workers match the current spec; {_count(seen)}"
        return _State("True", Reason.ROLLING, message), False
    settled = history.settled and history.wanted == wanted
    lost = history.kept is not None and ready < min(history.kept, wanted)
    was_complete = settled and progressing.get("reason") == "NewReplicaSetAvailable"
    if current and total == wanted and (was_complete or (lost and history.wanted == wanted)):
        return _State("True", Reason.NOT_READY, _count(seen)), False
    return _State("True", Reason.STARTING, _count(seen)), False


def _is_stable(seen: Observation, history: _History) -> bool:
    """Return True while all workers that count are ready, although more are desired.

    They are those that were ready before; where additional pods are refused, those that exist.
    """
    status = (seen.deployment or {}).get("status") or {}
    total, updated, ready = (status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas"))
    if ready == 0 or ready >= seen.wanted or total > seen.wanted or updated < total:
        return False
    if seen.pods is not None and seen.pods.reason is Reason.REFUSED:
        return bool(ready == total)
    return bool(history.kept) and ready >= (history.kept or 0)


def failure(deployment: Mapping[str, Any] | None) -> Problem | None:
    """Return why the Deployment can't create pods (a quota, an admission policy), else None."""
    conditions: Sequence[Mapping[str, Any]] = ((deployment or {}).get("status") or {}).get("conditions") or []
    for condition in conditions:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return Problem(Reason.REFUSED, f"the API server refuses pods: {condition.get('message', '')}")
    return None
