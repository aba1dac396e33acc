"""What the probes say of a real broker, right and wrong in every way we know; through the registry, too."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme
from confluent_kafka import Producer

from testbed.kafka import Broker, StrictBroker, available
from testbed.process import wait_for
from tests.parts import need
from vaultml_common.kafka import Login
from vaultml_operator.probes import Connection, Outcome, Pace, Probes, Topics
from vaultml_operator.probes.kafka import check

WAIT_S = 30
WRONG = "wrong-PLANTED"


@pytest.fixture(scope="module")
def strict() -> Iterator[StrictBroker]:
    need(available())
    with StrictBroker(auto_create_topics=True) as broker:
        yield broker


@pytest.fixture
def topic(kafka: Broker) -> str:
    name = f"queue-{uuid4().hex}"
    kafka.create_topic(name)
    return name


@pytest.fixture(autouse=True)
def nothing_is_left_or_printed(capfd: pytest.CaptureFixture[str], kafka: Broker) -> Iterator[None]:
    before = native_threads()
    yield
    wait_for(lambda: native_threads() <= before, WAIT_S, "the clients' threads to end")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def native_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def connection(kafka: Broker, security: str, mechanism: str = "PLAIN") -> Connection:
    address = getattr(kafka, security.lower())
    made = Connection((address,), security)
    if made.sasl:
        made = replace(made, login=Login(mechanism, kafka.username, kafka.password))
    return replace(made, ca=kafka.ca_file.read_text()) if made.tls else made


def login(at: Connection, **changes: str) -> Connection:
    return replace(at, login=replace(at.login, **changes))  # type: ignore[arg-type]


def ask(at: Connection, *topics: str, within: float = 10.0, timeout: float = 10.0) -> Outcome:
    started = time.monotonic()
    outcome = check(at, topics, timeout)
    took = time.monotonic() - started
    assert took < within, f"{outcome} took {took:.1f} s"
    for secret in (WRONG, Broker.password, "PRIVATE KEY", "BEGIN"):
        assert secret not in repr(outcome) + repr(at)
    assert "\n" not in outcome.message
    return outcome


WAYS = [
    ("PLAINTEXT", "PLAIN"),
    ("SSL", "PLAIN"),
    *(
        (security, mechanism)
        for security in ("SASL_PLAINTEXT", "SASL_SSL")
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    ),
]
LOGINS = WAYS[2:]


@pytest.mark.parametrize(("security", "mechanism"), WAYS)
def test_each_way_in_reaches_the_topics_and_names_the_missing(
    kafka: Broker, topic: str, security: str, mechanism: str
) -> None:
    at = connection(kafka, security, mechanism)
    assert ask(at, topic, within=2) == Outcome("Reachable", "Kafka answers, and has the topics")
    assert ask(at, within=2).ok
    missing = ask(at, topic, "no-such-queue", "no-such-target", within=2)
    assert missing.reason == "TopicMissing"
    assert missing.topics == {"no-such-queue", "no-such-target"}
    assert "topics no-such-queue, no-such-target" in missing.message


@pytest.mark.parametrize(("security", "mechanism"), LOGINS)
@pytest.mark.parametrize("wrong", ["username", "password"])
def test_a_refused_login_is_known_within_moments(
    kafka: Broker, topic: str, security: str, mechanism: str, wrong: str
) -> None:
    at = connection(kafka, security, mechanism)
    at = login(at, **{wrong: WRONG})
    outcome = ask(at, topic, within=2)
    assert outcome.reason == "AuthenticationFailed"
    assert "refuses the login: check username and password" in outcome.message


@pytest.mark.parametrize(
    ("listener", "asked", "reason", "advice"),
    [
        ("SASL_PLAINTEXT", "PLAINTEXT", "AuthenticationFailed", "set security to SASL_PLAINTEXT"),
        ("SASL_SSL", "SSL", "AuthenticationFailed", "set security to SASL_SSL"),
        ("PLAINTEXT", "SASL_PLAINTEXT", "AuthenticationFailed", "takes no login: set security to PLAINTEXT"),
        ("SSL", "SASL_SSL", "AuthenticationFailed", "takes no login: set security to SSL"),
        ("SSL", "PLAINTEXT", "TlsFailed", "set security to SSL or SASL_SSL"),
        ("SASL_SSL", "SASL_PLAINTEXT", "TlsFailed", "set security to SASL_SSL"),
        ("PLAINTEXT", "SSL", "TlsFailed", "speak no TLS"),
        ("SASL_PLAINTEXT", "SASL_SSL", "TlsFailed", "speak no TLS"),
    ],
)
def test_the_wrong_security_is_told_with_the_right_one(
    kafka: Broker, topic: str, listener: str, asked: str, reason: str, advice: str
) -> None:
    at = replace(connection(kafka, asked), brokers=(getattr(kafka, listener.lower()),))
    outcome = ask(at, topic, within=3)
    assert outcome.reason == reason
    assert advice in outcome.message


@pytest.mark.parametrize("security", ["SSL", "SASL_SSL"])
def test_certificates_that_do_not_fit_are_told(kafka: Broker, topic: str, security: str) -> None:
    at = connection(kafka, security)
    stranger = trustme.CA()
    pair, other = stranger.issue_cert("a"), stranger.issue_cert("b")
    certificate, key = (pem.bytes().decode() for pem in (pair.cert_chain_pems[0], other.private_key_pem))
    port = at.brokers[0].rpartition(":")[2]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ca": stranger.cert_pem.bytes().decode()}, "is not trusted: give the CA"),
        ({"ca": ""}, "is not trusted: give the CA"),
        ({"brokers": (f"localhost:{port}",)}, "use the names in it"),
        ({"ca": "PLANTED"}, "ca.crt in the credentials Secret is not in PEM format"),
        ({"certificate": "PLANTED", "key": key}, "tls.crt in the credentials Secret is not in PEM format"),
        ({"certificate": certificate, "key": "PLANTED"}, "tls.key in the credentials Secret is not in PEM format"),
        ({"certificate": certificate, "key": key}, "tls.key is not the key of tls.crt"),
        ({"certificate": certificate}, "one is missing"),
    ]
    for changes, advice in cases:
        outcome = ask(replace(at, **changes), topic, within=3)
        assert outcome.reason == "TlsFailed", changes.keys()
        assert advice in outcome.message


def test_unreachable_brokers_are_named_with_the_cause() -> None:
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        closed.bind(("127.0.0.1", 0))
        quiet, refusing = (f"127.0.0.1:{s.getsockname()[1]}" for s in (silent, closed))
        for brokers, cause in (
            ((refusing,), f"{refusing} (connection refused)"),
            (("no-such.invalid:9092",), "no-such.invalid:9092 (no such name)"),
            ((quiet,), f"{quiet} (no answer in time)"),
            (
                (refusing, "no-such.invalid:9092"),
                f"{refusing} (connection refused), no-such.invalid:9092 (no such name)",
            ),
        ):
            outcome = ask(Connection(brokers), "t", within=4.5, timeout=4)
            assert outcome.reason == "BrokerUnreachable"
            assert cause in outcome.message
    assert "names no broker" in ask(Connection(("",)), "t", within=1).message


def test_one_dead_address_among_good_ones_does_no_harm(kafka: Broker, topic: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        for security in ("PLAINTEXT", "SASL_SSL"):
            at = connection(kafka, security)
            for brokers in ((dead, *at.brokers), (*at.brokers, dead, "no-such.invalid:1")):
                assert ask(replace(at, brokers=brokers), topic, within=5).ok


def test_a_name_with_a_dead_address_first_is_reachable(kafka: Broker, topic: str) -> None:
    # `localhost` is ::1 as well where there is IPv6, and nobody listens there.
    at = Connection((kafka.plaintext.replace("127.0.0.1", "localhost"),))
    assert ask(at, topic, within=4).ok


@pytest.mark.parametrize("wrong", [{"username": ""}, {"password": ""}])
def test_a_login_without_credentials_is_told(kafka: Broker, wrong: dict[str, str]) -> None:
    at = connection(kafka, "SASL_PLAINTEXT")
    at = login(at, **wrong)
    outcome = ask(at, "t", within=1)
    assert outcome.reason == "AuthenticationFailed"
    assert "give username and password" in outcome.message


def test_settings_that_no_client_takes_are_told(kafka: Broker) -> None:
    at = connection(kafka, "SASL_PLAINTEXT")
    assert "PLAIN, SCRAM" in ask(login(at, mechanism="NOTHING"), "t", within=1).message
    for odd in ("PLANTED\0PLANTED", "PLANTED\ud800"):
        assert not ask(login(at, password=odd), "t", within=3).ok


def test_a_mechanism_that_is_not_offered_and_topics_that_may_not_be_seen(strict: StrictBroker) -> None:
    at = connection(strict, "SASL_PLAINTEXT")
    for name in ("mine", "theirs"):
        strict.create_topic(name)
    strict.allow("topic", "mine", "read")
    wait_for(lambda: ask(at, "mine").ok, WAIT_S, "the ACL to count")
    outcome = ask(at, "mine", "theirs", within=2)
    assert outcome.reason == "NotAuthorized"
    assert outcome.topics == {"theirs"}
    assert "may not see topic theirs" in outcome.message
    outcome = ask(login(at, mechanism="SCRAM-SHA-256"), "mine", within=2)
    assert outcome.reason == "AuthenticationFailed"
    assert "does not offer SCRAM-SHA-256: set mechanism to one of PLAIN" in outcome.message


def test_no_topic_is_created_by_looking_even_where_brokers_would(strict: StrictBroker) -> None:
    at = Connection((strict.plaintext,))
    for _ in range(3):
        assert ask(at, "made-by-looking").reason == "TopicMissing"
    assert "made-by-looking" not in strict._admin().list_topics(timeout=WAIT_S).topics


def test_the_demos_embedded_broker_is_reachable(tmp_path: Path) -> None:
    mock = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 0})
    address = str(next(iter(mock.list_topics(timeout=5).brokers.values()))).partition("/")[0]
    mock.produce("queue", b"")
    mock.flush(10)
    assert ask(Connection((address,)), "queue", within=5).ok
    del mock


def test_the_registry_sees_a_broker_go_and_come_back() -> None:
    need(available())

    async def until(condition: Callable[[], object], what: str) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"waited for {what}, in vain") from None

    async def run(broker: Broker) -> None:
        broker.create_topic("queue")
        changes: list[str] = []
        probes = Probes[str](changes.append, pace=Pace(good=0.5, bad=0.2, worst=1, again=0.3, gap=0.1))
        here, wrong = connection(broker, "SASL_SSL"), login(connection(broker, "SASL_SSL"), password=WRONG)
        good, missing, refused = (
            Topics(at, frozenset(names))
            for at, names in ((here, {"queue"}), (here, {"queue", "later"}), (wrong, {"queue"}))
        )

        def reasons() -> list[str | None]:
            found = [probes.result(item) for item in (good, missing, refused)]
            return [outcome.reason if outcome else None for outcome in found]

        task = asyncio.create_task(probes.run())
        for number in range(200):
            probes.watch(f"good{number}", [good])
        probes.watch("missing", [missing])
        probes.watch("refused", [refused])
        await until(lambda: reasons() == ["Reachable", "TopicMissing", "AuthenticationFailed"], "the first outcomes")
        await asyncio.to_thread(broker.create_topic, "later")
        await until(lambda: reasons()[1] == "Reachable", "the topic that came")
        changes.clear()
        await asyncio.to_thread(broker.stop)
        await until(lambda: reasons() == ["BrokerUnreachable"] * 3, "the broker to be gone")
        await until(lambda: set(changes) == {"missing", "refused", *(f"good{n}" for n in range(200))}, "all to hear")
        await asyncio.to_thread(broker.start)
        await until(lambda: reasons() == ["Reachable", "Reachable", "AuthenticationFailed"], "the broker to be back")
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("kafka-probe")]

    with Broker() as broker:
        asyncio.run(run(broker))
