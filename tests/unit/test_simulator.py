"""What the simulator says without timing: no flapping, and never more than there is. Its tables are benchmarks."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.simulator import outcome, plots, turns
from benchmarks.simulator.contenders import Keda, Ours, fair, floor
from benchmarks.simulator.traces import Trace, traces
from benchmarks.simulator.world import World

TRACES = {each.name: each for each in traces()}


def named(start: str) -> Trace:
    return next(trace for name, trace in TRACES.items() if name.startswith(start))


def ran(trace: Trace) -> tuple[World, Ours]:
    world, ours = World(trace, trace.minimum), Ours(trace)
    world.run(ours)
    return world, ours


@pytest.mark.parametrize("start", ["240 at once", "60 at once", "cold start", "broker away"])
def test_at_most_one_turn_per_change_of_the_load(start: str) -> None:
    trace = named(start)
    world, _ = ran(trace)
    assert turns(world.pipelines[0].replicas, trace.settled) <= trace.changes


def test_a_cold_start_goes_straight_to_what_is_there_and_comes_back_to_nothing() -> None:
    world, _ = ran(named("240 at once"))
    numbers = [number for _, number in world.pipelines[0].replicas]
    assert numbers[:2] == [0, 16]
    assert numbers[1:] == sorted(numbers[1:], reverse=True)
    assert numbers[-1] == 0


@pytest.mark.parametrize("start", ["240 at once", "broker away"])
def test_everything_that_came_is_done(start: str) -> None:
    trace = named(start)
    world, _ = ran(replace(trace, length=trace.length + 300, settled=0))
    assert len(world.pipelines[0].waits) == len(trace.arrivals[0])


def test_an_outage_takes_no_worker_away() -> None:
    trace = named("broker away")
    _, ours = ran(trace)
    assert trace.outage is not None
    start, end = trace.outage
    numbers = [decision.replicas for time, _, decision in ours.decisions if start <= time < end]
    assert len(set(numbers)) == 1
    assert numbers[0] >= 1


def test_pipelines_never_ask_for_more_gpus_than_there_are() -> None:
    trace = replace(named("three pipelines"), length=1500)
    world, ours = ran(trace)
    assert all(0 <= decision.replicas <= trace.gpus for _, _, decision in ours.decisions)
    assert all(each.waits for each in world.pipelines)


def test_the_same_seed_gives_the_same_world() -> None:
    trace = named("cold start")
    assert outcome(ran(trace)[0], "") == outcome(ran(trace)[0], "")


def test_no_policy_waits_less_than_the_floor() -> None:
    trace = named("240 at once")
    best, ours = outcome(floor(trace), ""), outcome(ran(trace)[0], "")
    keda = World(trace, 0)
    keda.run(Keda(trace, 5))
    assert best.p95 <= ours.p95 <= outcome(keda, "").p95
    # As the real one was seen: one, four, eight, sixteen, nothing.
    assert [number for _, number in keda.pipelines[0].replicas] == [0, 1, 4, 8, 16, 0]


def test_shares_are_max_min_fair() -> None:
    assert fair({0: 1, 1: 9, 2: 9}, 8) == {0: 1, 1: 4, 2: 3}
    assert fair({0: 1, 1: 2}, 8) == {0: 1, 1: 2}


def test_a_plot_is_an_svg(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    plots.write(path, "a & b", {"workers": {"ours": plots.steps([(0, 1), (5, 3)], 10)}}, 10)
    text = path.read_text()
    assert text.startswith("<svg")
    assert "a &amp; b" in text
    assert "polyline" in text
