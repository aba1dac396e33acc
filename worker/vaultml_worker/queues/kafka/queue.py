"""Events from a topic, offsets committed only behind acknowledged results."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from vaultml_common.kafka import Trouble, fatal, trouble
from vaultml_worker import events
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.queues.base import Ended, Ending, Message, Names, QueueObserver
from vaultml_worker.queues.kafka.advice import REFUSED, advice
from vaultml_worker.queues.kafka.offsets import Progress
from vaultml_worker.queues.kafka.outbox import Outbox, OutboxEntry
from vaultml_worker.queues.kafka.settings import KafkaSettings
from vaultml_worker.records import InvalidInput

_REPEAT_S = 30.0
"""The same trouble is reported again after this long."""
_LOOK_S = 1.0
"""How often to look whether a missing topic has come."""
MOST_UNSENT = 100
"""While so many results can't be sent, no message is taken: memory stays bounded, and nothing is done in vain."""
_PAUSE_S = 1.0
"""How long nothing may be wanted before fetching is paused; the group is kept by polling at this pace."""
_REVOKE_S = 5.0
"""How long a partition that goes elsewhere waits for its results to be acknowledged."""
_ERROR_HEADER_BYTES = 2000
_REBUILD_S = 5.0
"""A client that failed for good is replaced after this long; at once the first time."""
_SOUND_S = 30.0
"""A new client that has worked for this long counts as sound, also where there was nothing to publish."""
_TRIES = 3
_OFFSETS_S = 10.0
"""How long a broker may take to say a partition's end, or the group's position in it."""
_FIRM = (Trouble.LOGIN_REFUSED, Trouble.TLS_FAILED)
"""What these say of the brokers is more than that they are not reachable."""
_REBALANCING = (
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError._NO_OFFSET,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._WAIT_COORD,
    KafkaError._DESTROY,
)


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a message stands, and the partition's progress at the time it came."""

    offset: int
    progress: Progress


