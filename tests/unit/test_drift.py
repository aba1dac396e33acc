"""Whether what is there still says what was asked for."""

from typing import Any

import pytest

from vaultml_operator.drift import contains, project

WANTED = {
    "replicas": 2,
    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
    "volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}],
    "args": ["worker"],
    "resources": {"limits": {"cpu": "0.5"}},
}


def live(**changed: Any) -> dict[str, Any]:
    return {**WANTED, "uid": "x", **changed}


@pytest.mark.parametrize(
    ("there", "same"),
    [
        (live(), True),
        (live(labels={"a": "b"}), True),
        (live(replicas=3), False),
        (live(env=[{"name": "C", "value": "3"}, *WANTED["env"][::-1]]), True),  # type: ignore[index]
        (live(env=[{"name": "A", "value": "9"}, {"name": "B", "value": "2"}]), False),
        (live(env=[{"name": "A", "value": "1"}]), False),
        (live(env=None), False),
        (
            live(volumeMounts=[{"name": "v", "mountPath": "/b", "readOnly": True}, {"name": "v", "mountPath": "/a"}]),
            True,
        ),
        (live(volumeMounts=[{"name": "w", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}]), False),
        (live(args=["worker", "--more"]), False),
        (live(args=["other"]), False),
        (live(resources={"limits": {"cpu": "500m"}}), False),
        ({"replicas": 2}, False),
    ],
)
def test_drift_is_told_from_what_others_add(there: Any, same: bool) -> None:
    assert contains(there, WANTED) is same


def test_what_the_server_wrote_in_its_own_words_is_no_drift_afterwards() -> None:
    there = live(resources={"limits": {"cpu": "500m"}}, labels={"a": "b"})
    accepted = project(there, WANTED)
    assert contains(there, accepted)
    assert not contains(live(resources={"limits": {"cpu": "1"}}), accepted)
    assert "labels" not in accepted
