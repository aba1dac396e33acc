import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultml_operator.api import Autoscaling, AutoscalingStatus, Fallback, ScaleIn, ScaleOut
from vaultml_operator.autoscaler.decide import decide
from vaultml_operator.autoscaler.records import Backlog, Decision, History, Observation

NOW = 1_000_000.0
EXAMPLES = 150
QUICK = settings(max_examples=EXAMPLES)


def seen(lag: int = 0, *, replicas: int = 0, **fields: Any) -> Observation:
    """A successful reading; what is no field of the observation is one of the backlog."""
    own = {key: fields.pop(key) for key in list(fields) if key in Observation.__dataclass_fields__}
    own.setdefault("ready", replicas)
    return Observation(backlog=Backlog(lag=lag, **fields), replicas=replicas, **own)


def failed(replicas: int, **fields: Any) -> Observation:
    return Observation(backlog=None, trouble="broker away", replicas=replicas, ready=replicas, **fields)


class Loop:
    """Polls one after the other; what is decided is done at once."""

    def __init__(self, policy: Autoscaling, replicas: int = 0) -> None:
        self.policy, self.replicas, self.history, self.now = policy, replicas, History(), NOW
        self.decisions: list[Decision] = []

    def poll(self, lag: int | None, after: float = 15, **fields: Any) -> Decision:
        self.now += after
        make = failed(self.replicas, **fields) if lag is None else seen(lag, replicas=self.replicas, **fields)
        decision = decide(self.policy, make, self.history, self.now)
        self.decisions.append(decision)
        self.history, self.replicas = decision.history, decision.replicas
        return decision


def rules(decision: Decision) -> list[str]:
    return [limit.name for limit in decision.limits]


# --- examples: the target ---


def test_lag_per_worker_counts_while_the_service_rate_is_unknown() -> None:
    decision = decide(Autoscaling(lag_per_replica=10), seen(51), History(), NOW)
    assert (decision.replicas, decision.needed) == (6, 6)
    assert decision.reason == "lag 51: 6 workers needed (51 waiting, 10 per worker)"


def test_known_rates_give_what_drains_in_time() -> None:
    decision = decide(Autoscaling(), seen(240, arrival=0.8, service=0.8, slots=12), History(), NOW)
    assert decision.replicas == 6
    assert decision.reason == (
        "lag 240, 0.8 recordings/s arriving, 0.8/s per worker: 6 workers needed to drain in 60 s; GPUs for 12 workers"
    )


def test_a_first_guess_stands_in_for_the_service_rate() -> None:
    decision = decide(Autoscaling(seconds_per_recording=2), seen(240), History(), NOW)
    assert decision.replicas == 8
    assert "0.5/s per worker (secondsPerRecording)" in decision.reason


def test_the_time_that_the_oldest_has_waited_is_gone() -> None:
    assert decide(Autoscaling(), seen(240, service=1, oldest_seconds=30), History(), NOW).replicas == 8
    late = decide(Autoscaling(), seen(240, service=1, oldest_seconds=3000), History(), NOW)
    assert late.replicas == 16
    assert "to drain in 15 s" in late.reason


def test_workers_that_start_first_have_less_time() -> None:
    assert decide(Autoscaling(), seen(240, service=1, startup_seconds=20), History(), NOW).replicas == 6


def test_the_need_does_not_shrink_with_the_backlog_while_it_drains_on_time() -> None:
    loop = Loop(Autoscaling(max_replicas=8, scale_in=ScaleIn(stabilization_seconds=0), tolerance=0))
    numbers = [
        loop.poll(240 - 4 * elapsed, 5, service=1, oldest_seconds=float(elapsed)).replicas
        for elapsed in range(0, 50, 5)
    ]
    assert set(numbers) == {4}


def test_what_is_in_work_needs_nobody_else() -> None:
    """Five workers, 20 s each, four busy on average: a lag of six is five in work and one that waits."""
    decision = decide(Autoscaling(), seen(6, replicas=6, arrival=0.2, service=0.05, oldest_seconds=50), History(), NOW)
    assert decision.needed == 6


