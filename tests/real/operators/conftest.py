"""A cluster of its own for the operator: the control plane, our CRD, and images of ours as local commands."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import kubernetes
from testbed.kubernetes import Cluster, gpus
from testbed.kubernetes.kubelet.status import now
from testbed.operator import Operator, Pipelines, grant
from testbed.product import images
from tests.parts import need
from vaultml_operator import crd
from vaultml_worker.dev.vault import Account, VaultServer, application


@pytest.fixture(scope="session")
def crds(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A running control plane that serves our resource; no node, no operator."""
    need(kubernetes.available())
    failed_before = request.session.testsfailed
    with Cluster(images=images()) as cluster:
        cluster.apply(crd.definition())
        yield cluster
        if request.session.testsfailed > failed_before:
            cluster.keep_logs()


@pytest.fixture
def namespace(crds: Cluster) -> Iterator[str]:
    """A namespace of the test's own; its deletion is left to the cluster."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    crds.kubectl("create", "namespace", name)
    yield name
    crds.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def operator(
    crds: Cluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Operator]:
    """One operator that watches the whole cluster, with a node whose pods are there in name only."""
    failed_before = request.session.testsfailed
    grant(crds)
    crds.node("hollow", hollow=True, **gpus.whole(64))
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    with Operator(crds, log, "--log-level", "DEBUG") as running:
        running.wait_ready().wait_leads()
        yield running
        if request.session.testsfailed > failed_before:
            running.keep_log()


@pytest.fixture
def pipelines(operator: Operator, crds: Cluster, namespace: str) -> Pipelines:
    """A namespace of its own that the operator watches."""
    return Pipelines(crds, namespace)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[tuple[str, VaultServer]]:
    """The address of a running Vault that knows the account `a`, `b`, and the server."""
    server = VaultServer(application(tmp_path, Account("a", "b")))
    yield f"{server.url}/api", server
    server.close()


@pytest.fixture
def silent(crds: Cluster) -> Iterator[dict[str, Any]]:
    """A node that is ready in name, with no kubelet behind it; gives what `spec.worker` needs to land there."""
    name = f"silent-{uuid.uuid4().hex[:8]}"
    allocatable = {"cpu": "8", "memory": "16Gi", "pods": "10", "nvidia.com/gpu": "2"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now()}
    crds.request(
        "POST",
        "/api/v1/nodes",
        {
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {"taints": [{"key": "silent", "effect": "NoSchedule"}]},
            "status": {"capacity": allocatable, "allocatable": allocatable, "conditions": [ready]},
        },
    )
    yield {
        "nodeSelector": {"kubernetes.io/hostname": name},
        "tolerations": [{"key": "silent", "operator": "Exists"}],
    }
    crds.request("DELETE", f"/api/v1/nodes/{name}")


@pytest.fixture(scope="session")
def machine(crds: Cluster) -> dict[str, Any]:
    """A node that really runs its pods; gives what `spec.worker` needs to land there and nowhere else."""
    taint = {"key": "runs-pods", "effect": "NoSchedule"}
    crds.node("machine", **gpus.whole(2), taints=[taint])
    return {
        "nodeSelector": {"kubernetes.io/hostname": "machine"},
        "tolerations": [{"key": "runs-pods", "operator": "Exists"}],
    }
