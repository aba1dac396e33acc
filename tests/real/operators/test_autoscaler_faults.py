"""Fault tests on the real parts: each fault has one defined outcome, in words, and none scales to zero."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition

from testbed.kafka import Broker, available
from testbed.kubernetes import Cluster
from testbed.operator import Operator, Pipelines
from testbed.process import wait_for
from tests.parts import need
from tests.real.operators.lagging import Farm, Queue, body, polls, scaling, wait_scaling, wait_workers, workers
from vaultml_operator.api import Autoscaling, AutoscalingStatus, ScaleIn
from vaultml_operator.autoscaler import measurements
from vaultml_operator.autoscaler.lag import Ask, Reading, ReadingFailed, open_reader
from vaultml_operator.autoscaler.lag import kafka as kafka_lag
from vaultml_operator.autoscaler.scaler import Scaler, ScalingRequest, Snapshot
from vaultml_operator.probes import Connection


@pytest.fixture
def farm(crds: Cluster) -> Iterator[Farm]:
    made = Farm(crds)
    made.add(8)
    yield made
    made.remove()


@pytest.fixture
def own() -> Iterator[Broker]:
    """A broker that the test may stop."""
    need(available())
    with Broker() as broker:
        yield broker


def test_a_broker_that_is_away_changes_no_number_and_heals(
    own: Broker, farm: Farm, pipelines: Pipelines, operator: Operator
) -> None:
    queue = Queue(own)
    pipelines.apply(body(queue, farm, minReplicas=0, cooldownSeconds=0))
    queue.pour(40)
    wait_workers(pipelines, 4)
    own.stop()
    said = pipelines.wait("p", "LagUnknown", "ScalingLimited", timeout=60)
    assert "the lag can't be read" in said["message"]
    assert "error" in scaling(pipelines)
    polls(pipelines, operator, 3)
    assert workers(pipelines) == 4
    own.start()
    wait_scaling(pipelines, lag=40, desiredReplicas=4, timeout=60)
    wait_for(lambda: "error" not in scaling(pipelines), 30, "no more trouble")
    queue.commit()
    wait_workers(pipelines, 0)


def test_after_so_many_failures_the_fallback_counts_and_gpus_still_bound_it(
    own: Broker, farm: Farm, pipelines: Pipelines
) -> None:
    queue = Queue(own)
    fallback = {"failures": 2, "behavior": "Static", "replicas": 50}
    pipelines.apply(body(queue, farm, fallback=fallback))
    wait_scaling(pipelines, desiredReplicas=1)
    own.stop()
    wait_workers(pipelines, 8, timeout=90)
    wait_scaling(pipelines, limitedBy="gpus")


def test_a_wrong_password_changes_no_number(kafka: Broker, farm: Farm, pipelines: Pipelines) -> None:
    queue = Queue(kafka)
    made = body(queue, farm)
    made["spec"]["queue"]["kafka"] |= {
        "brokers": [kafka.sasl_plaintext],
        "security": "SASL_PLAINTEXT",
        "credentialsSecretRef": {"name": "login"},
    }
    pipelines.secret("login", username=kafka.username, password=kafka.password)
    pipelines.apply(made)
    queue.pour(40)
    wait_workers(pipelines, 4)
    pipelines.secret("login", username=kafka.username, password="not-this-one")
    pipelines.wait("p", "LagUnknown", "ScalingLimited", timeout=60)
    pipelines.wait("p", "AuthenticationFailed", timeout=60)
    assert workers(pipelines) == 4
    assert "not-this-one" not in pipelines.kubectl("get", "vmlp,events.events.k8s.io", "-o", "yaml")
    pipelines.secret("login", username=kafka.username, password=kafka.password)
    wait_scaling(pipelines, lag=40, timeout=60)


def test_a_topic_that_is_made_anew_counts_from_its_start(
    kafka: Broker, farm: Farm, pipelines: Pipelines, operator: Operator
) -> None:
    queue = Queue(kafka, partitions=4)
    pipelines.apply(body(queue, farm))
    queue.pour(30)
    wait_workers(pipelines, 3)
    queue.admin.delete_topics([queue.name])[queue.name].result(30)
    said = pipelines.wait("p", "LagUnknown", "ScalingLimited", timeout=60)
    assert f"Kafka has no topic {queue.name}" in said["message"]
    polls(pipelines, operator, 3)
    assert workers(pipelines) == 3
    kafka.create_topic(queue.name, 4)
    queue.pour(20)
    wait_scaling(pipelines, lag=20, desiredReplicas=2, timeout=60)
    wait_workers(pipelines, 2)


def test_a_deleted_group_and_commits_beyond_the_end_follow_the_reset_policy(
    kafka: Broker, farm: Farm, pipelines: Pipelines
) -> None:
    queue = Queue(kafka, partitions=4)
    pipelines.apply(body(queue, farm))
    queue.pour(40)
    queue.commit()
    wait_scaling(pipelines, lag=0, desiredReplicas=1)
    queue.admin.delete_consumer_groups([queue.group])[queue.group].result(30)
    # Consumers would begin at the start again: so much waits.
    wait_scaling(pipelines, lag=40, desiredReplicas=4)
    queue.commit()
    wait_scaling(pipelines, lag=0, desiredReplicas=1)
    queue.commit(0, beyond=1000)
    wait_scaling(pipelines, lag=10, desiredReplicas=1)
    from_end = body(queue, farm)
    from_end["spec"]["queue"]["kafka"]["offsetReset"] = "latest"
    pipelines.apply(from_end)
    wait_scaling(pipelines, lag=0)


async def scaled(
    queue: Queue, until: Callable[[Snapshot], bool], turn: Callable[[int], None], **policy: Any
) -> Snapshot:
    """Scale a queue on the real broker with four workers, until a snapshot is as wanted; `turn` hears of each poll."""
    key, polls = ("n", "p"), 0
    scaler: Scaler[tuple[str, str]] = Scaler(lambda _key: None, wall=lambda: clock.time())
    asked = ScalingRequest(
        policy=Autoscaling(polling_seconds=1, lag_per_replica=10, drain_seconds=None, **policy),
        connection=Connection((queue.broker.plaintext,)),
        ask=Ask(queue.name, queue.group),
        demand=None,
    )
    running = asyncio.create_task(scaler.run())
    try:
        async with asyncio.timeout(60):
            before = None
            while True:
                replicas = 4 if before is None else before.replicas
                scaler.watch(key, asked, replicas=replicas, ready=replicas, status=AutoscalingStatus())
                snapshot = scaler.snapshot(key)
                if snapshot is not None and snapshot.decision is not before:
                    before, polls = snapshot.decision, polls + 1
                    if until(snapshot):
                        return snapshot
                    turn(polls)
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_a_poison_partition_gets_one_worker_and_wakes_no_more(kafka: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With patience shortened: two minutes otherwise."""
    monkeypatch.setattr(measurements, "STUCK_S", 3.0)
    queue = Queue(kafka, partitions=4)
    queue.pour(80, partitions=[0])
    snapshot = asyncio.run(scaled(queue, lambda snapshot: snapshot.status.stuck_partitions == 1, lambda _poll: None))
    assert snapshot.decision.needed == 1
    assert snapshot.status.stuck_lag == 80


