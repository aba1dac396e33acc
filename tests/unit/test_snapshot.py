"""What is published of a decision, when it is, and how it is read back."""

from dataclasses import replace
from typing import Any

import pytest

from vaultml_operator import api
from vaultml_operator.api import Autoscaling
from vaultml_operator.autoscaler import snapshot
from vaultml_operator.autoscaler.decide import decide
from vaultml_operator.autoscaler.lag import Partition, Reading
from vaultml_operator.autoscaler.rates import Rates
from vaultml_operator.autoscaler.records import Backlog, History, Observation

SEEN = Observation(
    backlog=Backlog(lag=240, oldest_seconds=12.4, parallelism=8, lagging=8, end=1000),
    arrival=3.14,
    service=0.8,
    replicas=2,
    ready=2,
    startup_seconds=5.0,
    slots=4,
    holders="4 of 6 GPUs",
)
READING = Reading(1000.0, (Partition(0, 0, 1000, 760, 240, 987.6),), (), 3600.0, 3)
KNOWN = Rates(steady=3.14, recent=3.2, service=0.8, startup_seconds=5.0)


def status(seen: Observation = SEEN, processed: int = 760) -> api.AutoscalingStatus:
    decision = decide(Autoscaling(), seen, History(), 1000.0)
    return snapshot.status(seen, decision, KNOWN, READING, processed)


def change(before: api.AutoscalingStatus, **changes: Any) -> api.AutoscalingStatus:
    return before.model_copy(update=changes)


def test_all_that_it_saw_and_said_fits_the_schema() -> None:
    found = status().write()
    assert api.AutoscalingStatus.model_validate(found).write() == found
    assert found["lag"] == 240
    assert found["oldestMessageAge"] == "12s"
    assert found["rate"] == "3.1/s"
    assert found["limitedBy"] == "gpus"
    assert found["deadLetters"] == 3
    assert found["retentionSeconds"] == 3600
    assert found["expiring"] is False


def test_what_makes_no_sense_in_a_status_is_left_out() -> None:
    written = {"lag": "much", "processed": 7, "limits": [{"rule": 1}], "oldest_message_age": "x" * 100, "newer": 1}
    assert api.AutoscalingStatus.read({"status": {"autoscaling": written}}).write() == {"processed": 7}
    nothing: tuple[dict[str, Any], ...] = ({}, {"status": None}, {"status": {"autoscaling": []}})
    for junk in nothing:
        assert api.AutoscalingStatus.read(junk) == api.AutoscalingStatus()


def test_what_is_published_explains_the_decision_elsewhere() -> None:
    found = status()
    again = snapshot.observation(found)
    assert again.backlog is not None
    assert replace(again, backlog=None, arrival=None) == replace(SEEN, backlog=None, arrival=None)
    assert replace(again.backlog, end=1000, oldest_seconds=12.4) == SEEN.backlog


@pytest.mark.parametrize(
    ("changed", "written"),
    [
        ({}, False),
        ({"lag": 250}, False),  # hardly changed
        ({"lag": 300}, True),
        ({"lag": 0}, True),
        ({"desired_replicas": 3}, True),
        ({"limited_by": "max"}, True),
        ({"message": "other numbers"}, False),
        ({"oldest_message_age_seconds": 13}, False),
        ({"arrival_rate": 3.3}, False),
        ({"arrival_rate": 9.0}, True),
        ({"processed": 790}, False),
        ({"processed": 990}, True),
        ({"dead_letters": 4}, True),
        ({"error": "gone"}, True),
        ({"held_by": "someone else"}, True),
    ],
)
def test_only_a_picture_that_differs_is_written(changed: dict[str, Any], written: bool) -> None:
    before = status()
    assert snapshot.differs(before, change(before, **changed)) is written
    assert snapshot.differs(None, before)


