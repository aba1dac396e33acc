"""Conditions and Events from what was observed."""

from dataclasses import replace
from typing import Any

import pytest

from vaultml_operator import api, reasons
from vaultml_operator.pods import Problem
from vaultml_operator.probes import Outcome
from vaultml_operator.reasons import Reason
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


IDLE = api.AutoscalingStatus(lag=0)


def condition(status: dict[str, Any], kind: str) -> tuple[str, str]:
    for each in status["conditions"]:
        assert each["type"] in reasons.BY_NAME[each["reason"]].conditions, "docs/reasons.md says otherwise"
    found = next(each for each in status["conditions"] if each["type"] == kind)
    return found["status"], found["reason"]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (SEEN, ("True", "Running")),
        (replace(SEEN, wanted=0, deployment=deployment(0), scaling=IDLE), ("True", "ScaledToZero")),
        (replace(SEEN, spec=spec(suspend=True), wanted=0, deployment=deployment(0)), ("False", "Suspended")),
        (replace(SEEN, spec=spec(suspend=True), wanted=0), ("False", "Stopping")),
        (replace(SEEN, queue=BAD), ("False", "AuthenticationFailed")),
        (replace(SEEN, queue=None), ("Unknown", "Checking")),
        (replace(SEEN, blocking=Problem(Reason.SECRET_MISSING, "…"), queue=BAD), ("False", "SecretMissing")),
        (
            replace(SEEN, pods=Problem(Reason.CRASH_LOOPING, "…"), deployment=deployment(readyReplicas=1)),
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
        (replace(SEEN, spec=None, blocking=Problem(Reason.INVALID_SPEC, "…")), ("False", "InvalidSpec")),
    ],
)
def test_ready_says_the_first_thing_to_look_at(seen: Observation, expected: tuple[str, str]) -> None:
    assert ready(seen) == expected
    assert expected[1] in reasons.NAMES


def test_only_a_worker_that_was_ready_is_said_to_be_so_no_more() -> None:
    running = compute({}, SEEN, EARLY)
    broken = replace(SEEN, deployment=deployment(readyReplicas=1))
    assert ready(broken, running) == ready(broken, compute(running, broken, LATE)) == ("False", "NotReady")


def chain(*seen: Observation) -> list[tuple[str, str, str]]:
    """Status and reason of Ready, and the reason of Progressing, as one observation follows another."""
    found, status = [], compute({}, SEEN, EARLY)
    for each in seen:
        status = compute(status, each, LATE)
        found.append((*condition(status, "Ready"), condition(status, "Progressing")[1]))
    return found


def test_a_scale_out_leaves_ready_true_while_the_workers_that_there_were_are_ready() -> None:
    """SEEN has 2 ready workers."""
    asked = replace(SEEN, wanted=4, deployment=deployment(4, replicas=2, updatedReplicas=2, readyReplicas=2))
    created = replace(SEEN, wanted=4, deployment=deployment(4, readyReplicas=2))
    third = replace(SEEN, wanted=4, deployment=deployment(4, readyReplicas=3))
    lost = replace(SEEN, wanted=4, deployment=deployment(4, readyReplicas=2))
    done = replace(SEEN, wanted=4, deployment=deployment(4))
    out = ("True", "Running", "ScalingOut")
    assert chain(asked, created, third, done) == [out, out, out, ("True", "Running", "Complete")]
    assert chain(asked, third, lost)[-1] == ("False", "NotReady", "NotReady")
    # The third was ready, too: with two, one of those that there were is missing.
    assert chain(asked, third, lost, third)[-1][0] == "False"
    assert chain(asked, third, lost, done)[-1] == ("True", "Running", "Complete")


def test_a_new_pipeline_and_one_at_zero_are_not_ready_before_their_workers_are() -> None:
    partly = replace(SEEN, wanted=3, deployment=deployment(3, reason="ReplicaSetUpdated", readyReplicas=2))
    first = compute({}, partly, EARLY)
    assert condition(first, "Ready") == condition(compute(first, partly, LATE), "Ready") == ("False", "Starting")
    zero = replace(SEEN, wanted=0, deployment=deployment(0), scaling=IDLE)
    asked = replace(SEEN, wanted=2, deployment=deployment(2, replicas=0, updatedReplicas=0, readyReplicas=0))
    one = replace(SEEN, wanted=2, deployment=deployment(2, readyReplicas=1))
    assert [each[:2] for each in chain(zero, asked, one)] == [
        ("True", "ScaledToZero"),
        ("False", "Starting"),
        ("False", "Starting"),
    ]
    assert chain(zero, one)[-1][:2] == ("False", "Starting")  # what was in between has not been seen


