"""Beside Tekton, whose resource has the full name that ours once had as a short name."""

import json
from collections.abc import Iterator

import pytest

from testbed import kubernetes
from testbed.kubernetes import Cluster
from testbed.product import images
from tests.parts import need
from tests.real.operators.test_resource import GOOD
from vaultml_operator import crd

TEKTON = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "pipelines.tekton.dev"},
    "spec": {
        "group": "tekton.dev",
        "names": {"plural": "pipelines", "singular": "pipeline", "kind": "Pipeline", "listKind": "PipelineList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        ],
    },
}


@pytest.fixture(scope="module")
def both() -> Iterator[Cluster]:
    """A control plane that serves Tekton's resource and ours, with one of each."""
    need(kubernetes.available())
    with Cluster(images=images()) as cluster:
        cluster.apply(TEKTON, crd.definition())
        build = {"apiVersion": "tekton.dev/v1", "kind": "Pipeline", "metadata": {"name": "build"}}
        for each in (GOOD, build):
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(each))
        yield cluster


@pytest.mark.parametrize("name", ["vmlp", "vaultmlpipeline", "vaultmlpipelines", "vaultmlpipelines.ml.kerberos.io"])
def test_our_names_are_ours(both: Cluster, name: str) -> None:
    assert both.kubectl("get", name, "-o", "name").split() == ["vaultmlpipeline.ml.kerberos.io/good"]


@pytest.mark.parametrize("name", ["pipeline", "pipelines", "pipelines.tekton.dev"])
def test_tektons_names_are_tektons(both: Cluster, name: str) -> None:
    assert both.kubectl("get", name, "-o", "name").split() == ["pipeline.tekton.dev/build"]
