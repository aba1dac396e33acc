"""Why pods aren't ready: from statuses as the kubelet and the scheduler write them."""

from typing import Any

import pytest

from vaultml_operator import api, reasons
from vaultml_operator.credentials import Object
from vaultml_operator.pods import Volume, awaits_volumes, diagnose, lacks_gpu, volumes

WORKER = api.Worker.model_validate({"nodeSelector": {"pool": "gpu"}})
GPU_NODE = {"metadata": {"name": "n", "labels": {"pool": "gpu"}}, "status": {"allocatable": {"nvidia.com/gpu": "2"}}}
CPU_NODE = {"metadata": {"name": "m", "labels": {"pool": "gpu"}}, "status": {"allocatable": {"cpu": "2"}}}
MANY = {"metadata": {"name": "p", "labels": {"pool": "gpu"}}, "status": {"allocatable": {"nvidia.com/gpu": "1k"}}}
OTHER_NODE = {"metadata": {"name": "o", "labels": {"pool": "x"}}, "status": {"allocatable": {"nvidia.com/gpu": "2"}}}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
}


def pod(name: str = "p-1", *, state: Any = None, last: Any = None, condition: Any = None, **metadata: Any) -> Any:
    container = {"name": "worker", "image": "i:1", "ready": False, "state": state or {}, "lastState": last or {}}
    status = {"containerStatuses": [container] if state or last else [], "conditions": [condition] if condition else []}
    return {"metadata": {"name": name, **metadata}, "status": status}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


@pytest.mark.parametrize(
    ("given", "reason", "words"),
    [
        (pod(state=waiting("ImagePullBackOff")), "ImagePullFailed", "image i:1 can't be pulled (pod p-1)"),
        (pod(state=waiting("ErrImagePull")), "ImagePullFailed", "i:1"),
        (pod(state=waiting("InvalidImageName")), "ImagePullFailed", "i:1"),
        (pod(state=waiting("CreateContainerConfigError", 'secret "s" not found')), "ContainerConfigError", "not found"),
        (
            pod(state=waiting("CrashLoopBackOff"), last=ended(2, message="vaultml: no\n such model")),
            "CrashLooping",
            "the container worker of pod p-1 ended with exit code 2: vaultml: no such model",
        ),
        (pod(state=ended(137, "OOMKilled")), "CrashLooping", "exit code 137 (OOMKilled)"),
        (pod(state={"running": {}}, last=ended(1)), "CrashLooping", "exit code 1"),
        (pod(condition=UNSCHEDULABLE), "Unschedulable", "1 Insufficient nvidia.com/gpu"),
    ],
)
def test_each_is_told(given: Any, reason: str, words: str) -> None:
    found = diagnose([given], WORKER, [GPU_NODE])
    assert found is not None
    assert found.reason == reason
    assert reason in reasons.NAMES
    assert words in found.message


@pytest.mark.parametrize(
    "given",
    [
        pod(),
        pod(state=waiting("ContainerCreating")),
        pod(state={"running": {}}),
        pod(state={"running": {}}, last=ended(0, "Completed")),
        pod(state=waiting("ImagePullBackOff"), deletionTimestamp="2026-01-01T00:00:00Z"),
    ],
)
def test_what_waiting_cures_is_no_problem(given: Any) -> None:
    assert diagnose([given], WORKER, [GPU_NODE]) is None


def test_a_worker_that_is_ready_again_has_no_problem() -> None:
    again = pod(state={"running": {}}, last=ended(1))
    again["status"]["containerStatuses"][0]["ready"] = True
    assert diagnose([again], WORKER, [GPU_NODE]) is None


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([CPU_NODE, OTHER_NODE], "NoGpuNode"),
        ([], "NoGpuNode"),
        ([CPU_NODE, GPU_NODE], "Unschedulable"),
        ([MANY], "Unschedulable"),
        (None, "Unschedulable"),
    ],
)
def test_a_gpu_that_no_node_has_is_told_from_gpus_that_are_taken(nodes: Any, reason: str) -> None:
    found = diagnose([pod(condition=UNSCHEDULABLE)], WORKER, nodes)
    assert found is not None
    assert found.reason == reason


def test_where_no_node_has_the_gpu_it_is_said_how_to_do_without() -> None:
    found = lacks_gpu(WORKER, [CPU_NODE])
    assert found is not None
    assert found.message == (
        "the only node with the labels pool=gpu has no allocatable nvidia.com/gpu; to run on the CPU set "
        "worker.gpu.count to 0"
    )
    two = lacks_gpu(WORKER, [CPU_NODE, CPU_NODE, OTHER_NODE])
    assert two is not None
    assert two.message.startswith("none of 2 nodes with the labels pool=gpu has an allocatable nvidia.com/gpu")
    none = lacks_gpu(WORKER, [OTHER_NODE])
    assert none is not None
    assert none.message.startswith("no node with the labels pool=gpu exists for nvidia.com/gpu")
    assert lacks_gpu(WORKER, [CPU_NODE, GPU_NODE]) is None
    assert lacks_gpu(api.Worker.model_validate({"gpu": {"count": 0}}), [CPU_NODE]) is None


