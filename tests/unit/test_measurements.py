"""What readings, one after the other, say of a pipeline: what was done, who is stuck, how long a start takes."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from vaultml_operator.api import Autoscaling, AutoscalingStatus
from vaultml_operator.autoscaler.decide import decide
from vaultml_operator.autoscaler.lag import Member, Partition, Reading
from vaultml_operator.autoscaler.measurements import Measurements
from vaultml_operator.autoscaler.records import History, Observation

BEGAN = 1_000_000.0


def part(number: int, end: int, committed: int, *, start: int = 0, oldest: float | None = None) -> Partition:
    waits = BEGAN if oldest is None and end > committed else oldest
    return Partition(number, start, end, committed, end - committed, waits)


class Loop:
    """Polls, decisions that are carried out at once, and the workers there were."""

    def __init__(self, replicas: int = 1, service: float = 1.0, policy: Autoscaling | None = None) -> None:
        self.measured = Measurements(AutoscalingStatus(service_rate=service, startup_seconds=5))
        self.policy, self.replicas, self.history, self.now = policy or Autoscaling(), replicas, History(), BEGAN
        self.counts: list[tuple[float, int]] = []

    @property
    def service(self) -> float:
        return self.measured.rates.service or 0.0

    def run(self, seconds: float, parts: Callable[[float], Iterable[Partition]], *, ready: int | None = None) -> None:
        until = self.now + seconds
        while self.now < until:
            self.measured.workers(self.replicas, self.replicas if ready is None else ready, self.now)
            self.measured.learn(Reading(self.now, tuple(parts(self.now - BEGAN))))
            rates = self.measured.rates
            seen = Observation(
                backlog=self.measured.backlog(),
                arrival=rates.arrival,
                service=rates.service,
                replicas=self.replicas,
                ready=self.replicas,
                startup_seconds=rates.startup_seconds,
            )
            decision = decide(self.policy, seen, self.history, self.now)
            self.history, self.replicas = decision.history, decision.replicas
            self.counts.append((self.now - BEGAN, self.replicas))
            self.now += decision.next_poll_seconds


def stuck(measured: Measurements) -> tuple[int, int]:
    backlog = measured.backlog()
    assert backlog is not None
    return backlog.stuck_partitions, backlog.stuck


@pytest.mark.parametrize(("service", "seconds"), [(None, 60), (0.05, 100)])
def test_progress_is_a_recording_finished_within_a_minute_or_the_time_of_five(
    service: float | None, seconds: float
) -> None:
    measured, progresses = Measurements(AutoscalingStatus(service_rate=service)), list[bool]()
    for after, committed in ((-10.0, 0), (0.0, 1), (seconds, 1), (seconds + 1, 1), (seconds + 2, 2)):
        measured.learn(Reading(BEGAN + after, (part(0, 100, committed),)))
        progresses.append(measured.progresses)
    assert progresses == [False, True, True, False, True]


# --- what is stuck ---


def quiet(_seconds: float) -> list[Partition]:
    """One poisonous partition of eight, nothing else to do."""
    return [part(0, 100, 50), *(part(number, 100, 100) for number in range(1, 8))]


def trickle(seconds: float) -> list[Partition]:
    """The same, and a recording now and then in another partition, done at once."""
    others = int(seconds / 40)
    return [part(0, 100, 50), part(1, 100 + others, 100 + others), *(part(number, 9, 9) for number in range(2, 8))]


@pytest.mark.parametrize(
    ("parts", "service", "workers"), [(quiet, 1.0, 1), (quiet, 0.05, 1), (trickle, 1.0, 2), (trickle, 0.05, 3)]
)
def test_a_poison_partition_is_known_for_hours_and_keeps_one_worker(
    parts: Callable[[float], list[Partition]], service: float, workers: int
) -> None:
    """Beside those that the others need: at so few arrivals one, or two where each takes 20 s."""
    loop = Loop(service=service)
    loop.run(7200, parts)
    assert stuck(loop.measured) == (1, 50)
    assert {count for seconds, count in loop.counts if seconds > 240} == {workers}
    assert loop.service >= service / 3


def test_a_partition_that_is_known_to_be_stuck_stays_so_while_workers_are_away_and_until_it_moves() -> None:
    loop = Loop()
    loop.run(200, quiet)
    assert stuck(loop.measured) == (1, 50)
    loop.run(30, quiet, ready=0)
    assert stuck(loop.measured) == (1, 50)
    loop.run(15, lambda _: [part(0, 100, 51), *(part(number, 100, 100) for number in range(1, 8))])
    assert stuck(loop.measured) == (0, 0)


def test_after_a_clock_was_set_back_a_poison_partition_is_found_as_soon_as_ever() -> None:
    loop = Loop()
    loop.run(60, quiet)
    loop.now -= 86_400
    loop.run(200, quiet)
    assert stuck(loop.measured) == (1, 50)


def one_after_the_other(seconds: float) -> list[Partition]:
    """One worker that does all of a partition before it begins the next: two minutes each."""
    return [part(number, 120, min(120, max(0, int(seconds) - 120 * number))) for number in range(8)]


def test_a_partition_that_waits_its_turn_is_not_stuck() -> None:
    loop = Loop(policy=Autoscaling(max_replicas=1))
    while loop.now < BEGAN + 8 * 120:
        loop.run(1, one_after_the_other)
        assert stuck(loop.measured) == (0, 0), loop.now - BEGAN


@pytest.mark.parametrize(("owned", "expected"), [({0, 1}, (0, 0)), ({0, 2}, (1, 50))])
def test_only_the_partitions_of_the_same_worker_excuse_one(owned: set[int], expected: tuple[int, int]) -> None:
    members = (Member("a", frozenset(owned)), Member("b", frozenset({0, 1, 2} - owned)))
    measured = Measurements(AutoscalingStatus(service_rate=1.0))
    measured.workers(2, 2, 0)
    for seconds in range(0, 300, 15):
        parts = (part(0, 100, 50), part(1, 1000, seconds), part(2, 100, 100))
        measured.learn(Reading(BEGAN + seconds, parts, members))
    assert stuck(measured) == expected


# --- how fast a worker is ---


def test_while_nothing_at_all_moves_a_worker_counts_for_half_at_least() -> None:
    loop = Loop(replicas=2)
    loop.run(3600, lambda _: [part(number, 1005, 1000, oldest=BEGAN) for number in range(8)])
    assert 0.5 <= loop.service < 0.51
    assert max(count for _, count in loop.counts) < 8
    # And is as fast as before soon after.
    done, began = loop.measured.processed, loop.now - BEGAN
    loop.run(600, lambda seconds: [part(number, 9000, 1000 + int(seconds - began)) for number in range(8)])
    assert loop.measured.processed > done
    assert loop.service > 0.8


def test_slow_recordings_lower_the_rate_as_they_are_done() -> None:
    loop = Loop(replicas=1, policy=Autoscaling(max_replicas=1))
    loop.run(1800, lambda seconds: [part(0, 1000, int(seconds / 60)), part(1, 1000, 0)])
    assert loop.service == pytest.approx(1 / 60, rel=0.25)


def test_what_retention_deletes_was_not_done() -> None:
    measured = Measurements(AutoscalingStatus(service_rate=0.1))
    measured.workers(2, 2, 0)
    for poll in range(20):
        start = 1000 * poll
        parts = (part(0, 100_000 + start, start, start=start), part(1, 100_000, 10 + poll))
        measured.learn(Reading(BEGAN + 15 * poll, parts))
    assert measured.processed == 19
    assert (measured.rates.service or 0) < 0.1


def test_a_commit_that_goes_back_takes_nothing_from_what_was_done() -> None:
    measured = Measurements(AutoscalingStatus())
    for committed in ((10, 10), (20, 5), (30, 7)):
        measured.learn(Reading(BEGAN, tuple(part(number, 50, each) for number, each in enumerate(committed))))
    assert measured.processed == 22


# --- how long a start takes ---


def startup(*seen: tuple[int, int, float]) -> Any:
    measured = Measurements(AutoscalingStatus())
    for replicas, ready, now in seen:
        measured.workers(replicas, ready, now)
    return measured.rates.startup_seconds


def test_a_start_is_measured_from_asked_for_to_ready() -> None:
    assert startup((1, 1, 0), (3, 1, 10), (3, 2, 20), (3, 3, 22)) == 11


def test_a_worker_that_comes_back_after_a_crash_did_not_take_hours_to_start() -> None:
    assert startup((1, 1, 0), (5, 1, 10), (5, 2, 20), (3, 3, 60), (3, 2, 7200), (3, 3, 7230)) == 10
    assert startup((1, 1, 0), (5, 1, 10), (5, 2, 20), (2, 2, 60), (2, 1, 7200), (2, 2, 7230)) == 10


def test_a_worker_that_waited_for_a_gpu_for_hours_did_not_take_hours_to_start() -> None:
    assert startup((1, 1, 0), (2, 1, 10), (2, 2, 9000)) == 900
