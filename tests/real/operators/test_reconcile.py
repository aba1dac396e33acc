"""What a pipeline becomes, and what brings it back: on a node whose pods run in name only."""

import json
import os
import time
import zlib
from functools import partial
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from testbed.kafka import Broker
from testbed.operator import Operator, Pipelines
from testbed.process import wait_for
from tests.real.operators.lagging import scaling
from vaultml_operator import install
from vaultml_operator.cluster import DIGEST_KEY
from vaultml_worker.dev.vault import VaultServer


def group() -> str:
    """The running test's own: two pipelines on one group are refused."""
    return f"g-{zlib.crc32(os.environ['PYTEST_CURRENT_TEST'].split(' ')[0].encode()):x}"


def body(kafka: Broker, queue: str = "ready-queue", **spec: Any) -> dict[str, Any]:
    """A pipeline without a Vault of its own, on the real broker; the number of its workers is set by hand."""
    block = {"brokers": [kafka.plaintext], "group": group()}
    spec = {"autoscaling": {"mode": "Manual"}, **spec}
    return {
        "apiVersion": "ml.kerberos.io/v1alpha1",
        "kind": "VaultMLPipeline",
        "metadata": {"name": "p"},
        "spec": {"queue": {"name": queue, "kafka": block}, **spec},
    }


def topic(kafka: Broker, name: str = "ready-queue") -> str:
    admin = AdminClient({"bootstrap.servers": kafka.plaintext, "log_level": 0})
    if name not in admin.list_topics(timeout=10).topics:
        kafka.create_topic(name)
    return name


def deployment(pipelines: Pipelines) -> dict[str, Any]:
    found = pipelines.get("deployment", "p")
    assert found is not None
    return found


def test_a_pipeline_becomes_ready_and_says_so(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka, replicas=2))
    pipelines.wait("p", "Running")
    pipelines.kubectl("wait", "--for=condition=Ready", "vmlp/p", "--timeout=10s")
    row = pipelines.kubectl("get", "vmlp", "-o", "wide").splitlines()[1].split()
    assert row[:3] == ["p", "True", "2/2"]
    assert {"nvidia.com/gpu:1", "Running"} < set(row)
    assert len(pipelines.all("pods")) == 2
    budget = pipelines.get("pdb", "p")
    assert budget is not None
    assert budget["spec"]["maxUnavailable"] == 1
    found = pipelines.get("vmlp", "p")
    assert found is not None
    assert "finalizers" not in found["metadata"]
    assert set(found["metadata"].get("annotations") or {}) <= {"kubectl.kubernetes.io/last-applied-configuration"}
    reasons = [reason for _, reason, _ in pipelines.wait_event("p", "Running")]
    assert reasons.count("Created") == 2
    assert reasons[-1] == "Running"
    described = pipelines.kubectl("describe", "vmlp", "p")
    assert "2 of 2 workers ready" in described


def test_created_at_zero_no_pod_ever_appears(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka, replicas=0))
    pipelines.wait("p", "ScaledToZero")
    # A pod that had been would have left an Event of the ReplicaSet behind.
    made = json.loads(pipelines.kubectl("get", "events", "-o", "json"))["items"]
    assert [each for each in made if each["reason"] == "SuccessfulCreate"] == []
    assert pipelines.all("pods") == []


