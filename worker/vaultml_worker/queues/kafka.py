"""Kafka: events from a topic, results to a topic, offsets committed only behind acknowledged results."""

import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as Record
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from vaultml_worker import events
from vaultml_worker.queues.base import Message, Report
from vaultml_worker.queues.offsets import Progress
from vaultml_worker.records import Cause, InvalidInput, PermanentFailure
from vaultml_worker.settings import Settings

_REPEAT_S = 30.0
"""The same trouble is reported again after this long."""
_RETRY_S = 5.0
"""A result that the broker refused is sent again after this long."""
_LOOK_S = 1.0
"""How often to look whether a missing topic has come."""
MOST_UNSENT = 100
"""While so many results can't be sent, no message is taken: memory stays bounded, and nothing is done in vain."""
_PAUSE_S = 1.0
"""How long nothing may be wanted before fetching is paused; the group is kept by polling at this pace."""
_REVOKE_S = 5.0
"""How long a partition that goes elsewhere waits for its results to be acknowledged."""
_ERROR_HEADER_BYTES = 2000


def client_settings(settings: Settings) -> dict[str, Any]:
    """The settings of librdkafka for reaching the brokers, the same for every client of ours."""
    client: dict[str, Any] = {
        "bootstrap.servers": ",".join(settings.kafka_broker),
        "security.protocol": settings.kafka_security,
        "client.id": os.environ.get("HOSTNAME") or socket.gethostname(),
        "log_level": 2,  # what matters comes through error_cb
        "reconnect.backoff.max.ms": 5000,
    }
    if settings.kafka_security.startswith("SASL"):
        client |= {
            "sasl.mechanism": settings.kafka_mechanism,
            "sasl.username": settings.kafka_username,
            "sasl.password": settings.kafka_password.get_secret_value(),
        }
    if settings.kafka_security.endswith("SSL"):
        files = {"ca": settings.kafka_ssl_ca, "certificate": settings.kafka_ssl_cert, "key": settings.kafka_ssl_key}
        client |= {f"ssl.{kind}.location": str(path) for kind, path in files.items() if path}
    return client


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a message stands, and the partition's progress at the time it came."""

    offset: int
    progress: Progress


@dataclass(slots=True)
class _Letter:
    """A result or dead letter on its way to its topic."""

    topic: str
    body: bytes
    headers: list[tuple[str, str | bytes | None]]
    message: Message
    place: _Place
    due: float = 0.0


