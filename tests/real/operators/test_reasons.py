"""Everything that can be wrong around a pipeline is told apart, in words that say what to do, and heals by itself."""

import copy
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from testbed.kafka import Broker
from testbed.operator import Operator, Pipelines
from testbed.process import LOOPBACK, free_port, wait_for
from tests.real.operators.test_reconcile import group
from vaultml_operator import reasons
from vaultml_worker.dev.vault import Account, VaultServer, application

QUEUE = "reasons-queue"


@pytest.fixture(autouse=True)
def queue(kafka: Broker) -> None:
    """The topic that good pipelines read."""
    admin = AdminClient({"bootstrap.servers": kafka.plaintext, "log_level": 0})
    if QUEUE not in admin.list_topics(timeout=10).topics:
        kafka.create_topic(QUEUE)


def body(kafka: Broker, *, vault: dict[str, Any] | None = None, **worker: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "queue": {"name": QUEUE, "kafka": {"brokers": [kafka.plaintext], "group": group()}},
        "autoscaling": {"mode": "Manual"},
        "worker": {"terminationGracePeriodSeconds": 5, **worker},
    }
    if vault is not None:
        spec["vault"] = vault
    return {
        "apiVersion": "ml.kerberos.io/v1alpha1",
        "kind": "VaultMLPipeline",
        "metadata": {"name": "p"},
        "spec": spec,
    }


def saying(pipelines: Pipelines, reason: str, *words: str, condition: str | None = None) -> None:
    """Wait for the reason; it must be in the table, its message must have the words, and it is one Event."""
    assert reason in reasons.NAMES
    found = pipelines.wait("p", reason, timeout=45)
    assert found["status"] == "False"
    if condition is not None:
        assert pipelines.condition("p", condition)["reason"] == reason
    described = pipelines.kubectl("describe", "vmlp", "p")
    for word in words:
        assert word in found["message"]
        assert word in described
    told = wait_for(
        lambda: [note for kind, each, note in pipelines.events("p") if (kind, each) == ("Warning", reason)],
        10,
        "the Event",
    )
    assert len(told) == 1


def healed(pipelines: Pipelines, timeout: float = 60) -> None:
    pipelines.wait("p", "Running", timeout=timeout)


def test_an_unreachable_broker(kafka: Broker, pipelines: Pipelines) -> None:
    bad = body(kafka)
    nowhere = f"{LOOPBACK}:{free_port()}"
    bad["spec"]["queue"]["kafka"]["brokers"] = [nowhere]
    pipelines.apply(bad)
    saying(pipelines, "BrokerUnreachable", nowhere, condition="QueueReachable")
    pipelines.apply(body(kafka))
    healed(pipelines)


def test_a_wrong_password(kafka: Broker, pipelines: Pipelines, operator: Operator) -> None:
    bad = body(kafka)
    bad["spec"]["queue"]["kafka"] |= {
        "brokers": [kafka.sasl_plaintext],
        "security": "SASL_PLAINTEXT",
        "credentialsSecretRef": {"name": "user"},
    }
    pipelines.secret("user", username=kafka.username, password="wr0ng-one")
    pipelines.apply(bad)
    saying(pipelines, "AuthenticationFailed", condition="QueueReachable")
    pipelines.secret("user", username=kafka.username, password=kafka.password)
    healed(pipelines)
    everything = pipelines.kubectl("get", "vmlp,deploy,rs,pods,events.events.k8s.io", "-o", "yaml")
    said = everything + operator.log_text() + operator.get("/metrics")[1]
    assert "wr0ng-one" not in said
    assert kafka.password not in said


def test_an_authority_that_is_not_trusted_and_one_that_is(kafka: Broker, pipelines: Pipelines) -> None:
    bad = body(kafka)
    bad["spec"]["queue"]["kafka"] |= {"brokers": [kafka.ssl], "security": "SSL"}
    pipelines.apply(bad)
    saying(pipelines, "TlsFailed", condition="QueueReachable")
    pipelines.kubectl("create", "configmap", "authority", f"--from-file=ca.crt={kafka.ca_file}")
    good = copy.deepcopy(bad)
    good["spec"]["queue"]["kafka"]["ca"] = {"configMapKeyRef": {"name": "authority"}}
    pipelines.apply(good)
    healed(pipelines)


def test_a_missing_topic(kafka: Broker, pipelines: Pipelines) -> None:
    bad = body(kafka)
    name = f"missing-{pipelines.namespace}"
    bad["spec"]["queue"]["target"] = name
    pipelines.apply(bad)
    saying(pipelines, "TopicMissing", name, condition="QueueReachable")
    kafka.create_topic(name)
    healed(pipelines)


def test_a_vault_that_is_away_or_refuses(kafka: Broker, pipelines: Pipelines, tmp_path: Path) -> None:
    port = free_port()
    pipelines.secret("keys", accessKey="a", secretKey="b")
    url = f"http://{LOOPBACK}:{port}/api"
    pipelines.apply(body(kafka, vault={"apiUrl": url, "credentialsSecretRef": {"name": "keys"}}))
    saying(pipelines, "VaultUnreachable", url, condition="VaultReachable")
    server = VaultServer(application(tmp_path, Account("a", "another")), port=port)
    try:
        saying(pipelines, "CredentialsRefused", condition="VaultReachable")
        pipelines.secret("keys", accessKey="a", secretKey="another")
        healed(pipelines)
    finally:
        server.close()