def test_scale_suspend_and_resume(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka))
    pipelines.wait("p", "Running")
    pipelines.kubectl("scale", "vmlp/p", "--replicas=3")
    wait_for(lambda: pipelines.condition("p")["message"] == "3 of 3 workers ready", 30, "three workers")
    pipelines.kubectl("patch", "vmlp", "p", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    pipelines.wait("p", "Suspended")
    wait_for(lambda: pipelines.all("pods") == [], 30, "the workers to go")
    assert deployment(pipelines)["spec"]["replicas"] == 0
    pipelines.kubectl("patch", "vmlp", "p", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    wait_for(lambda: pipelines.condition("p")["message"] == "3 of 3 workers ready", 30, "three workers again")
    owners = {
        each["manager"]: each.get("subresource")
        for each in json.loads(pipelines.kubectl("get", "deploy", "p", "-o", "json", "--show-managed-fields"))[
            "metadata"
        ]["managedFields"]
        if "f:replicas" in each["fieldsV1"].get("f:spec", {})
    }
    assert owners == {"vaultml-scaler": "scale"}


def test_nothing_is_written_when_nothing_changed(kafka: Broker, operator: Operator, pipelines: Pipelines) -> None:
    topic(kafka)
    resources = {"requests": {"cpu": "0.5", "memory": "1024Mi"}}  # which the API server writes in its own way
    pipelines.apply(body(kafka, worker={"resources": resources}))
    pipelines.wait("p", "Running")

    def reconciles() -> float:
        return operator.metrics()['vaultml_operator_reconciles_total{outcome="success"}']

    def more_than(runs: float) -> bool:
        return reconciles() > runs

    def written() -> tuple[str, str, int]:
        """What a write of ours would change: not the metrics, which count other tests' pipelines, too."""
        found = pipelines.get("vmlp", "p")
        assert found is not None
        versions = [each["metadata"]["resourceVersion"] for each in (found, deployment(pipelines))]
        return versions[0], versions[1], len(pipelines.events("p"))

    # The second look at the queue is the first that knows a rate.
    wait_for(lambda: "rate" in scaling(pipelines), 60, "the rate")
    before = written()
    for number in range(3):
        runs = reconciles()
        # An event about a child that changes nothing that we want.
        pipelines.kubectl("annotate", "pdb", "p", f"someone.else/number={number}", "--overwrite")
        wait_for(partial(more_than, runs), 20, "a reconcile")
        assert written() == before


def test_an_edited_child_is_repaired(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka))
    pipelines.wait("p", "Running")
    pipelines.kubectl("set", "env", "deployment/p", "QUEUE_NAME=elsewhere")
    pipelines.kubectl("scale", "deployment/p", "--replicas=5")

    def repaired() -> bool:
        spec = deployment(pipelines)["spec"]
        env = {each["name"]: each.get("value") for each in spec["template"]["spec"]["containers"][0]["env"]}
        return (env["QUEUE_NAME"], spec["replicas"]) == ("ready-queue", 1)

    wait_for(repaired, 20, "the Deployment to be as it was")
    # An Event is posted behind the deed that it tells.
    pipelines.wait_event("p", "Updated")


def test_a_deleted_child_comes_back(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    account = {"serviceAccount": {"create": True, "annotations": {"a/role": "r"}}}
    pipelines.apply(body(kafka, worker=account))
    pipelines.wait("p", "Running")
    for kind in ("deployment", "pdb", "serviceaccount"):
        before = pipelines.get(kind, "p")
        assert before is not None
        pipelines.kubectl("delete", kind, "p")

        def back(kind: str = kind, uid: str = before["metadata"]["uid"]) -> bool:
            found = pipelines.get(kind, "p")
            return found is not None and found["metadata"]["uid"] != uid

        wait_for(back, 20, f"the {kind} to be back")
    pipelines.wait("p", "Running")


def test_what_the_spec_no_longer_asks_for_goes(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka, worker={"serviceAccount": {"create": True, "name": "mine"}}))
    wait_for(lambda: pipelines.get("serviceaccount", "mine"), 20, "the ServiceAccount")
    pipelines.apply(body(kafka))
    wait_for(lambda: pipelines.get("serviceaccount", "mine") is None, 20, "the ServiceAccount to go")
    events = pipelines.wait_event("p", "Removed")
    assert ("Normal", "Removed", "deleted the ServiceAccount mine: the spec asks for none") in events


def test_a_foreign_object_is_never_taken_over(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.kubectl("create", "deployment", "p", "--image=busybox", "--replicas=0")
    before = deployment(pipelines)
    pipelines.apply(body(kafka))
    condition = pipelines.wait("p", "NameTaken")
    assert "Deployment p exists and is not this pipeline's" in condition["message"]
    assert deployment(pipelines)["spec"] == before["spec"]
    assert [reason for kind, reason, _ in pipelines.wait_event("p", "NameTaken") if kind == "Warning"] == ["NameTaken"]
    pipelines.kubectl("delete", "deployment", "p")
    pipelines.wait("p", "Running", timeout=40)


def test_a_changed_secret_rolls_the_workers(
    kafka: Broker, pipelines: Pipelines, vault: tuple[str, VaultServer]
) -> None:
    topic(kafka)
    url, _ = vault
    pipelines.secret("keys", accessKey="a", secretKey="b")
    pipelines.apply(body(kafka, vault={"apiUrl": url, "credentialsSecretRef": {"name": "keys"}}))
    pipelines.wait("p", "Running")
    before = {pod["metadata"]["uid"] for pod in pipelines.all("pods")}
    changed = time.monotonic()
    pipelines.secret("keys", accessKey="a", secretKey="c")
    wait_for(lambda: deployment(pipelines)["metadata"]["generation"] == 2, 10, "the workers to start rolling")
    assert time.monotonic() - changed < 10
    wait_for(lambda: not before & {pod["metadata"]["uid"] for pod in pipelines.all("pods")}, 30, "new workers")
    told = [
        note for _, reason, note in pipelines.wait_event("p", "CredentialsChanged") if reason == "CredentialsChanged"
    ]
    assert told == ["Secret keys changed: the workers are replaced one by one"]


def test_a_secret_that_is_touched_or_recreated_with_the_same_values_rolls_nothing(
    kafka: Broker, operator: Operator, pipelines: Pipelines, vault: tuple[str, VaultServer]
) -> None:
    topic(kafka)
    url, _ = vault
    pipelines.secret("keys", accessKey="a", secretKey="b")
    pipelines.apply(body(kafka, vault={"apiUrl": url, "credentialsSecretRef": {"name": "keys"}}))
    pipelines.wait("p", "Running")
    pods = {pod["metadata"]["uid"] for pod in pipelines.all("pods")}

    def reconciles() -> float:
        return operator.metrics()['vaultml_operator_reconciles_total{outcome="success"}']

    def more_than(runs: float) -> bool:
        return reconciles() > runs

    for number in range(3):
        runs = reconciles()
        pipelines.kubectl("label", "secret", "keys", f"touched={number}", "--overwrite")
        wait_for(partial(more_than, runs), 20, "a reconcile")
        runs = reconciles()
        pipelines.secret("keys", accessKey="a", secretKey="b", note=str(number))
        wait_for(partial(more_than, runs), 20, "a reconcile")
        pipelines.kubectl("delete", "secret", "keys")
        pipelines.wait("p", "SecretMissing")
        pipelines.secret("keys", accessKey="a", secretKey="b")
        pipelines.wait("p", "Running")
    assert deployment(pipelines)["metadata"]["generation"] == 1
    assert {pod["metadata"]["uid"] for pod in pipelines.all("pods")} == pods
    assert "CredentialsChanged" not in {reason for _, reason, _ in pipelines.events("p")}
    # The key by which values are compared is the operator's, and no pod has it.
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{install.NAMESPACE}/leases/vaultml-operator-digest-key"
    key = pipelines.cluster.get(leases)["metadata"]["annotations"][DIGEST_KEY]
    assert key not in pipelines.kubectl("get", "vmlp,deploy,rs,pods", "-o", "yaml")


def test_a_missing_secret_and_key_are_said_and_heal(
    kafka: Broker, pipelines: Pipelines, vault: tuple[str, VaultServer]
) -> None:
    topic(kafka)
    url, _ = vault
    pipelines.apply(body(kafka, vault={"apiUrl": url, "credentialsSecretRef": {"name": "keys"}}))
    assert "Secret keys is missing" in pipelines.wait("p", "SecretMissing")["message"]
    assert pipelines.get("deployment", "p") is None
    pipelines.secret("keys", accessKey="a")
    assert "lacks the key secretKey" in pipelines.wait("p", "SecretKeyMissing")["message"]
    pipelines.secret("keys", accessKey="a", secretKey="b")
    pipelines.wait("p", "Running")
    # Taken away while workers run: they are left alone.
    pods = {pod["metadata"]["uid"] for pod in pipelines.all("pods")}
    generation = deployment(pipelines)["metadata"]["generation"]
    pipelines.kubectl("delete", "secret", "keys")
    pipelines.wait("p", "SecretMissing")
    assert {pod["metadata"]["uid"] for pod in pipelines.all("pods")} == pods
    assert deployment(pipelines)["metadata"]["generation"] == generation
    warnings = [reason for kind, reason, _ in pipelines.wait_event("p", "SecretMissing", 2) if kind == "Warning"]
    assert warnings == ["SecretMissing", "SecretKeyMissing", "SecretMissing"]


def test_paused_nothing_changes(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka))
    pipelines.wait("p", "Running")
    pipelines.kubectl("annotate", "vmlp", "p", "ml.kerberos.io/paused=true")
    pipelines.wait("p", "PausedByAnnotation", "Paused")
    generation = deployment(pipelines)["metadata"]["generation"]
    pipelines.apply(body(kafka, detection={"threshold": 0.7}) | {})
    pipelines.kubectl("annotate", "vmlp", "p", "ml.kerberos.io/paused=true", "--overwrite")
    pipelines.wait("p", "PausedByAnnotation", "Paused", generation=2)
    assert deployment(pipelines)["metadata"]["generation"] == generation
    pipelines.kubectl("annotate", "vmlp", "p", "ml.kerberos.io/paused-")
    pipelines.wait("p", "NotPaused", "Paused")
    wait_for(lambda: deployment(pipelines)["metadata"]["generation"] > generation, 20, "the change to be made")


def test_a_condition_keeps_its_time_while_it_holds(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka))
    first = pipelines.wait("p", "Running")
    pipelines.kubectl("scale", "vmlp/p", "--replicas=0")
    second = pipelines.wait("p", "ScaledToZero")
    assert first["status"] == second["status"] == "True"
    kept = pipelines.condition("p", "QueueReachable")
    assert kept["observedGeneration"] == 2
    assert kept["lastTransitionTime"] <= first["lastTransitionTime"]


