"""A queue on the real broker, a Vault, and the worker between them, as a process."""

import json
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from flask import Response, abort, request

from testbed.kafka import Broker
from testbed.process import LOOPBACK, free_port, wait_for
from testbed.worker import Worker
from vaultml_common.vault import FILE_NAME, PROVIDER
from vaultml_worker.dev.vault import Account, VaultServer, application

WAIT_S = 60
IN_FLIGHT = 4
"""Recordings that a worker has in work at a time (RECORDINGS_IN_FLIGHT)."""
ACCOUNT = Account("own-access!@#$%12345", "own-secret!@#$%67890")
STRANGER = Account("other-access", "other-secret")

# What a broker says that has only just started again.
_RESTARTING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError._TRANSPORT,
    KafkaError._UNKNOWN_PARTITION,
)

QUIET = {"log_level": 0}  # that a broker which is stopped can't be reached is no news
Body = bytes | dict[str, Any] | None


class Vault:
    """The file-backed Vault at an address that stays, behind a gate for downloads."""

    def __init__(self, folder: Path, clips: Sequence[bytes], account: Account = ACCOUNT) -> None:
        self._folder = folder
        self._clips = clips
        self._account = account
        self._port = free_port()
        self._server: VaultServer | None = None
        self._turn = threading.Condition()
        self._tickets: int | None = None
        self.asked: list[str] = []
        """The key of each download that was asked for, in their order."""
        self.signed: list[str] = []
        """The query of each signed URL that was used."""
        self.break_signed = 0
        """How many downloads by signed URL are yet to fail."""
        self.url = f"http://{LOOPBACK}:{self._port}/api"
        self.start()

    def start(self, account: Account | None = None) -> None:
        """Serve; with another `account`, whoever uses the usual one gets a 401."""
        app = application(self._folder, account or self._account)
        app.before_request(self._gate)
        self._server = VaultServer(app, port=self._port)

    def stop(self) -> None:
        self.allow(None)
        if self._server is not None:
            self._server.close()
            self._server = None

    def allow(self, downloads: int | None) -> None:
        """Let this many more downloads through, the others wait; None: all of them."""
        with self._turn:
            self._tickets = downloads
            self._turn.notify_all()

    def store(self, key: str, number: int = 0) -> int:
        """Store a recording; gives its size."""
        path = self._folder / self._account.provider / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.write_bytes(self._clips[number % len(self._clips)])

    def _gate(self) -> Response | None:
        called = (request.endpoint or "").rpartition(".")[2]
        if called == "signed":
            self.signed.append(request.query_string.decode())
            self.break_signed -= 1
            if self.break_signed >= 0:
                abort(500)
        elif called == "blob" and request.headers.get(PROVIDER) == self._account.provider:  # not the worker's own check
            with self._turn:
                self.asked.append(request.headers[FILE_NAME])
                self._turn.wait_for(lambda: self._tickets is None or self._tickets > 0)
                if self._tickets is not None:
                    self._tickets -= 1
        return None


