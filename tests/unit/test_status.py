"""Conditions and Events from what was observed."""

from dataclasses import replace
from typing import Any

import pytest

from vaultml_operator import api, reasons
from vaultml_operator.pods import Problem
from vaultml_operator.probes import Outcome
from vaultml_operator.status import Observation, compute, failure, notes

GOOD = Outcome("Reachable", "all is well")
BAD = Outcome("AuthenticationFailed", "wrong password")
EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def spec(**parts: Any) -> api.Spec:
    queue = {"name": "in", "kafka": {"brokers": ["b:9092"], "group": "g"}}
    return api.Spec.model_validate({"queue": queue, "replicas": 2, **parts})


def deployment(wanted: int = 2, reason: str = "NewReplicaSetAvailable", **status: int) -> dict[str, Any]:
    counts = {"replicas": wanted, "updatedReplicas": wanted, "readyReplicas": wanted, "observedGeneration": 1}
    progressing = {"type": "Progressing", "status": "True", "reason": reason, "message": "…"}
    return {
        "metadata": {"generation": 1},
        "spec": {"replicas": wanted},
        "status": {**counts, **status, "conditions": [progressing]},
    }


SEEN = Observation(generation=1, spec=spec(), wanted=2, deployment=deployment(), queue=GOOD)


def ready(seen: Observation, previous: dict[str, Any] | None = None) -> tuple[str, str]:
    return condition(compute(previous or {}, seen, EARLY), "Ready")


def condition(status: dict[str, Any], kind: str) -> tuple[str, str]:
    found = next(each for each in status["conditions"] if each["type"] == kind)
    return found["status"], found["reason"]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (SEEN, ("True", "Running")),
        (replace(SEEN, spec=spec(replicas=0), wanted=0, deployment=deployment(0)), ("True", "ScaledToZero")),
        (replace(SEEN, spec=spec(suspend=True), wanted=0, deployment=deployment(0)), ("False", "Suspended")),
        (replace(SEEN, spec=spec(suspend=True), wanted=0), ("False", "Stopping")),
        (replace(SEEN, queue=BAD), ("False", "AuthenticationFailed")),
        (replace(SEEN, queue=None), ("Unknown", "Checking")),
        (replace(SEEN, blocking=Problem("SecretMissing", "…"), queue=BAD), ("False", "SecretMissing")),
        (
            replace(SEEN, pods=Problem("CrashLooping", "…"), deployment=deployment(readyReplicas=1)),
            ("False", "CrashLooping"),
        ),
        (replace(SEEN, deployment=deployment(readyReplicas=1)), ("False", "Starting")),
        (replace(SEEN, deployment=deployment(reason="ReplicaSetUpdated", readyReplicas=1)), ("False", "Starting")),
        (replace(SEEN, deployment=deployment(updatedReplicas=1)), ("False", "Rolling")),
        (replace(SEEN, deployment=deployment(replicas=3)), ("True", "Stopping")),
        (replace(SEEN, deployment=deployment(observedGeneration=0), wanted=1), ("True", "Stopping")),
        (replace(SEEN, deployment=deployment(replicas=3, readyReplicas=1)), ("False", "Stopping")),
        (replace(SEEN, deployment=deployment(reason="ProgressDeadlineExceeded", readyReplicas=1)), ("False", "Stuck")),
        (replace(SEEN, deployment=deployment(observedGeneration=0)), ("False", "Starting")),
        (replace(SEEN, deployment=None), ("False", "Starting")),
        (replace(SEEN, spec=None, blocking=Problem("InvalidSpec", "…")), ("False", "InvalidSpec")),
    ],
)
def test_ready_says_the_first_thing_to_look_at(seen: Observation, expected: tuple[str, str]) -> None:
    assert ready(seen) == expected
    assert expected[1] in reasons.NAMES


def test_only_a_worker_that_was_ready_is_said_to_be_so_no_more() -> None:
    running = compute({}, SEEN, EARLY)
    broken = replace(SEEN, deployment=deployment(readyReplicas=1))
    assert ready(broken, running) == ready(broken, compute(running, broken, LATE)) == ("False", "NotReady")
    # One more was asked for, and its pod is there at once.
    more = replace(SEEN, wanted=3, deployment=deployment(3, readyReplicas=2))
    assert ready(more, running) == ready(more, compute(running, more, LATE)) == ("False", "Starting")


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first = compute({}, SEEN, EARLY)
    rolling = compute(first, replace(SEEN, deployment=deployment(updatedReplicas=1)), LATE)
    times = {each["type"]: each["lastTransitionTime"] for each in rolling["conditions"]}
    assert times["Ready"] == LATE
    assert times["QueueReachable"] == EARLY
    assert compute(first, SEEN, LATE) == first  # nothing to write


def test_a_restarted_operator_does_not_take_back_what_is_known() -> None:
    for outcome in (GOOD, BAD):
        known = compute({}, replace(SEEN, queue=outcome), EARLY)
        assert compute(known, replace(SEEN, queue=None), LATE) == known


