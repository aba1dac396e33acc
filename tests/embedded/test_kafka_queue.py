"""The queue on Kafka when its client fails for good, and what it reports."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from testbed.process import wait_for
from vaultml_common.kafka import dead_letter_topic
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.queues import Ended, Ending, Message, Names
from vaultml_worker.queues.kafka import queue as queue_
from vaultml_worker.queues.kafka.queue import KafkaQueue
from vaultml_worker.queues.kafka.reader import follow
from vaultml_worker.queues.kafka.settings import KafkaSettings

WAIT_S = 60


@dataclass
class Seen:
    """An observer that keeps what it is told."""

    troubles: list[str] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    def trouble(self, sentence: str) -> None:
        self.troubles.append(sentence)

    def ended(self, ending: Ending) -> None:
        self.endings.append(ending)

    def done(self) -> set[bytes]:
        return {ending.message.body for ending in self.endings if ending.how is Ended.PUBLISHED}

    def count(self) -> Counter[Ended]:
        return Counter(ending.how for ending in self.endings)


@dataclass
class Faults:
    """Which calls fail for good: `left` polls of the consumer or the producer are yet to fail."""

    consumer: int = 0
    producer: int = 0

    def due(self, kind: str) -> bool:
        left: int = getattr(self, kind)
        setattr(self, kind, max(0, left - 1))
        return left > 0


def fatal() -> KafkaException:
    return KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "planted", fatal=True))


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    faults = Faults()

    class FaultyConsumer(Consumer):
        def poll(self, *args: Any) -> Any:
            if faults.due("consumer"):
                raise fatal()
            return super().poll(*args)

    class FaultyProducer(Producer):
        broken = False

        def poll(self, *args: Any) -> Any:
            if faults.due("producer"):
                self.broken = True
                raise fatal()
            return super().poll(*args)

        def produce(self, *args: Any, **options: Any) -> Any:
            if self.broken:  # as librdkafka does it: the error itself is raised once
                raise KafkaException(KafkaError(KafkaError._FATAL))
            return super().produce(*args, **options)

    monkeypatch.setattr("vaultml_worker.queues.kafka.queue.Consumer", FaultyConsumer)
    monkeypatch.setattr("vaultml_worker.queues.kafka.outbox.Producer", FaultyProducer)
    monkeypatch.setattr(queue_, "_REBUILD_S", 0.2)
    return faults


@pytest.fixture
def site(broker: EmbeddedBroker) -> Iterator[tuple[Names, KafkaSettings, Producer]]:
    name = uuid4().hex[:8]
    names = Names(f"in-{name}", f"out-{name}", dead_letter_topic(f"in-{name}", f"out-{name}"))
    broker.create(names.source, names.target, names.dead_letters)
    settings = KafkaSettings(kafka_broker=(broker.address,), kafka_group=f"group-{name}")
    yield names, settings, Producer({"bootstrap.servers": broker.address})


def published(broker: EmbeddedBroker, topic: str) -> list[bytes]:
    bodies = follow({"bootstrap.servers": broker.address}, topic, threading.Event(), to_the_end=True)
    return sorted(body for body in bodies if body is not None)


def receive(queue: KafkaQueue, count: int) -> list[Message]:
    given: list[Message] = []
    end = time.monotonic() + WAIT_S
    while len(given) < count:
        assert time.monotonic() < end
        if message := queue.receive(0.1):
            given.append(message)
    return given


def work(queue: KafkaQueue, seen: Seen, until: Callable[[], bool]) -> None:
    """Answer each message with its own body until a condition holds."""
    end = time.monotonic() + WAIT_S
    while not until():
        assert time.monotonic() < end, f"in vain: {seen.troubles}"
        if message := queue.receive(0.05):
            queue.publish(message, message.body)


def test_clients_that_fail_for_good_are_replaced_and_nothing_is_lost(
    broker: EmbeddedBroker, site: tuple[Names, KafkaSettings, Producer], faults: Faults
) -> None:
    """One test, for each new client takes seconds to join."""
    names, settings, producer = site
    seen = Seen()
    queue = KafkaQueue(names, settings, seen)
    bodies: set[bytes] = set()

    def send(first: int) -> None:
        for number in range(first, first + 20):
            producer.produce(names.source, b"%d" % number, partition=number % 4)
            bodies.add(b"%d" % number)
        producer.flush(10)

    send(0)
    held = receive(queue, 3)
    for number, client in enumerate(("consumer", "producer")):
        send(20 * (number + 1))
        setattr(faults, client, 1)
        work(queue, seen, lambda: seen.done() >= bodies and queue.joined)
        assert queue.healthy
    for message in held:  # they were given back: what comes of them now is nobody's
        queue.publish(message, b"late")
        queue.dead_letter(message, Failure(Cause.NOT_FOUND, "late"))
    assert seen.count()[Ended.GIVEN_BACK] >= len(held)
    assert any("planted" in trouble and "replaced" in trouble for trouble in seen.troubles)

    # Replaced in vain, the queue is unhealthy until it works.
    faults.producer = 2
    wait_for(lambda: queue.receive(0.02) is None and not queue.healthy, WAIT_S, "the queue to be unhealthy")
    assert not queue.joined
    send(60)
    work(queue, seen, lambda: seen.done() >= bodies)
    assert queue.healthy
    queue.close(10)
    assert len({id(ending.message) for ending in seen.endings}) == len(seen.endings)
    assert set(published(broker, names.target)) == bodies
    assert published(broker, names.dead_letters) == []


def test_every_outcome_is_reported_once_it_is_durable(
    broker: EmbeddedBroker, site: tuple[Names, KafkaSettings, Producer]
) -> None:
    names, settings, producer = site
    seen = Seen()
    queue = KafkaQueue(names, settings, seen)
    for body in (b"good", None, b"bad", b"", b"open"):
        producer.produce(names.source, body, partition=0)
    producer.flush(10)
    given = receive(queue, 4)
    good, bad, empty, _ = given
    assert [message.body for message in given] == [b"good", b"bad", b"", b"open"]
    assert seen.count() == {Ended.SKIPPED: 1}
    queue.publish(good, b"result")
    queue.dead_letter(bad, Failure(Cause.NOT_FOUND, "gone"))
    queue.publish(empty, None)
    wait_for(lambda: queue.tend(0.05) is None and len(seen.endings) == 4, WAIT_S, "the outcomes")  # type: ignore[func-returns-value]
    queue.close(10)
    reported = {ending.message.body: (ending.how, ending.failure and ending.failure.cause) for ending in seen.endings}
    assert reported[b"good"] == (Ended.PUBLISHED, None)
    assert reported[b"bad"] == (Ended.DEAD_LETTERED, Cause.NOT_FOUND)
    assert reported[b"open"] == (Ended.GIVEN_BACK, None)
    assert seen.count() == {Ended.SKIPPED: 1, Ended.PUBLISHED: 2, Ended.DEAD_LETTERED: 1, Ended.GIVEN_BACK: 1}
    assert published(broker, names.target) == [b"result"]
    group = Consumer({"bootstrap.servers": broker.address, "group.id": settings.kafka_group})
    [place] = group.committed([TopicPartition(names.source, 0)], timeout=10)
    group.close()
    assert place.offset == 4  # what was given back comes again, and nothing else


def test_latest_begins_at_the_end_once_only(
    broker: EmbeddedBroker, site: tuple[Names, KafkaSettings, Producer]
) -> None:
    """What comes while partitions go from one worker to another, before the first commit, is not skipped."""
    names, settings, producer = site
    latest = settings.model_copy(update={"kafka_offset_reset": "latest"})
    group = Consumer({"bootstrap.servers": broker.address, "group.id": settings.kafka_group})
    places = [TopicPartition(names.source, number) for number in range(4)]

    def send(*bodies: bytes) -> None:
        for number, body in enumerate(bodies):
            producer.produce(names.source, body, partition=number % 4)
        producer.flush(10)

    def begun() -> bool:
        assert queue.receive(0.05) is None
        return all(place.offset >= 0 for place in group.committed(places, timeout=10))

    send(b"before", b"before")
    queue = KafkaQueue(names, latest, Seen())
    wait_for(begun, WAIT_S, "the first worker to have its partitions")
    queue.close(10)
    bodies = {b"%d" % number for number in range(8)}
    send(*sorted(bodies))
    queue = KafkaQueue(names, latest, Seen())
    assert {message.body for message in receive(queue, 8)} == bodies
    queue.close(10)
    group.close()
