"""The Kafka test bed tells the truth: what works or fails on it does so for the reason that a test states."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from testbed.kafka import Broker, available, jars
from testbed.process import wait_for

Config = dict[str, Any]

WAIT_S = 30
QUIET = {"log_level": 0}


def login(broker: Broker, mechanism: str, password: str = Broker.password) -> Config:
    return {"sasl.mechanism": mechanism, "sasl.username": broker.username, "sasl.password": password}


def plaintext(broker: Broker) -> Config:
    return {"bootstrap.servers": broker.plaintext, "security.protocol": "PLAINTEXT"}


def sasl_plaintext(broker: Broker, mechanism: str, password: str = Broker.password) -> Config:
    address = {"bootstrap.servers": broker.sasl_plaintext, "security.protocol": "SASL_PLAINTEXT"}
    return address | login(broker, mechanism, password)


def tls(broker: Broker, ca_file: Path) -> Config:
    return {"bootstrap.servers": broker.ssl, "security.protocol": "SSL", "ssl.ca.location": str(ca_file)}


def sasl_tls(broker: Broker, mechanism: str) -> Config:
    trusted = tls(broker, broker.ca_file)
    return trusted | {"bootstrap.servers": broker.sasl_ssl, "security.protocol": "SASL_SSL"} | login(broker, mechanism)


WAYS_IN: dict[str, Callable[[Broker], Config]] = {
    "plaintext": plaintext,
    "tls": lambda broker: tls(broker, broker.ca_file),
    "PLAIN": lambda broker: sasl_plaintext(broker, "PLAIN"),
    "SCRAM-SHA-256": lambda broker: sasl_plaintext(broker, "SCRAM-SHA-256"),
    "SCRAM-SHA-512": lambda broker: sasl_plaintext(broker, "SCRAM-SHA-512"),
    "tls and PLAIN": lambda broker: sasl_tls(broker, "PLAIN"),
    "tls and SCRAM-SHA-256": lambda broker: sasl_tls(broker, "SCRAM-SHA-256"),
    "tls and SCRAM-SHA-512": lambda broker: sasl_tls(broker, "SCRAM-SHA-512"),
}


def send(config: Config, topic: str, value: bytes) -> None:
    reports: list[KafkaError | None] = []
    producer = Producer(config)
    producer.produce(topic, value, on_delivery=lambda error, _: reports.append(error))
    assert producer.flush(WAIT_S) == 0
    assert reports == [None]


def receive(config: Config, topic: str, **group: str) -> bytes | None:
    settings = {"group.id": f"group-{uuid4()}", "auto.offset.reset": "earliest"}
    consumer = Consumer(config | settings | {key.replace("_", "."): value for key, value in group.items()})
    try:
        consumer.subscribe([topic])
        message = wait_for(lambda: consumer.poll(0.5), WAIT_S, f"a message on {topic}")
        assert message.error() is None
        return message.value()
    finally:
        consumer.close()


def first_error(config: Config, code: int) -> KafkaError:
    """Wait until a client with `config` is told an error with this `code` through its `error_cb`."""
    errors: list[KafkaError] = []
    producer = Producer(config | QUIET | {"error_cb": errors.append})

    def told() -> KafkaError | None:
        producer.poll(0.1)
        return next((error for error in errors if error.code() == code), None)

    return wait_for(told, WAIT_S, f"an error with code {code}")


def gone(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def topic(kafka: Broker) -> str:
    name = f"topic-{uuid4()}"
    kafka.create_topic(name)
    return name


@pytest.fixture
def fetch_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Start from an empty cache (its folder is returned) and put a shell script in Maven's place."""

    def fetch_with(script: str) -> Path:
        maven = tmp_path / "bin" / "mvn"
        maven.parent.mkdir()
        maven.write_text(f'#!/bin/sh\nfor last in "$@"; do :; done\nout=${{last#*=}}\n{script}\n')
        maven.chmod(0o755)
        monkeypatch.setenv("PATH", f"{maven.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("VAULTML_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    return fetch_with


@pytest.mark.parametrize("way", WAYS_IN)
def test_a_message_goes_in_and_out_over_each_listener(kafka: Broker, topic: str, way: str) -> None:
    config = WAYS_IN[way](kafka)
    send(config, topic, b"hello")
    assert receive(config, topic) == b"hello"


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_refused(kafka: Broker, mechanism: str) -> None:
    error = first_error(sasl_plaintext(kafka, mechanism, "wrong"), KafkaError._AUTHENTICATION)
    assert "authentication failed" in error.str().lower()


def test_a_client_without_a_login_is_refused(kafka: Broker) -> None:
    producer = Producer(plaintext(kafka) | QUIET | {"bootstrap.servers": kafka.sasl_plaintext})
    with pytest.raises(KafkaException):
        producer.list_topics(timeout=2)


def test_a_certificate_of_another_authority_is_refused(kafka: Broker, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    error = first_error(tls(kafka, stranger), KafkaError._SSL)
    assert "certificate verify failed" in error.str()


def test_a_missing_topic_is_not_created_by_using_it(kafka: Broker) -> None:
    name = f"missing-{uuid4()}"
    consumer = Consumer(plaintext(kafka) | {"group.id": name, "allow.auto.create.topics": True})
    try:
        consumer.subscribe([name])
        message = wait_for(lambda: consumer.poll(0.5), WAIT_S, "word on the missing topic")
        error = message.error()
        assert error is not None
        assert error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
        assert name not in consumer.list_topics(timeout=WAIT_S).topics
    finally:
        consumer.close()


def test_a_topic_has_the_partitions_and_settings_asked_for(kafka: Broker) -> None:
    name = f"topic-{uuid4()}"
    kafka.create_topic(name, 3, max_message_bytes="1000")
    producer = Producer(plaintext(kafka))
    assert len(producer.list_topics(name, timeout=WAIT_S).topics[name].partitions) == 3

    reports: list[KafkaError | None] = []
    producer.produce(name, os.urandom(2000), on_delivery=lambda error, _: reports.append(error))
    assert producer.flush(WAIT_S) == 0
    assert [error and error.code() for error in reports] == [KafkaError.MSG_SIZE_TOO_LARGE]


def test_a_topic_that_exists_is_not_created_again(kafka: Broker, topic: str) -> None:
    with pytest.raises(KafkaException, match="TOPIC_ALREADY_EXISTS"):
        kafka.create_topic(topic)


def test_the_new_group_protocol_works(kafka: Broker, topic: str) -> None:
    send(plaintext(kafka), topic, b"hello")
    assert receive(plaintext(kafka), topic, group_protocol="consumer") == b"hello"


def test_a_transaction_commits_on_the_single_broker(kafka: Broker, topic: str) -> None:
    producer = Producer(plaintext(kafka) | {"transactional.id": topic})
    producer.init_transactions(WAIT_S)
    producer.begin_transaction()
    producer.produce(topic, b"hello")
    producer.commit_transaction(WAIT_S)
    assert receive(plaintext(kafka), topic) == b"hello"


def test_stop_and_start_keep_data_and_ports_and_closing_leaves_nothing() -> None:
    with Broker(auto_create_topics=True) as broker:
        config, first = plaintext(broker), broker.pid
        assert first is not None
        send(config, "made-by-use", b"before")

        broker.stop()
        assert gone(first)
        with pytest.raises(KafkaException):
            Producer(config | QUIET).list_topics(timeout=1)

        broker.start()
        second = broker.pid
        assert second is not None
        assert receive(config, "made-by-use") == b"before"
        assert receive(sasl_tls(broker, "SCRAM-SHA-512"), "made-by-use") == b"before"
    assert gone(second)
    assert not broker.folder.exists()


def test_a_failed_fetch_says_why_and_leaves_no_half_cache(fetch_with: Callable[[str], Path]) -> None:
    cache = fetch_with('mkdir -p "$out"; touch "$out/half.jar"; echo no such host; exit 1')
    with pytest.raises(RuntimeError, match="no such host"):
        jars()
    assert [path for path in cache.rglob("*") if path.is_file() or path.name == "lib"] == []


def test_two_fetches_at_once_end_in_one_cache(fetch_with: Callable[[str], Path], tmp_path: Path) -> None:
    # Each fetch ends only after both have begun.
    meet = f'echo x >> {tmp_path}/begun; while [ "$(wc -l < {tmp_path}/begun)" -lt 2 ]; do :; done'
    cache = fetch_with(f'{meet}; mkdir -p "$out"; touch "$out/whole.jar"')
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: jars(), range(2))
    assert first == second
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["whole.jar"]
    assert [path.name for path in first.parent.iterdir()] == ["lib"]


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULTML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert available() == "A Kafka broker needs java (17 or newer) on the PATH."

    java = tmp_path / "java"
    java.touch(mode=0o755)
    assert available() == "A Kafka broker needs mvn (Maven) on the PATH, to fetch its jars the first time."
