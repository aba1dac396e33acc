"""The whole worker as a process, started as hub-ml's users start it, on a real broker and the file-backed Vault."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import jsonschema
import pytest
import trustme
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from flask import Response, abort, request

from testbed.kafka import Broker
from testbed.process import LOOPBACK, free_port, wait_for
from testbed.worker import Worker, environment
from vaultml_worker import fetch, results
from vaultml_worker.dev import agent, footage
from vaultml_worker.dev.vault import Account, VaultServer, application
from vaultml_worker.vault import FILE_NAME

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
        elif called == "blob":
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


@pytest.fixture(scope="session")
def clips() -> list[bytes]:
    """A few recordings of one second, cut from real footage; the worker's default model is there, too."""
    fetch.model("yolov3-tiny")
    cutting = agent.cut(footage.find(None), 1.0)
    return [body for body, _, _ in islice(cutting, 3)]


@pytest.fixture
def stage(
    kafka: Broker, clips: list[bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Scene]]:
    """Makes a scene; the logs of its workers are kept when the test fails."""
    failed_before = request.session.testsfailed
    scenes: list[Scene] = []

    with ExitStack() as stack:

        def make(partitions: int = 1) -> Scene:
            scenes.append(Scene(kafka, tmp_path, clips, stack, partitions))
            return scenes[-1]

        yield make
        if request.session.testsfailed > failed_before:
            for worker in (worker for scene in scenes for worker in scene.workers):
                worker.keep_log()


@pytest.fixture
def scene(stage: Callable[..., Scene]) -> Scene:
    """A queue of one partition with its target and dead-letter topic."""
    made = stage()
    made.create(made.queue, made.target, made.dead)
    return made