class KafkaQueue:
    """See Queue. Cooperative rebalancing; a partition that went elsewhere takes its unpublished results with it."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self._topic = settings.queue_name
        self._target = settings.queue_target
        self._dead_letters = settings.dead_letter_target
        self._report = report
        self._reported: dict[str, float] = {}
        self._client = client_settings(settings) | {"error_cb": self._on_error}
        consumer = self._client | {
            "group.id": settings.kafka_group,
            "auto.offset.reset": settings.kafka_offset_reset,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 15_000,
            # A member hears of a rebalance by its heartbeat: new workers get their partitions that much sooner.
            "heartbeat.interval.ms": 500,
            "queued.max.messages.kbytes": 4096,
            "topic.metadata.refresh.interval.ms": 30_000,
            "on_commit": self._on_commit,
        }
        # Sent until acknowledged, however long the broker is away: the offset waits as well.
        producer = self._client | {
            "enable.idempotence": True,
            "message.timeout.ms": 0,
            "linger.ms": 5,
            "topic.metadata.propagation.max.ms": 2000,
        }
        try:
            self._consumer, self._producer = Consumer(consumer), Producer(producer)
        except KafkaException as error:
            raise InvalidInput(f"wrong settings: {REFUSED}: {error.args[0].str()}") from None
        self._progress: dict[int, Progress] = {}
        self._subscribed = False
        self._next_look = 0.0
        self._paused = False
        self._polled = time.monotonic()
        self._stash: list[Message] = []
        self._unsent: list[_Letter] = []
        self._in_flight = 0

    @property
    def joined(self) -> bool:
        """See Queue."""
        return self._subscribed and bool(self._consumer.memberid())

    def receive(self, timeout: float) -> Message | None:
        """See Queue."""
        if self._in_flight + len(self._unsent) >= MOST_UNSENT:
            self.tend(timeout)
            return None
        self._serve(0)
        if self._stash:
            return self._stash.pop(0)
        if not self._subscribed:
            self._consumer.poll(timeout)  # serves error_cb
            if time.monotonic() >= self._next_look:
                self._subscribe()
                self._next_look = time.monotonic() + _LOOK_S
            return None
        if self._paused:
            self._consumer.resume(self._assigned())
            self._paused = False
        return self._poll(timeout)

    def tend(self, timeout: float) -> None:
        """See Queue."""
        self._serve(timeout)
        if self._subscribed and time.monotonic() - self._polled > _PAUSE_S:
            if not self._paused:
                self._consumer.pause(self._assigned())
                self._paused = True
            if message := self._poll(0):
                self._stash.append(message)

    def finish(self, message: Message, result: bytes | None) -> None:
        """See Queue."""
        place = _place(message)
        if place.progress.closed:
            return
        if result is None or not self._target:
            place.progress.finish(place.offset)
        else:
            self._send(_Letter(self._target, result, [], message, place))
        self._commit()

    def reject(self, message: Message, failure: PermanentFailure) -> None:
        """See Queue."""
        place = _place(message)
        if place.progress.closed:
            return
        headers = {"cause": str(failure.cause), "error": failure.message, **message.origin}
        letter = _Letter(self._dead_letters, events.scrub_bytes(message.body), [], message, place)
        for name, value in headers.items():
            letter.headers.append((f"vaultml-{name}", value.encode()[:_ERROR_HEADER_BYTES]))
        self._send(letter)

    def close(self, timeout: float) -> None:
        """See Queue."""
        end = time.monotonic() + timeout
        while (self._in_flight or self._unsent) and time.monotonic() < end:
            self._serve(0.1)
        for progress in self._progress.values():
            progress.again()
        self._commit(wait=True)
        self._consumer.close()
        self._producer.purge()
        self._producer.flush(1)

    def _subscribe(self) -> None:
        """Subscribe once the topics exist: until then a group would be joined for nothing, silently."""
        for name, topic, client in (
            ("QUEUE_NAME", self._topic, self._consumer),
            ("QUEUE_TARGET", self._target, self._producer),
        ):
            if not topic:
                continue
            try:
                found = client.list_topics(topic, timeout=2).topics[topic]
            except KafkaException as error:
                self._on_error(error.args[0])
                return
            if found.error is not None:
                self._trouble(found.error, f"topic {topic} ({name})")
                return
        self._consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        self._subscribed = True

    def _poll(self, timeout: float) -> Message | None:
        record = self._consumer.poll(timeout)
        self._polled = time.monotonic()
        if record is None:
            return None
        if (error := record.error()) is not None:
            self._trouble(error, f"topic {self._topic} (QUEUE_NAME)")
            return None
        return self._message(record)

    def _message(self, record: Record) -> Message | None:
        partition, offset = record.partition(), record.offset()
        if partition is None or offset is None or partition not in self._progress:
            return None  # the partition left while its message lay in the client
        progress = self._progress[partition]
        progress.start(offset)
        origin = {"topic": self._topic, "partition": str(partition), "offset": str(offset)}
        return Message(record.value() or b"", origin, _Place(offset, progress))

    def _send(self, letter: _Letter) -> None:
        def delivered(error: KafkaError | None, _record: Record) -> None:
            self._in_flight -= 1
            self._delivered(letter, error)

        try:
            self._producer.produce(letter.topic, letter.body, headers=letter.headers, on_delivery=delivered)
            self._in_flight += 1
        except BufferError:
            self._retry(letter, 0.1)
        except KafkaException as error:
            self._delivered(letter, error.args[0])

    def _delivered(self, letter: _Letter, error: KafkaError | None) -> None:
        if error is None:
            letter.place.progress.finish(letter.place.offset)
            return
        if error.code() == KafkaError._PURGE_QUEUE:
            return  # closing: not acknowledged, so not committed
        if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE):
            if letter.topic != self._dead_letters:
                said = f"the result of {len(letter.body)} bytes is larger than topic {letter.topic} takes"
                self.reject(letter.message, PermanentFailure(Cause.RESULT_TOO_LARGE, said))
                return
            letter.body = b"withheld: larger than this topic takes"
        missing = letter.topic == self._dead_letters and error.code() in _MISSING_TOPIC
        if missing and self._create_dead_letter_topic():
            self._retry(letter, 0.1)
            return
        self._trouble(error, f"topic {letter.topic}")
        self._retry(letter, _RETRY_S)

    def _retry(self, letter: _Letter, seconds: float) -> None:
        letter.due = time.monotonic() + seconds
        self._unsent.append(letter)

    def _create_dead_letter_topic(self) -> bool:
        """Nobody thinks of this topic before the first poison message: make it, where we may; whether it is there."""
        admin = AdminClient(self._client)
        made = admin.create_topics([NewTopic(self._dead_letters, num_partitions=1)], operation_timeout=10)
        try:
            made[self._dead_letters].result(timeout=15)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return True
            self._trouble(error.args[0], f"topic {self._dead_letters}, which is missing and can't be created")
            return False
        return True

    def _serve(self, timeout: float) -> None:
        """Take in acknowledgements, send again what is due, commit."""
        self._producer.poll(timeout)
        now = time.monotonic()
        due = [letter for letter in self._unsent if letter.due <= now]
        if due:
            self._unsent = [letter for letter in self._unsent if letter.due > now]
            for letter in due:
                if not letter.place.progress.closed:
                    self._send(letter)
        self._commit()

    def _commit(self, *, wait: bool = False) -> None:
        offsets = [
            TopicPartition(self._topic, partition, offset)
            for partition, progress in self._progress.items()
            if (offset := progress.advance()) is not None
        ]
        if not offsets:
            return
        try:
            if wait:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._on_commit(error.args[0], offsets)

    def _assigned(self) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in self._progress]

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        for item in partitions:
            self._progress[item.partition] = Progress()
        if self._paused:
            consumer.pause(partitions)
        else:  # librdkafka remembers a pause across losing a partition and getting it back
            consumer.resume(partitions)

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # What is published is committed before the next owner asks from where to go on, or it would be done twice.
        end = time.monotonic() + _REVOKE_S
        while self._in_flight and time.monotonic() < end:
            self._producer.poll(0.1)
        for item in partitions:
            if (progress := self._progress.get(item.partition)) is not None:
                progress.again()  # a commit on its way may have met the rebalance
        self._commit(wait=True)
        self._on_lost(_consumer, partitions)

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for item in partitions:
            if (progress := self._progress.pop(item.partition, None)) is not None:
                progress.closed = True
        self._stash = [message for message in self._stash if not _place(message).progress.closed]

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        for item in offsets:
            if (error or item.error) and (progress := self._progress.get(item.partition)) is not None:
                progress.again()
        # A commit that fails in a rebalance is no news: it is made again, or the next owner repeats the work.
        if error is not None and error.code() not in _REBALANCING:
            self._trouble(error, "committing offsets")

    def _on_error(self, error: KafkaError) -> None:
        self._trouble(error, f"brokers {self._client['bootstrap.servers']}")

    def _trouble(self, error: KafkaError, what: str) -> None:
        """Report what is wrong and what to do, the same thing not more often than every half minute."""
        told = advice(error)
        now = time.monotonic()
        if now - self._reported.get(f"{error.name()} {told}", -_REPEAT_S) >= _REPEAT_S:
            self._reported[f"{error.name()} {told}"] = now
            said = f"{': '.join(told)}; waiting" if told else error.str()
            self._report(f"Kafka, {what}: {said} [{error.name()}: {error.str()}]")


def _place(message: Message) -> _Place:
    assert isinstance(message.token, _Place)
    return message.token


def advice(error: KafkaError) -> tuple[str, str] | None:
    """What an error means and what to do, where we know."""
    return next(((meaning, todo) for codes, meaning, todo in _ADVICE if error.code() in codes), None)


REFUSED = "the Kafka client refuses the KAFKA_ variables"
_MISSING_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
_REBALANCING = (
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError._NO_OFFSET,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._WAIT_COORD,
    KafkaError._DESTROY,
)
_ADVICE = (
    (
        (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED),
        "authentication failed",
        "check KAFKA_USERNAME, KAFKA_PASSWORD and KAFKA_MECHANISM",
    ),
    (
        (KafkaError._SSL,),
        "TLS failed",
        "check that KAFKA_SSL_CA holds the CA that signed the brokers' certificate, and that KAFKA_BROKER uses the "
        "names in it",
    ),
    (_MISSING_TOPIC, "the topic does not exist", "create it, or correct the name"),
    (
        (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._TIMED_OUT),
        "not reachable",
        "check KAFKA_BROKER and KAFKA_SECURITY, and that the brokers run",
    ),
    (
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED),
        "the user may not do this",
        "allow it to read QUEUE_NAME in KAFKA_GROUP and to write QUEUE_TARGET",
    ),
    (
        (KafkaError.INCONSISTENT_GROUP_PROTOCOL,),
        "KAFKA_GROUP is in use by consumers of another kind (hub-ml?)",
        "stop them first, or use another group",
    ),
)
