"""Pure: why pods aren't ready, from their status, the nodes, and the objects that their volumes reference."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vaultml_operator import api
from vaultml_operator.credentials import Object
from vaultml_operator.reasons import Reason

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_ENDED_BY_KUBELET = {"Evicted", "Preempting", "Shutdown", "Terminated"}
_LAST_WORDS = 300


class Problem(NamedTuple):
    """What is wrong: a reason and a sentence."""

    reason: Reason
    message: str


class Volume(NamedTuple):
    """A volume that needs a Secret or ConfigMap: the volume's name, the object, the keys that it must have."""

    name: str
    object: Object
    keys: frozenset[str]


def diagnose(
    pods: Iterable[Mapping[str, Any]],
    worker: api.Worker,
    nodes: Sequence[Mapping[str, Any]] | None,
    mounts: Mapping[str, str] | None = None,
    failed_since: str = "",
) -> Problem | None:
    """Return the first pod's problem that waiting won't cure, else None.

    `nodes` None: not known. `mounts`: why the volumes of a pod can't be mounted, by the pod's uid. Pods that failed
    before `failed_since` (RFC 3339) have been replaced long ago and are left out.
    """
    found = [
        problem
        for pod in sorted(pods, key=_name)
        if (problem := _pod(pod, worker, nodes, mounts or {}, failed_since)) is not None
    ]
    return min(found, key=lambda problem: _ORDER.index(problem.reason), default=None)


_ORDER = (
    Reason.CONTAINER_CONFIG_ERROR,
    Reason.IMAGE_PULL_FAILED,
    Reason.VOLUME_MOUNT_FAILED,
    Reason.CRASH_LOOPING,
    Reason.NO_GPU_NODE,
    Reason.UNSCHEDULABLE,
    Reason.POD_REJECTED,
    Reason.POD_EVICTED,
)


def _pod(
    pod: Mapping[str, Any],
    worker: api.Worker,
    nodes: Sequence[Mapping[str, Any]] | None,
    mounts: Mapping[str, str],
    failed_since: str,
) -> Problem | None:
    if "deletionTimestamp" in pod["metadata"]:
        return None
    status = pod.get("status") or {}
    if status.get("phase") == "Failed" and status.get("reason"):
        return _failed(pod) if _last_change(pod) >= failed_since else None
    if (message := mounts.get(pod["metadata"].get("uid", ""))) is not None:
        return Problem(Reason.VOLUME_MOUNT_FAILED, f"pod {_name(pod)} can't start: {message}")
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if (problem := _container(_name(pod), container)) is not None:
            return problem
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return _unschedulable(_name(pod), condition.get("message", ""), worker, nodes)
    return None


def _failed(pod: Mapping[str, Any]) -> Problem:
    """Return why the kubelet did not take the pod, or ended it: in its own words."""
    status, node = pod["status"], (pod.get("spec") or {}).get("nodeName", "unknown")
    containers = status.get("containerStatuses") or []
    ran = any((each.get("state") or {}).get("terminated") or each.get("lastState") for each in containers)
    ended = ran or status["reason"] in _ENDED_BY_KUBELET
    did = "ended" if ended else "rejected"
    message = f": {status['message']}" if status.get("message") else ""
    return Problem(
        Reason.POD_EVICTED if ended else Reason.POD_REJECTED,
        f"the kubelet of node {node} {did} pod {_name(pod)} ({status['reason']}){message}",
    )


def _last_change(pod: Mapping[str, Any]) -> str:
    """Return when the pod's status last changed, in RFC 3339: a failed pod's does not change any more."""
    status = pod["status"]
    times = [each.get("lastTransitionTime") for each in status.get("conditions") or []]
    ends = [(each.get("state") or {}).get("terminated") or {} for each in status.get("containerStatuses") or []]
    times += [each.get("finishedAt") for each in ends]
    times += [status.get("startTime"), pod["metadata"].get("creationTimestamp")]
    return max((str(each) for each in times if each), default="")


