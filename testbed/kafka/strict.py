"""A broker with rights, and one that takes tokens of an OpenID Connect provider."""

from typing import Any

# Also in confluent_kafka.admin, but not for type checkers.
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from testbed.kafka.broker import Broker

_WAIT_S = 30


class StrictBroker(Broker):
    """A broker that offers PLAIN alone, and where the user may do what it is allowed to."""

    def _write_properties(self, auto_create_topics: bool) -> None:
        super()._write_properties(auto_create_topics)
        with self._properties.open("a") as properties:
            properties.write("sasl.enabled.mechanisms=PLAIN\n")
            properties.write("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n")
            properties.write("super.users=User:ANONYMOUS\n")

    def allow(self, kind: str, name: str, operation: str) -> None:
        """Grant the user a right: an operation of Kafka's ACLs, such as read; `kind` is topic or group."""
        admin = self._admin()  # its calls end with it
        for future in admin.create_acls([AclBinding(*self._acl(kind, name, operation))]).values():
            future.result(timeout=_WAIT_S)

    def revoke(self, kind: str, name: str, operation: str) -> None:
        """Take a right away."""
        admin = self._admin()
        for future in admin.delete_acls([AclBindingFilter(*self._acl(kind, name, operation))]).values():
            future.result(timeout=_WAIT_S)

    def _acl(self, kind: str, name: str, operation: str) -> tuple[Any, ...]:
        return (
            ResourceType[kind.upper()],
            name,
            ResourcePatternType.LITERAL,
            f"User:{self.username}",
            "*",
            AclOperation[operation.upper()],
            AclPermissionType.ALLOW,
        )


class OAuthBroker(Broker):
    """A broker whose SASL listeners also take OAUTHBEARER tokens; `jwks` is the URL of the provider's public keys."""

    def __init__(self, jwks: str) -> None:
        self._jwks = jwks
        super().__init__()

    def _write_properties(self, auto_create_topics: bool) -> None:
        super()._write_properties(auto_create_topics)
        package = "org.apache.kafka.common.security.oauthbearer"
        with self._properties.open("a") as properties:
            properties.write("sasl.enabled.mechanisms=PLAIN,OAUTHBEARER\n")
            for listener in ("sasl_plaintext", "sasl_ssl"):
                mechanism = f"listener.name.{listener}.oauthbearer"
                properties.write(f"{mechanism}.sasl.jaas.config={package}.OAuthBearerLoginModule required;\n")
                handler = f"{package}.OAuthBearerValidatorCallbackHandler"
                properties.write(f"{mechanism}.sasl.server.callback.handler.class={handler}\n")
                properties.write(f"listener.name.{listener}.sasl.oauthbearer.jwks.endpoint.url={self._jwks}\n")
            properties.write("sasl.oauthbearer.expected.audience=kafka\n")
            properties.write("sasl.oauthbearer.expected.issuer=http://provider\n")

    def _java(self) -> list[str | object]:  # type: ignore[override]
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={self._jwks}"
        first, *rest = super()._java()
        return [first, allowed, *rest]