def test_without_a_gpu_no_node_is_blamed() -> None:
    cpu = api.Worker.model_validate({"gpu": {"count": 0}})
    found = diagnose([pod(condition=UNSCHEDULABLE)], cpu, [])
    assert found is not None
    assert found.reason == "Unschedulable"


def test_the_same_pods_give_the_same_words_in_any_order() -> None:
    given = [pod("b", condition=UNSCHEDULABLE), pod("a", state=ended(1)), pod("c", state=waiting("ErrImagePull"))]
    assert diagnose(given, WORKER, []) == diagnose(given[::-1], WORKER, [])


def test_long_last_words_are_cut_at_their_beginning() -> None:
    found = diagnose([pod(state=ended(1, message="x" * 5000 + "the end"))], WORKER, [])
    assert found is not None
    assert found.message.endswith("xthe end")
    assert len(found.message) < 500


def failed(reason: str, message: str, *, ran: bool = False, at: str = "2026-01-01T00:10:00Z") -> Any:
    """A pod that the kubelet ended or did not take, as it writes it."""
    given = pod(state=ended(137)) if ran else pod()
    given["spec"] = {"nodeName": "gpu-1"}
    condition = {"type": "Ready", "status": "False", "lastTransitionTime": at}
    given["status"] |= {"phase": "Failed", "reason": reason, "message": message, "conditions": [condition]}
    return given


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (failed("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present"), "PodRejected"),
        (failed("OutOfcpu", "Node didn't have enough resource: cpu"), "PodRejected"),
        (failed("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu"), "PodRejected"),
        (failed("NodeAffinity", "Predicate NodeAffinity failed"), "PodRejected"),
        (failed("Evicted", "The node was low on resource: memory"), "PodEvicted"),
        (failed("Evicted", "The node was low on resource: memory", ran=True), "PodEvicted"),
        (failed("Terminated", "Pod was terminated in response to imminent node shutdown."), "PodEvicted"),
        (failed("DeadlineExceeded", "Pod was active on the node too long", ran=True), "PodEvicted"),
    ],
)
def test_what_the_kubelet_says_of_a_pod_that_failed_is_passed_on(given: Any, reason: str) -> None:
    found = diagnose([given], WORKER, None, failed_since="2026-01-01T00:09:00Z")
    assert found is not None
    assert found.reason == reason
    assert given["status"]["message"] in found.message
    assert given["status"]["reason"] in found.message
    assert "gpu-1" in found.message


def test_a_pod_that_failed_long_ago_says_nothing() -> None:
    old = failed("Evicted", "low on memory", ran=True)
    assert diagnose([old], WORKER, None, failed_since="2026-01-01T00:11:00Z") is None


def test_what_keeps_the_new_pod_back_goes_before_why_the_old_one_failed() -> None:
    found = diagnose([failed("Evicted", "low on memory"), pod("q", condition=UNSCHEDULABLE)], WORKER, [GPU_NODE])
    assert found is not None
    assert found.reason == "Unschedulable"


def test_volumes_that_need_an_object() -> None:
    listed = [
        {"name": "a", "secret": {"secretName": "s"}},
        {"name": "b", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}},
        {"name": "c", "secret": {"secretName": "t", "optional": True}},
        {"name": "d", "emptyDir": {}},
        {
            "name": "e",
            "projected": {
                "sources": [
                    {"secret": {"name": "u", "items": [{"key": "x", "path": "x"}]}},
                    {"serviceAccountToken": {"path": "token"}},
                    {"configMap": {"name": "v", "optional": True}},
                ]
            },
        },
    ]
    assert list(volumes({"spec": {"volumes": listed}})) == [
        Volume("a", Object("Secret", "s"), frozenset()),
        Volume("b", Object("ConfigMap", "c"), frozenset({"k"})),
        Volume("e", Object("Secret", "u"), frozenset({"x"})),
    ]


def test_a_pod_awaits_its_volumes_from_its_node_on_until_a_container_is_made() -> None:
    def given(state: Any, node: str | None = "n", phase: str = "Pending") -> Any:
        found = pod(state=state)
        found["spec"] = {} if node is None else {"nodeName": node}
        found["status"]["phase"] = phase
        return found

    assert awaits_volumes(given(None))
    assert awaits_volumes(given(waiting("ContainerCreating")))
    assert not awaits_volumes(given(None, node=None))
    assert not awaits_volumes(given(waiting("ErrImagePull")))
    assert not awaits_volumes(given({"running": {}}, phase="Running"))


def test_a_volume_that_cannot_be_mounted() -> None:
    given = pod(state=waiting("ContainerCreating"), uid="u")
    found = diagnose([given], WORKER, None, {"u": 'MountVolume.SetUp failed for volume "x" : configmap "y" not found'})
    assert found is not None
    assert found.reason == "VolumeMountFailed"
    assert found.message == ('pod p-1 can\'t start: MountVolume.SetUp failed for volume "x" : configmap "y" not found')
