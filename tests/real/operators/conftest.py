"""A cluster of its own for the operator: the control plane, our CRD, and images of ours as local commands."""

import uuid
from collections.abc import Iterator

import pytest

from testbed import kubernetes
from testbed.kubernetes import Cluster
from testbed.product import images
from tests.parts import need
from vaultml_operator import crd


@pytest.fixture(scope="session")
def crds(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A running control plane that serves our resource; no node, no operator."""
    need(kubernetes.available())
    failed_before = request.session.testsfailed
    with Cluster(images=images()) as cluster:
        cluster.apply(crd.definition())
        cluster.kubectl("wait", "--for=condition=Established", "crd/vaultmlpipelines.ml.kerberos.io")
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
