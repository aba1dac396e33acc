"""Pure: why pods aren't ready, from their status and the nodes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vaultml_operator import api

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_LAST_WORDS = 300


class Problem(NamedTuple):
    """What is wrong: a reason of the catalogue and a sentence."""

    reason: str
    message: str


def diagnose(
    pods: Iterable[Mapping[str, Any]], worker: api.Worker, nodes: Sequence[Mapping[str, Any]] | None
) -> Problem | None:
    """The first pod's problem that waiting won't cure, else None. `nodes` None: not known."""
    found = [problem for pod in sorted(pods, key=_name) if (problem := _pod(pod, worker, nodes)) is not None]
    return min(found, key=lambda problem: _ORDER.index(problem.reason), default=None)


_ORDER = ("ContainerConfigError", "ImagePullFailed", "CrashLooping", "NoGpuNode", "Unschedulable")


def _pod(pod: Mapping[str, Any], worker: api.Worker, nodes: Sequence[Mapping[str, Any]] | None) -> Problem | None:
    if "deletionTimestamp" in pod["metadata"]:
        return None
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if (problem := _container(_name(pod), container)) is not None:
            return problem
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return _unschedulable(_name(pod), condition.get("message", ""), worker, nodes)
    return None


def _container(pod: str, status: Mapping[str, Any]) -> Problem | None:
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL:
        return Problem("ImagePullFailed", f"image {status.get('image')} can't be pulled (pod {pod}); see its Events")
    if reason in _CONFIG:
        return Problem("ContainerConfigError", f"pod {pod} can't start: {message or reason}")
    ended = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    if not status.get("ready") and (ended.get("exitCode", 0) != 0 or reason == "CrashLoopBackOff"):
        words = " ".join(str(ended.get("message") or "").split())
        cause = f" ({ended['reason']})" if ended.get("reason") not in (None, "Error", "Completed") else ""
        said = f": …{words[-_LAST_WORDS:]}" if len(words) > _LAST_WORDS else f": {words}" if words else ""
        return Problem(
            "CrashLooping",
            f"the container {status['name']} of pod {pod} ended with exit code {ended.get('exitCode', 0)}{cause}{said}",
        )
    return None


def _unschedulable(
    pod: str, message: str, worker: api.Worker, nodes: Sequence[Mapping[str, Any]] | None
) -> Problem | None:
    lacking = None if nodes is None else lacks_gpu(worker, nodes)
    return lacking or Problem("Unschedulable", f"pod {pod} waits for a node: {message}")


def lacks_gpu(worker: api.Worker, nodes: Sequence[Mapping[str, Any]]) -> Problem | None:
    """That no node has the GPU that the workers ask for, if so."""
    if not worker.gpu.count or any(_offers(node, worker) for node in nodes):
        return None
    where = f" with the labels {_words(worker.node_selector)}" if worker.node_selector else ""
    looked = f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} looked at"
    cpu = "to run on the CPU set worker.gpu.count to 0"
    return Problem("NoGpuNode", f"no node{where} offers {worker.gpu.resource}: {looked}; {cpu}")


def _offers(node: Mapping[str, Any], worker: api.Worker) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (worker.node_selector or {}).items()):
        return False
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return str(allocatable.get(worker.gpu.resource, "0")) != "0"  # a quantity: 1,000 shares are "1k"


def _words(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _name(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])