def test_nobody_who_starts_now_helps_sooner_than_it_takes_to_start() -> None:
    late: dict[str, Any] = {"replicas": 2, "service": 1.0, "oldest_seconds": 600.0}
    assert decide(Autoscaling(), seen(240, **late), History(), NOW).replicas == 16
    slow = decide(Autoscaling(), seen(240, startup_seconds=60, **late), History(), NOW)
    assert slow.replicas == 4
    assert "to drain in 60 s" in slow.reason


def test_a_stuck_partition_needs_one_worker_not_many() -> None:
    decision = decide(Autoscaling(), seen(500, stuck=500, stuck_partitions=1, parallelism=8), History(), NOW)
    assert decision.replicas == 1
    assert "500 of it in stuck partitions" in decision.reason
    both = decide(Autoscaling(), seen(530, stuck=500, stuck_partitions=2, parallelism=8), History(), NOW)
    assert both.replicas == 5


def test_no_more_workers_than_recordings_however_slow_one_is() -> None:
    assert decide(Autoscaling(), seen(3, service=0.0001), History(), NOW).replicas == 3


def test_steady_arrivals_keep_the_workers_they_need_though_nothing_waits() -> None:
    loop = Loop(Autoscaling(), replicas=4)
    for _ in range(20):
        loop.poll(0, arrival=3.1, service=1.0, end=1)
    assert [each.replicas for each in loop.decisions] == [5] * 20
    assert "5 workers needed to keep up, with spare capacity" in loop.decisions[-1].reason


# --- examples: activation, cooldown, idle ---


def test_from_zero_straight_to_the_number_needed() -> None:
    policy = Autoscaling(min_replicas=0, scale_out=ScaleOut(stabilization_seconds=120))
    assert decide(policy, seen(240), History(time=NOW - 5), NOW).replicas == 24


def test_a_lag_up_to_the_activation_lag_wakes_nobody() -> None:
    policy = Autoscaling(min_replicas=0, activation_lag=1)
    decision = decide(policy, seen(1), History(), NOW)
    assert (decision.replicas, decision.needed, rules(decision)) == (0, 1, ["activation"])
    assert "no backlog (lag 1, activationLag 1)" in decision.reason
    assert decide(policy, seen(2), History(), NOW).replicas == 1


def test_the_cooldown_keeps_the_last_worker_and_not_all_of_them() -> None:
    loop = Loop(Autoscaling(min_replicas=0, cooldown_seconds=300, scale_in=ScaleIn(stabilization_seconds=30)))
    assert loop.poll(80).replicas == 8
    numbers = [loop.poll(0, service=1).replicas for _ in range(22)]
    assert numbers == [8, 8, *[1] * 17, 0, 0, 0]
    held = loop.decisions[4]
    assert rules(held) == ["cooldown"]
    assert "the last worker stays" in held.reason


def test_arrivals_are_activity_though_nothing_waits_when_looked_at() -> None:
    loop = Loop(Autoscaling(min_replicas=0, cooldown_seconds=60))
    for end in range(10, 30):
        loop.poll(1 if end == 10 else 0, end=end)
    assert loop.replicas == 1
    for _ in range(5):
        loop.poll(0, end=29)
    assert loop.replicas == 0


def test_idle_workers_stay_below_the_minimum_until_something_waits() -> None:
    loop = Loop(Autoscaling(min_replicas=3, idle_replicas=1, cooldown_seconds=60), replicas=3)
    for _ in range(6):
        loop.poll(0)
    assert loop.replicas == 1
    assert loop.poll(1).replicas == 3


# --- examples: tolerance and start-up ---


def test_about_right_is_left_alone() -> None:
    past = History(time=NOW - 15, replicas=20)

    def at(lag: int) -> Decision:
        return decide(Autoscaling(), seen(lag, replicas=20), past, NOW)

    assert [at(lag).replicas for lag in (221, 220, 200, 180, 179)] == [23, 20, 20, 20, 18]
    assert rules(at(220)) == ["tolerance"]
    assert at(100).replicas == 10


