"""Nodes of the test bed behave as machines with GPUs do: full, killed, removed, switched on again, hollow."""

import time
from typing import Any

import psutil
import pytest

from testbed.kubernetes import Cluster, gpus
from testbed.process import wait_for
from tests.real.namespace import Namespace, Object, condition, deployment, main, pod, ready

SOON = [{"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
        for key in ("unreachable", "not-ready")]  # fmt: skip


def gpu(count: int = 1, resource: str = gpus.GPU) -> dict[str, Any]:
    return {"resources": {"limits": {resource: str(count)}}}


@pytest.mark.usefixtures("removed")
def test_a_fifth_gpu_pod_stays_pending_on_four_gpus(namespace: Namespace) -> None:
    namespace.apply(*(pod(f"gpu-{number}", container=gpu()) for number in range(4)))
    for number in range(4):
        namespace.wait_ready(f"gpu-{number}")
    namespace.apply(pod("fifth", container=gpu()))
    item = namespace.wait("fifth", lambda item: condition(item, "PodScheduled")["status"] == "False", "to be refused")
    refusal = condition(item, "PodScheduled")
    assert refusal["reason"] == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in refusal["message"]
    namespace.delete("gpu-2")
    namespace.wait_ready("fifth")


def test_addresses_are_each_pods_own(namespace: Namespace) -> None:
    namespace.apply(deployment("many", 6, pod("many")))
    wait_for(lambda: sum(ready(item) for item in namespace.pods()) == 6, 30, "six pods to be ready")
    assert len({item["status"]["podIP"] for item in namespace.pods()}) == 6


PARTS = {
    "mig": (gpus.mig(7), "nvidia.com/mig-1g.10gb", {"mig-1g.10gb.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}),
    "time-sliced": (gpus.time_sliced(1, 4), "nvidia.com/gpu", {"gpu.product": "NVIDIA-L4-SHARED", "gpu.replicas": "4"}),
    "renamed": (
        gpus.time_sliced(1, 4, renamed=True),
        "nvidia.com/gpu.shared",
        {"gpu.sharing-strategy": "time-slicing"},
    ),
}


@pytest.mark.parametrize("kind", PARTS)
def test_gpus_in_parts_are_offered_as_nvidia_does(cluster: Cluster, namespace: Namespace, kind: str) -> None:
    offer, resource, labels = PARTS[kind]
    wanted = {f"nvidia.com/{name}": value for name, value in labels.items()}
    with cluster.node("parts", taints=[{"key": "parts", "effect": "NoSchedule"}], **offer):
        node = cluster.get("/api/v1/nodes/parts")
        assert node["status"]["allocatable"][resource] == offer["capacity"][resource]
        assert wanted.items() <= node["metadata"]["labels"].items()
        tolerating: Object = {"tolerations": [{"key": "parts", "operator": "Exists"}], "nodeSelector": wanted}
        namespace.apply(pod("part", container=gpu(1, resource), **tolerating))
        assert namespace.wait_ready("part")["spec"]["nodeName"] == "parts"
        namespace.delete("part", gracePeriodSeconds=1)
        namespace.wait_gone("part")


def test_hollow_pods_are_many_and_cheap(cluster: Cluster, namespace: Namespace) -> None:
    with cluster.node("hollow", hollow=True, taints=[{"key": "hollow", "effect": "NoSchedule"}]):
        there: Object = {
            "tolerations": [{"key": "hollow", "operator": "Exists"}],
            "nodeSelector": {"kubernetes.io/hostname": "hollow"},
        }
        namespace.apply(deployment("many", 100, pod("many", **there)))
        wait_for(
            lambda: namespace.get("deployments/many", api="apis/apps/v1")["status"].get("readyReplicas") == 100,
            30,
            "100 hollow pods to be ready",
        )
        namespace.apply(deployment("many", 0, pod("many", **there)))
        wait_for(lambda: not namespace.pods(), 30, "100 hollow pods to be gone")


def test_a_killed_nodes_pods_run_elsewhere(cluster: Cluster, namespace: Namespace) -> None:
    lost, spare = (cluster.node(name, labels={"group": "killed"}) for name in ("lost", "spare"))
    with lost, spare:
        cluster.kubectl("cordon", "spare")
        namespace.apply(deployment("app", 1, pod("app", nodeSelector={"group": "killed"}, tolerations=SOON)))
        (first,) = wait_for(lambda: [item for item in namespace.pods() if ready(item)], 30, "the pod to run")
        cluster.kubectl("uncordon", "spare")
        pids = lost.pids(namespace.name, first["metadata"]["name"])
        assert pids
        lost.kill()
        begun = time.monotonic()
        assert not lost.pids(namespace.name, first["metadata"]["name"]) or not any_lives(pids)
        assert ready(namespace.get(f"pods/{first['metadata']['name']}")), "nobody was told"

        def elsewhere() -> bool:
            return any(ready(item) and item["spec"]["nodeName"] == "spare" for item in namespace.pods())

        wait_for(elsewhere, 60, "the pod to run elsewhere")
        assert time.monotonic() - begun > 5, "the control plane takes its time to give a node up"
        assert "deletionTimestamp" in namespace.get(f"pods/{first['metadata']['name']}")["metadata"]
        lost.start()  # and finishes what it was told meanwhile
        namespace.wait_gone(first["metadata"]["name"])


def any_lives(pids: dict[str, int]) -> bool:
    return any(psutil.pid_exists(pid) for pid in pids.values())


def test_a_node_that_comes_back_starts_its_pods_again(cluster: Cluster, namespace: Namespace) -> None:
    with cluster.node("back", labels={"group": "back"}) as node:
        namespace.apply(
            pod("stays", nodeSelector={"group": "back"}),
            pod("ends", "true", nodeSelector={"group": "back"}, restartPolicy="Never"),
        )
        namespace.wait_ready("stays")
        namespace.wait("ends", lambda item: item["status"]["phase"] == "Succeeded", "to succeed")
        node.kill()
        node.start()
        again = namespace.wait("stays", lambda item: main(item)["restartCount"] == 1 and ready(item), "to run again")
        assert main(again)["lastState"]["terminated"]["reason"] == "Unknown"
        assert namespace.get("pods/ends")["status"]["phase"] == "Succeeded"
        namespace.delete("stays", gracePeriodSeconds=1)
        namespace.wait_gone("stays")
