"""What a kubelet writes into a pod's status: phase, conditions, container statuses. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from testbed.kubernetes.kubelet.client import Object


def now() -> str:
    """This moment as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting(reason: str, message: str | None = None) -> Object:
    """The state of a container that doesn't run yet, or not again yet."""
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def phase(policy: str, inits: Sequence[Object], containers: Sequence[Object], *, over: bool) -> str:
    """The pod's phase by its restart policy and container statuses; `over`: it is being deleted, nothing restarts."""
    codes = [_exit_code(status) for status in containers]
    if policy == "Never" and any(_exit_code(status) not in (None, 0) for status in inits):
        return "Failed"
    if not over and any(not status["ready"] for status in inits):
        return "Pending"
    if any("waiting" in status["state"] and _exit_code(status) is None for status in containers):
        return "Failed" if over and not any("running" in status["state"] for status in containers) else "Pending"
    if any("running" in status["state"] for status in containers):
        return "Running"
    if over or policy != "Always":
        if all(code == 0 for code in codes):
            return "Succeeded"
        if over or policy == "Never":
            return "Failed"
    return "Running"


def conditions(
    pod_phase: str, inits: Sequence[Object], containers: Sequence[Object], gates: Iterable[str]
) -> list[Object]:
    """The conditions that a kubelet sets; `gates`: the types of the pod's readiness gates that are not true."""
    return [
        {"type": "PodReadyToStartContainers", "status": "True"},
        _initialized(pod_phase, inits),
        _ready("Ready", pod_phase, containers, gates),
        _ready("ContainersReady", pod_phase, containers, ()),
    ]


def with_times(new: Iterable[Object], old: Iterable[Object]) -> list[Object]:
    """Give each condition the time of its last transition, and have reasons that no longer hold taken away."""
    before = {condition["type"]: condition for condition in old}
    timed = []
    for condition in new:
        was = before.get(condition["type"], {})
        since = was["lastTransitionTime"] if was.get("status") == condition["status"] else now()
        timed.append({"reason": None, "message": None} | condition | {"lastTransitionTime": since})
    return timed


def _exit_code(status: Mapping[str, Object]) -> int | None:
    for state in (status["state"], status["lastState"]):
        if "terminated" in state:
            return int(state["terminated"]["exitCode"])
    return None


def _initialized(pod_phase: str, inits: Sequence[Object]) -> Object:
    incomplete = [status["name"] for status in inits if not status["ready"]]
    if pod_phase == "Succeeded":
        return {"type": "Initialized", "status": "True", "reason": "PodCompleted"}
    if not incomplete:
        return {"type": "Initialized", "status": "True"}
    message = f"containers with incomplete status: [{' '.join(incomplete)}]"
    return {"type": "Initialized", "status": "False", "reason": "ContainersNotInitialized", "message": message}


def _ready(kind: str, pod_phase: str, containers: Sequence[Object], gates: Iterable[str]) -> Object:
    if pod_phase in ("Succeeded", "Failed"):
        return {"type": kind, "status": "False", "reason": "PodCompleted" if pod_phase == "Succeeded" else "PodFailed"}
    if unready := [status["name"] for status in containers if not status["ready"]]:
        message = f"containers with unready status: [{' '.join(unready)}]"
        return {"type": kind, "status": "False", "reason": "ContainersNotReady", "message": message}
    if gates := list(gates):
        message = ", ".join(f'the status of pod readiness gate "{gate}" is not "True"' for gate in gates)
        return {"type": kind, "status": "False", "reason": "ReadinessGatesNotReady", "message": message}
    return {"type": kind, "status": "True"}