def test_a_rollout_is_no_scale_out() -> None:
    rolling = replace(SEEN, deployment=deployment(updatedReplicas=1, readyReplicas=1))
    both = replace(SEEN, wanted=3, deployment=deployment(3, updatedReplicas=1, readyReplicas=2))
    assert chain(rolling) == chain(both) == [("False", "Rolling", "Rolling")]


def test_a_scale_out_right_behind_a_scale_in_counts_those_that_stay() -> None:
    less = replace(SEEN, wanted=1, deployment=deployment(1, replicas=2, updatedReplicas=2, readyReplicas=2))
    more = replace(SEEN, wanted=2, deployment=deployment(2, replicas=1, updatedReplicas=1, readyReplicas=1))
    assert chain(less, more) == [("True", "Stopping", "Stopping"), ("True", "Running", "ScalingOut")]


@pytest.mark.parametrize("reason", [Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.POD_REJECTED])
def test_additional_workers_that_cannot_start_are_said_in_progressing(reason: Reason) -> None:
    problem = Problem(reason, "no room")
    more = replace(SEEN, wanted=4, deployment=deployment(4, readyReplicas=2), pods=problem)
    assert chain(more, more) == [("True", "Running", reason)] * 2
    running = compute({}, SEEN, EARLY)
    told = [each for each in notes(running, compute(running, more, LATE)) if each.kind == "Warning"]
    assert [(each.reason, each.message) for each in told] == [(reason, "2 of 4 workers ready; no room")]
    lost = replace(more, deployment=deployment(4, readyReplicas=1))
    assert chain(more, lost)[-1][:2] == ("False", reason)


def test_a_quota_that_refuses_additional_pods_leaves_ready_true() -> None:
    quota = Problem(Reason.REFUSED, "exceeded quota: pods=2")
    full = replace(SEEN, wanted=3, pods=quota, deployment=deployment(3, replicas=2, updatedReplicas=2, readyReplicas=2))
    said = condition(compute({}, full, EARLY), "Ready"), condition(compute({}, full, EARLY), "Progressing")
    assert said == (("True", "Running"), ("False", "Refused"))
    message = next(each for each in compute({}, full, EARLY)["conditions"] if each["type"] == "Progressing")["message"]
    assert message == "2 of 3 workers ready; exceeded quota: pods=2"
    # None works, one that exists is not ready, or what exists is of an older spec: Ready is about that.
    for counts in (
        {"replicas": 0, "updatedReplicas": 0, "readyReplicas": 0},
        {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1},
        {"replicas": 2, "updatedReplicas": 1, "readyReplicas": 2},
    ):
        assert ready(replace(full, deployment=deployment(3, "NewReplicaSetAvailable", **counts))) == (
            "False",
            "Refused",
        )


@pytest.mark.parametrize("reason", [each for each in Reason if each.blocks])
def test_what_blocks_is_treated_alike(reason: Reason) -> None:
    blocked = compute({}, replace(SEEN, queue=None, blocking=Problem(reason, "…")), EARLY)
    assert condition(blocked, "QueueReachable") == ("Unknown", "Blocked")
    trouble = replace(SEEN, queue=None, blocking=Problem(reason, "…"), scaling=scaled(error="no answer"))
    told = [each.reason for each in notes({}, compute({}, trouble, EARLY))]
    assert told == [reason]


def test_a_status_of_another_version_is_read() -> None:
    status = compute({}, SEEN, EARLY)
    for each in status["conditions"]:
        each["reason"] = "FromTheFuture"
    assert ready(replace(SEEN, queue=None), status) == ("Unknown", "Checking")