def test_of_another_generation_nothing_is_known() -> None:
    known = compute({}, replace(SEEN, queue=BAD), EARLY)
    changed = compute(known, replace(SEEN, generation=2, queue=None), LATE)
    assert condition(changed, "QueueReachable") == ("Unknown", "Checking")


def test_each_transition_is_one_event_and_none_repeats() -> None:
    starting = compute({}, replace(SEEN, deployment=None, queue=None), EARLY)
    running = compute(starting, SEEN, EARLY)
    broken = compute(running, replace(SEEN, queue=BAD), EARLY)
    healed = compute(broken, SEEN, LATE)
    assert [each[:2] for each in notes({}, starting)] == [("Normal", "Starting")]
    assert [each[:2] for each in notes(starting, running)] == [("Normal", "Running")]
    assert list(notes(running, running)) == []
    assert [each[:2] for each in notes(running, broken)] == [("Warning", "AuthenticationFailed")]
    assert [each[:2] for each in notes(broken, healed)] == [("Normal", "Running"), ("Normal", "Reachable")]


def test_pausing_and_going_on_are_events() -> None:
    running = compute({}, SEEN, EARLY)
    paused = compute(running, replace(SEEN, paused=True), LATE)
    assert [each[:2] for each in notes(running, paused)] == [("Normal", "PausedByAnnotation")]
    assert [each[:2] for each in notes(paused, running)] == [("Normal", "NotPaused")]


def test_a_pause_takes_back_nothing_that_is_known() -> None:
    monitored = compute({}, replace(SEEN, monitored=Problem("MonitorUnavailable", "…")), EARLY)
    paused = compute(monitored, replace(SEEN, paused=True), LATE)
    assert condition(paused, "Monitored") == ("False", "MonitorUnavailable")
    assert "Monitored" not in {each["type"] for each in compute(paused, SEEN, LATE)["conditions"]}


def test_what_printer_columns_show() -> None:
    status = compute({}, replace(SEEN, deployment=deployment(readyReplicas=1), image="i", selector="a=b"), EARLY)
    assert (status["workers"], status["gpu"], status["image"]) == ("1/2", "nvidia.com/gpu:1", "i")
    assert (status["replicas"], status["readyReplicas"], status["selector"]) == (2, 1, "a=b")


SCALING = {"desired": 2, "message": "lag 9: 2 needed", "lag": 9, "oldest": "46m", "retentionSeconds": 3600}


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, ("Unknown", "Checking")),
        (SCALING, ("False", "NotLimited")),
        (SCALING | {"clamp": "gpus"}, ("True", "GpusTaken")),
        (SCALING | {"clamp": "max"}, ("True", "AtMaximum")),
        (SCALING | {"clamp": "partitions"}, ("True", "TooFewPartitions")),
        (SCALING | {"clamp": "paused"}, ("True", "ScalingPaused")),
        (SCALING | {"clamp": "scaleInRate"}, ("True", "RateLimited")),
        (SCALING | {"trouble": "no answer"}, ("Unknown", "LagUnknown")),
    ],
)
def test_what_limits_the_number_is_told(scaling: dict[str, Any] | None, expected: tuple[str, str]) -> None:
    status = compute({}, replace(SEEN, scaling=scaling), EARLY)
    assert condition(status, "ScalingLimited") == expected
    assert expected[1] in reasons.NAMES
    assert status.get("autoscaling") == scaling


def test_events_that_expire_are_a_warning_once() -> None:
    fine = compute({}, replace(SEEN, scaling=SCALING | {"expiring": False}), EARLY)
    late = compute(fine, replace(SEEN, scaling=SCALING | {"expiring": True}), LATE)
    assert condition(late, "EventsExpiring") == ("True", "EventsExpire")
    assert [each for each in notes(fine, late) if each.kind == "Warning"] == [
        (
            "Warning",
            "EventsExpire",
            "the oldest recording has waited for 46m, and the topic keeps events for 60m: add workers, or raise its "
            "retention.ms, or recordings are lost",
        )
    ]
    assert [each[:2] for each in notes(late, fine)] == [("Normal", "WithinRetention")]


def test_in_advisory_mode_the_message_says_what_counts() -> None:
    advised = replace(SEEN, spec=spec(autoscaling={"mode": "Advisory"}), scaling=SCALING)
    said = next(each for each in compute({}, advised, EARLY)["conditions"] if each["type"] == "ScalingLimited")
    assert said["message"] == "mode Advisory, spec.replicas counts; Auto would say: lag 9: 2 needed"


def test_pods_that_are_refused() -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    problem = failure({"status": {"conditions": [refused]}})
    assert problem is not None
    assert problem.reason == "Refused"
    assert failure(deployment()) is None
    assert failure(None) is None


def test_a_status_fits_its_schema() -> None:
    api.Status.model_validate(compute({}, replace(SEEN, queue=Outcome("TlsFailed", "x" * 9000)), EARLY))
