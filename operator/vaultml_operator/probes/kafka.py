"""Whether Kafka can be reached with a pipeline's credentials, and has its topics."""

import logging
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from vaultml_common import msk
from vaultml_common.kafka import Login, Trouble, client_settings, trouble
from vaultml_common.vault import unusable
from vaultml_operator.probes.outcome import Outcome

_POLL_S = 0.05
_PATIENCE_S = 2.0
"""A refused connection is tried again for so long: behind one name there may be several addresses, tried in turn.
A broker that is silent for so long may be one that can't describe topics.
"""
_CLOSED_TWICE = 2
_SHOWN = 3
"""Most addresses, or topics, that a message names."""
_MISSING = (Trouble.TOPIC_MISSING,)
_FORBIDDEN = (Trouble.TOPIC_FORBIDDEN, Trouble.CLUSTER_FORBIDDEN)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a pipeline reaches Kafka; `ca`, `certificate` and `key` are the contents of PEM files."""

    brokers: tuple[str, ...]
    security: str = "PLAINTEXT"
    login: Login = field(default_factory=Login)
    ca: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    @property
    def tls(self) -> bool:
        """True if it is encrypted."""
        return self.security.endswith("SSL")

    @property
    def sasl(self) -> bool:
        """True if it logs in."""
        return self.security.startswith("SASL")

    def settings(self) -> dict[str, Any]:
        """Return the settings of librdkafka."""
        tls = {"ca.pem": self.ca, "certificate.pem": self.certificate, "key.pem": self.key}
        settings = client_settings(self.brokers, self.security, "vaultml-operator", self.login, tls)
        return settings | {"allow.auto.create.topics": False}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one look at a cluster gave, for all the topics that were asked for."""

    trouble: Outcome | None = None
    missing: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()

    def outcome(self, topics: Iterable[str]) -> Outcome:
        """What it means to someone who needs these topics."""
        if self.trouble is not None:
            return self.trouble
        wanted = frozenset(topics)
        if forbidden := wanted & self.forbidden:
            return Outcome(
                "NotAuthorized",
                f"the Kafka user may not see {_topics(forbidden)}: allow it to describe, read and write what it needs",
                forbidden,
            )
        if missing := wanted & self.missing:
            return Outcome(
                "TopicMissing", f"Kafka has no {_topics(missing)}: create what is missing, or correct the name", missing
            )
        return Outcome("Reachable", "Kafka answers, and has the topics")


def check(
    connection: Connection, topics: Iterable[str], timeout: float = 10.0, stop: threading.Event | None = None
) -> Outcome:
    """Ask the cluster for `topics`. See `look`."""
    wanted = frozenset(topics)
    return look(connection, wanted, timeout, stop).outcome(wanted)


def look(
    connection: Connection, topics: frozenset[str], timeout: float = 10.0, stop: threading.Event | None = None
) -> Answer:
    """Ask the cluster for `topics`, with a client of its own; blocks until the answer is known, or `timeout` seconds.

    Creates no topic. `stop` ends it early, with an answer that means nothing.
    """
    if wrong := _unusable(connection):
        return Answer(wrong)
    trouble = _Heard(connection)
    # librdkafka's log belongs to nobody but us: what is said there about a closed connection comes by no other way.
    log = logging.Logger("probe", logging.INFO)  # noqa: LOG001 - not in the process-wide registry
    log.addHandler(trouble)
    log.propagate = False
    try:
        client = AdminClient(
            connection.settings() | {"error_cb": trouble.heard, "log_level": 6, "reconnect.backoff.max.ms": 500},
            logger=log,
        )
    except KafkaException as error:
        return Answer(_refused_settings(error.args[0].str(), connection))
    except ValueError:  # a NUL or a lone surrogate; its text would quote the value
        return Answer(_refused_settings("", connection))
    return _ask(client, topics, trouble, timeout, stop or threading.Event())


def _ask(
    client: AdminClient, topics: frozenset[str], trouble: "_Heard", timeout: float, stop: threading.Event
) -> Answer:
    started = time.monotonic()
    # Asks for these topics only; never creates one, whatever the broker's settings. Without topics the cluster is asked
    # for itself.
    asked: dict[str, Future[Any]] = (
        client.describe_topics(TopicCollection(sorted(topics)), request_timeout=timeout)
        if topics
        else {"": client.describe_cluster(request_timeout=timeout)}
    )
    fallen_back = False
    while not stop.is_set() and (elapsed := time.monotonic() - started) < timeout:
        client.poll(_POLL_S)
        if all(future.done() for future in asked.values()):
            return _answer({name: _error(future) for name, future in asked.items()}, trouble)
        if (known := trouble.decided(patient=elapsed < _PATIENCE_S)) is not None:
            return Answer(known)
        if elapsed > _PATIENCE_S and trouble.silent and not fallen_back:
            # Describing goes to the controller; the demo's embedded broker has none, but knows its topics.
            fallen_back = True
            if (found := _list(client, topics)) is not None:
                return found
    return Answer(trouble.unreachable())


