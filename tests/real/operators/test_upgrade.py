"""A newer CRD with more rules: pipelines that were stored before can still be changed and have their status written."""

import json
from typing import Any

import pytest

from testbed import kubernetes
from testbed.kubernetes import Cluster, KubectlError
from testbed.product import images
from tests.parts import need
from tests.real.operators.test_resource import spoilt
from vaultml_operator import crd


def without_rules(schema: Any) -> Any:
    """The schema of a CRD without any rule in CEL."""
    if isinstance(schema, dict):
        return {name: without_rules(each) for name, each in schema.items() if name != "x-kubernetes-validations"}
    return [without_rules(each) for each in schema] if isinstance(schema, list) else schema


def test_a_stored_pipeline_that_a_new_rule_refuses_can_be_changed_elsewhere() -> None:
    need(kubernetes.available())
    with Cluster(images=images()) as cluster:
        cluster.apply(without_rules(crd.definition()))
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(spoilt("spec.vault.apiUrl", "http://vault:99999/api")))
        cluster.apply(crd.definition())
        for arguments in (
            ("-p", '{"spec": {"suspend": true}}'),
            ("-p", '{"status": {"replicas": 1}}', "--subresource=status"),
        ):
            cluster.kubectl("patch", "vmlp", "good", "--type=merge", *arguments)
        with pytest.raises(KubectlError, match="the port in apiUrl must be"):
            cluster.kubectl(
                "patch", "vmlp", "good", "--type=merge", "-p", '{"spec": {"vault": {"apiUrl": "http://vault:0/api"}}}'
            )
        cluster.kubectl(
            "patch", "vmlp", "good", "--type=merge", "-p", '{"spec": {"vault": {"apiUrl": "http://vault/api"}}}'
        )
