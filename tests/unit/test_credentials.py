"""Which values the workers use, and how a change of one is recognized."""

import base64
import hashlib
import json
from typing import Any

import pytest

from vaultml_operator import api, credentials
from vaultml_operator.credentials import Object, Source
from vaultml_operator.reasons import Reason

KEY = b"k" * 32
LOGIN, CA = Object("Secret", "login"), Object("ConfigMap", "authority")


def secret(**data: str) -> dict[str, Any]:
    return {"metadata": {}, "data": {name: base64.b64encode(value.encode()).decode() for name, value in data.items()}}


def spec(**worker: Any) -> api.Spec:
    kafka = {
        "brokers": ["b:1"],
        "group": "g",
        "security": "SASL_SSL",
        "credentialsSecretRef": {"name": "login"},
        "ca": {"configMapKeyRef": {"name": "authority", "key": "ca.crt"}},
    }
    return api.Spec.model_validate({"queue": {"name": "in", "kafka": kafka}, "worker": worker})


KEYS: credentials.Keys = {LOGIN: frozenset({"username", "password", "note"}), CA: frozenset({"ca.crt"})}


def test_the_keys_in_use_are_those_that_the_pipeline_references() -> None:
    found = spec(
        env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "login", "key": "extra", "optional": True}}}]
    )
    assert credentials.used(found, credentials.find(found, KEYS)) == {
        CA: ("ca.crt",),
        LOGIN: ("extra", "password", "username"),
    }


USES = {LOGIN: ("password", "username"), CA: ("ca.crt",)}
THERE = {LOGIN: secret(username="u", password="hunter2"), CA: {"data": {"ca.crt": "PEM"}}}


def revision(there: dict[Object, Any], key: bytes = KEY, uid: str = "p") -> str:
    return credentials.revision(key, uid, USES, there)


@pytest.mark.parametrize(
    "there",
    [
        {**THERE, LOGIN: {**THERE[LOGIN], "metadata": {"uid": "new", "resourceVersion": "9", "labels": {"a": "b"}}}},
        {**THERE, LOGIN: secret(username="u", password="hunter2", note="unrelated")},
        {**THERE, CA: {"binaryData": {"ca.crt": base64.b64encode(b"PEM").decode()}}},
    ],
)
def test_what_is_no_value_in_use_changes_nothing(there: dict[Object, Any]) -> None:
    assert revision(there) == revision(THERE)


@pytest.mark.parametrize(
    ("there", "changed"),
    [
        ({**THERE, LOGIN: secret(username="u", password="other")}, ("Secret login",)),
        ({**THERE, LOGIN: secret(username="hunter2", password="u")}, ("Secret login",)),
        ({**THERE, LOGIN: secret(username="u")}, ("Secret login",)),
        ({**THERE, LOGIN: secret(username="u", password="")}, ("Secret login",)),
        (
            {LOGIN: secret(username="v", password="w"), CA: {"data": {"ca.crt": "X"}}},
            ("ConfigMap authority", "Secret login"),
        ),
    ],
)
def test_a_changed_value_names_its_object(there: dict[Object, Any], changed: tuple[str, ...]) -> None:
    assert credentials.changed(revision(THERE), revision(there)) == changed


def test_an_object_that_was_not_used_before_has_not_changed() -> None:
    fewer = credentials.revision(KEY, "p", {CA: ("ca.crt",)}, THERE)
    assert credentials.changed(fewer, revision(THERE)) == ()
    assert credentials.changed("5f2c70cd1a7b3e21", revision(THERE)) == ()  # as an earlier version wrote it
    assert credentials.changed(None, revision(THERE)) == ()


def test_a_revision_is_of_use_to_nobody_without_the_key() -> None:
    found = revision(THERE)
    assert found != revision(THERE, key=b"x" * 32)
    assert found != revision(THERE, uid="q"), "equal values of two pipelines can be told"
    digests = json.loads(found)
    assert set(digests) == {"Secret login", "ConfigMap authority"}
    said = b"".join(value.encode() for value in ("hunter2", "u"))
    assert hashlib.sha256(said).hexdigest()[:16] not in found
    assert hashlib.sha256(b"hunter2").hexdigest()[:16] not in found


def test_values_are_read_from_where_each_kind_keeps_them() -> None:
    assert credentials.value(THERE[LOGIN], Source(LOGIN, "password")) == b"hunter2"
    assert credentials.value(THERE[CA], Source(CA, "ca.crt")) == b"PEM"
    assert credentials.value({"binaryData": {"ca.crt": "AAE="}}, Source(CA, "ca.crt")) == b"\x00\x01"
    assert credentials.value(None, Source(CA, "ca.crt")) is None


@pytest.mark.parametrize(
    ("keys", "reason", "message"),
    [
        (
            None,
            Reason.SECRET_MISSING,
            "Secret s is missing in this namespace: create it with the key a (used by env X)",
        ),
        (frozenset({"b"}), Reason.SECRET_KEY_MISSING, "Secret s lacks the key a (used by env X): add it"),
    ],
)
def test_what_a_variable_needs_is_named(keys: frozenset[str] | None, reason: Reason, message: str) -> None:
    found = spec(env=[{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "a"}}}])
    with pytest.raises(credentials.Missing) as caught:
        credentials.find(found, {**KEYS, Object("Secret", "s"): keys})
    assert (caught.value.reason, str(caught.value)) == (reason, message)