def test_the_tolerance_never_holds_below_a_maximum() -> None:
    policy, past = Autoscaling(), History(time=NOW - 15, replicas=22)
    assert decide(policy, seen(240, replicas=22, parallelism=24), past, NOW).replicas == 24
    assert decide(policy, seen(240, replicas=22, slots=24), past, NOW).replicas == 24
    assert decide(policy, seen(240, replicas=22), past, NOW).replicas == 22


def test_no_worker_that_starts_after_the_work_is_done() -> None:
    policy = Autoscaling(drain_seconds=None)
    fields: dict[str, Any] = {"replicas": 2, "service": 1.0}
    slow = decide(policy, seen(40, startup_seconds=30, **fields), History(), NOW)
    assert (slow.replicas, rules(slow)[-1]) == (2, "startup")
    assert decide(policy, seen(40, startup_seconds=5, **fields), History(), NOW).replicas == 4


# --- examples: windows and rates ---


def test_scale_in_follows_the_highest_need_of_its_window() -> None:
    loop = Loop(Autoscaling(scale_in=ScaleIn(stabilization_seconds=60)))
    numbers = [loop.poll(lag).replicas for lag in (100, 30, 30, 50, 30, 30, 30, 30, 30)]
    assert numbers == [10, 10, 10, 10, 10, 5, 5, 5, 3]
    assert "the highest need of the last 60 s was 10" in loop.decisions[4].reason


def test_a_small_step_in_may_be_chance_and_waits_for_five_minutes() -> None:
    small = Loop(Autoscaling(), replicas=9)
    numbers = [small.poll(60).replicas for _ in range(22)]
    assert numbers == [9] * 21 + [6]
    assert "the highest need of the last 300 s was 9" in small.decisions[20].reason
    large = Loop(Autoscaling(), replicas=9)
    assert [large.poll(50).replicas for _ in range(4)] == [9, 9, 9, 5]
    explicit = Loop(Autoscaling(scale_in=ScaleIn(stabilization_seconds=30)), replicas=9)
    assert [explicit.poll(60).replicas for _ in range(4)] == [9, 9, 9, 6]


def test_an_idle_worker_stays_as_long_as_a_new_one_would_take() -> None:
    loop = Loop(Autoscaling(), replicas=9)
    assert [loop.poll(0, startup_seconds=45).replicas for _ in range(5)] == [9, 9, 9, 9, 1]


def test_scale_out_waits_for_its_window() -> None:
    loop = Loop(Autoscaling(scale_out=ScaleOut(stabilization_seconds=30)), replicas=1)
    assert [loop.poll(lag).replicas for lag in (10, 90, 90, 90, 90)] == [1, 1, 1, 9, 9]


def test_rates_hold_in_each_direction() -> None:
    policy = Autoscaling(
        scale_out=ScaleOut(max_step=2, period_seconds=60),
        scale_in=ScaleIn(stabilization_seconds=0, max_percent=50, period_seconds=60),
    )
    loop = Loop(policy, replicas=1)
    assert [loop.poll(100).replicas for _ in range(9)] == [3, 3, 3, 3, 5, 5, 5, 5, 7]
    assert rules(loop.decisions[1]) == ["scaleOutRate"]
    assert [loop.poll(0).replicas for _ in range(6)] == [3, 3, 3, 3, 1, 1]


def test_a_step_that_nobody_carried_out_does_not_count() -> None:
    policy, history = Autoscaling(scale_out=ScaleOut(max_step=2)), History()
    for poll in range(10):
        decision = decide(policy, seen(100, replicas=1), history, NOW + 15 * poll)
        history = decision.history
        assert decision.replicas == 3


def test_an_explicit_rate_holds_from_zero_too() -> None:
    policy = Autoscaling(min_replicas=0, scale_out=ScaleOut(max_step=4))
    assert decide(policy, seen(240), History(), NOW).replicas == 4