@pytest.mark.parametrize(
    ("seen", "kind", "message"),
    [
        (replace(SEEN, wanted=1, deployment=deployment(1)), "Ready", "1 of 1 workers ready"),
        (replace(SEEN, deployment=deployment(replicas=4)), "Progressing", "2 surplus workers are finishing"),
        (replace(SEEN, deployment=deployment(replicas=3)), "Progressing", "1 surplus worker is finishing"),
        (
            replace(
                SEEN,
                spec=spec(),
                wanted=0,
                deployment=deployment(0),
                scaling=api.AutoscalingStatus(lag=9, limited_by="gpus", message="no GPU is free"),
            ),
            "Ready",
            "0 workers: no GPU is free",
        ),
        (replace(SEEN, wanted=0, deployment=deployment(0)), "Ready", "0 workers: the queue's lag is not known yet"),
        (
            replace(SEEN, wanted=0, deployment=deployment(0), scaling=api.AutoscalingStatus(lag=0)),
            "Ready",
            "0 workers: no recording waits",
        ),
    ],
)
def test_sentences(seen: Observation, kind: str, message: str) -> None:
    found = next(each for each in compute({}, seen, EARLY)["conditions"] if each["type"] == kind)
    assert found["message"] == message


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
    monitored = compute({}, replace(SEEN, monitored=Problem(Reason.MONITOR_UNAVAILABLE, "…")), EARLY)
    paused = compute(monitored, replace(SEEN, paused=True), LATE)
    assert condition(paused, "Monitored") == ("False", "MonitorUnavailable")
    assert "Monitored" not in {each["type"] for each in compute(paused, SEEN, LATE)["conditions"]}


def test_what_printer_columns_show() -> None:
    status = compute({}, replace(SEEN, deployment=deployment(readyReplicas=1), image="i", selector="a=b"), EARLY)
    assert (status["workers"], status["gpu"], status["image"]) == ("1/2", "nvidia.com/gpu:1", "i")
    assert (status["replicas"], status["readyReplicas"], status["selector"]) == (2, 1, "a=b")


SCALING = api.AutoscalingStatus(
    desired_replicas=2, message="lag 9: 2 needed", lag=9, oldest_message_age="46m", retention_seconds=3600
)


def scaled(**changes: Any) -> api.AutoscalingStatus:
    return SCALING.model_copy(update=changes)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, ("Unknown", "Checking")),
        (SCALING, ("False", "NotLimited")),
        (scaled(limited_by="gpus"), ("True", "GpusTaken")),
        (scaled(limited_by="max"), ("True", "AtMaximum")),
        (scaled(limited_by="partitions"), ("True", "TooFewPartitions")),
        (scaled(limited_by="paused"), ("True", "ScalingPaused")),
        (scaled(limited_by="scaleInRate"), ("True", "RateLimited")),
        (scaled(error="no answer"), ("Unknown", "LagUnknown")),
    ],
)
def test_what_limits_the_number_is_told(scaling: api.AutoscalingStatus | None, expected: tuple[str, str]) -> None:
    status = compute({}, replace(SEEN, scaling=scaling), EARLY)
    assert condition(status, "ScalingLimited") == expected
    assert expected[1] in reasons.NAMES
    assert status.get("autoscaling") == (None if scaling is None else scaling.write())


@pytest.mark.parametrize(
    ("scaling", "ready"),
    [
        (api.AutoscalingStatus(lag=0), ("True", "ScaledToZero")),
        (api.AutoscalingStatus(lag=1), ("True", "ScaledToZero")),  # no more than activationLag
        (api.AutoscalingStatus(lag=1000, limited_by="gpus"), ("False", "GpusTaken")),
        (api.AutoscalingStatus(lag=0, limited_by="gpus"), ("False", "GpusTaken")),  # minReplicas can't be had
        (api.AutoscalingStatus(lag=9, limited_by="paused"), ("False", "ScalingPaused")),
        (api.AutoscalingStatus(error="the group may not be read"), ("False", "LagUnknown")),
        (None, ("Unknown", "Checking")),
    ],
)
def test_zero_workers_are_ready_only_where_none_is_needed(
    scaling: api.AutoscalingStatus | None, ready: tuple[str, str]
) -> None:
    none = replace(SEEN, spec=spec(), wanted=0, deployment=deployment(0), scaling=scaling)
    assert condition(compute({}, none, EARLY), "Ready") == ready


def test_events_that_expire_are_a_warning_once() -> None:
    fine = compute({}, replace(SEEN, scaling=scaled(expiring=False)), EARLY)
    late = compute(fine, replace(SEEN, scaling=scaled(expiring=True)), LATE)
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
    assert said["message"] == "spec.replicas is used in Advisory mode; Auto: lag 9: 2 needed"


def test_pods_that_are_refused() -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    problem = failure({"status": {"conditions": [refused]}})
    assert problem is not None
    assert problem.reason == "Refused"
    assert failure(deployment()) is None
    assert failure(None) is None


def test_a_status_fits_its_schema() -> None:
    api.Status.model_validate(compute({}, replace(SEEN, queue=Outcome("TlsFailed", "x" * 9000)), EARLY))
