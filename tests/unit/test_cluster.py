"""What answers of an API server mean."""

import json

import pytest

from vaultml_operator.cluster import ApiError, _error, unserved


@pytest.mark.parametrize(
    ("status", "namespace", "sentence"),
    [
        (404, None, "waiting for the CRD vaultmlpipelines.ml.kerberos.io: apply crds/"),
        (404, "a", "waiting for the CRD vaultmlpipelines.ml.kerberos.io: apply crds/"),
        (0, "a", "waiting for the API server: it can't be reached"),
        (503, None, "waiting for the API server: it answers 503"),
        (
            403,
            None,
            "not allowed to list vaultmlpipelines in all namespaces: apply the ClusterRole of deploy/install.yaml",
        ),
        (
            403,
            "a",
            "not allowed to list vaultmlpipelines in the namespace a: the namespace does not exist, or the operator "
            "has no Role in it; apply what vaultml-operator install --namespace a prints",
        ),
    ],
)
def test_why_pipelines_cannot_be_listed(status: int, namespace: str | None, sentence: str) -> None:
    assert unserved(ApiError(status, "x", "y"), namespace) == sentence


def test_validation_names_its_fields_and_an_admission_policy_none() -> None:
    causes = [{"reason": "FieldValueNotSupported", "field": "spec.template.spec.restartPolicy", "message": "…"}]
    invalid = {"reason": "Invalid", "message": "Deployment p is invalid", "details": {"causes": causes}}
    found = _error(422, json.dumps(invalid).encode(), None)
    assert (found.status, found.fields) == (422, ("spec.template.spec.restartPolicy",))
    policy = {"reason": "Invalid", "message": "denied", "details": {"causes": [{"message": "denied"}]}}
    assert _error(422, json.dumps(policy).encode(), None).fields == ()
    assert _error(500, b"no JSON", None).fields == ()