def _list(client: AdminClient, topics: frozenset[str]) -> Answer | None:
    try:
        there = client.list_topics(timeout=1).topics
    except KafkaException:
        return None
    return Answer(missing=topics - there.keys())


def _error(future: "Future[Any]") -> KafkaError | None:
    error = future.exception()
    return error.args[0] if isinstance(error, KafkaException) else None


def _answer(errors: dict[str, KafkaError | None], seen: "_Heard") -> Answer:
    missing = frozenset(name for name, error in errors.items() if error is not None and trouble(error) in _MISSING)
    forbidden = frozenset(name for name, error in errors.items() if error is not None and trouble(error) in _FORBIDDEN)
    if any(error is not None and trouble(error) not in (*_MISSING, *_FORBIDDEN) for error in errors.values()):
        return Answer(seen.unreachable())
    return Answer(None, missing, forbidden)


class _Heard(logging.Handler):
    """Collects what librdkafka says of each address, and decides what it means.

    Its texts are looked at and never passed on: what a broker says is not ours to publish.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._causes: dict[str, str] = {}
        self._advertised: set[str] = set()
        self._closed: dict[str, int] = {}
        self._firm: Outcome | None = None
        self._all_down = False

    @property
    def silent(self) -> bool:
        """Whether nothing was said so far."""
        return not self._causes and self._firm is None

    def heard(self, error: KafkaError) -> None:
        """What comes through `error_cb`."""
        code, text = error.code(), error.str()
        if code == KafkaError._ALL_BROKERS_DOWN:
            self._all_down = True
            return
        address = self._address(text)
        if trouble(error) is Trouble.LOGIN_REFUSED:
            self._firm = _login_failed(text, address, self._connection)
        elif code == KafkaError._SSL or "SSL handshake failed" in text:
            self._firm = _tls_failed(text, address)
        else:
            cause = next((cause for mark, cause in _CAUSES if mark in text), "no connection")
            self._causes[address] = cause

    def emit(self, record: logging.LogRecord) -> None:
        """What comes through the log: that a connection was closed, in which state."""
        text = record.getMessage()
        if "closed by peer" not in text or "handshake" in text:
            return
        address = self._address(text.partition("]: ")[2])
        self._causes.setdefault(address, "it closes the connection")
        self._closed[address] = self._closed.get(address, 0) + 1
        # Once may be a broker that goes down.
        if self._closed[address] < _CLOSED_TWICE:
            return
        if "in state APIVERSION_QUERY" in text and not self._connection.tls:
            other = "SASL_SSL" if self._connection.sasl else "SSL or SASL_SSL"
            self._firm = Outcome(
                "TlsFailed",
                f"the broker {address} closes the connection at once: it seems to want TLS; set security to {other}, "
                "or give the port of its plain listener",
            )
        elif "in state UP" in text and not self._connection.sasl:
            other = "SASL_SSL" if self._connection.tls else "SASL_PLAINTEXT"
            self._firm = Outcome(
                "AuthenticationFailed",
                f"the broker {address} closes the connection when asked without a login: set security to {other}, "
                "with mechanism and credentials",
            )

    def decided(self, *, patient: bool) -> Outcome | None:
        """The outcome, once every broker has failed; until then another may still answer."""
        if self._all_down and self._firm is not None:
            return self._firm
        return self.unreachable() if self._all_down and self._causes and not patient else None

    def unreachable(self) -> Outcome:
        """What to say when no answer came."""
        if self._firm is not None:
            return self._firm
        brokers = self._connection.brokers
        if advertised := sorted(self._advertised & self._causes.keys()):
            said = _several([f"{address} ({self._causes[address]})" for address in advertised])
            return Outcome(
                "BrokerUnreachable",
                f"Kafka answers, but names an address that can't be reached from here: {said}; "
                "correct the brokers' advertised.listeners",
            )
        said = _several([f"{address} ({self._causes.get(address, 'no answer in time')})" for address in brokers])
        return Outcome(
            "BrokerUnreachable",
            f"no Kafka broker can be reached: {said}; check queue.kafka.brokers, that they run, and network policies",
        )

    def _address(self, text: str) -> str:
        found = _ADDRESS.match(text)
        if found is None:
            return self._connection.brokers[0]
        address, role = found.groups()
        if role != "bootstrap":
            self._advertised.add(address)
        return address


_ADDRESS = re.compile(r"(?:\w+://)?([^/\s]+)/(bootstrap|\d+)")
_MECHANISMS = re.compile(r"supported mechanisms: ([A-Z0-9,\- ]*)")
_CAUSES = (
    ("Connection refused", "connection refused"),
    ("Failed to resolve", "no such name"),
    ("No route to host", "no route to it"),
    ("Network is unreachable", "no route to it"),
    ("timed out", "no answer in time"),
    ("timeout", "no answer in time"),
    ("Connection reset", "it closes the connection"),
    ("closed by peer", "it closes the connection"),
)


def _login_failed(text: str, address: str, connection: Connection) -> Outcome:
    if (offered := _MECHANISMS.search(text)) is not None:
        if mechanisms := offered.group(1).strip():
            return Outcome(
                "AuthenticationFailed",
                f"the broker {address} does not offer {connection.login.mechanism}: "
                f"set mechanism to one of {mechanisms}",
            )
        other = "SSL" if connection.tls else "PLAINTEXT"
        return Outcome(
            "AuthenticationFailed",
            f"the broker {address} takes no login: set security to {other}, or give the port of its SASL listener",
        )
    if connection.login.oauth is not None:
        return Outcome(
            "AuthenticationFailed",
            f"the login at {address} failed: check that {connection.login.oauth.token_url} is "
            "reached and takes clientId and clientSecret of the credentials Secret, and that the broker trusts it",
        )
    return Outcome(
        "AuthenticationFailed",
        f"the broker {address} refuses the login: check username and password in the credentials Secret, "
        f"and that the user exists for {connection.login.mechanism}",
    )


def _tls_failed(text: str, address: str) -> Outcome:
    if "PLAINTEXT broker" in text or "wrong version number" in text:
        advice = "it seems to speak no TLS; set security to PLAINTEXT or SASL_PLAINTEXT, or give its TLS port"
    elif "certificate required" in text or "bad certificate" in text or "unknown ca" in text:
        advice = "it wants a client certificate that it trusts: give tls.crt and tls.key in the credentials Secret"
    elif "expired" in text:
        advice = "its certificate has expired: renew it"
    else:
        advice = (
            "its certificate is not trusted: give the CA that signed it as ca.crt in the credentials Secret, "
            "and use the names in it as brokers"
        )
    return Outcome("TlsFailed", f"no TLS connection to the broker {address}: {advice}")


def _unusable(connection: Connection) -> Outcome | None:
    """What librdkafka would take without a word, or only warn of."""
    if not any(broker.strip() for broker in connection.brokers):
        return Outcome("BrokerUnreachable", "queue.kafka.brokers names no broker: give host:port")
    if connection.sasl and (wrong := _unusable_login(connection.login)):
        return Outcome("AuthenticationFailed", f"{connection.security} needs a login: {wrong}")
    if connection.tls and bool(connection.certificate) != bool(connection.key):
        return Outcome("TlsFailed", "of tls.crt and tls.key one is missing in the credentials Secret: give both")
    return None


def _unusable_login(login: Login) -> str | None:
    if login.mechanism == msk.MECHANISM:
        return msk.missing(login.region)
    if login.mechanism == "OAUTHBEARER":
        if login.oauth is None or not (login.oauth.client_id and login.oauth.client_secret):
            return "give clientId and clientSecret in the credentials Secret, and the block oauth"
        wrong = unusable(login.oauth.client_secret)
        return f"the key clientSecret of the credentials Secret {wrong}" if wrong else None
    if not (login.username and login.password):
        return "give username and password in the credentials Secret"
    wrong = unusable(login.password)
    return f"the key password of the credentials Secret {wrong}" if wrong else None


def _refused_settings(text: str, connection: Connection) -> Outcome:
    """Settings that the client can't even be made with; its `text` may quote them."""
    if "mismatch" in text:
        return Outcome("TlsFailed", "tls.key is not the key of tls.crt: give the pair that belongs together")
    for setting, name in (("ssl.ca", "ca.crt"), ("ssl.certificate", "tls.crt"), ("ssl.key", "tls.key")):
        if setting in text:
            return Outcome("TlsFailed", f"{name} in the credentials Secret is not in PEM format: give a PEM file")
    if "sasl" in text.lower():
        return Outcome(
            "AuthenticationFailed",
            f"the Kafka client can't use mechanism {connection.login.mechanism} with these credentials: "
            "set PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, with username and password",
        )
    return Outcome("BrokerUnreachable", "the Kafka client refuses the settings: check brokers, security and mechanism")


def _topics(names: frozenset[str]) -> str:
    return ("topic " if len(names) == 1 else "topics ") + _several(sorted(names))


def _several(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
