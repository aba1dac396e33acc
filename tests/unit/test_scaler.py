"""The scaler between its parts: rounds, what is told, what a restart and a failure leave."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from vaultml_operator.api import Autoscaling, AutoscalingStatus
from vaultml_operator.autoscaler import decide
from vaultml_operator.autoscaler.gpus import Demand, Pool
from vaultml_operator.autoscaler.lag import Ask, Member, Partition, Reading, ReadingFailed
from vaultml_operator.autoscaler.pool import arbitrate
from vaultml_operator.autoscaler.records import Decision, Observation
from vaultml_operator.autoscaler.scaler import Scaler, ScalingRequest
from vaultml_operator.probes import Connection

Key = tuple[str, str]
KEY: Key = ("n", "p")
HERE, THERE = Connection(("here:1",)), Connection(("there:1",))
POLICY = Autoscaling(polling_seconds=1, lag_per_replica=10)


class Desk:
    """Readers whose answers the test sets, and what they were asked."""

    def __init__(self) -> None:
        self.lag: dict[str, int] = {}
        self.idle: dict[str, int] = {}
        """Partitions in which nothing waits, beside the one."""
        self.done = 0
        """Recordings finished since the beginning."""
        self.failing: set[str] = set()
        self.rounds: list[tuple[str, list[str]]] = []
        self.closed: list[str] = []
        self.time = 1000.0

    def open(self, connection: Connection) -> "Desk._Reader":
        return Desk._Reader(self, connection.brokers[0])

    class _Reader:
        def __init__(self, desk: "Desk", broker: str) -> None:
            self.calls = 0
            self._desk = desk
            self._broker = broker

        def read(self, asked: Sequence[Ask]) -> Mapping[Ask, Reading | ReadingFailed]:
            self._desk.rounds.append((self._broker, sorted(each.queue for each in asked)))
            self._desk.time += 1
            return {each: self._answer(each) for each in asked}

        def _answer(self, ask: Ask) -> Reading | ReadingFailed:
            if ask.queue in self._desk.failing:
                return ReadingFailed("the lag can't be read: no answer")
            lag = self._desk.lag.get(ask.queue, 0)
            done = self._desk.done
            idle = range(1, 1 + self._desk.idle.get(ask.queue, 0))
            parts = (
                Partition(0, 0, 100 + done + lag, 100 + done, lag, self._desk.time - 5 if lag else None),
                *(Partition(number, 0, 9, 9, 0) for number in idle),
            )
            return Reading(self._desk.time, parts, (Member("pod", frozenset({0})),))

        def close(self) -> None:
            self._desk.closed.append(self._broker)


def request(queue: str = "q", connection: Connection | None = HERE, **rest: Any) -> ScalingRequest:
    policy = rest.pop("policy", POLICY)
    return ScalingRequest(policy=policy, connection=connection, ask=Ask(queue, "g"), demand=None, **rest)


def scene(test: Callable[[Scaler[Key], Desk, list[Key]], Any], *, pool: Pool | None = None) -> None:
    async def run() -> None:
        desk, changed = Desk(), list[Key]()
        scaler: Scaler[Key] = Scaler(changed.append, pool=pool, reader=desk.open, wall=lambda: desk.time)
        running = asyncio.create_task(scaler.run())
        try:
            await test(scaler, desk, changed)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 20))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def watch(scaler: Scaler[Key], key: Key = KEY, replicas: int = 1, **rest: Any) -> None:
    scaler.watch(
        key,
        rest.pop("request", request()),
        replicas=replicas,
        ready=replicas,
        status=rest.pop("status", AutoscalingStatus()),
    )


def test_a_decision_comes_with_the_first_round_and_is_told_once() -> None:
    async def test(scaler: Scaler[Key], desk: Desk, changed: list[Key]) -> None:
        desk.lag["q"] = 30
        assert scaler.snapshot(KEY) is None
        watch(scaler)
        await until(lambda: scaler.snapshot(KEY) is not None)
        snapshot = scaler.snapshot(KEY)
        assert snapshot is not None
        assert snapshot.decision.replicas == 1  # one partition
        assert snapshot.status.lag == 30
        assert snapshot.status.limited_by == "partitions"
        assert changed == [KEY]
        assert scaler.busy(KEY) == {"pod": 30}

    scene(test)


def test_all_queues_of_a_connection_are_read_in_one_round() -> None:
    async def test(scaler: Scaler[Key], desk: Desk, changed: list[Key]) -> None:
        for number in range(5):
            watch(scaler, ("n", f"p{number}"), request=request(f"q{number}"))
        watch(scaler, ("n", "other"), request=request("other", THERE))
        await until(lambda: len(set(changed)) == 6)
        assert ("here:1", [f"q{number}" for number in range(5)]) in desk.rounds
        assert ("there:1", ["other"]) in desk.rounds
        # The last one to leave a connection closes it.
        scaler.forget(("n", "other"))
        await until(lambda: "there:1" in desk.closed)

    scene(test)


def test_a_queue_that_can_not_be_read_has_the_reason_that_its_check_found() -> None:
    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        desk.failing.add("q")
        watch(scaler)
        await until(lambda: scaler.snapshot(KEY) is not None)
        watch(scaler, request=request(queue_error="Kafka refuses the password"))
        await until(lambda: (now := scaler.snapshot(KEY)) and now.status.error == "Kafka refuses the password")
        desk.failing.clear()
        await until(lambda: (now := scaler.snapshot(KEY)) and now.status.error is None)

    scene(test)


def test_a_vault_that_fails_for_the_operator_alone_limits_nothing() -> None:
    """Workers may reach what the operator may not: what they finish is the proof."""

    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        desk.lag["q"], desk.idle["q"] = 30, 7
        watch(scaler, replicas=0, request=request(vault_error="Vault is not reachable"))
        await until(lambda: scaler.snapshot(KEY) is not None)
        snapshot = scaler.snapshot(KEY)
        assert snapshot is not None
        assert (snapshot.decision.replicas, snapshot.status.limited_by) == (1, "vault")
        desk.done = 3
        await until(lambda: (now := scaler.snapshot(KEY)) is not None and now.decision.replicas == 3)

    scene(test)


def test_what_can_not_be_read_changes_no_number() -> None:
    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        desk.failing.add("q")
        watch(scaler, replicas=7)
        await until(lambda: scaler.snapshot(KEY) is not None)
        snapshot = scaler.snapshot(KEY)
        assert snapshot is not None
        assert snapshot.decision.replicas == 7
        assert snapshot.status.error == "the lag can't be read: no answer"
        desk.failing.clear()
        await until(lambda: (scaler.snapshot(KEY) or snapshot).status.error is None)

    scene(test)


def test_settings_that_the_client_refuses_are_told_and_end_nothing() -> None:
    async def run() -> None:
        desk, refuse = Desk(), [True]

        def opens(connection: Connection) -> Desk._Reader:
            if refuse[0]:
                raise ValueError("a setting with a secret in it")
            return desk.open(connection)

        scaler: Scaler[Key] = Scaler(lambda _key: None, reader=opens, wall=lambda: desk.time)
        running = asyncio.create_task(scaler.run())
        watch(scaler, replicas=3)
        await until(lambda: scaler.snapshot(KEY) is not None)
        snapshot = scaler.snapshot(KEY)
        assert snapshot is not None
        assert (snapshot.decision.replicas, snapshot.status.error) == (
            3,
            "the lag can't be read (ValueError): see QueueReachable",
        )
        refuse[0] = False
        await until(lambda: (scaler.snapshot(KEY) or snapshot).status.error is None)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 20))


def test_missing_credentials_leave_the_last_decision() -> None:
    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        watch(scaler)
        await until(lambda: scaler.snapshot(KEY) is not None)
        watch(scaler, request=request(connection=None))
        rounds = len(desk.rounds)
        snapshot = scaler.snapshot(KEY)
        assert snapshot is not None
        assert snapshot.decision.replicas == 1
        assert snapshot.status.error == "its credentials are missing"
        assert snapshot.status.lag is None
        watch(scaler)
        await until(lambda: len(desk.rounds) > rounds)

    scene(test)


def test_a_restarted_operator_goes_on_with_what_was_published() -> None:
    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        desk.lag["q"] = 1000
        published = AutoscalingStatus(service_rate=0.5, arrival_rate=2.0, startup_seconds=8, processed=77)
        watch(scaler, status=published)
        await until(lambda: scaler.snapshot(KEY) is not None)
        snapshot = scaler.snapshot(KEY)
        assert snapshot is not None
        assert snapshot.status.service_rate == 0.5
        assert snapshot.status.processed == 77
        assert "to drain" in snapshot.decision.reason

    scene(test)


def test_a_new_spec_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "_IDLE_POLLING", 3600)

    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        slow = Autoscaling(polling_seconds=3600)
        watch(scaler, request=request(policy=slow))
        await until(lambda: scaler.snapshot(KEY) is not None)
        assert len(desk.rounds) == 1
        watch(scaler, request=request(policy=Autoscaling(min_replicas=3, polling_seconds=3600)))
        await until(lambda: len(desk.rounds) == 2)

    scene(test)


def node(count: int) -> dict[str, Any]:
    return {"metadata": {"name": "gpu"}, "status": {"allocatable": {"nvidia.com/gpu": str(count)}}}


@pytest.mark.parametrize("acts", [True, False])
def test_gpus_bound_the_number_and_those_that_only_advise_take_none(acts: bool) -> None:
    pool = Pool()
    pool.node_seen(node(3))

    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        policy = Autoscaling(polling_seconds=1, lag_per_replica=1, allow_idle_consumers=True)

        def wanting(name: str, acts: bool) -> ScalingRequest:
            demand = Demand(key=("n", name), resource="nvidia.com/gpu", count=1, wanted=0, current=0)
            return ScalingRequest(policy=policy, connection=HERE, ask=Ask(name, name), demand=demand, acts=acts)

        desk.lag |= {"a": 50, "b": 50}
        watch(scaler, ("n", "a"), request=wanting("a", acts), replicas=0)
        watch(scaler, ("n", "b"), request=wanting("b", True), replicas=0)
        await until(lambda: scaler.snapshot(("n", "a")) and scaler.snapshot(("n", "b")))
        other = scaler.snapshot(("n", "b"))
        assert other is not None
        assert other.status.limited_by == "gpus"
        first = scaler.snapshot(("n", "a"))
        assert first is not None
        if acts:
            assert sorted((first.decision.replicas, other.decision.replicas)) == [1, 2]
        else:
            assert other.decision.replicas == 3

    scene(test, pool=pool)


def test_a_free_gpu_nearby_does_not_lift_the_tolerance() -> None:
    pool = Pool()
    pool.node_seen(node(11))

    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        desk.lag["q"] = 105
        policy = Autoscaling(polling_seconds=1, lag_per_replica=10, allow_idle_consumers=True)
        demand = Demand(key=KEY, resource="nvidia.com/gpu", count=1, wanted=0, current=0)
        asked = ScalingRequest(policy=policy, connection=HERE, ask=Ask("q", "g"), demand=demand)
        watch(scaler, request=asked, replicas=10)
        await until(lambda: scaler.snapshot(KEY) is not None)
        snapshot = scaler.snapshot(KEY)
        assert snapshot is not None
        assert snapshot.decision.replicas == 10
        assert snapshot.status.limited_by is None

    scene(test, pool=pool)


def test_gpus_that_even_partitions_leave_idle_go_to_who_needs_them() -> None:
    pool = Pool()
    pool.node_seen(node(6))

    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        for name, even in (("a", True), ("b", False)):
            desk.lag[name], desk.idle[name] = 500, 7
            policy = Autoscaling(polling_seconds=1, lag_per_replica=10, even_partitions=even)
            demand = Demand(key=("n", name), resource="nvidia.com/gpu", count=1, wanted=0, current=0)
            asked = ScalingRequest(policy=policy, connection=HERE, ask=Ask(name, "g"), demand=demand)
            watch(scaler, ("n", name), request=asked, replicas=0)
        await until(lambda: scaler.snapshot(("n", "a")) and scaler.snapshot(("n", "b")))
        first, other = scaler.snapshot(("n", "a")), scaler.snapshot(("n", "b"))
        assert first is not None
        assert other is not None
        assert (first.decision.replicas, other.decision.replicas) == (2, 4)

    scene(test, pool=pool)


def test_gpus_are_shared_out_by_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, times = Pool(), list[float]()
    pool.node_seen(node(4))

    def timed(pool: Any, demands: Any, before: Any, now: float) -> Any:
        times.append(now)
        return arbitrate(pool, demands, before, now)

    monkeypatch.setattr("vaultml_operator.autoscaler.scaler.arbitrate", timed)

    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        desk.lag["q"] = 50
        demand = Demand(key=KEY, resource="nvidia.com/gpu", count=1, wanted=0, current=0)
        asked = ScalingRequest(policy=POLICY, connection=HERE, ask=Ask("q", "g"), demand=demand)
        watch(scaler, request=asked)
        await until(lambda: times)
        desk.time -= 86_400
        scaler.pool_changed()
        await until(lambda: len(times) > 1)
        assert 0 < times[1] - times[0] < 20

    scene(test, pool=pool)


def test_a_lag_that_comes_and_goes_is_not_written_with_every_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultml_operator.autoscaler.scaler._FRESH_S", 3600.0)
    monkeypatch.setattr("vaultml_operator.autoscaler.scaler._FRESH_POLLS", 3600.0)

    async def test(scaler: Scaler[Key], desk: Desk, changed: list[Key]) -> None:
        watch(scaler)
        await until(lambda: scaler.snapshot(KEY) is not None)
        for lag in (1, 0, 2):
            desk.lag["q"], rounds = lag, len(desk.rounds)
            while len(desk.rounds) <= rounds + 1:
                await asyncio.sleep(0.01)
        assert len(changed) == 1
        # What counts is seen at once, and after a while the picture becomes exact.
        scaler._states[KEY].fresh_until = 0.0
        await until(lambda: (snapshot := scaler.snapshot(KEY)) and snapshot.status.lag == 2)
        assert len(changed) == 2
        desk.lag["q"] = 400
        await until(lambda: (snapshot := scaler.snapshot(KEY)) and snapshot.status.lag == 400)

    scene(test)


def test_gpus_are_shared_out_once_for_many_and_nobody_decides_on_an_old_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, shared = Pool(), list[int]()
    pool.node_seen(node(100))

    def counted(pool: Any, demands: Any, *rest: Any) -> Any:
        shared.append(len(demands))
        return arbitrate(pool, demands, *rest)

    monkeypatch.setattr("vaultml_operator.autoscaler.scaler.arbitrate", counted)

    async def test(scaler: Scaler[Key], desk: Desk, _changed: list[Key]) -> None:
        policy = Autoscaling(polling_seconds=1, lag_per_replica=10, allow_idle_consumers=True)
        keys = [("n", f"p{number}") for number in range(30)]
        for key in keys:
            desk.lag[key[1]] = 20
            demand = Demand(key=key, resource="nvidia.com/gpu", count=1, wanted=0, current=0)
            asked = ScalingRequest(policy=policy, connection=Connection((key[1],)), ask=Ask(key[1], "g"), demand=demand)
            watch(scaler, key, request=asked, replicas=0)
        await until(lambda: all(scaler.snapshot(key) for key in keys))
        for key in keys:
            snapshot = scaler.snapshot(key)
            assert snapshot is not None
            assert snapshot.decision.replicas == 2
        # Thirty rounds, one for each connection, and a handful of times.
        assert max(shared) == 30
        assert len(shared) <= 4

    scene(test, pool=pool)


def test_told_hears_of_every_poll() -> None:
    async def run() -> None:
        desk, told = Desk(), list[tuple[Key, Observation, Decision]]()
        scaler: Scaler[Key] = Scaler(
            lambda _key: None, reader=desk.open, told=lambda *each: told.append(each), wall=lambda: desk.time
        )
        running = asyncio.create_task(scaler.run())
        watch(scaler)
        await until(lambda: len(told) >= 2)
        assert told[0][0] == KEY
        assert scaler.calls == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 20))
