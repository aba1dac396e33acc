"""A node can be drained although the workers on it are not ready."""

from typing import Any

from testbed.kafka import Broker
from testbed.kubernetes import Cluster
from testbed.operator import Pipelines
from testbed.process import wait_for
from tests.real.operators.test_reasons import body, queue

__all__ = ["queue"]  # the fixture that creates the topic


def test_workers_that_are_not_ready_can_be_evicted(
    kafka: Broker, crds: Cluster, pipelines: Pipelines, machine: dict[str, Any]
) -> None:
    """Both workers run and are never ready, so the budget allows no disruption: eviction is answered 429 by default."""
    sleeping = {"name": "worker", "command": ["sleep"], "args": ["1000"], "livenessProbe": None, "startupProbe": None}
    template = {"spec": {"containers": [sleeping]}}
    wanted = body(kafka, podTemplate=template, gpu={"count": 0}, **machine)
    pipelines.apply({**wanted, "spec": {**wanted["spec"], "replicas": 2}})

    def running() -> set[str]:
        return {each["metadata"]["name"] for each in pipelines.all("pods") if each["status"].get("phase") == "Running"}

    wait_for(lambda: len(running()) == 2, 60, "both workers to run")

    def budget() -> dict[str, Any]:
        found = pipelines.get("pdb", "p")
        assert found is not None
        return dict(found["status"])

    wait_for(lambda: budget().get("expectedPods") == 2, 30, "the budget to know both")
    assert (budget()["currentHealthy"], budget()["disruptionsAllowed"]) == (0, 0)
    before = running()
    for name in sorted(before):
        metadata = {"name": name, "namespace": pipelines.namespace}
        crds.request(
            "POST",
            f"/api/v1/namespaces/{pipelines.namespace}/pods/{name}/eviction",
            {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata},
        )
    wait_for(lambda: not before & running(), 30, "the evicted workers to go")
