"""Pure: a pipeline's status and Events, from what was observed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vaultml_operator import api, manifests
from vaultml_operator.autoscaler.picture import duration
from vaultml_operator.pods import Problem
from vaultml_operator.probes import Outcome

Status = dict[str, Any]
Condition = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one reconcile saw.

    `blocking` keeps the operator from doing what the spec says; `pods` keeps pods from becoming ready. `queue` and
    `vault` are the checks' outcomes: None when the first one hasn't ended. `monitored` is None when it isn't asked for.
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
    queue: Outcome | None = None
    vault: Outcome | None = None
    monitored: Problem | None = None
    scaling: Mapping[str, Any] | None = None


class Note(NamedTuple):
    """An Event to post: Normal or Warning, reason, sentence."""

    kind: str
    reason: str
    message: str


class _State(NamedTuple):
    status: str
    reason: str
    message: str


def compute(previous: Mapping[str, Any], seen: Observation, now: str) -> Status:
    """The whole status; `previous` is the one there is, `now` an RFC 3339 time.

    A condition keeps its time while its status stays the same.
    """
    deployment = (seen.deployment or {}).get("status") or {}
    before = {each["type"]: each for each in previous.get("conditions") or []}
    settled = before.get("Progressing", {}).get("reason") in ("Complete", "NotReady")
    settled = settled and str(previous.get("workers")).endswith(f"/{seen.wanted}")
    states = dict(_states(seen, before, settled=settled))
    conditions = [
        {
            "type": kind,
            "status": state.status,
            "observedGeneration": seen.generation,
            "lastTransitionTime": before[kind]["lastTransitionTime"]
            if kind in before and before[kind]["status"] == state.status
            else now,
            "reason": state.reason,
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
        status["autoscaling"] = dict(seen.scaling)
    return status


def notes(previous: Mapping[str, Any], current: Status) -> Iterator[Note]:
    """One Event for each transition between two statuses: a condition that changed its status or reason."""
    before = {each["type"]: each for each in previous.get("conditions") or []}
    ready = next(each for each in current["conditions"] if each["type"] == "Ready")
    no_credentials = ready["reason"] in ("SecretMissing", "SecretKeyMissing")
    causes = {each["reason"] for each in current["conditions"] if each["type"] not in ("Ready", "Progressing")}
    for condition in current["conditions"]:
        old = before.get(condition["type"])
        status, reason = condition["status"], condition["reason"]
        if old is not None and (old["status"], old["reason"]) == (status, reason):
            continue
        match condition["type"]:
            case "Ready" if reason not in causes and reason != "Checking":
                good = status == "True" or reason in ("Starting", "Rolling", "Stopping", "Suspended")
                yield Note("Normal" if good else "Warning", reason, condition["message"])
            case "QueueReachable" | "VaultReachable" | "Monitored" if status == "False":
                yield Note("Warning", reason, condition["message"])
            case "QueueReachable" | "VaultReachable" | "Monitored" if old is not None and old["status"] == "False":
                yield Note("Normal", reason, condition["message"])
            case "ScalingLimited" if reason in _LIMITS.values():
                yield Note("Normal", reason, condition["message"])
            case "ScalingLimited" if reason == "LagUnknown" and not no_credentials:
                yield Note("Warning", reason, condition["message"])
            case "EventsExpiring" if status == "True":
                yield Note("Warning", reason, condition["message"])
            case "EventsExpiring" if old is not None and old["status"] == "True":
                yield Note("Normal", reason, condition["message"])
            case "Paused" if status == "True" or old is not None:
                yield Note("Normal", reason, condition["message"])


def _states(seen: Observation, before: Mapping[str, Condition], *, settled: bool) -> Iterator[tuple[str, _State]]:
    queue = _checked(seen.queue, seen, before.get("QueueReachable"))
    vault = (
        _State("Unknown", "PerEvent", "each event brings its own Vault")
        if seen.spec is not None and seen.spec.vault is None
        else _checked(seen.vault, seen, before.get("VaultReachable"))
    )
    progress = _progress(seen, settled=settled)
    yield "Ready", _ready(seen, queue, vault, progress)
    yield "Progressing", progress
    yield "QueueReachable", queue
    yield "VaultReachable", vault
    if seen.spec is not None:
        yield "ScalingLimited", _limited(seen.spec, seen.scaling)
        if (seen.scaling or {}).get("retentionSeconds") is not None:
            yield "EventsExpiring", _expiring(seen.scaling or {})
    if seen.monitored is not None:
        good = seen.monitored.reason == "MonitorCreated"
        yield "Monitored", _State("True" if good else "False", seen.monitored.reason, seen.monitored.message)
    elif seen.paused and (known := before.get("Monitored")) is not None:
        yield "Monitored", _State(known["status"], known["reason"], known["message"])
    yield (
        "Paused",
        _State("True", "PausedByAnnotation", f"nothing is changed until the annotation {api.PAUSED} is removed")
        if seen.paused
        else _State("False", "NotPaused", "the pipeline is reconciled"),
    )


_LIMITS = {
    "gpus": "GpusTaken",
    "max": "AtMaximum",
    "partitions": "TooFewPartitions",
    "paused": "ScalingPaused",
    "scaleOutRate": "RateLimited",
    "scaleInRate": "RateLimited",
}


def _limited(spec: api.Spec, scaling: Mapping[str, Any] | None) -> _State:
    """Whether something keeps the number of workers from what is needed."""
    if spec.suspend:
        return _State("False", "NotLimited", "spec.suspend is true: no workers run")
    if scaling is None:
        return _State("Unknown", "Checking", "the queue's lag is not known yet")
    if (trouble := scaling.get("trouble")) is not None:
        return _State("Unknown", "LagUnknown", f"{trouble}; {scaling.get('message', '')}")
    message = scaling.get("message", "")
    if (mode := spec.autoscaling.mode) != "Auto":
        return _State("False", "NotLimited", f"mode {mode}, spec.replicas counts; Auto would say: {message}")
    if (limit := _LIMITS.get(scaling.get("clamp", ""))) is not None:
        return _State("True", limit, message)
    return _State("False", "NotLimited", message)


def _expiring(scaling: Mapping[str, Any]) -> _State:
    kept = duration(scaling["retentionSeconds"])
    if not scaling.get("expiring"):
        return _State("False", "WithinRetention", f"the topic keeps events for {kept}")
    return _State(
        "True",
        "EventsExpire",
        f"the oldest recording has waited for {scaling.get('oldest')}, and the topic keeps events for {kept}: add "
        "workers, or raise its retention.ms, or recordings are lost",
    )


def _checked(outcome: Outcome | None, seen: Observation, before: Condition | None) -> _State:
    if outcome is not None:
        return _State("True" if outcome.ok else "False", outcome.reason, outcome.message)
    if seen.blocking is not None and seen.blocking.reason in ("SecretMissing", "SecretKeyMissing", "InvalidSpec"):
        return _State("Unknown", "Blocked", "not checked: see the condition Ready")
    if before is not None and before["reason"] != "Blocked" and before["observedGeneration"] == seen.generation:
        # A restarted operator doesn't take back what is known.
        return _State(before["status"], before["reason"], before["message"])
    return _State("Unknown", "Checking", "the first check has not ended yet")


def _ready(seen: Observation, queue: _State, vault: _State, progress: _State) -> _State:
    spec = seen.spec
    if seen.blocking is not None:
        return _State("False", seen.blocking.reason, seen.blocking.message)
    if spec is None:
        raise ValueError("a pipeline without a readable spec is blocked")
    if spec.suspend and progress.reason == "Complete":
        return _State("False", "Suspended", "spec.suspend is true: no workers run")
    for state in (queue, vault):
        if state.status == "False":
            return state
    if seen.pods is not None and not spec.suspend:
        return _State("False", seen.pods.reason, f"{_count(seen)}; {seen.pods.message}")
    if progress.reason != "Complete":
        # Those that stay work on while others finish.
        works = progress.reason == "Stopping" and not spec.suspend and _ready_workers(seen) >= seen.wanted
        return _State("True" if works else "False", progress.reason, progress.message)
    if queue.reason == "Checking":
        return _State("Unknown", "Checking", "workers are ready; the queue's first check has not ended yet")
    if seen.wanted == 0:
        said = "replicas is 0" if spec.autoscaling.mode != "Auto" else "nothing waits"
        return _State("True", "ScaledToZero", f"no workers run: {said}")
    return _State("True", "Running", _count(seen))


def _ready_workers(seen: Observation) -> int:
    return int(((seen.deployment or {}).get("status") or {}).get("readyReplicas", 0))


def _count(seen: Observation) -> str:
    wanted = seen.wanted
    return f"{_ready_workers(seen)} of {wanted} {'worker' if wanted == 1 else 'workers'} ready"


def _progress(seen: Observation, *, settled: bool) -> _State:
    """How far the workers are; `settled`: so many were there before. One that is not ready any more is no new one."""
    if seen.spec is None or seen.deployment is None:
        return _State("False", "Starting", "there are no workers yet")
    wanted = seen.wanted
    deployment, status = seen.deployment, seen.deployment.get("status") or {}
    said = {each["type"]: each for each in status.get("conditions") or []}
    total, updated, ready = (status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas"))
    current = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    current = current and deployment["spec"].get("replicas") == wanted
    if (progressing := said.get("Progressing", {})).get("reason") == "ProgressDeadlineExceeded" and ready < wanted:
        return _State("False", "Stuck", f"{_count(seen)}; {progressing.get('message', '')}")
    if total > wanted:
        return _State("True", "Stopping", f"{total - wanted} more than {wanted} workers are finishing")
    if current and ready == updated == total == wanted:
        return _State("False", "Complete", f"{wanted} of {wanted} workers are of the current spec")
    if total > updated:
        return _State("True", "Rolling", f"{updated} of {wanted} workers are of the current spec; {_count(seen)}")
    if current and settled and progressing.get("reason") == "NewReplicaSetAvailable" and total == wanted:
        return _State("True", "NotReady", _count(seen))
    return _State("True", "Starting", _count(seen))


def failure(deployment: Mapping[str, Any] | None) -> Problem | None:
    """Why the Deployment can't make pods (a quota, an admission policy), else None."""
    said: Sequence[Mapping[str, Any]] = ((deployment or {}).get("status") or {}).get("conditions") or []
    for condition in said:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return Problem("Refused", f"pods are refused: {condition.get('message', '')}")
    return None