# --- examples: partitions, bounds, pause, GPUs ---


def test_partitions_bound_the_workers_and_say_how_to_have_more() -> None:
    decision = decide(Autoscaling(), seen(240, parallelism=3), History(), NOW)
    assert (decision.replicas, decision.needed, rules(decision)) == (3, 24, ["partitions"])
    assert "3 partitions" in decision.reason
    assert "kafka.ensurePartitions" in decision.reason
    assert decide(Autoscaling(allow_idle_consumers=True), seen(240, parallelism=3), History(), NOW).replicas == 24


def test_even_partitions_take_a_divisor() -> None:
    policy = Autoscaling(even_partitions=True)
    assert decide(policy, seen(60, parallelism=16), History(), NOW).replicas == 8
    assert decide(policy, seen(90, parallelism=16, slots=12), History(), NOW).replicas == 8
    assert decide(policy, seen(90, parallelism=16), History(), NOW).replicas == 16
    assert decide(policy, seen(900, parallelism=16, slots=12), History(), NOW).replicas == 8


@pytest.mark.parametrize(
    ("step", "numbers"),
    [(1, [8, 4, 4, 4, 4, 2, 2, 2, 2, 1]), (4, [8, 4, 4, 4, 4, 1]), (6, [8, 2, 2, 2, 2, 1])],
)
def test_even_partitions_go_in_as_far_as_the_rate_allows_and_a_divisor_per_period_at_least(
    step: int, numbers: list[int]
) -> None:
    policy = Autoscaling(even_partitions=True, scale_in=ScaleIn(max_step=step, stabilization_seconds=0))
    loop = Loop(policy, replicas=8)
    assert [loop.poll(1, service=1.0, parallelism=8).replicas for _ in numbers] == numbers


@pytest.mark.parametrize(
    ("step", "numbers"),
    [(1, [3, 3, 3, 3, 4, 4, 4, 4, 6, 6, 6, 6, 12]), (3, [4, 4, 4, 4, 6, 6, 6, 6, 12]), (5, [6, 6, 6, 6, 12])],
)
def test_even_partitions_go_out_as_far_as_the_rate_allows_and_a_divisor_per_period_at_least(
    step: int, numbers: list[int]
) -> None:
    loop = Loop(Autoscaling(even_partitions=True, scale_out=ScaleOut(max_step=step)), replicas=2 if step == 1 else 1)
    assert [loop.poll(500, parallelism=12).replicas for _ in numbers] == numbers


def test_idle_workers_need_not_divide_the_partitions() -> None:
    policy = Autoscaling(even_partitions=True, min_replicas=8, idle_replicas=3, cooldown_seconds=0)
    assert decide(policy, seen(0, replicas=3, parallelism=8, arrival=9, service=1), History(), NOW).replicas == 3


def test_only_partitions_with_lag_count_when_asked() -> None:
    policy = Autoscaling(limit_to_lagging_partitions=True)
    assert decide(policy, seen(240, parallelism=8, lagging=2), History(), NOW).replicas == 2


def test_minimum_and_maximum() -> None:
    policy = Autoscaling(min_replicas=2, max_replicas=5)
    low, high = (decide(policy, seen(lag), History(), NOW) for lag in (1, 1000))
    assert (low.replicas, rules(low), high.replicas, rules(high)) == (2, ["min"], 5, ["max"])
    assert "maxReplicas is 5" in high.reason


def test_one_worker_is_enough_while_no_recording_can_be_downloaded() -> None:
    away: dict[str, Any] = {"vault_error": "Vault is not reachable"}
    decision = decide(Autoscaling(min_replicas=0), seen(200, **away), History(), NOW)
    assert (decision.replicas, rules(decision)) == (1, ["vault"])
    assert decision.reason.endswith("running 1: no recording can be downloaded: Vault is not reachable")
    assert decide(Autoscaling(min_replicas=3), seen(200, **away), History(), NOW).replicas == 3
    # Those that run stay through a short outage, and go in a long one.
    loop = Loop(Autoscaling(min_replicas=0, scale_in=ScaleIn(stabilization_seconds=60)), replicas=20)
    loop.poll(200)
    assert [loop.poll(200, **away).replicas for _ in range(5)] == [20, 20, 20, 20, 1]
    assert loop.poll(200).replicas == 20