def test_deletion_leaves_nothing(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka, worker={"serviceAccount": {"create": True}}))
    pipelines.wait("p", "Running")
    pipelines.kubectl("delete", "vmlp", "p")
    wait_for(
        lambda: pipelines.all("deployment,rs,pods,pdb") == [] and pipelines.get("serviceaccount", "p") is None,
        90,  # the garbage collector looks for new kinds every half minute, and this one may be new
        "everything to be gone",
    )


def test_a_pipeline_made_anew_waits_for_the_old_ones_children(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka))
    pipelines.wait("p", "Running")
    old = deployment(pipelines)["metadata"]["uid"]
    pipelines.kubectl("delete", "vmlp", "p", "--wait=false")
    pipelines.apply(body(kafka))
    wait_for(
        lambda: (pipelines.get("deployment", "p") or {}).get("metadata", {}).get("uid", old) != old, 60, "a new one"
    )
    pipelines.wait("p", "Running", timeout=60)


PORTS = [{"name": "http", "containerPort": 8080}, {"name": "more", "containerPort": 8080}]
INVALID = [
    ({"restartPolicy": "Sometimes"}, "spec.template.spec.restartPolicy"),
    ({"hostNetwerk": True}, "hostNetwerk"),
    ({"securityContext": {"runAsUsr": 1}}, "runAsUsr"),
    ({"containers": [{"name": "worker", "resorces": {}}]}, "resorces"),
    ({"terminationGracePeriodSeconds": "soon"}, "terminationGracePeriodSeconds"),
    ({"hostAliases": {"ip": "1.2.3.4"}}, "hostAliases"),
    ({"containers": [{"name": "worker", "ports": PORTS}]}, "ports"),
    ({"containers": [{"name": "worker", "volumeMounts": [{"name": "nowhere", "mountPath": "/x"}]}]}, "volumeMounts"),
]