@pytest.mark.parametrize(
    ("before", "changed", "written"),
    [
        # Traffic that is kept up with.
        ({"lag": 1}, {"lag": 0, "processed": 761, "needed_replicas": 0}, False),
        ({"lag": 0}, {"lag": 7, "processed": 990, "oldest_message_age_seconds": 0}, False),
        ({"lag": 2}, {"arrival_rate": 9.0, "service_rate": 0.4, "startup_seconds": 50.0}, False),
        # A queue that fills or empties is seen at once, and so is whatever is no measured number.
        ({"lag": 1}, {"lag": 11}, True),
        ({"lag": 240}, {"lag": 200}, True),
        ({"lag": 240}, {"lag": 0}, True),
        ({"lag": 1}, {"desired_replicas": 3}, True),
        ({"lag": 1}, {"error": "gone"}, True),
        ({"lag": 1}, {"limited_by": "max"}, True),
        ({"lag": 1}, {"stuck_partitions": 1}, True),
    ],
)
def test_measured_numbers_of_a_picture_written_a_moment_ago_can_wait(
    before: dict[str, Any], changed: dict[str, Any], written: bool
) -> None:
    fresh = change(status(), **before)
    assert snapshot.differs(fresh, change(fresh, **changed), fresh=True) is written
    assert snapshot.differs(fresh, change(fresh, **changed))
    assert not snapshot.differs(fresh, change(fresh, oldest_message_age_seconds=None), fresh=True)


def test_what_expires_in_a_stuck_partition_is_told() -> None:
    parts = (Partition(0, 0, 100, 50, 50, 1000.0), Partition(1, 0, 900, 900, 0))
    stuck = replace(SEEN, backlog=Backlog(lag=50, parallelism=2, lagging=1, stuck=50, stuck_partitions=1))
    for waited, expiring in ((2600.0, False), (2700.0, True)):
        found = snapshot.status(
            stuck,
            decide(Autoscaling(), stuck, History(), 1000.0),
            KNOWN,
            Reading(1000.0 + waited, parts, (), 3600.0),
            0,
        )
        assert found.expiring is expiring
        assert found.oldest_message_age == f"{waited / 60:.0f}m"
        assert found.oldest_message_age_seconds is None


def test_a_rate_that_fades_is_told_a_few_times_only() -> None:
    quiet = replace(SEEN, backlog=Backlog(lag=0, oldest_seconds=None, parallelism=8, lagging=0, end=1000), slots=None)
    decision = decide(Autoscaling(), quiet, History(), 1000.0)
    published, told = None, list[str | None]()
    for step in range(600):
        fading = Rates(steady=3.14 * 0.9**step, recent=3.2, service=0.8, startup_seconds=5.0)
        new = snapshot.status(quiet, decision, fading, READING, 1000)
        if snapshot.differs(published, new):
            published = new
            told.append(new.rate)
    assert (told[0], told[-1]) == ("3.1/s", "0/s")
    assert len(told) < 40


@pytest.mark.parametrize("limit", [None, "gpus"])
def test_what_others_hold_is_told_at_once_only_where_it_limits(limit: str | None) -> None:
    before = api.AutoscalingStatus(desired_replicas=2, gpu_limit=4, held_by="2 of 4 GPUs", limited_by=limit)
    after = change(before, gpu_limit=3, held_by="3 of 4 GPUs")
    assert snapshot.differs(before, after) is bool(limit)
    assert snapshot.differs(before, after, late=True)


def test_at_rest_every_count_is_exact() -> None:
    idle = replace(SEEN, backlog=Backlog(lag=0, parallelism=8, lagging=0))
    before = status(idle, 1000)
    assert snapshot.differs(before, status(idle, 1001))


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "120m"), (7200, "2h"), (172_800, "2d")]
)
def test_durations_as_people_say_them(seconds: float, said: str) -> None:
    assert snapshot.duration(seconds) == said


@pytest.mark.parametrize(("value", "shown"), [(0, 0), (99.4, 99), (100, 100), (1234, 1200), (98_765, 99_000)])
def test_large_numbers_are_rounded(value: float, shown: int) -> None:
    assert snapshot.rounded(value) == shown