PAUSED = {"pause_scale_in": True, "pause_scale_out": True}


def test_a_pause_keeps_the_number_in_its_direction() -> None:
    past = History(time=NOW - 15, replicas=4)
    for lag in (0, 1000):
        decision = decide(Autoscaling(), seen(lag, replicas=4, **PAUSED), replace(past, needs=()), NOW)
        assert (decision.replicas, rules(decision)[-1]) == (4, "paused")


def test_gpus_bound_everything_and_their_holders_are_named() -> None:
    decision = decide(Autoscaling(min_replicas=5), seen(240, slots=2, holders="team-b/yard holds 6"), History(), NOW)
    assert (decision.replicas, rules(decision)) == (2, ["gpus"])
    assert decision.reason.endswith(", running 2: GPUs for 2 workers (team-b/yard holds 6)")
    slots = decide(Autoscaling(min_replicas=5), seen(240, slots=2, bound="CPU slots"), History(), NOW)
    assert slots.reason.endswith(", running 2: CPU slots for 2 workers")


# --- examples: failed readings ---


def test_failed_readings_hold_the_number_until_the_fallback_is_due() -> None:
    loop = Loop(Autoscaling(fallback=Fallback(failures=3, behavior="Static", replicas=6)))
    loop.poll(40)
    first, second, third = (loop.poll(None) for _ in range(3))
    assert [each.replicas for each in (first, second, third)] == [4, 4, 6]
    assert [each.needed for each in (first, second, third)] == [None, None, 6]
    assert first.reason == "lag unknown (broker away, 1 failed read); keeping 4 workers until failed read 3"
    assert third.reason == "lag unknown (broker away, 3 failed reads); fallback Static of 6: 6 workers"
    assert loop.poll(60).history.failures == 0


@pytest.mark.parametrize(
    ("behavior", "replicas", "expected"),
    [
        ("Static", 0, 1),
        ("Current", 9, 4),
        ("CurrentIfHigher", 2, 4),
        ("CurrentIfHigher", 7, 7),
        ("CurrentIfLower", 2, 2),
        ("CurrentIfLower", 7, 4),
    ],
)
def test_fallbacks(behavior: Any, replicas: int, expected: int) -> None:
    fallback = Fallback(failures=1, behavior=behavior, replicas=replicas)
    policy = Autoscaling(min_replicas=0, fallback=fallback, scale_in=ScaleIn(stabilization_seconds=0))
    assert decide(policy, failed(4), History(time=NOW - 15, replicas=4), NOW).replicas == expected


def test_the_gpus_bound_a_fallback_too() -> None:
    policy = Autoscaling(fallback=Fallback(failures=1, behavior="Static", replicas=9))
    assert decide(policy, failed(4, slots=5), History(), NOW).replicas == 5


def test_an_outage_is_not_quiet() -> None:
    loop = Loop(Autoscaling(min_replicas=0, cooldown_seconds=100), replicas=3)
    for _ in range(40):
        assert loop.poll(None).replicas == 3
    assert loop.poll(0).replicas == 3
    for _ in range(3):
        loop.poll(0)
    assert loop.replicas == 1


# --- examples: time ---


def test_a_restarted_operator_takes_what_runs_as_needed() -> None:
    loop = Loop(Autoscaling(), replicas=8)
    assert [loop.poll(0).replicas for _ in range(4)] == [8, 8, 8, 1]


@pytest.mark.parametrize("jump", [-1e9, -3600, 86_400, 1e12, math.inf, math.nan])
def test_a_jump_of_the_clock_takes_nobody_away(jump: float) -> None:
    loop = Loop(Autoscaling(min_replicas=0), replicas=0)
    loop.poll(80)
    loop.poll(80)
    loop.now = loop.now + jump
    assert loop.poll(0).replicas == 8