def test_no_node_with_that_gpu(kafka: Broker, pipelines: Pipelines) -> None:
    pipelines.apply(body(kafka, gpu={"resource": "nvidia.com/mig-7g.80gb", "count": 1}))
    saying(pipelines, "NoGpuNode", "nvidia.com/mig-7g.80gb")
    pipelines.apply(body(kafka))
    healed(pipelines)


def test_all_gpus_are_taken(kafka: Broker, pipelines: Pipelines) -> None:
    pipelines.apply(body(kafka) | {"spec": body(kafka)["spec"] | {"replicas": 70}})
    wait_for(lambda: "64 of 70 workers ready" in pipelines.condition("p").get("message", ""), 45, "64 of 70 to run")
    saying(pipelines, "Unschedulable", "64 of 70 workers ready", "Insufficient nvidia.com/gpu")
    pipelines.kubectl("scale", "vmlp/p", "--replicas=2")
    healed(pipelines)


def test_an_image_that_cannot_be_pulled(kafka: Broker, pipelines: Pipelines, machine: dict[str, Any]) -> None:
    pipelines.apply(body(kafka, image="nobody/nothing:1", **machine))
    saying(pipelines, "ImagePullFailed", "nobody/nothing:1")
    pipelines.apply(body(kafka))
    healed(pipelines)


def test_a_container_that_cannot_be_made(kafka: Broker, pipelines: Pipelines, machine: dict[str, Any]) -> None:
    env = [{"name": "EXTRA", "valueFrom": {"secretKeyRef": {"name": "extra", "key": "k"}}}]
    template = {"spec": {"containers": [{"name": "worker", "env": env}]}}
    pipelines.apply(body(kafka, podTemplate=template, **machine))
    saying(pipelines, "ContainerConfigError", 'secret "extra" not found')
    pipelines.apply(body(kafka))
    healed(pipelines)


def test_a_volume_that_cannot_be_mounted(kafka: Broker, pipelines: Pipelines, machine: dict[str, Any]) -> None:
    labels = {"name": "labels", "configMap": {"name": "classes"}}
    template = {"spec": {"volumes": [labels]}}
    pipelines.apply(body(kafka, podTemplate=template, **machine))
    saying(
        pipelines, "VolumeMountFailed", 'MountVolume.SetUp failed for volume "labels"', 'configmap "classes" not found'
    )
    pipelines.kubectl("create", "configmap", "classes", "--from-literal=a=b")
    wait_for(lambda: pipelines.condition("p").get("reason") != "VolumeMountFailed", 40, "the volume to be mounted")


@pytest.mark.parametrize(
    ("kubelet", "message", "reason"),
    [
        ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present", "PodRejected"),
        ("OutOfcpu", "Node didn't have enough resource: cpu, requested: 1, used: 1, capacity: 1", "PodRejected"),
        ("Evicted", "The node was low on resource: memory.", "PodEvicted"),
    ],
)
def test_a_pod_that_the_kubelet_ends(
    kubelet: str, message: str, reason: str, kafka: Broker, pipelines: Pipelines, silent: dict[str, Any]
) -> None:
    """On a node without a kubelet the test writes what a kubelet would; the pod that replaces it stays Pending."""
    pipelines.apply(body(kafka, **silent))
    found = wait_for(lambda: [pod for pod in pipelines.all("pods") if "nodeName" in pod["spec"]], 30, "a pod")
    status = {"phase": "Failed", "reason": kubelet, "message": message}
    path = f"/api/v1/namespaces/{pipelines.namespace}/pods/{found[0]['metadata']['name']}/status"
    pipelines.cluster.request("PATCH", path, {"status": status}, content_type="application/merge-patch+json")
    saying(pipelines, reason, kubelet, message)


def test_a_worker_that_ends_at_once_says_why(kafka: Broker, pipelines: Pipelines, machine: dict[str, Any]) -> None:
    """A GPU was asked for, and none can be used here: the worker's last words are in the condition."""
    pipelines.apply(body(kafka, **machine))
    saying(pipelines, "CrashLooping", "exit code", "ENGINE=tensorrt", "set ENGINE=onnxruntime")
    pipelines.apply(body(kafka, engine="onnxruntime", **machine))
    healed(pipelines, 90)


def test_a_rollout_that_is_stuck(kafka: Broker, pipelines: Pipelines, machine: dict[str, Any]) -> None:
    """Pods that run and never become ready: a process that isn't a worker."""
    sleeping = {"name": "worker", "command": ["sleep"], "args": ["1000"], "livenessProbe": None, "startupProbe": None}
    template = {"spec": {"containers": [sleeping]}}
    pipelines.apply(body(kafka, podTemplate=template, progressDeadlineSeconds=10, **machine))
    saying(pipelines, "Stuck")
    pipelines.apply(body(kafka))
    healed(pipelines)


def test_reasons_on_the_page_are_all_there_are() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reasons.md").read_text()
    assert page == reasons.reference()
