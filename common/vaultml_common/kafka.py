"""Kafka as both sides use it: the client's settings, the names of dead-letter topics, and what errors mean."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from confluent_kafka import KafkaError

from vaultml_common import msk

PASSWORD_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_BROKER = re.compile(r"([a-zA-Z0-9_][-a-zA-Z0-9_.]*|\[[0-9a-fA-F:.]+\])(?::([0-9]{1,5}))?")


def dead_letter_topic(source: str, target: str) -> str:
    """Return the topic for the dead letters of a pipeline that reads `source` and writes to `target`."""
    return f"{target or source}.dlq"


def wrong_topic(name: str) -> str | None:
    """Return what is wrong with a topic's name; None: nothing."""
    if _TOPIC.fullmatch(name) and name not in (".", ".."):
        return None
    return "is no topic's name: use letters, digits, dots, underscores and hyphens, at most 249"


def wrong_broker(address: str) -> str | None:
    """Return what is wrong with a broker's address; None: nothing."""
    found = _BROKER.fullmatch(address)
    if found and 1 <= int(found[2] or 9092) <= 65535:
        return None
    return 'must be host:port, without a scheme, comma-separated, e.g. "kafka.kafka:9092"'


@dataclass(frozen=True, slots=True)
class OAuth:
    """A client of an OpenID Connect provider, which logs in with its own credentials (grant `client_credentials`).

    `extensions` is `key=value`, comma-separated, as some brokers ask for; `ca` names or holds the authority of the
    token endpoint's certificate, as librdkafka's `https.ca.*` setting.
    """

    token_url: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str = ""
    extensions: str = ""
    ca: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Login:
    """How a client logs in. With mechanism OAUTHBEARER `oauth` is set, with AWS_MSK_IAM `region` may be."""

    mechanism: str = "PLAIN"
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    oauth: OAuth | None = field(default=None, repr=False)
    region: str = ""

    def settings(self) -> dict[str, Any]:
        """Return librdkafka's settings."""
        if self.mechanism == msk.MECHANISM:
            return {"sasl.mechanism": "OAUTHBEARER", "oauth_cb": msk.token_source(self.region)}
        if self.oauth is None:
            names = {"mechanism": self.mechanism, "username": self.username, "password": self.password}
            return {f"sasl.{name}": value for name, value in names.items()}
        given = {
            "client.id": self.oauth.client_id,
            "client.secret": self.oauth.client_secret,
            "token.endpoint.url": self.oauth.token_url,
            "scope": self.oauth.scope,
            "extensions": self.oauth.extensions,
        }
        return {
            "sasl.mechanism": self.mechanism,
            "sasl.oauthbearer.method": "oidc",
            **{f"sasl.oauthbearer.{name}": value for name, value in given.items() if value},
            **({f"https.ca.{self.oauth.ca[0]}": self.oauth.ca[1]} if self.oauth.ca else {}),
        }


def client_settings(
    brokers: tuple[str, ...], security: str, client_id: str, login: Login, tls: Mapping[str, str]
) -> dict[str, Any]:
    """Return librdkafka's settings for reaching the brokers; `tls` holds its settings without their `ssl.` prefix."""
    return {
        "bootstrap.servers": ",".join(brokers),
        "security.protocol": security,
        "client.id": client_id,
        **(login.settings() if security.startswith("SASL") else {}),
        **({f"ssl.{name}": value for name, value in tls.items() if value} if security.endswith("SSL") else {}),
    }


class Trouble(Enum):
    """What an error of the client means."""

    LOGIN_REFUSED = "authentication failed"
    TLS_FAILED = "TLS failed"
    TOPIC_MISSING = "the topic does not exist"
    UNREACHABLE = "not reachable"
    TOPIC_FORBIDDEN = "the user lacks a right on the topic"
    GROUP_FORBIDDEN = "the user lacks the right Read on the group"
    CLUSTER_FORBIDDEN = "the user lacks the right IdempotentWrite (or Write on the topic)"
    GROUP_IN_USE = "the group is in use by consumers of another kind (hub-ml?)"


_CODES: dict[Trouble, tuple[int, ...]] = {
    Trouble.LOGIN_REFUSED: (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED),
    Trouble.TLS_FAILED: (KafkaError._SSL,),
    Trouble.TOPIC_MISSING: (
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.TOPIC_EXCEPTION,
    ),
    Trouble.UNREACHABLE: (
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
    ),
    Trouble.TOPIC_FORBIDDEN: (KafkaError.TOPIC_AUTHORIZATION_FAILED,),
    Trouble.GROUP_FORBIDDEN: (KafkaError.GROUP_AUTHORIZATION_FAILED,),
    Trouble.CLUSTER_FORBIDDEN: (
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    ),
    Trouble.GROUP_IN_USE: (KafkaError.INCONSISTENT_GROUP_PROTOCOL,),
}


def fatal(error: KafkaError) -> bool:
    """Return True if the client has failed for good: once with the error itself, then with `_FATAL` from each call."""
    return bool(error.fatal()) or error.code() == KafkaError._FATAL


def trouble(error: KafkaError) -> Trouble | None:
    """Return what an error means, where that is known."""
    return next((kind for kind, codes in _CODES.items() if error.code() in codes), None)