def test_polls_come_sooner_while_nothing_waits_and_when_the_queue_will_be_empty() -> None:
    policy = Autoscaling(min_replicas=0)
    assert decide(policy, seen(0), History(), NOW).next_poll_seconds == 5
    assert decide(policy, seen(600, replicas=10, service=1), History(), NOW).next_poll_seconds == 15
    assert decide(policy, seen(80, replicas=10, service=1), History(), NOW).next_poll_seconds == 8
    assert decide(policy, failed(0), History(), NOW).next_poll_seconds == 15


def test_every_rule_gives_its_account() -> None:
    decision = decide(Autoscaling(max_replicas=5), seen(240, replicas=2, parallelism=8), History(), NOW)
    names = [step.split(":")[0] for step in decision.steps]
    assert names == ["observed", "needed", "activation", "partitions", "max", "result"]
    assert decision.steps[-1] == "result: 5 workers, +3"


def test_a_history_goes_on_from_the_status() -> None:
    loop = Loop(Autoscaling(min_replicas=0))
    loop.poll(10)
    loop.poll(0)
    assert loop.history.last_active is not None
    again = History.from_status(AutoscalingStatus(last_active=round(loop.history.last_active)))
    assert again.last_active == NOW + 15
    assert History.from_status(AutoscalingStatus()) == History()


# --- properties over the whole input ---

anything = st.one_of(st.none(), st.floats(), st.floats(0.001, 1000))
times = st.one_of(st.floats(), st.floats(NOW - 400, NOW + 50))
counts = st.one_of(st.integers(-5, 60), st.integers())
sizes = st.one_of(st.integers(0, 60), st.integers(0, 1000))
steps = st.one_of(st.none(), st.integers(1, 1000))
seconds = st.one_of(st.integers(0, 60), st.integers(0, 3600))
spans = st.integers(1, 3600)
outs = st.builds(ScaleOut, stabilization_seconds=seconds, max_step=steps, max_percent=steps, period_seconds=spans)
ins = st.builds(
    ScaleIn,
    stabilization_seconds=st.none() | seconds,
    max_step=steps,
    max_percent=st.none() | st.integers(1, 100),
    period_seconds=spans,
)
fallbacks = st.builds(
    Fallback,
    failures=st.integers(1, 1000),
    behavior=st.sampled_from(["Static", "Current", "CurrentIfHigher", "CurrentIfLower"]),
    replicas=sizes,
)


@st.composite
def specs(draw: st.DrawFn) -> Autoscaling:
    """Any `.spec.autoscaling` that the API server takes."""
    least = draw(sizes)
    return Autoscaling(
        min_replicas=least,
        max_replicas=draw(st.none() | st.integers(max(least, 1), 1000)),
        idle_replicas=draw(st.none() | st.integers(0, least)),
        lag_per_replica=draw(st.integers(1, 60) | st.integers(1, 1_000_000)),
        drain_seconds=draw(st.none() | st.integers(1, 86_400)),
        seconds_per_recording=draw(st.none() | st.floats(0.001, 86_400)),
        activation_lag=draw(sizes),
        polling_seconds=draw(spans),
        cooldown_seconds=draw(seconds),
        tolerance=draw(st.floats(0, 1)),
        scale_out=draw(outs),
        scale_in=draw(ins),
        fallback=draw(st.none() | fallbacks),
        even_partitions=draw(st.booleans()),
        limit_to_lagging_partitions=draw(st.booleans()),
        allow_idle_consumers=draw(st.booleans()),
    )