def awaits_volumes(pod: Mapping[str, Any]) -> bool:
    """Return True for a pod that is on a node and none of whose containers has been created yet."""
    status = pod.get("status") or {}
    if "deletionTimestamp" in pod["metadata"] or "nodeName" not in pod["spec"] or status.get("phase") != "Pending":
        return False
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    waiting = [((each.get("state") or {}).get("waiting") or {}).get("reason") for each in statuses]
    return all(reason in ("ContainerCreating", "PodInitializing") for reason in waiting)


def volumes(pod: Mapping[str, Any]) -> Iterator[Volume]:
    """Return the volumes of a pod that need a Secret or ConfigMap, those marked as optional left out."""
    for volume in (pod.get("spec") or {}).get("volumes") or []:
        sources = [volume, *((volume.get("projected") or {}).get("sources") or [])]
        for source in sources:
            for kind, field in (("Secret", "secret"), ("ConfigMap", "configMap")):
                wanted = source.get(field)
                if wanted is None or wanted.get("optional"):
                    continue
                name = wanted.get("secretName") or wanted.get("name") or ""
                keys = frozenset(each["key"] for each in wanted.get("items") or [])
                yield Volume(volume["name"], Object(kind, name), keys)  # type: ignore[arg-type] # two kinds


def _container(pod: str, status: Mapping[str, Any]) -> Problem | None:
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL:
        return Problem(
            Reason.IMAGE_PULL_FAILED, f"image {status.get('image')} can't be pulled (pod {pod}); see its Events"
        )
    if reason in _CONFIG:
        return Problem(Reason.CONTAINER_CONFIG_ERROR, f"pod {pod} can't start: {message or reason}")
    ended = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    if not status.get("ready") and (ended.get("exitCode", 0) != 0 or reason == "CrashLoopBackOff"):
        words = " ".join(str(ended.get("message") or "").split())
        cause = f" ({ended['reason']})" if ended.get("reason") not in (None, "Error", "Completed") else ""
        said = f": …{words[-_LAST_WORDS:]}" if len(words) > _LAST_WORDS else f": {words}" if words else ""
        return Problem(
            Reason.CRASH_LOOPING,
            f"the container {status['name']} of pod {pod} ended with exit code {ended.get('exitCode', 0)}{cause}{said}",
        )
    return None


def _unschedulable(
    pod: str, message: str, worker: api.Worker, nodes: Sequence[Mapping[str, Any]] | None
) -> Problem | None:
    lacking = None if nodes is None else lacks_gpu(worker, nodes)
    return lacking or Problem(Reason.UNSCHEDULABLE, f"pod {pod} waits for a node: {message}")


def lacks_gpu(worker: api.Worker, nodes: Sequence[Mapping[str, Any]]) -> Problem | None:
    """Return that no node has the GPU that the workers ask for, if so."""
    if not worker.gpu.count:
        return None
    matching = [node for node in nodes if _matches(node, worker)]
    if any(_offers(node, worker) for node in matching):
        return None
    labels = f" with the labels {_words(worker.node_selector)}" if worker.node_selector else ""
    match len(matching):
        case 0:
            what = f"no node{labels} exists"
        case 1:
            what = f"the only node{labels} has no allocatable {worker.gpu.resource}"
        case number:
            what = f"none of {number} nodes{labels} has an allocatable {worker.gpu.resource}"
    wanted = "" if matching else f" for {worker.gpu.resource}"
    return Problem(Reason.NO_GPU_NODE, f"{what}{wanted}; to run on the CPU set worker.gpu.count to 0")


def _matches(node: Mapping[str, Any], worker: api.Worker) -> bool:
    labels = node["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in (worker.node_selector or {}).items())


def _offers(node: Mapping[str, Any], worker: api.Worker) -> bool:
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return str(allocatable.get(worker.gpu.resource, "0")) != "0"  # a quantity: 1,000 shares are "1k"


def _words(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _name(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])
