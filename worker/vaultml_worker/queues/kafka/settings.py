"""Kafka's variables."""

import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

from vaultml_common import kafka, msk
from vaultml_worker.environment import Environment, split
from vaultml_worker.transport import environment_cas, is_address, no_certificates


class KafkaSettings(Environment):
    """How to reach and enter the Kafka cluster."""

    kafka_broker: Annotated[tuple[str, ...], NoDecode] = Field(description="Brokers, `host:port`, comma-separated.")
    kafka_group: str = Field(description="Consumer group.")
    kafka_security: Literal["PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL", "SSL"] = Field(
        default="PLAINTEXT", description="How to talk to the brokers."
    )
    kafka_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM"] = Field(
        default="PLAIN", description="SASL mechanism."
    )
    kafka_username: str = Field(default="", description="SASL user, for PLAIN and SCRAM.")
    kafka_password: SecretStr = Field(default=SecretStr(""), description="SASL password, for PLAIN and SCRAM.")
    kafka_oauth_token_url: str = Field(
        default="", description="Token endpoint of the OpenID Connect provider, for OAUTHBEARER."
    )
    kafka_oauth_client_id: str = Field(default="", description="Client id at the provider, for OAUTHBEARER.")
    kafka_oauth_client_secret: SecretStr = Field(
        default=SecretStr(""), description="Client secret at the provider, for OAUTHBEARER."
    )
    kafka_oauth_scope: str = Field(default="", description="Scope to ask for, for OAUTHBEARER.")
    kafka_oauth_extensions: str = Field(
        default="",
        description="SASL extensions, `key=value`, comma-separated, for OAUTHBEARER (Confluent Cloud: "
        "`logicalCluster=lkc-…,identityPoolId=pool-…`).",
    )
    kafka_oauth_ca: Path | None = Field(
        default=None, description="File with the CA that signed the token endpoint's certificate."
    )
    kafka_aws_region: str = Field(default="", description="The cluster's region, for AWS_MSK_IAM; absent: AWS_REGION.")
    kafka_ssl_ca: Path | None = Field(
        default=None,
        description="File with the CA that signed the brokers' certificate; absent: SSL_CERT_FILE or "
        "REQUESTS_CA_BUNDLE, else the system's.",
    )
    kafka_ssl_cert: Path | None = Field(default=None, description="File with our client certificate.")
    kafka_ssl_key: Path | None = Field(default=None, description="File with our client key.")
    kafka_offset_reset: Literal["earliest", "latest"] = Field(
        default="earliest",
        description="Where a group without commits begins. With latest, so does a partition that is added later.",
    )

    @field_validator("kafka_broker", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split(value)

    @field_validator("kafka_broker")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise PydanticCustomError("missing", "names no broker: give host:port, comma-separated")
        for address in value:
            if wrong := kafka.wrong_broker(address):
                raise PydanticCustomError("address", "{address} {wrong}", {"address": address, "wrong": wrong})
        return value

    @field_validator("kafka_group")
    @classmethod
    def _group(cls, value: str) -> str:
        if not value.isprintable():
            raise PydanticCustomError("text", "holds a control character or an invisible one: write it again")
        return value

    @field_validator("kafka_ssl_ca", "kafka_oauth_ca")
    @classmethod
    def _authority(cls, value: Path | None) -> Path | None:
        if value is not None and (wrong := no_certificates(value)) is not None:
            raise PydanticCustomError("file", "{path}: {wrong}", {"path": str(value), "wrong": wrong})
        return value

    @field_validator("kafka_oauth_token_url")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        if value and not is_address(value):
            raise PydanticCustomError("address", "must look like https://idp.example/realms/kafka/token")
        return value

    @field_validator("kafka_oauth_extensions")
    @classmethod
    def _extensions(cls, value: str) -> str:
        if value and not all(re.fullmatch(r"\s*\w+=[^,]+", part) for part in value.split(",")):
            raise PydanticCustomError("text", "must be key=value, comma-separated")
        return value

    @field_validator("kafka_ssl_cert", "kafka_ssl_key")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise PydanticCustomError("file", "{path}: no such file", {"path": str(value)})
        return value

    def conflicts(self) -> Iterator[str]:
        """See Environment."""
        if self.kafka_security.startswith("SASL"):
            yield from self._login_conflicts()
        elif self.kafka_mechanism not in kafka.PASSWORD_MECHANISMS:
            yield (
                f"KAFKA_SECURITY: KAFKA_MECHANISM={self.kafka_mechanism} needs SASL_SSL (or SASL_PLAINTEXT), not "
                f"{self.kafka_security}"
            )
        if bool(self.kafka_ssl_cert) != bool(self.kafka_ssl_key):
            yield "KAFKA_SSL_CERT, KAFKA_SSL_KEY: one needs the other"
        elif (
            self.kafka_ssl_cert and self.kafka_ssl_key and (wrong := _no_pair(self.kafka_ssl_cert, self.kafka_ssl_key))
        ):
            yield f"KAFKA_SSL_CERT, KAFKA_SSL_KEY: {wrong}"

    def _login_conflicts(self) -> Iterator[str]:
        if self.kafka_mechanism == msk.MECHANISM:
            if wrong := msk.missing(self.kafka_aws_region):
                yield f"KAFKA_MECHANISM: {wrong}"
            return
        needed = (
            ("kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret")
            if self.kafka_mechanism == "OAUTHBEARER"
            else ("kafka_username", "kafka_password")
        )
        for name in needed:
            value = getattr(self, name)
            if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
                yield (
                    f"{name.upper()}: needed with KAFKA_SECURITY={self.kafka_security} and "
                    f"KAFKA_MECHANISM={self.kafka_mechanism}"
                )

    @property
    def login(self) -> kafka.Login:
        """How to log in."""
        if self.kafka_mechanism != "OAUTHBEARER":
            password = self.kafka_password.get_secret_value()
            return kafka.Login(self.kafka_mechanism, self.kafka_username, password, region=self.kafka_aws_region)
        oauth = kafka.OAuth(
            self.kafka_oauth_token_url,
            self.kafka_oauth_client_id,
            self.kafka_oauth_client_secret.get_secret_value(),
            self.kafka_oauth_scope,
            self.kafka_oauth_extensions,
            ("location", str(ca)) if (ca := self.kafka_oauth_ca or _environment_ca()) else None,
        )
        return kafka.Login(self.kafka_mechanism, oauth=oauth)

    def client(self) -> dict[str, Any]:
        """Return librdkafka's settings for reaching the brokers, the same for every client of ours."""
        files = {"ca": self.kafka_ssl_ca or _environment_ca(), "certificate": self.kafka_ssl_cert}
        tls = {f"{kind}.location": str(path or "") for kind, path in {**files, "key": self.kafka_ssl_key}.items()}
        host = os.environ.get("HOSTNAME") or socket.gethostname()
        return {
            **kafka.client_settings(self.kafka_broker, self.kafka_security, host, self.login, tls),
            "log_level": 2,  # what matters comes through error_cb
            "reconnect.backoff.max.ms": 5000,
        }


def _environment_ca() -> Path | None:
    return next(iter(environment_cas().values()), None)


def _no_pair(certificate: Path, key: Path) -> str | None:
    """Return why a certificate and a key can't be used together; None: they can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key is not the one of the certificate: give the pair that belongs together"
        return "one of them is not in PEM format, or the key has a password: give plain PEM files"
    except OSError as error:
        return f"they can't be read ({error.strerror})"
    return None