backlogs = st.builds(
    Backlog,
    lag=counts,
    oldest_seconds=anything,
    parallelism=st.none() | counts,
    lagging=st.none() | counts,
    stuck=counts,
    stuck_partitions=counts,
    end=st.none() | counts,
)
observations = st.builds(
    Observation,
    backlog=st.none() | backlogs,
    trouble=st.just("") | st.just("no broker"),
    arrival=anything,
    service=anything,
    replicas=counts,
    ready=counts,
    startup_seconds=anything,
    slots=st.none() | counts,
    holders=st.just("") | st.just("yard holds 3"),
    vault_error=st.just("") | st.just("Vault is away"),
    pause_scale_in=st.booleans(),
    pause_scale_out=st.booleans(),
)
pairs = st.lists(st.tuples(times, counts), max_size=5).map(tuple)
histories = st.builds(
    History,
    time=st.none() | times,
    replicas=st.none() | counts,
    end=st.none() | counts,
    last_active=st.none() | times,
    failures=counts,
    needs=pairs,
    steps=pairs,
)


def whole(test: Callable[[Autoscaling, Observation, History, float], None]) -> Callable[[], None]:
    """Run a test over everything that `decide` takes."""
    return QUICK(given(specs(), observations, histories, times)(test))


@whole
def test_any_input_gives_the_same_sound_decision_twice(
    policy: Autoscaling, observation: Observation, history: History, now: float
) -> None:
    decision = decide(policy, observation, history, now)
    assert decision == decide(policy, observation, history, now)
    assert decision.replicas >= 0
    assert decision.needed is None or decision.needed >= 0
    assert 1 <= decision.next_poll_seconds < math.inf
    again = decide(policy, observation, decision.history, now + 15)
    assert again.replicas >= 0


@whole
def test_never_more_than_the_gpus_allow_nor_outside_the_bounds(
    policy: Autoscaling, observation: Observation, history: History, now: float
) -> None:
    decision = decide(policy, observation, history, now)
    if observation.slots is not None:
        assert decision.replicas <= max(observation.slots, 0)
    bites = rules(decision)
    most = 1000 if policy.max_replicas is None else policy.max_replicas
    least = policy.min_replicas
    if not (observation.pause_scale_in or observation.pause_scale_out):
        assert decision.replicas <= most
        if policy.idle_replicas is None and "gpus" not in bites:
            assert decision.replicas >= least
    if policy.idle_replicas is not None and decision.replicas < least and not bites.count("gpus"):
        lag = observation.backlog.lag if observation.backlog is not None else 0
        assert lag <= policy.activation_lag or "paused" in bites


@whole
def test_a_failed_reading_never_takes_the_last_worker(
    policy: Autoscaling, observation: Observation, history: History, now: float
) -> None:
    observation = replace(observation, backlog=None, slots=None)
    policy = policy.model_copy(update={"max_replicas": None})
    decision = decide(policy, observation, history, now)
    current = min(max(observation.replicas, 0), 1000)
    assert decision.replicas >= min(current, 1)
    if policy.fallback is None or policy.fallback.behavior in ("Current", "CurrentIfHigher"):
        assert decision.replicas >= current


@QUICK
@given(specs(), observations, backlogs, histories, times, st.integers(0, 10**7))
def test_more_lag_never_gives_fewer_workers(
    policy: Autoscaling, observation: Observation, backlog: Backlog, history: History, now: float, more: int
) -> None:
    # What sits in stuck partitions is bounded by the lag: the same of it in both.
    backlog = replace(backlog, lag=max(backlog.lag, backlog.stuck, 0))
    few = decide(policy, replace(observation, backlog=backlog), history, now)
    longer = replace(backlog, lag=backlog.lag + more)
    assert few.replicas <= decide(policy, replace(observation, backlog=longer), history, now).replicas


@whole
def test_the_sentence_has_the_numbers_and_every_limit_is_listed(
    policy: Autoscaling, observation: Observation, history: History, now: float
) -> None:
    decision = decide(policy, observation, history, now)
    numbers = set(re.findall(r"\d+", decision.reason))
    if observation.backlog is not None:
        assert decision.reason.startswith(f"lag {min(max(observation.backlog.lag, 0), 10**12)}")
        assert str(decision.needed if not rules(decision) else decision.replicas) in numbers
    number = None
    for limit in decision.limits:
        assert limit.before != limit.after
        assert number is None or limit.before == number
        assert any(step.startswith(f"{limit.name}: {limit.before} becomes") for step in decision.steps)
        number = limit.after
    if number is None:
        assert decision.needed in (None, decision.replicas)
    else:
        assert number == decision.replicas
        assert f", running {decision.replicas}: {decision.limits[-1].phrase}" in decision.reason
        assert decision.needed in (None, decision.limits[0].before)
    assert "\n" not in decision.reason
    assert "inf" not in decision.reason.replace("info", "")


