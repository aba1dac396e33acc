"""The operator's rights: enough for its work in either scope, and nothing beyond."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from testbed import kubernetes
from testbed.kafka import Broker
from testbed.kubernetes import Cluster, gpus
from testbed.kubernetes.proxy import Proxy, Request, Spoil
from testbed.operator import Operator, Pipelines, grant
from testbed.process import wait_for
from testbed.product import images
from tests.parts import need
from tests.real.operators.test_reconcile import body, topic
from vaultml_operator import crd, install


def may(cluster: Cluster, verb: str, resource: str, namespace: str) -> bool:
    """What the API server says that the operator may do; `resource` as in deployments/scale.apps."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{install.NAMESPACE}:{install.NAME}",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": attributes(verb, resource, namespace),
        },
    }
    answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def attributes(verb: str, resource: str, namespace: str) -> dict[str, str]:
    whole, _, group = resource.partition(".")
    plural, _, subresource = whole.partition("/")
    given = {"verb": verb, "resource": plural, "subresource": subresource, "group": group, "namespace": namespace}
    return {key: value for key, value in given.items() if value}


NEVER = [
    ("create", "pods"),
    ("create", "pods/exec"),
    ("delete", "pods"),
    ("create", "secrets"),
    ("update", "secrets"),
    ("patch", "secrets"),
    ("delete", "secrets"),
    ("patch", "configmaps"),
    ("delete", "deployments.apps"),
    ("deletecollection", "deployments.apps"),
    ("patch", "vaultmlpipelines.ml.kerberos.io"),
    ("delete", "vaultmlpipelines.ml.kerberos.io"),
    ("create", "roles.rbac.authorization.k8s.io"),
    ("create", "rolebindings.rbac.authorization.k8s.io"),
    ("get", "statefulsets.apps"),
    ("create", "jobs.batch"),
    ("create", "serviceaccounts/token"),
    ("impersonate", "serviceaccounts"),
]


@pytest.fixture(scope="module")
def shared_out() -> Iterator[Cluster]:
    """A control plane where the operator has rights in three namespaces only, and a fourth one has a Secret."""
    need(kubernetes.available())
    with Cluster(images=images()) as cluster:
        cluster.apply(crd.definition())
        cluster.node("hollow", hollow=True, **gpus.whole(16))
        for name in ("mine", "a", "b", "theirs"):
            cluster.kubectl("create", "namespace", name)
        grant(cluster, ["mine", "a", "b"])
        Pipelines(cluster, "theirs").secret("keys", password="not-for-you")
        yield cluster


def test_it_may_do_its_work_and_nothing_else(operator: Operator, crds: Cluster, namespace: str) -> None:
    for verb, resource in NEVER:
        assert not may(crds, verb, resource, namespace), f"it may {verb} {resource}"
    assert not may(crds, "update", "nodes", "")
    assert not may(crds, "get", "leases.coordination.k8s.io", namespace)
    assert may(crds, "update", "leases.coordination.k8s.io", install.NAMESPACE)
    for verb, resource in (("patch", "deployments/scale.apps"), ("list", "pods"), ("get", "secrets")):
        assert may(crds, verb, resource, namespace)


def test_rights_in_one_namespace_reach_no_secret_of_another(kafka: Broker, shared_out: Cluster, tmp_path: Path) -> None:
    mine, theirs = Pipelines(shared_out, "mine"), Pipelines(shared_out, "theirs")
    topic(kafka)
    for each in (mine, theirs):
        each.apply(body(kafka))
    with (
        Proxy(shared_out) as proxy,
        Operator(shared_out, tmp_path / "log", "--namespace", "mine", server=proxy.url) as running,
    ):
        running.wait_ready().wait_leads()
        mine.wait("p", "Running")
        mine.kubectl("scale", "vmlp/p", "--replicas=17")
        # It may not list nodes here, so the scheduler's words are passed on.
        assert "Insufficient nvidia.com/gpu" in mine.wait("p", "Unschedulable", "Progressing")["message"]
        assert theirs.condition("p") == {}
        asked = {each.path.split("/namespaces/")[1].split("/")[0] for each in proxy.seen if "/namespaces/" in each.path}
        assert asked == {"mine", install.NAMESPACE}
        assert "not-for-you" not in running.log_text()
        mine.kubectl("delete", "vmlp", "p")
        wait_for(lambda: mine.all("pods") == [], 60, "the workers to go")
    token = shared_out.token_for(install.NAMESPACE, install.NAME)
    with requests.Session() as session:
        session.trust_env = False
        for path in ("namespaces/theirs/secrets", "namespaces/theirs/secrets/keys", "secrets", "nodes"):
            answer = session.get(
                f"{shared_out.api_url}/api/v1/{path}",
                headers={"Authorization": f"Bearer {token}"},
                verify=str(shared_out.credentials.ca_file),
                timeout=10,
            )
            assert answer.status_code == 403, path


