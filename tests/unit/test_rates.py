import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultml_operator.api import AutoscalingStatus
from vaultml_operator.autoscaler.rates import Rates, Sample, started, update

START = Sample(time=1000.0, end=500, done=400, lag=100, busy=4, ready=4, partitions=8)


def watch(
    seconds: float, *, arriving: float, each: float, rates: Rates | None = None, busy: int = 4, poll: float = 15
) -> Rates:
    """The rates after so many seconds of the same load."""
    rates, before = rates or Rates(), START
    for number in range(1, int(seconds / poll) + 1):
        after = replace(
            START,
            time=START.time + number * poll,
            end=START.end + round(number * poll * arriving),
            done=START.done + round(number * poll * each * busy),
            busy=busy,
        )
        rates, before = update(rates, replace(before, busy=busy), after), after
    return rates


def after(seconds: float = 10.0, **fields: Any) -> Sample:
    return replace(START, time=START.time + seconds, **fields)


def test_the_first_sample_says_nothing() -> None:
    assert update(Rates(), None, START) == Rates()


def test_one_interval_gives_both_rates() -> None:
    rates = update(Rates(), START, after(10, end=530, done=420))
    assert rates.arrival == pytest.approx(3.0)
    assert rates.service == pytest.approx(0.5)
    assert rates.time == 1010


def test_a_lasting_change_is_learnt() -> None:
    rates = watch(600, arriving=2, each=0.5)
    assert rates.arrival == pytest.approx(2, rel=0.05)
    assert rates.service == pytest.approx(0.5, rel=0.05)
    faster = watch(60, arriving=6, each=1.5, rates=rates)
    assert faster.arrival == pytest.approx(4, rel=0.05), "half of the way after one half-life"
    assert faster.service is not None
    assert 0.5 < faster.service < 1


def test_silence_bounds_what_may_still_be_arriving() -> None:
    rates, before = watch(600, arriving=2, each=0.5), replace(after(600), lag=0)
    quiet = update(rates, before, replace(before, time=before.time + 15))
    assert quiet.arrival == pytest.approx(3 / 15), "nothing in 15 s: at most 0.2 a second, with 95 % confidence"
    quieter = update(quiet, before, replace(before, time=before.time + 15))
    assert quieter.arrival == pytest.approx(3 / 30)
    # While something waits, or once something comes, the silence counts no longer.
    assert (update(rates, before, replace(before, time=before.time + 15, lag=5)).arrival or 0) > 0.8
    assert (update(quieter, before, replace(before, time=before.time + 15, end=before.end + 30)).arrival or 0) > 0.8


def test_a_burst_is_no_rate() -> None:
    rates = watch(600, arriving=0, each=0.5)
    before = after(600)
    burst = update(rates, before, after(605, end=740))
    quiet = update(burst, after(605, end=740), after(650, end=740))
    assert (burst.arrival or 0) < 3
    assert (quiet.arrival or 0) < 1.7
    first = update(update(Rates(), START, after(5, end=740)), after(5, end=740), after(60, end=740))
    assert (first.arrival or 0) < 2


def test_workers_without_work_are_not_slow() -> None:
    known = Rates(service=0.5, service_seconds=100)
    for before, now in ((replace(START, lag=0), after()), (START, after(lag=0)), (replace(START, busy=0), after())):
        assert update(known, before, now).service == 0.5


def test_no_progress_lowers_the_service_rate_and_none_at_all_is_unknown() -> None:
    assert update(Rates(service=1.0, service_seconds=500), START, after(120)).service == pytest.approx(0.5, rel=0.05)
    assert update(Rates(), START, after(120)).service is None


@pytest.mark.parametrize("time", [1000.0, 900.0, 1000.0 + 86_400, -1e12, math.nan, math.inf])
def test_a_jump_of_the_clock_changes_nothing(time: float) -> None:
    known = watch(300, arriving=2, each=0.5)
    assert update(known, START, replace(START, time=time, end=9999, done=9000)) == known


def test_a_topic_made_anew_changes_nothing() -> None:
    known = watch(300, arriving=2, each=0.5)
    rates = update(known, START, after(end=3, done=0, lag=3))
    assert (rates.arrival, rates.service) == (known.arrival, known.service)


def test_fewer_partitions_are_another_topic_more_are_not() -> None:
    known = watch(300, arriving=2, each=0.5)
    fewer = update(known, START, after(end=900, partitions=4))
    assert (fewer.arrival, fewer.service) == (known.arrival, known.service)
    assert update(known, START, after(end=900, partitions=16)).arrival != known.arrival


def test_a_commit_set_by_hand_is_no_work() -> None:
    known = watch(300, arriving=2, each=0.5)
    assert update(known, START, after(done=5000, end=510)).service == known.service


def test_startup_is_the_mean_of_the_last_and_what_was_known() -> None:
    rates = started(started(Rates(), 30), 50)
    assert rates.startup_seconds == 40
    assert started(rates, math.nan) == started(rates, -1) == rates


def test_the_status_keeps_two_digits_and_goes_on_from_there() -> None:
    rates = replace(watch(300, arriving=2, each=0.5), startup_seconds=31.7)
    status = rates.to_status()
    assert status == AutoscalingStatus(arrival_rate=2.0, service_rate=0.5, startup_seconds=32.0)
    again = Rates.from_status(status)
    assert (again.arrival, again.service, again.startup_seconds) == (2.0, 0.5, 32.0)
    assert again.to_status() == status
    assert Rates().to_status() == AutoscalingStatus()
    # One interval does not wipe out what was known.
    assert (update(again, START, after(15)).arrival or 0) > 0.8


def test_junk_in_the_status_is_unknown() -> None:
    junk = {"arrivalRate": "fast", "serviceRate": -1, "startupSeconds": 1e12}
    assert Rates.from_status(AutoscalingStatus.read({"status": {"autoscaling": junk}})) == Rates()


samples = st.builds(
    Sample,
    time=st.floats() | st.floats(0, 2000),
    end=st.integers(),
    done=st.integers(),
    lag=st.integers(),
    busy=st.integers(),
    ready=st.integers(),
    partitions=st.integers(),
)


@settings(max_examples=150)
@given(st.lists(samples, max_size=6))
def test_rates_are_never_negative_nor_without_end(sequence: list[Sample]) -> None:
    rates = Rates()
    for before, now in pairwise(sequence):
        rates = update(rates, before, now)
    for value in (rates.arrival, rates.service):
        assert value is None or 0 <= value < math.inf
    assert Rates.from_status(rates.to_status()) is not None