class Topic:
    """Everything in a topic, seen by a bystander."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.name = name
        self._messages: list[Message] = []
        self._places: list[TopicPartition] = []
        self._consumer = Consumer(
            {
                **QUIET,
                "bootstrap.servers": broker.plaintext,
                "group.id": f"bystander-{uuid4()}",
                "enable.auto.commit": False,
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def exists(self) -> bool:
        return self.name in self._consumer.list_topics(timeout=WAIT_S).topics

    def ends(self) -> dict[int, int]:
        """The offset behind the last message of each partition."""
        return {item.partition: self._end(item) for item in self._assigned()}

    def messages(self) -> list[Message]:
        """All messages up to now; none while the topic doesn't exist."""
        places = self._assigned()
        ends = {item.partition: self._end(item) for item in places}
        deadline = time.monotonic() + WAIT_S
        while any(0 < ends[item.partition] > item.offset for item in self._consumer.position(places)):
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:
                self._messages.append(message)
            assert time.monotonic() < deadline, f"{self.name} can't be read to its end"
        return list(self._messages)

    def bodies(self) -> list[bytes]:
        return [message.value() or b"" for message in self.messages()]

    def keys(self) -> list[str]:
        """`payload.key` of each message."""
        return [json.loads(body)["payload"]["key"] for body in self.bodies()]

    def _assigned(self) -> list[TopicPartition]:
        if not self._places:
            if not self.exists():
                return []
            found = self._consumer.list_topics(self.name, timeout=WAIT_S).topics[self.name]
            self._places = [TopicPartition(self.name, number, 0) for number in found.partitions]
            self._consumer.assign(self._places)
        return self._places

    def _end(self, place: TopicPartition) -> int:
        def ask() -> tuple[int, int] | None:
            try:
                return self._consumer.get_watermark_offsets(TopicPartition(self.name, place.partition), timeout=WAIT_S)
            except KafkaException as error:
                if error.args[0].code() in _RESTARTING:
                    return None
                raise

        return wait_for(ask, WAIT_S, f"the end of {self.name}")[1]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter."""

    body: bytes
    headers: dict[str, str]

    @property
    def cause(self) -> str:
        return self.headers["vaultml-cause"]

    @property
    def place(self) -> tuple[str, int, int]:
        """Topic, partition and offset that it came from."""
        return (
            self.headers["vaultml-topic"],
            int(self.headers["vaultml-partition"]),
            int(self.headers["vaultml-offset"]),
        )


class Scene:
    """A queue with its target, group and Vault, all for one test; and the workers that it starts."""

    def __init__(self, broker: Broker, folder: Path, clips: Sequence[bytes], stack: ExitStack, partitions: int) -> None:
        name = uuid4().hex[:12]
        self._broker = broker
        self._folder = folder
        self._clips = clips
        self._stack = stack
        self._partitions = partitions
        self._sent = 0
        self._made = 0
        self.group = f"group-{name}"
        self.queue = Topic(broker, f"queue-{name}")
        self.target = Topic(broker, f"results-{name}")
        self.dead = Topic(broker, f"results-{name}.dlq")
        self.dead_without_target = Topic(broker, f"queue-{name}.dlq")
        for topic in (self.queue, self.target, self.dead, self.dead_without_target):
            stack.callback(topic.close)
        self.vault = self.another_vault(ACCOUNT)
        self.workers: list[Worker] = []
        self._admin = AdminClient({**QUIET, "bootstrap.servers": broker.plaintext})
        self._producer = Producer({**QUIET, "bootstrap.servers": broker.plaintext})
        self._member = Consumer({**QUIET, "bootstrap.servers": broker.plaintext, "group.id": self.group})
        stack.callback(self._member.close)

    def another_vault(self, account: Account) -> Vault:
        vault = Vault(self._folder / f"vault-{account.access_key}", self._clips, account)
        self._stack.callback(vault.stop)
        return vault

    def create(self, *topics: Topic) -> None:
        for topic in topics:
            self._broker.create_topic(topic.name, self._partitions if topic is self.queue else 1)

    def environment(self, **variables: str) -> dict[str, str]:
        """hub-ml's variables, as in the first of the two ways in which it is started, with `variables` over them."""
        return {
            "QUEUE_SYSTEM": "KAFKA",
            "QUEUE_NAME": self.queue.name,
            "QUEUE_TARGET": self.target.name,
            "KAFKA_BROKER": self._broker.sasl_plaintext,
            "KAFKA_GROUP": self.group,
            "KAFKA_USERNAME": self._broker.username,
            "KAFKA_PASSWORD": self._broker.password,
            "KAFKA_MECHANISM": "PLAIN",
            "KAFKA_SECURITY": "SASL_PLAINTEXT",
            "VAULT_API_URL": self.vault.url,
            "VAULT_ACCESS_KEY": ACCOUNT.access_key,
            "VAULT_SECRET_KEY": ACCOUNT.secret_key,
            "NUMBER_OF_PREDICTIONS": "1",
            "FORWARDING_MEDIA": "false",
            "FORWARDING_METADATA": "false",
            "FORWARDING_OBJECT_THRESHOLD": "1",
            "REMOVE_AFTER_PROCESSED": "false",
            "MOVE_DISTANCE": "100",
            **variables,
        }

    def worker(self, **variables: str) -> Worker:
        """Start a worker."""
        log = self._folder / f"worker-{len(self.workers) + 1}.log"
        worker = self._stack.enter_context(Worker(self.environment(**variables), log))
        self.workers.append(worker)
        return worker

    def events(self, count: int) -> list[dict[str, Any]]:
        """Events of `count` recordings more, which are stored in the Vault."""
        made = []
        for _ in range(count):
            self._made += 1
            name = f"youruser/{1630567590 + self._made}_6-967003_gate_north_200-200-400-400_24_1000.mp4"
            made.append(event(name, self.vault.store(name, self._made)))
        return made

    def send(self, *messages: Body) -> None:
        """Publish to the queue, to each partition in turn."""
        for body in messages:
            value = json.dumps(body).encode() if isinstance(body, dict) else body
            self._producer.produce(self.queue.name, value, partition=self._sent % self._partitions)
            self._sent += 1
        assert self._producer.flush(WAIT_S) == 0

    def committed(self) -> dict[int, int]:
        """The group's committed offset of each partition; 0 where there is none."""
        places = [TopicPartition(self.queue.name, number) for number in range(self._partitions)]
        found = self._member.committed(places, timeout=WAIT_S)
        return {item.partition: max(item.offset, 0) for item in found}

    def await_committed(self) -> None:
        """Wait until the whole queue is committed."""
        what = f"all of {self.queue.name} to be committed"
        wait_for(lambda: self.committed() == self.queue.ends(), WAIT_S, what, process=self.workers[-1].process)

    def await_results(self, keys: set[str], worker: Worker | None = None) -> None:
        """Wait until there is a result for each of the keys."""
        worker = worker or self.workers[-1]
        what = f"results of {len(keys)} recordings"
        wait_for(lambda: keys <= set(self.target.keys()), 2 * WAIT_S, what, process=worker.process)

    def letters(self, topic: Topic | None = None) -> list[Letter]:
        """The dead letters, in the order of the messages that they came from."""
        found = [
            Letter(item.value() or b"", {name: value.decode() for name, value in headers(item)})
            for item in (topic or self.dead).messages()
        ]
        return sorted(found, key=lambda letter: letter.place)

    def await_letters(self, count: int, topic: Topic | None = None) -> list[Letter]:
        what = f"{count} dead letters"
        wait_for(lambda: len(self.letters(topic)) >= count, WAIT_S, what, process=self.workers[-1].process)
        return self.letters(topic)

    def members(self) -> dict[str, set[int]]:
        """The partitions of each member of the group."""
        try:
            found = self._admin.describe_consumer_groups([self.group])[self.group].result(timeout=WAIT_S)
        except KafkaException:
            return {}
        return {
            member.member_id: {item.partition for item in member.assignment.topic_partitions if member.assignment}
            for member in found.members
        }