@QUICK
@given(st.integers(1, 10_000), anything, anything, st.none() | st.integers(1, 50), st.none() | st.integers(0, 50))
def test_from_zero_there_are_no_steps(
    lag: int, arrival: float | None, service: float | None, parallelism: int | None, slots: int | None
) -> None:
    policy = Autoscaling(min_replicas=0, scale_out=ScaleOut(stabilization_seconds=600))
    observation = seen(lag, arrival=arrival, service=service, parallelism=parallelism, slots=slots)
    decision = decide(policy, observation, History(time=NOW - 5, replicas=0, needs=((NOW - 5, 0),)), NOW)
    assert decision.needed is not None
    assert decision.replicas == min(
        decision.needed, 1000, *(bound for bound in (parallelism, slots) if bound is not None)
    )


polls = st.lists(st.tuples(st.integers(0, 400), st.sampled_from([1.0, 5.0, 15.0, 40.0])), min_size=1, max_size=40)
windows = st.sampled_from([0, 15, 30, 100])


@QUICK
@given(polls, windows, windows, st.integers(1, 30))
def test_windows_hold_over_any_sequence_of_polls(
    sequence: list[tuple[int, float]], window_out: int, window_in: int, start: int
) -> None:
    policy = Autoscaling(
        tolerance=0,
        scale_out=ScaleOut(stabilization_seconds=window_out),
        scale_in=ScaleIn(stabilization_seconds=window_in),
    )
    loop = Loop(policy, replicas=start)
    needs: list[tuple[float, int]] = []
    for lag, after in sequence:
        before = loop.replicas
        decision = loop.poll(lag, after)
        needs.append((loop.now, max(decision.needed or 0, 1)))
        highest = max(need for time, need in needs if loop.now - time <= window_in)
        lowest = min(need for time, need in needs if loop.now - time <= window_out)
        assert decision.replicas >= min(before, highest)
        assert decision.replicas <= max(before, lowest)


@QUICK
@given(polls, st.integers(1, 5), st.integers(1, 5), st.sampled_from([10, 60, 200]), st.integers(0, 30))
def test_rates_hold_over_any_sequence_of_polls(
    sequence: list[tuple[int, float]], most_out: int, most_in: int, period: int, start: int
) -> None:
    policy = Autoscaling(
        min_replicas=0,
        scale_out=ScaleOut(max_step=most_out, period_seconds=period),
        scale_in=ScaleIn(max_step=most_in, period_seconds=period, stabilization_seconds=0),
    )
    loop = Loop(policy, replicas=start)
    changes: list[tuple[float, int]] = []
    for lag, after in sequence:
        before = loop.replicas
        loop.poll(lag, after)
        changes.append((loop.now, loop.replicas - before))
        recent = [delta for time, delta in changes if time > loop.now - period]
        assert sum(delta for delta in recent if delta > 0) <= most_out
        assert -sum(delta for delta in recent if delta < 0) <= most_in


@QUICK
@given(st.integers(1, 300), st.integers(1, 40), st.floats(0.1, 10), st.floats(0.05, 5), st.integers(0, 40))
def test_one_load_gives_one_direction(lag: int, start: int, arrival: float, service: float, rounds: int) -> None:
    loop = Loop(Autoscaling(), replicas=start)
    for _ in range(rounds):
        loop.poll(lag, arrival=arrival, service=service, ready=start, end=rounds)
    numbers = [start, *(each.replicas for each in loop.decisions)]
    moves = [after - before for before, after in pairwise(numbers)]
    assert all(move >= 0 for move in moves) or all(move <= 0 for move in moves)