WAYS_IN: dict[str, Callable[[Broker], dict[str, str]]] = {
    "SASL_PLAINTEXT, PLAIN": lambda _: {},
    "SASL_PLAINTEXT, SCRAM-SHA-512": lambda _: {"KAFKA_MECHANISM": "SCRAM-SHA-512"},
    "SASL_SSL": lambda broker: {
        "KAFKA_BROKER": broker.sasl_ssl,
        "KAFKA_SECURITY": "SASL_SSL",
        "KAFKA_MECHANISM": "SCRAM-SHA-256",
        "KAFKA_SSL_CA": str(broker.ca_file),
    },
    "SSL": lambda broker: {
        "KAFKA_BROKER": broker.ssl,
        "KAFKA_SECURITY": "SSL",
        "KAFKA_USERNAME": "",
        "KAFKA_PASSWORD": "",
        "KAFKA_SSL_CA": str(broker.ca_file),
    },
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_each_recording_gives_one_result_over_each_way_in(kafka: Broker, scene: Scene, way: str) -> None:
    sent = scene.events(4)
    # What later versions and Hub put in: it comes back as it is, in its order.
    sent[1] = {"zeta": [1, 2.5, {"b": None, "a": "ü€\u2028😀"}], **sent[1], "traceId": "t-1", "alpha": {"z": 1, "a": 2}}
    sent[2]["payload"] |= {"duration": 1000, "deviceId": "d", "aaa": [[], {}, ""]}
    sent[3] |= {"operation": "event", "data": {"zone": "yard", "labels": ["old"]}, "vaultml": 1}
    scene.send(*sent)

    worker = scene.worker(**WAYS_IN[way](kafka)).wait_ready()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    wait_for(lambda: worker.metrics()['vaultml_recordings_total{outcome="published"}'] == 4, WAIT_S, "the metrics")
    assert worker.terminate() == 0
    assert "stopped" in worker.log_text().splitlines()[-1]

    bodies = scene.target.bodies()
    assert scene.committed() == scene.queue.ends()
    assert len(bodies) == len(sent)
    given = {item["payload"]["key"]: item for item in sent}
    for body in bodies:
        result = json.loads(body)
        jsonschema.validate(result["vaultml"], results.schema())
        assert result["operation"] == "classification"
        ours = ("data", "operation", "vaultml")
        before = given[result["payload"]["key"]]
        unknown = {name: value for name, value in before.items() if name not in ours}
        first, *rest = unknown
        assert list(result) == [first, "data", *rest, "operation", "vaultml"]
        # As text, so that the order inside counts as well.
        assert json.dumps({name: result[name] for name in unknown}) == json.dumps(unknown)
        assert len({len(result["data"][name]) for name in ("probabilities", "labels", "boxes")}) == 1
        assert result["data"].get("zone") == before.get("data", {}).get("zone")
    # The footage has people in it.
    assert any("person" in frame for body in bodies for frame in json.loads(body)["data"]["labels"])
    assert scene.letters() == []


def test_kill_9_in_the_middle_of_200_recordings_loses_none(stage: Callable[..., Scene]) -> None:
    scene = stage(partitions=3)
    scene.create(scene.queue, scene.target, scene.dead)
    sent = scene.events(200)
    scene.send(*sent)
    first = scene.worker().wait_ready()
    wait_for(
        lambda: len(scene.target.messages()) >= 60 and sum(scene.committed().values()) >= 20,
        WAIT_S,
        "results and commits in the middle of the work",
        process=first.process,
    )
    first.kill()

    # Commits are looked at first: what they promise must be in the target.
    committed = scene.committed()
    there = set(scene.target.keys())
    assert 0 < sum(committed.values()) < 200
    promised = {
        json.loads(message.value() or b"")["payload"]["key"]
        for message in scene.queue.messages()
        if (message.offset() or 0) < committed[message.partition() or 0]
    }
    assert len(promised) == sum(committed.values())
    assert promised <= there

    second = scene.worker()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert second.terminate() == 0
    found = scene.target.keys()
    assert set(found) == keys_of(sent)
    # Only what was in the first worker's hands may come twice.
    assert len(found) <= 200 + len(there) - sum(committed.values()) + IN_FLIGHT
    assert scene.letters() == []


def test_a_wrong_password_is_named_and_waited_for(scene: Scene) -> None:
    worker = scene.worker(KAFKA_PASSWORD="wr0ng!@#$%pass")
    worker.wait_log("authentication failed: check KAFKA_USERNAME")
    assert unready(worker)
    assert worker.terminate() == 0
    assert "wr0ng" not in worker.log_text()
    assert "Traceback" not in worker.log_text()


@pytest.mark.parametrize("variable", ["QUEUE_NAME", "QUEUE_TARGET"])
def test_a_missing_topic_is_named_and_waited_for(stage: Callable[..., Scene], variable: str) -> None:
    scene = stage()
    missing, other = (scene.queue, scene.target) if variable == "QUEUE_NAME" else (scene.target, scene.queue)
    scene.create(other)
    sent = scene.events(2)
    worker = scene.worker()
    worker.wait_log(f"topic {missing.name} ({variable}): the topic does not exist: create it")
    assert unready(worker)
    assert not missing.exists()

    scene.create(missing)
    worker.wait_ready()
    scene.send(*sent)
    scene.await_results(keys_of(sent))
    assert worker.terminate() == 0


def test_an_untrusted_certificate_is_named_and_waited_for(kafka: Broker, scene: Scene, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    worker = scene.worker(KAFKA_BROKER=kafka.sasl_ssl, KAFKA_SECURITY="SASL_SSL", KAFKA_SSL_CA=str(stranger))
    worker.wait_log("TLS failed: check that KAFKA_SSL_CA")
    assert unready(worker)
    assert worker.terminate() == 0


def test_a_broker_that_is_away_is_named_and_waited_for(kafka: Broker, scene: Scene) -> None:
    sent = scene.events(2)
    scene.send(*sent)
    nobody = scene.worker(KAFKA_BROKER=f"{LOOPBACK}:{free_port()}")
    kafka.stop()
    try:
        worker = scene.worker()
        for one in (nobody, worker):
            one.wait_log("not reachable: check KAFKA_BROKER")
            assert unready(one)
    finally:
        kafka.start()
    worker.wait_ready()
    scene.await_results(keys_of(sent))
    assert worker.terminate() == 0
    assert unready(nobody)
    assert nobody.terminate() == 0


def test_a_broker_that_restarts_in_the_middle_loses_nothing(kafka: Broker, stage: Callable[..., Scene]) -> None:
    scene = stage(partitions=3)
    scene.create(scene.queue, scene.target, scene.dead)
    sent = scene.events(60)
    scene.vault.allow(20)
    scene.send(*sent)
    worker = scene.worker().wait_ready()
    wait_for(lambda: len(scene.target.messages()) >= 10, WAIT_S, "first results", process=worker.process)
    kafka.stop()
    try:
        # What is finished while the broker is away must not be lost either.
        scene.vault.allow(10)
        published = 'vaultml_recordings_total{outcome="published"}'
        wait_for(lambda: worker.metrics()[published] >= 25, WAIT_S, "work without a broker", process=worker.process)
    finally:
        kafka.start()
    scene.vault.allow(None)
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert worker.ready()
    assert worker.terminate() == 0
    assert scene.letters() == []


def test_a_vault_outage_is_waited_for_in_the_group(scene: Scene) -> None:
    outage_s = 31  # beyond the group's session timeout
    sent = scene.events(12)
    scene.vault.stop()
    scene.send(*sent)
    worker = scene.worker().wait_ready()
    members = wait_for(scene.members, WAIT_S, "the group to have its member")
    assert list(members.values()) == [{0}]
    retries = 'vaultml_vault_retries_total{cause="unavailable"}'
    end = time.monotonic() + outage_s

    def over() -> bool:
        assert worker.ready()
        return time.monotonic() > end and worker.metrics().get(retries, 0) >= IN_FLIGHT

    wait_for(over, 2 * outage_s, "the end of the outage", process=worker.process)
    assert scene.members() == members
    assert sum(scene.committed().values()) == 0
    assert "trying again in" in worker.log_text()

    scene.vault.start()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert scene.members() == members
    assert worker.terminate() == 0
    assert len(scene.target.keys()) == len(sent)
    assert scene.letters() == []


def test_what_can_never_work_becomes_a_dead_letter_and_the_queue_moves_on(scene: Scene) -> None:
    good = scene.events(3)
    refused, no_video = scene.events(2)
    gone = json.dumps(event("youruser/gone.mp4", 1), indent=3).replace(":", " : ").encode()
    message_keys = {"storage_access_key": "message-access!1", "storage_secret": "message-secret!2"}
    refused["data"] = {"storage_uri": scene.vault.url, **message_keys, "zone": "yard"}
    no_video["payload"]["key"] = "youruser/text.mp4"
    path = Path(scene.vault._folder) / ACCOUNT.provider / "youruser/text.mp4"
    path.write_bytes(b"no video at all" * 100)
    bad = [b'{"payload": {"key": "a/b.mp4"', b"\xff\xfe\x00\x01", b"[1, 2]", b'{"payload": 1}', None]
    scene.send(good[0], gone, good[1], refused, no_video, *bad, good[2])

    worker = scene.worker()
    scene.await_results(keys_of(good))
    letters = scene.await_letters(8)
    scene.await_committed()
    assert worker.returncode is None

    assert [letter.cause for letter in letters] == ["not-found", "unauthorized", "not-a-video"] + 5 * ["bad-event"]
    assert [letter.place for letter in letters] == [(scene.queue.name, 0, n) for n in (1, 3, 4, 5, 6, 7, 8, 9)]
    assert all(letter.headers["vaultml-error"] for letter in letters)
    assert letters[0].body == gone
    assert json.loads(letters[2].body) == no_video
    assert [letter.body for letter in letters[3:]] == [body or b"" for body in bad]
    # Without the values of the message's own credentials, but with all the rest.
    left = json.loads(letters[1].body)
    assert left["data"]["zone"] == "yard"
    assert left | {"data": 0} == refused | {"data": 0}
    for text in (letters[1].body.decode(), str(letters[1].headers), worker.log_text()):
        assert not [value for value in message_keys.values() if value in text]
    assert worker.metrics()['vaultml_dead_letters_total{cause="bad-event"}'] == 5
    assert worker.terminate() == 0
    assert len(scene.target.keys()) == len(good)


def test_large_nonsense_does_not_hold_up_the_worker(scene: Scene) -> None:
    # Nearly the 1 MB that Kafka takes, of what a search for credentials could stumble over.
    starts = (b"\\", b"http://a?", b"storage_", b'storage_a:\\"', b"storage_a=\\", b" ", b"&amp;", b"\\u0026")
    bad = [start * (900_000 // len(start)) for start in starts]
    good = scene.events(1)
    scene.send(*bad, *good)
    worker = scene.worker()
    letters = scene.await_letters(len(bad))
    assert {letter.cause for letter in letters} == {"bad-event"}
    scene.await_results(keys_of(good))
    scene.await_committed()
    assert worker.terminate() == 0


def test_a_missing_dead_letter_topic_is_made(stage: Callable[..., Scene]) -> None:
    scene = stage()
    scene.create(scene.queue, scene.target)
    good = scene.events(1)
    scene.send(b"{", *good)
    worker = scene.worker()
    assert [letter.body for letter in scene.await_letters(1)] == [b"{"]
    scene.await_committed()
    scene.await_results(keys_of(good))
    assert worker.terminate() == 0


def test_own_credentials_that_are_refused_hold_everything(scene: Scene) -> None:
    scene.vault.stop()
    scene.vault.start(STRANGER)
    sent = scene.events(6)
    scene.send(*sent)
    worker = scene.worker()
    worker.wait_log("check VAULT_ACCESS_KEY and VAULT_SECRET_KEY")
    refused = 'vaultml_vault_retries_total{cause="unauthorized"}'
    wait_for(lambda: worker.metrics()[refused] >= 2 * IN_FLIGHT, WAIT_S, "retries", process=worker.process)
    assert sum(scene.committed().values()) == 0
    assert scene.letters() == []

    scene.vault.stop()
    scene.vault.start()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert worker.terminate() == 0
    assert scene.letters() == []
    for secret in (ACCOUNT.access_key, ACCOUNT.secret_key):
        assert secret not in worker.log_text()


def test_without_a_target_nothing_is_published_but_all_is_committed(stage: Callable[..., Scene]) -> None:
    scene = stage()
    scene.create(scene.queue, scene.dead_without_target)
    sent = scene.events(3)
    scene.send(*sent[:2], b"{", sent[2])
    worker = scene.worker(QUEUE_TARGET="")
    [letter] = scene.await_letters(1, scene.dead_without_target)
    assert letter.place == (scene.queue.name, 0, 2)
    scene.await_committed()
    assert worker.terminate() == 0
    assert "QUEUE_TARGET is empty" in worker.log_text()
    assert not scene.target.exists()
    assert not scene.dead.exists()
    assert all(key in worker.log_text() for key in keys_of(sent))


def test_a_second_worker_may_join_and_leave_during_the_work(stage: Callable[..., Scene]) -> None:
    scene = stage(partitions=3)
    scene.create(scene.queue, scene.target, scene.dead)
    sent = scene.events(90)
    published = 'vaultml_recordings_total{outcome="published"}'
    scene.vault.allow(10)
    scene.send(*sent)
    first = scene.worker().wait_ready()
    wait_for(lambda: first.metrics()[published] >= 5, WAIT_S, "first results", process=first.process)

    second = scene.worker().wait_ready()
    shared = [1, 2]
    wait_for(
        lambda: sorted(len(mine) for mine in scene.members().values()) == shared,
        WAIT_S,
        "both to have partitions",
        process=second.process,
    )
    scene.vault.allow(30)
    wait_for(lambda: second.metrics()[published] >= 5, WAIT_S, "the second's results", process=second.process)
    second.signal(signal.SIGTERM)
    scene.vault.allow(None)
    assert second.wait() == 0

    scene.await_results(keys_of(sent), first)
    wait_for(lambda: list(scene.members().values()) == [{0, 1, 2}], WAIT_S, "the first to have all again")
    more = scene.events(3)
    scene.send(*more)
    scene.await_results(keys_of(more), first)
    wait_for(lambda: scene.committed() == scene.queue.ends(), WAIT_S, "all to be committed", process=first.process)
    assert first.terminate() == 0
    assert scene.letters() == []


@pytest.mark.parametrize("group", [False, True], ids=["worker alone", "with its decoders"])
def test_sigterm_finishes_what_is_in_work(scene: Scene, group: bool) -> None:
    sent = scene.events(IN_FLIGHT + 6)
    scene.vault.allow(2)
    scene.send(*sent)
    first = scene.worker().wait_ready()
    wait_for(lambda: len(scene.vault.asked) == IN_FLIGHT + 2, WAIT_S, "work at the gate", process=first.process)
    first.signal(signal.SIGTERM, group=group)
    scene.vault.allow(None)
    assert first.wait() == 0
    assert "stopped" in first.log_text().splitlines()[-1]
    in_work = set(scene.vault.asked)
    assert set(scene.target.keys()) == in_work
    assert sum(scene.committed().values()) == len(in_work) == IN_FLIGHT + 2

    second = scene.worker()
    scene.await_results(keys_of(sent))
    scene.await_committed()
    assert second.terminate() == 0
    assert len(scene.target.keys()) == len(sent)  # an orderly end makes no duplicates
    assert scene.letters() == []


@pytest.mark.parametrize("killed", ["decoders", "all that the worker started"])
def test_killed_decoders_cost_no_recording(scene: Scene, killed: str) -> None:
    sent = scene.events(IN_FLIGHT + 6)
    scene.vault.allow(2)
    scene.send(*sent)
    worker = scene.worker().wait_ready()
    wait_for(lambda: len(scene.vault.asked) == IN_FLIGHT + 2, WAIT_S, "work at the gate", process=worker.process)
    # As the kernel does when memory runs out. Decoders are started by a process that the worker started for it.
    parents = worker.started()
    decoders = [pid for pid, parent in parents.items() if parent != worker.pid]
    assert decoders
    for pid in decoders if killed == "decoders" else parents:
        os.kill(pid, signal.SIGKILL)
    scene.vault.allow(None)

    def done() -> bool:
        found = set(scene.target.keys())
        return worker.returncode is not None or keys_of(sent) <= found or bool(scene.letters())

    # It may also end: then another takes over, as in Kubernetes.
    wait_for(done, WAIT_S, "results of all, or the worker's end")
    assert scene.letters() == []
    if worker.returncode is not None:
        assert worker.returncode > 0
        worker = scene.worker()
        scene.await_results(keys_of(sent))
    scene.await_committed()
    assert scene.letters() == []
    assert worker.terminate() == 0


def test_the_results_command_prints_one_line_per_result(scene: Scene) -> None:
    sent = scene.events(3)
    scene.send(*sent)
    worker = scene.worker()
    scene.await_results(keys_of(sent))
    assert worker.terminate() == 0
    command = [sys.executable, "-m", "vaultml_worker.cli", "results"]
    variables = environment(scene.environment())
    shown = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=WAIT_S, check=True)
    lines = shown.stdout.splitlines()
    assert len(lines) == len(sent)
    for key in keys_of(sent):
        [line] = [line for line in lines if line.endswith(key)]
        assert line.startswith("2021-09-02 07:26:31  gate_north  ")
        assert "1 of 1 frames" in line


def planted(kind: str) -> str:
    """A secret that stands nowhere else."""
    return f"{kind}!@#$%Zq{uuid4().hex[:10]}"


def leaks(secrets: dict[str, str], surfaces: dict[str, bytes]) -> list[str]:
    """Which secret shows where, however it may be spelled there."""
    return [
        f"{name} in {where}"
        for name, secret in secrets.items()
        for where, body in surfaces.items()
        for text in (body.replace(b"\0", b"").decode("latin-1"),)
        if any(spelled in text for spelled in (secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe="")))
    ]


def surfaces(scene: Scene, worker: Worker) -> dict[str, bytes]:
    """All that a worker lets others see."""
    shown = {"log": worker.process.log.read_bytes()}
    for page in ("/metrics", "/readyz", "/healthz"):
        shown[page] = worker.get(page)[1].encode()
    for where, topic in (("result", scene.target), ("dead letter", scene.dead)):
        for number, message in enumerate(topic.messages()):
            shown[f"{where} {number}"] = message.value() or b""
            shown[f"headers of {where} {number}"] = repr(message.headers()).encode()
    return shown


def signed_url(signature: str) -> str:
    return f"https://s3.local/b/a.mp4?X-Amz-Algorithm=AWS4&X-Amz-Expires=60&X-Amz-Signature={signature}"


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_secret_is_seen_anywhere(kafka: Broker, scene: Scene, form: str) -> None:
    own = Account(planted("own-access"), planted("own-secret"))
    message = Account(planted("message-access"), planted("message-secret"))
    wrong = Account(planted("wrong-access"), planted("wrong-secret"))
    signature, damaged = uuid4().hex, planted("damaged")
    secrets = {"KAFKA_PASSWORD": kafka.password, "signature": signature, "damaged": damaged}
    for name, account in (("own", own), ("message", message), ("wrong", wrong)):
        secrets |= {f"{name} access key": account.access_key, f"{name} secret key": account.secret_key}

    scene.vault = scene.another_vault(own)
    others = scene.another_vault(message)
    url = signed_url(signature)
    with_urls, missing, with_keys, with_wrong_keys, with_half_keys = scene.events(5)
    for item in (with_urls, missing):
        item["payload"] |= {"signedUrl": url, "note": f"see <{url}>, please", "list": [url, {"any": [url]}]}
        item["payload"]["metadata"]["url"] = url.upper()
        item["message"] = json.dumps({"payload": {"signedUrl": url}, "storage_secret": message.secret_key})
    missing["payload"]["key"] = "youruser/missing.mp4"
    for item, account in ((with_keys, message), (with_wrong_keys, wrong)):
        keys = {"storage_access_key": account.access_key, "storage_secret": account.secret_key}
        item["data"] = {"storage_uri": others.url, **keys}
        item["payload"]["metadata"] |= keys
    others.store(with_keys["payload"]["key"])
    with_half_keys["data"] = {"storage_secret": message.secret_key}
    odd = f'"storage_secret": "{damaged}", "payload": {{"signedUrl": "{url}", "storage_access_key" : "{damaged}'
    broken = [f'{{"data": {{{odd}"}}, oops'.encode(), f"{{{odd}".encode(), f"{{{odd}".encode("utf-16")]

    scene.vault.stop()
    scene.vault.start(STRANGER)  # so that its 401 echoes our own keys
    scene.vault.break_signed = 2
    scene.send(with_urls, with_keys, with_wrong_keys, missing, with_half_keys, *broken)
    worker = scene.worker(
        VAULT_API_URL=scene.vault.url,
        VAULT_ACCESS_KEY=own.access_key,
        VAULT_SECRET_KEY=own.secret_key,
        VAULT_DOWNLOAD="signed-url",
        LOG_FORMAT=form,
        LOG_LEVEL="DEBUG",
    )
    worker.wait_log("check VAULT_ACCESS_KEY")
    scene.vault.stop()
    scene.vault.start()
    scene.await_results(keys_of([with_urls, with_keys]))
    letters = scene.await_letters(6)
    assert [letter.cause for letter in letters] == ["unauthorized", "not-found"] + 4 * ["bad-event"]
    scene.await_committed()
    shown = surfaces(scene, worker)
    assert worker.terminate() == 0

    used = {query.rpartition("X-Amz-Signature=")[2] for query in scene.vault.signed + others.signed}
    assert len(used) >= 2
    secrets |= {f"used signature {number}": value for number, value in enumerate(used)}
    seen = leaks(secrets, shown | {"log at the end": worker.process.log.read_bytes()})
    assert not seen, "\n".join(seen)
    assert worker.log_text().count("\n") >= 6


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_secret_is_seen_from_odd_places(scene: Scene, form: str) -> None:
    names = ("copy", "nested", "camera", "name", "key", "damaged list", "damaged object")
    secrets = {name: f"Zq{uuid4().hex}" for name in names}
    copied, nested, camera, named, keyed = scene.events(5)
    # The value under storage_secret once more, where its name doesn't tell.
    copied["data"] = {"storage_uri": scene.vault.url, "storage_access_key": "a", "storage_secret": secrets["copy"]}
    copied["payload"]["password"] = secrets["copy"]
    # Go writes & as \u0026, and here in JSON that is text in JSON.
    nested["message"] = json.dumps({"url": signed_url(secrets["nested"])}).replace("&", "\\u0026")
    camera["payload"]["metadata"]["event-instancename"] = signed_url(secrets["camera"])
    named[signed_url(secrets["name"])] = 1
    keyed["payload"]["key"] = signed_url(secrets["key"])
    damaged = [
        f'{{"storage_secret": ["{secrets["damaged list"]}"], oops'.encode(),
        f'{{"storage_keys": {{"a": "{secrets["damaged object"]}"}}, oops'.encode(),
    ]
    scene.send(copied, nested, camera, named, keyed, *damaged)
    worker = scene.worker(LOG_FORMAT=form)
    scene.await_results(keys_of([nested, camera, named]))
    scene.await_letters(4)
    scene.await_committed()
    shown = surfaces(scene, worker)
    assert worker.terminate() == 0
    seen = leaks(secrets, shown)
    assert not seen, "\n".join(seen)