def headers(message: Message) -> list[tuple[str, bytes]]:
    found = message.headers() or []
    assert isinstance(found, list)
    return [(name, value if isinstance(value, bytes) else b"") for name, value in found]


def event(key: str, size: int) -> dict[str, Any]:
    """An event as Vault publishes it."""
    return {
        "provider": "kstorage",
        "source": ACCOUNT.provider,
        "request": "persist",
        "payload": {
            "is_fragmented": False,
            "metadata": {
                "productid": "Bfuk14xm40eMSxwEEyrd908yzmDIwKp5",
                "event-timestamp": "1630567591",
                "publickey": "ABCDEFGHI!@#$%12345",
                "event-instancename": "gate_north",
                "capture": "IPCamera",
            },
            "key": key,
            "bytes_range_on_time": None,
            "fileSize": size,
            "bytes_ranges": "",
        },
        "events": ["monitor", "sequence", "analysis", "throttler", "notification"],
        "date": 1630567591,
    }


def keys_of(events: Sequence[dict[str, Any]]) -> set[str]:
    return {item["payload"]["key"] for item in events}


def unready(worker: Worker) -> bool:
    """Whether it runs, is alive and says that it isn't ready."""
    pages = worker.get("/healthz")[0], worker.get("/readyz")[0]
    return worker.returncode is None and pages == (200, 503)