def test_a_namespace_that_is_missing_or_deleted_does_not_stop_the_others(
    kafka: Broker, shared_out: Cluster, tmp_path: Path
) -> None:
    topic(kafka)
    kept, gone = Pipelines(shared_out, "mine"), Pipelines(shared_out, "gone")
    kept.apply(body(kafka))
    other = body(kafka)
    other["spec"]["queue"]["kafka"]["group"] += "-other"
    with (
        Proxy(shared_out) as proxy,
        Operator(
            shared_out, tmp_path / "log", "--namespace", "gone", "--namespace", "mine", server=proxy.url
        ) as running,
    ):
        running.wait_ready().wait_leads()
        kept.wait("p", "Running")
        log = running.log_text()
        assert "not allowed to list vaultmlpipelines in the namespace gone" in log
        assert "the CRD" not in log

        shared_out.kubectl("create", "namespace", "gone")
        grant(shared_out, ["gone"])
        gone.apply(other)
        gone.wait("p", "Running")

        shared_out.kubectl("delete", "namespace", "gone")
        proxy.cut()  # no watch of that namespace goes on
        said = "can't be watched"
        wait_for(lambda: said in running.log_text(), 120, "the namespace to be given up", process=running.process)
        kept.kubectl("scale", "vmlp/p", "--replicas=2")
        wait_for(lambda: kept.condition("p")["message"] == "2 of 2 workers ready", 30, "two workers")
        told = [name for name in running.metrics() if name.startswith("vaultml_pipeline_ready{")]
        assert told == ['vaultml_pipeline_ready{namespace="mine",pipeline="p"}']

        # It comes back by the same name.
        shared_out.kubectl("create", "namespace", "gone")
        grant(shared_out, ["gone"])
        gone.apply(other)
        gone.wait("p", "Running", timeout=60)
        assert running.process.returncode is None
    kept.kubectl("delete", "vmlp", "p")


WAITING = {
    404: "waiting for the CRD vaultmlpipelines.ml.kerberos.io: apply crds/",
    403: "not allowed to list vaultmlpipelines in all namespaces",
    503: "waiting for the API server: it answers 503",
    0: "waiting for the API server: it can't be reached",
}


@pytest.mark.parametrize("status", WAITING)
def test_why_it_waits_at_its_start(status: int, shared_out: Cluster, tmp_path: Path) -> None:
    def rule(request: Request) -> Spoil | None:
        return Spoil(status=status) if "/vaultmlpipelines" in request.path else None

    with Proxy(shared_out, rule) as proxy, Operator(shared_out, tmp_path / "log", server=proxy.url) as running:
        sentence = WAITING[status]
        wait_for(lambda: sentence in running.log_text(), 30, sentence, process=running.process)
        assert [each for each in WAITING.values() if each in running.log_text()] == [sentence]


def test_two_operators_share_out_the_namespaces(kafka: Broker, shared_out: Cluster, tmp_path: Path) -> None:
    topic(kafka)
    first, second = (
        Operator(shared_out, tmp_path / name, "--namespace", name, "--lease-name", name) for name in ("a", "b")
    )
    with first, second:
        for each, own in ((first, "a"), (second, "b")):
            each.wait_ready().wait_leads()
            pipelines = Pipelines(shared_out, own)
            pipelines.apply(body(kafka))
            pipelines.wait("p", "Running")
        for each, own in ((first, "a"), (second, "b")):
            told = [name for name in each.metrics() if name.startswith("vaultml_pipeline_ready{")]
            assert told == [f'vaultml_pipeline_ready{{namespace="{own}",pipeline="p"}}']