def test_a_clock_that_jumps_moves_no_worker(kafka: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(kafka, partitions=8)
    queue.pour(40)
    numbers: list[int] = []

    def turn(poll: int) -> None:
        # A day ahead, two days back, and where it was.
        clock.shift = {3: 86_400.0, 6: -86_400.0, 9: 0.0}.get(poll, clock.shift)
        if poll == 12:
            queue.commit()

    def seen(snapshot: Snapshot) -> bool:
        numbers.append(snapshot.decision.replicas)
        return snapshot.decision.replicas == 1

    monkeypatch.setattr(kafka_lag, "time", clock)
    direction = ScaleIn(stabilization_seconds=0)
    asyncio.run(scaled(queue, seen, turn, scale_in=direction))
    assert set(numbers[:12]) == {4}


class _Clock:
    """This machine's clock, shifted as the test likes."""

    shift = 0.0

    def time(self) -> float:
        return time.time() + self.shift

    def monotonic(self) -> float:
        return time.monotonic()


clock = _Clock()


def test_markers_of_transactions_are_no_lag(kafka: Broker) -> None:
    queue = Queue(kafka, partitions=1)
    producer = Producer({"bootstrap.servers": kafka.plaintext, "transactional.id": queue.name, "log_level": 0})
    producer.init_transactions(30)
    reader = open_reader(Connection((kafka.plaintext,)))
    ask = Ask(queue.name, queue.group)
    try:
        for number in range(2):
            producer.begin_transaction()
            producer.produce(queue.name, b"{}")
            producer.commit_transaction(30)
            member = queue.member("m", subscribe=False)
            # As a consumer does it: behind the message, not behind the marker.
            member.commit(offsets=[TopicPartition(queue.name, 0, 2 * number + 1)], asynchronous=False)
            member.close()

            def lag() -> int | None:
                found = reader.read([ask])[ask]
                assert isinstance(found, Reading)
                return found.lag

            wait_for(lambda: lag() == 0, 30, "a lag of nothing")
        producer.begin_transaction()
        producer.produce(queue.name, b"{}")
        producer.commit_transaction(30)
        wait_for(lambda: (lag() or 0) > 0, 30, "the next message to count")
    finally:
        reader.close()


def test_one_that_may_not_be_read_is_no_other_ones_trouble(kafka: Broker) -> None:
    good, ask = Queue(kafka), Ask("no-such-topic", "g")
    good.pour(5)
    reader = open_reader(Connection((kafka.plaintext,)))
    try:
        known = Ask(good.name, good.group)
        found = reader.read([ask, known, replace(known, from_start=False)])
    finally:
        reader.close()
    assert found[ask] == ReadingFailed("the lag can't be read: Kafka has no topic no-such-topic")
    reading, from_end = found[known], found[replace(known, from_start=False)]
    assert isinstance(reading, Reading)
    assert isinstance(from_end, Reading)
    assert (reading.lag, from_end.lag) == (5, 0)


def test_a_node_that_vanishes_while_workers_start_leaves_no_pod_waiting_for_ever(
    kafka: Broker, farm: Farm, pipelines: Pipelines
) -> None:
    queue = Queue(kafka)
    extra = farm.add(4)
    queue.pour(100)
    more = body(queue, farm, allowIdleConsumers=True)
    pipelines.apply(more)
    wait_workers(pipelines, 10)
    extra.remove()
    wait_workers(pipelines, 8, timeout=120)
    wait_for(
        lambda: all(pod["status"]["phase"] == "Running" for pod in pipelines.all("pods")), 120, "no pod to be pending"
    )
    wait_for(lambda: scaling(pipelines)["desiredReplicas"] == 8, 30, "eight to be wanted")  # from the next poll on
