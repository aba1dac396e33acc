"""Whether a worker could do its work on Kafka: reach it, log in, find its topics, read its group's offsets."""

import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from vaultml_worker.queues.kafka import REFUSED, advice, client_settings
from vaultml_worker.records import Finding, State
from vaultml_worker.settings import Settings

_SECONDS = 6.0
"""A broker that was not reached is tried again for so long."""
_FIRM = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL)
"""To try these again would give the same."""


def check(settings: Settings) -> list[Finding]:
    """Takes at most twice `_SECONDS`; joins no group, commits nothing, creates no topic."""
    heard: list[KafkaError] = []
    client = client_settings(settings) | {"group.id": settings.kafka_group, "error_cb": heard.append}
    try:
        consumer = Consumer(client)
    except KafkaException as error:
        return [
            Finding("broker", State.WRONG, f"{REFUSED}: {error.args[0].str()}", "correct or unset the one it names")
        ]
    try:
        return list(_look(consumer, settings, heard))
    finally:
        consumer.close()


def _look(consumer: Consumer, settings: Settings, heard: list[KafkaError]) -> Iterator[Finding]:
    brokers = ", ".join(settings.kafka_broker)
    found = _reach(consumer, settings.queue_name, heard)
    if isinstance(found, KafkaError):
        yield _wrong("broker", brokers, found)
        return
    yield Finding("broker", State.OK, f"{brokers}: answers, {_counted(len(found.brokers), 'broker')}")
    yield (queue := _topic("queue", found, settings.queue_name))
    if not settings.queue_target:
        yield Finding("results", State.WARNING, "reach only the log and the metrics", "set QUEUE_TARGET to their topic")
    else:
        try:
            yield _topic("results", consumer.list_topics(settings.queue_target, _SECONDS / 2), settings.queue_target)
        except KafkaException as error:
            yield _wrong("results", settings.queue_target, error.args[0])
    if queue.state is State.OK:
        partitions = sorted(found.topics[settings.queue_name].partitions)
        yield _group(consumer, settings, [TopicPartition(settings.queue_name, number) for number in partitions])


def _reach(consumer: Consumer, topic: str, heard: list[KafkaError]) -> Any:
    """The cluster's metadata with the topic's, or the KafkaError that tells most."""
    end = time.monotonic() + _SECONDS
    while True:
        try:
            return consumer.list_topics(topic, timeout=1)
        except KafkaException as error:
            consumer.poll(0)  # serves error_cb
            firm = [one for one in heard if one.code() in _FIRM]
            if firm or time.monotonic() > end:
                telling = [one for one in heard if one.code() != KafkaError._ALL_BROKERS_DOWN]
                return [*firm, *telling, error.args[0]][0]


def _topic(name: str, cluster: Any, topic: str) -> Finding:
    found = cluster.topics[topic]
    if found.error is not None:
        return _wrong(name, topic, found.error)
    return Finding(name, State.OK, f"topic {topic}, {_counted(len(found.partitions), 'partition')}")


def _group(consumer: Consumer, settings: Settings, places: list[TopicPartition]) -> Finding:
    try:
        committed = consumer.committed(places, timeout=_SECONDS / 2)
    except KafkaException as error:
        return _wrong("group", settings.kafka_group, error.args[0])
    for place in committed:
        if place.error is not None:
            return _wrong("group", settings.kafka_group, place.error)
    begun = sum(place.offset >= 0 for place in committed)
    found = f"{settings.kafka_group}: may be read, has commits in {begun} of {len(places)} partitions"
    return Finding("group", State.OK, found)


def _wrong(name: str, what: str, error: KafkaError) -> Finding:
    meaning, todo = advice(error) or ("an error", "check KAFKA_BROKER and KAFKA_SECURITY, and the brokers' log")
    return Finding(name, State.WRONG, f"{what}: {meaning} [{error.name()}: {error.str()}]", todo)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
