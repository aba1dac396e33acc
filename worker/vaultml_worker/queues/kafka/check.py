"""The check of Kafka for a worker: reachable, login, topics, rights, group."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

# Also in confluent_kafka.admin, but not for type checkers.
from confluent_kafka.admin._acl import AclOperation

from vaultml_common.kafka import Trouble, trouble
from vaultml_common.text import counted
from vaultml_worker.queues.base import Names
from vaultml_worker.queues.kafka.advice import REFUSED, advice
from vaultml_worker.queues.kafka.settings import KafkaSettings
from vaultml_worker.records import Finding, State

_SECONDS = 6.0
"""A broker that was not reached is tried again for so long."""
_FIRM = (Trouble.LOGIN_REFUSED, Trouble.TLS_FAILED)
"""A retry would give the same."""


def check(names: Names, settings: KafkaSettings) -> list[Finding]:
    """See System. Takes at most three times `_SECONDS`; joins no group, commits nothing, creates no topic."""
    errors: list[KafkaError] = []
    client = settings.client() | {"error_cb": errors.append}
    try:
        consumer = Consumer(client | {"group.id": settings.kafka_group})
    except KafkaException as error:
        return [
            Finding("broker", State.WRONG, f"{REFUSED}: {error.args[0].str()}", "correct or unset the one it names")
        ]
    try:
        return list(_look(consumer, names, settings, errors))
    finally:
        consumer.close()


def _look(consumer: Consumer, names: Names, settings: KafkaSettings, errors: list[KafkaError]) -> Iterator[Finding]:
    brokers = ", ".join(settings.kafka_broker)
    found = _reach(consumer, names.source, errors)
    if isinstance(found, KafkaError):
        yield _wrong("broker", brokers, found)
        return
    yield Finding("broker", State.OK, f"{brokers}: answers, {counted(len(found.brokers), 'broker')}")
    rights = _Rights(settings)
    queue = _topic("queue", found, names.source)
    yield rights.checked(queue, names.source, AclOperation.READ)
    if not names.target:
        yield Finding("results", State.WARNING, "reach only the log and the metrics", "set QUEUE_TARGET to their topic")
    else:
        try:
            target = _topic("results", consumer.list_topics(names.target, _SECONDS / 2), names.target)
            yield rights.checked(target, names.target, AclOperation.WRITE)
        except KafkaException as error:
            yield _wrong("results", names.target, error.args[0])
    yield from _dead_letters(consumer, names.dead_letters, rights)
    if queue.state is State.OK:
        partitions = sorted(found.topics[names.source].partitions)
        finding = _group(consumer, settings, [TopicPartition(names.source, number) for number in partitions])
        yield rights.of_group(finding, settings.kafka_group)


def _dead_letters(consumer: Consumer, topic: str, rights: "_Rights") -> Iterator[Finding]:
    """Yield a finding only for a topic that is there and can't be written to: a missing one is created when needed."""
    try:
        there = consumer.list_topics(topic, _SECONDS / 2)
    except KafkaException as error:
        yield _wrong("dead letters", topic, error.args[0])
        return
    refused = there.topics[topic].error
    if refused is not None and trouble(refused) is not Trouble.TOPIC_MISSING:
        yield _wrong("dead letters", topic, refused)
    elif refused is None:
        finding = rights.checked(_topic("dead letters", there, topic), topic, AclOperation.WRITE)
        if finding.state is not State.OK:
            yield finding


class _Rights:
    """The rights of the user, as the broker reports them; without an authorizer it has all."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._admin = AdminClient(settings.client() | {"error_cb": lambda _error: None})

    def checked(self, finding: Finding, topic: str, needed: AclOperation) -> Finding:
        """Return the finding on a topic, or one that names the right that is missing there."""
        if finding.state is not State.OK:
            return finding
        asked: dict[str, Future[Any]] = self._admin.describe_topics(
            TopicCollection([topic]), include_authorized_operations=True, request_timeout=_SECONDS / 2
        )
        try:
            allowed = asked[topic].result(_SECONDS).authorized_operations
        except (KafkaException, TimeoutError):
            return finding  # a broker that does not tell, as the embedded one
        if not allowed or needed in allowed or AclOperation.ALL in allowed:
            return finding
        found = f"topic {topic}: the user lacks the right {needed.name.capitalize()}"
        return Finding(finding.name, State.WRONG, found, f"grant {needed.name.capitalize()} on {topic}")

    def of_group(self, finding: Finding, group: str) -> Finding:
        """Return the finding on the group, or one that names the right that is missing there."""
        asked: dict[str, Future[Any]] = self._admin.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=_SECONDS / 2
        )
        try:
            allowed = asked[group].result(_SECONDS).authorized_operations
        except (KafkaException, TimeoutError):
            return finding
        if finding.state is not State.OK or not allowed or {AclOperation.READ, AclOperation.ALL} & set(allowed):
            return finding
        return Finding(
            finding.name, State.WRONG, f"group {group}: the user lacks the right Read", f"grant Read on group {group}"
        )


def _reach(consumer: Consumer, topic: str, errors: list[KafkaError]) -> Any:
    """The cluster's metadata with the topic's, or the most specific KafkaError."""
    end = time.monotonic() + _SECONDS
    while True:
        try:
            return consumer.list_topics(topic, timeout=1)
        except KafkaException as error:
            consumer.poll(0)  # serves error_cb
            firm = [one for one in errors if trouble(one) in _FIRM]
            if firm or time.monotonic() > end:
                specific = [one for one in errors if one.code() != KafkaError._ALL_BROKERS_DOWN]
                return [*firm, *specific, error.args[0]][0]


def _topic(name: str, cluster: Any, topic: str) -> Finding:
    found = cluster.topics[topic]
    if found.error is not None:
        return _wrong(name, topic, found.error)
    return Finding(name, State.OK, f"topic {topic}, {counted(len(found.partitions), 'partition')}")


def _group(consumer: Consumer, settings: KafkaSettings, places: list[TopicPartition]) -> Finding:
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