def test_an_invalid_pod_template_is_said_with_its_field_and_leaves_the_workers(
    kafka: Broker, pipelines: Pipelines
) -> None:
    topic(kafka)
    pipelines.apply(body(kafka))
    pipelines.wait("p", "Running")
    pods = {pod["metadata"]["uid"] for pod in pipelines.all("pods")}
    for number, (patch, field) in enumerate(INVALID, start=1):
        pipelines.apply(body(kafka, worker={"podTemplate": {"spec": patch}}))
        generation = pipelines.get("vmlp", "p")["metadata"]["generation"]  # type: ignore[index]
        condition = pipelines.wait("p", "InvalidSpec", generation=generation, timeout=10)
        assert condition["status"] == "False"
        assert field in condition["message"]
        assert {pod["metadata"]["uid"] for pod in pipelines.all("pods")} == pods
        pipelines.apply(body(kafka))
        pipelines.wait("p", "Running", generation=generation + 1)
        pipelines.wait_event("p", "InvalidSpec", number)


@pytest.mark.parametrize("patch", [{"hostNetwerk": True}, {"containers": [{"name": "worker", "ports": PORTS}]}])
def test_a_new_pipeline_with_an_invalid_pod_template_has_a_status(
    patch: dict[str, Any], kafka: Broker, pipelines: Pipelines
) -> None:
    topic(kafka)
    pipelines.apply(body(kafka, worker={"podTemplate": {"spec": patch}}))
    pipelines.wait("p", "InvalidSpec", timeout=10)
    assert pipelines.get("deployment", "p") is None
    pipelines.wait_event("p", "InvalidSpec")
    pipelines.apply(body(kafka))
    pipelines.wait("p", "Running")


