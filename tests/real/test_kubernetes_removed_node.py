"""A machine that goes for good: its pods are replaced once the garbage collector has found out."""

from testbed.kubernetes import Cluster
from testbed.process import wait_for
from tests.real.namespace import Namespace, ready


def test_a_removed_nodes_pods_are_replaced(cluster: Cluster, removed: Namespace) -> None:
    def nodes() -> list[str]:
        return [item["spec"].get("nodeName", "") for item in removed.pods() if ready(item)]

    with cluster.node("successor", labels={"group": "removed"}):
        wait_for(lambda: nodes() == ["successor"], 90, "the pod to run on the successor")
        removed.remove()
