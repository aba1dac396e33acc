"""Results and dead letters on their way to their topics: sent until the broker has acknowledged them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Record
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from vaultml_common.kafka import Trouble, fatal, trouble
from vaultml_worker.failures import Failure
from vaultml_worker.queues.base import Message

_RETRY_S = 5.0
"""An entry that the broker refused is sent again after this long."""
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE)
_WITHHELD = b"withheld: larger than this topic takes"


@dataclass(slots=True)
class OutboxEntry:
    """A result, or with `failure` a dead letter."""

    topic: str
    body: bytes
    message: Message
    failure: Failure | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    due: float = 0.0


class Outbox:
    """Sends entries.

    `wanted` says whether an entry is still to be sent: its partition may have gone to another worker.
    `on_durable` is called once an entry is acknowledged, `on_too_large` for a result that its topic does not take,
    `on_trouble` for all that keeps an entry from being sent, which is retried for as long as it takes. Any call
    raises KafkaException when the client has failed for good (`fatal()`).
    """

    def __init__(
        self,
        client: dict[str, Any],
        dead_letters: str,
        *,
        wanted: Callable[[OutboxEntry], bool],
        on_durable: Callable[[OutboxEntry], None],
        on_too_large: Callable[[OutboxEntry], None],
        on_trouble: Callable[[KafkaError, str], None],
    ) -> None:
        self._client = client
        self._dead_letters = dead_letters
        self._wanted = wanted
        self._on_durable = on_durable
        self._on_too_large = on_too_large
        self._on_trouble = on_trouble
        self.in_flight = 0
        """Letters that were handed to the client and not acknowledged yet."""
        self._unsent: list[OutboxEntry] = []
        # Sent until acknowledged, however long the broker is away: the offset waits as well.
        self.producer = Producer(
            client
            | {
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "linger.ms": 5,
                "topic.metadata.propagation.max.ms": 2000,
                "message.max.bytes": 1_000_000_000,  # how large a message may be is the topic's to say
            }
        )

    @property
    def pending(self) -> int:
        """Letters that are not acknowledged."""
        return self.in_flight + len(self._unsent)

    def send(self, entry: OutboxEntry) -> None:
        """Begin to send an entry."""

        def delivered(error: KafkaError | None, _record: Record) -> None:
            self.in_flight -= 1
            self._delivered(entry, error)

        try:
            self.producer.produce(entry.topic, entry.body, headers=list(entry.headers), on_delivery=delivered)
            self.in_flight += 1
        except BufferError:
            self._retry(entry, 0.1)
        except KafkaException as error:
            if fatal(error.args[0]):
                raise
            self._delivered(entry, error.args[0])

    def serve(self, timeout: float) -> None:
        """Take in acknowledgements, for up to `timeout` seconds, and send again what is due."""
        self.producer.poll(timeout)
        now = time.monotonic()
        due = [entry for entry in self._unsent if entry.due <= now]
        if due:
            self._unsent = [entry for entry in self._unsent if entry.due > now]
            for entry in due:
                if self._wanted(entry):
                    self.send(entry)

    def close(self) -> None:
        """Forget what is not acknowledged, and end the client."""
        self._unsent = []
        self.producer.purge()
        self.producer.flush(1)

    def _delivered(self, entry: OutboxEntry, error: KafkaError | None) -> None:
        if error is None:
            self._on_durable(entry)
            return
        if not self._wanted(entry):
            return
        if error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._FATAL):
            return  # not acknowledged, so not committed
        if error.code() in _TOO_LARGE:
            if entry.failure is None:
                self._on_too_large(entry)
                return
            entry.body = _WITHHELD
            self._retry(entry, 0.0)
            return
        missing = entry.topic == self._dead_letters and trouble(error) is Trouble.TOPIC_MISSING
        if missing and self._create_dead_letter_topic():
            self._retry(entry, 0.1)
            return
        self._on_trouble(error, f"topic {entry.topic}")
        self._retry(entry, _RETRY_S)

    def _retry(self, entry: OutboxEntry, seconds: float) -> None:
        entry.due = time.monotonic() + seconds
        self._unsent.append(entry)

    def _create_dead_letter_topic(self) -> bool:
        """Create the topic, which nobody thinks of before the first dead letter; return whether it is there."""
        admin = AdminClient(self._client)
        made = admin.create_topics([NewTopic(self._dead_letters, num_partitions=1)], operation_timeout=10)
        try:
            made[self._dead_letters].result(timeout=15)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return True
            self._on_trouble(error.args[0], f"topic {self._dead_letters}, which is missing and can't be created")
            return False
        return True