def test_a_scale_out_does_not_end_being_ready(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka))
    since = pipelines.wait("p", "Running")["lastTransitionTime"]
    time.sleep(1.1)  # times are in whole seconds
    pipelines.kubectl("scale", "vmlp/p", "--replicas=4")
    wait_for(lambda: pipelines.condition("p")["message"] == "4 of 4 workers ready", 30, "four workers")
    assert pipelines.condition("p")["lastTransitionTime"] == since
    # Additional workers that fit nowhere are another condition's.
    pipelines.kubectl("scale", "vmlp/p", "--replicas=90")
    condition = pipelines.wait("p", "Unschedulable", "Progressing", timeout=60)
    assert condition["status"] == "False"
    assert "Insufficient nvidia.com/gpu" in condition["message"]
    assert pipelines.condition("p")["status"] == "True"
    assert pipelines.condition("p")["lastTransitionTime"] == since
    pipelines.wait_event("p", "Unschedulable")


def test_a_pod_monitor_that_cannot_be_is_said(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.apply(body(kafka, monitoring={"podMonitor": True}))
    pipelines.wait("p", "MonitorUnavailable", "Monitored")
    pipelines.wait("p", "Running")


def test_a_quota_that_forbids_pods_is_said(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.kubectl("create", "quota", "none", "--hard=pods=0")
    wait_for(lambda: (pipelines.get("quota", "none") or {}).get("status", {}).get("hard"), 20, "the quota to count")
    pipelines.apply(body(kafka))
    assert "exceeded quota" in pipelines.wait("p", "Refused")["message"]


def test_a_quota_that_forbids_more_pods_leaves_those_that_work_ready(kafka: Broker, pipelines: Pipelines) -> None:
    topic(kafka)
    pipelines.kubectl("create", "quota", "two", "--hard=pods=2")
    wait_for(lambda: (pipelines.get("quota", "two") or {}).get("status", {}).get("hard"), 20, "the quota to count")
    pipelines.apply(body(kafka, replicas=2))
    pipelines.wait("p", "Running")
    pipelines.kubectl("scale", "vmlp/p", "--replicas=3")
    condition = pipelines.wait("p", "Refused", "Progressing")
    assert condition["status"] == "False"
    assert "exceeded quota: two" in condition["message"]
    ready = pipelines.condition("p")
    assert (ready["status"], ready["reason"], ready["message"]) == ("True", "Running", "2 of 3 workers ready")
    pipelines.wait_event("p", "Refused")
    pipelines.kubectl("scale", "vmlp/p", "--replicas=2")
    pipelines.wait("p", "Complete", "Progressing")