class KafkaQueue:
    """See Queue. Cooperative rebalancing; a partition that went elsewhere takes its unpublished results with it.

    A client that fails for good is replaced by a new one; what was not acknowledged comes again from the last commit.
    """

    def __init__(self, names: Names, settings: KafkaSettings, observer: QueueObserver) -> None:
        self._names = names
        self._group = settings.kafka_group
        self._observer = observer
        self._reported: dict[str, float] = {}
        self._firm_at = -_REPEAT_S
        self._from_end = settings.kafka_offset_reset == "latest"
        self._client = settings.client() | {"error_cb": self._on_error}
        self._consumer_settings = self._client | {
            "group.id": settings.kafka_group,
            "auto.offset.reset": settings.kafka_offset_reset,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 15_000,
            # A member learns of a rebalance by its heartbeat: new workers get their partitions that much sooner.
            "heartbeat.interval.ms": 500,
            "queued.max.messages.kbytes": 4096,
            "topic.metadata.refresh.interval.ms": 30_000,
            "on_commit": self._on_commit,
        }
        self._open: dict[Message, None] = {}
        """Messages that were given and whose outcome was not reported yet, in their order."""
        self._rebuilt = 0
        """Clients in a row that failed before they did anything."""
        self._rebuild_at: float | None = None
        try:
            self._start()
        except KafkaException as error:
            raise InvalidInput(f"wrong settings: {REFUSED}: {error.args[0].str()}") from None

    def _start(self) -> None:
        self._progress: dict[int, Progress] = {}
        self._subscribed = False
        self._next_look = 0.0
        self._paused = False
        self._polled = time.monotonic()
        self._buffer: list[Message] = []
        self._started = time.monotonic()
        self._outbox = Outbox(
            self._client,
            self._names.dead_letters,
            wanted=lambda entry: not _position(entry.message).progress.closed,
            on_durable=self._on_durable,
            on_too_large=self._on_too_large,
            on_trouble=self._trouble,
        )
        self._consumer = Consumer(self._consumer_settings)

    @property
    def joined(self) -> bool:
        """See Queue."""
        return self._rebuild_at is None and self._subscribed and bool(self._consumer.memberid())

    @property
    def healthy(self) -> bool:
        """See Queue."""
        return self._rebuilt < 2

    def receive(self, timeout: float) -> Message | None:
        """See Queue."""
        if self._outbox.pending >= MOST_UNSENT or self._rebuild_at is not None:
            self.tend(timeout)
            return None
        with self._surviving():
            return self._receive(timeout)
        return None  # type: ignore[unreachable]  # mypy takes the block for one that always returns

    def _receive(self, timeout: float) -> Message | None:
        self._serve(0)
        if self._rebuilt and self.joined and time.monotonic() - self._started > _SOUND_S:
            self._rebuilt = 0
        if self._buffer:
            return self._buffer.pop(0)
        if not self._subscribed:
            self._poll(timeout)  # serves error_cb
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
        if self._rebuild_at is not None:
            time.sleep(min(timeout, max(0.0, self._rebuild_at - time.monotonic())))
            self._rebuild()
            return
        with self._surviving():
            self._serve(timeout)
            if self._subscribed and time.monotonic() - self._polled > _PAUSE_S:
                if not self._paused:
                    self._consumer.pause(self._assigned())
                    self._paused = True
                if message := self._poll(0):
                    self._buffer.append(message)

    def publish(self, message: Message, result: bytes | None) -> None:
        """See Queue."""
        position = _position(message)
        if position.progress.closed:
            return
        with self._surviving():
            if result is None or not self._names.target:
                self._finish(message, Ended.PUBLISHED)
            else:
                self._outbox.send(OutboxEntry(self._names.target, result, message))
            self._commit()

    def dead_letter(self, message: Message, failure: Failure) -> None:
        """See Queue."""
        if not _position(message).progress.closed:
            with self._surviving():
                self._send_dead_letter(message, failure)

    def close(self, timeout: float) -> None:
        """See Queue."""
        end = time.monotonic() + timeout
        with suppress(KafkaException):
            while self._rebuild_at is None and self._outbox.pending and time.monotonic() < end:
                self._serve(0.1)
            for progress in self._progress.values():
                progress.again()
            self._commit(wait=True)
        self._stop()

    def _stop(self) -> None:
        """Leave the group, and give back what is not durable."""
        for progress in self._progress.values():
            progress.closed = True
        with suppress(KafkaException, RuntimeError):  # RuntimeError: it was closed before
            self._consumer.close()
        with suppress(KafkaException):
            self._outbox.close()
        for message in list(self._open):
            self._end(message, Ended.GIVEN_BACK)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Replace the clients when one of them fails for good."""
        try:
            yield
        except KafkaException as error:
            cause = error.args[0]
            if not fatal(cause):
                raise
            self._trouble(
                cause, "the client failed for good and is replaced; nothing is acknowledged that is not durable"
            )
            self._stop()
            wait = 0.0 if self._rebuilt == 0 else _REBUILD_S
            self._rebuilt += 1
            self._rebuild_at = time.monotonic() + wait

    def _rebuild(self) -> None:
        if self._rebuild_at is None or time.monotonic() < self._rebuild_at:
            return
        try:
            self._start()
        except KafkaException as error:  # a file of a certificate is being replaced, say
            self._trouble(error.args[0], "a new client can't be made")
            self._rebuilt += 1
            self._rebuild_at = time.monotonic() + _REBUILD_S
        else:
            self._rebuild_at = None

    def _subscribe(self) -> None:
        """Subscribe once the topics exist: until then a group would be joined for nothing, silently."""
        for name, topic, client in (
            ("QUEUE_NAME", self._names.source, self._consumer),
            ("QUEUE_TARGET", self._names.target, self._outbox.producer),
        ):
            if not topic:
                continue
            try:
                found = client.list_topics(topic, timeout=2).topics[topic]
            except KafkaException as error:
                if fatal(error.args[0]):
                    raise
                self._on_error(error.args[0])
                return
            if found.error is not None:
                self._trouble(found.error, f"topic {topic} ({name})")
                return
        self._consumer.subscribe(
            [self._names.source], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        self._subscribed = True

    def _poll(self, timeout: float) -> Message | None:
        record = self._consumer.poll(timeout)
        self._polled = time.monotonic()
        if record is None:
            return None
        if (error := record.error()) is not None:
            if fatal(error):
                raise KafkaException(error)
            about = f"group {self._group}" if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED else None
            self._trouble(error, about or f"topic {self._names.source} (QUEUE_NAME)")
            return None
        return self._message(record)

    def _message(self, record: Record) -> Message | None:
        partition, offset = record.partition(), record.offset()
        if partition is None or offset is None or partition not in self._progress:
            return None  # the partition left while its message lay in the client
        progress = self._progress[partition]
        progress.start(offset)
        origin = {"topic": self._names.source, "partition": str(partition), "offset": str(offset)}
        body = record.value()
        message = Message(body or b"", origin, _Position(offset, progress))
        if body is None:  # a tombstone, which only compacted topics mean something by
            progress.finish(offset)
            self._observer.ended(Ending(message, Ended.SKIPPED))
            return None
        self._open[message] = None
        return message

    def _send_dead_letter(self, message: Message, failure: Failure) -> None:
        headers = {"cause": str(failure.cause), "error": failure.message, **message.origin}
        encoded = tuple((f"vaultml-{name}", value.encode()[:_ERROR_HEADER_BYTES]) for name, value in headers.items())
        body = events.scrub_bytes(message.body)
        self._outbox.send(OutboxEntry(self._names.dead_letters, body, message, failure, encoded))

    def _on_durable(self, entry: OutboxEntry) -> None:
        how = Ended.PUBLISHED if entry.failure is None else Ended.DEAD_LETTERED
        self._finish(entry.message, how, entry.failure)

    def _on_too_large(self, entry: OutboxEntry) -> None:
        said = f"the result of {len(entry.body)} bytes is larger than topic {entry.topic} takes"
        self._send_dead_letter(entry.message, Failure(Cause.RESULT_TOO_LARGE, said))

    def _finish(self, message: Message, how: Ended, failure: Failure | None = None) -> None:
        position = _position(message)
        self._rebuilt = 0
        if not position.progress.closed:
            position.progress.finish(position.offset)
            self._end(message, how, failure)

    def _end(self, message: Message, how: Ended, failure: Failure | None = None) -> None:
        if message in self._open:
            del self._open[message]
            self._observer.ended(Ending(message, how, failure))

    def _serve(self, timeout: float) -> None:
        """Take in acknowledgements, send again what is due, commit."""
        self._outbox.serve(timeout)
        self._commit()

    def _commit(self, *, wait: bool = False) -> None:
        offsets = [
            TopicPartition(self._names.source, partition, offset)
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
            if fatal(error.args[0]):
                raise
            self._on_commit(error.args[0], offsets)

    def _assigned(self) -> list[TopicPartition]:
        return [TopicPartition(self._names.source, partition) for partition in self._progress]

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._from_end:
            self._commit_ends(consumer, partitions)
        consumer.incremental_assign(partitions)
        for item in partitions:
            self._progress[item.partition] = Progress()
        if self._paused:
            consumer.pause(partitions)
        else:  # librdkafka remembers a pause across losing a partition and getting it back
            consumer.resume(partitions)

    def _commit_ends(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit the end of each partition that has no commit, which is where `latest` begins.

        Without it, a partition that goes to another worker before its first commit begins at its end again: what came
        in the meantime would be skipped.
        """
        left = partitions
        for _ in range(_TRIES):
            try:
                committed = consumer.committed(left, timeout=_OFFSETS_S)
                ends = [_at_end(consumer, place) for place in committed if place.error is None and place.offset < 0]
                done = consumer.commit(offsets=ends, asynchronous=False) if ends else []
                wrong = [place for place in (*committed, *(done or ())) if place.error is not None]
                if not wrong:
                    return
                left = [TopicPartition(place.topic, place.partition) for place in wrong]
                error = wrong[0].error
            except KafkaException as raised:
                error = raised.args[0]
            self._trouble(error, "committing where to begin (KAFKA_OFFSET_RESET=latest)")

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # What is published is committed before the next owner asks from where to go on, or it would be done twice.
        end = time.monotonic() + _REVOKE_S
        while self._outbox.in_flight and time.monotonic() < end:
            self._outbox.producer.poll(0.1)
        for item in partitions:
            if (progress := self._progress.get(item.partition)) is not None:
                progress.again()  # a commit on its way may have met the rebalance
        self._commit(wait=True)
        self._on_lost(_consumer, partitions)

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for item in partitions:
            if (progress := self._progress.pop(item.partition, None)) is not None:
                progress.closed = True
        self._buffer = [message for message in self._buffer if not _position(message).progress.closed]
        for message in [message for message in self._open if _position(message).progress.closed]:
            self._end(message, Ended.GIVEN_BACK)

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
        known, kind = advice(error), trouble(error)
        now = time.monotonic()
        if kind in _FIRM:
            self._firm_at = now
        elif kind is Trouble.UNREACHABLE and now - self._firm_at < _REPEAT_S:
            return
        key = f"{error.name()} {known} {what}"
        if now - self._reported.get(key, -_REPEAT_S) >= _REPEAT_S:
            self._reported[key] = now
            said = f"{': '.join(known)}; waiting" if known else error.str()
            self._observer.trouble(f"Kafka, {what}: {said} [{error.name()}: {error.str()}]")


def _at_end(consumer: Consumer, place: TopicPartition) -> TopicPartition:
    offsets = consumer.get_watermark_offsets(place, timeout=_OFFSETS_S)
    if offsets is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return TopicPartition(place.topic, place.partition, offsets[1])


def _position(message: Message) -> _Position:
    assert isinstance(message.token, _Position)
    return message.token
