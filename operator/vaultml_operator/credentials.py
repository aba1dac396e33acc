"""Which key of which Secret or ConfigMap holds what: pure, from the spec and the names of the keys that are there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from vaultml_operator import api


class Object(NamedTuple):
    """A Secret or ConfigMap of the pipeline's namespace."""

    kind: Literal["Secret", "ConfigMap"]
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Source(NamedTuple):
    """One key of such an object."""

    object: Object
    key: str


Keys = Mapping[Object, frozenset[str] | None]
"""The keys of each object that the spec names; None: the object is missing."""


class Missing(Exception):  # noqa: N818 - it says what is missing
    """An object or key that the spec names isn't there; `reason` is of the catalogue, the message says what to do."""

    def __init__(self, reason: Literal["SecretMissing", "SecretKeyMissing"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Credentials:
    """Where each credential comes from; None: not needed, or not given."""

    username: str | Source | None = None
    password: Source | None = None
    ca: Source | None = None
    certificate: Source | None = None
    key: Source | None = None
    oauth_client_id: Source | None = None
    oauth_client_secret: Source | None = None
    oauth_ca: Source | None = None
    vault_access_key: Source | None = None
    vault_secret_key: Source | None = None
    vault_ca: Source | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that is read."""
        found = (getattr(self, field.name) for field in fields(self))
        return tuple(each for each in found if isinstance(each, Source))


def objects(spec: api.Spec) -> tuple[Object, ...]:
    """Every Secret and ConfigMap that the spec names and whose change must roll the workers, each once."""
    return tuple(dict.fromkeys(_objects(spec)))


def _objects(spec: api.Spec) -> Iterator[Object]:
    if (kafka := spec.queue.kafka) is not None:
        if kafka.credentials_secret_ref is not None:
            yield Object("Secret", kafka.credentials_secret_ref.name)
        for ca in (kafka.ca, kafka.oauth.ca if kafka.oauth is not None else None):
            if ca is not None:
                yield _authority(ca).object
    if spec.vault is not None:
        yield Object("Secret", spec.vault.credentials_secret_ref.name)
        if spec.vault.ca is not None:
            yield _authority(spec.vault.ca).object
    for variable in spec.worker.env:
        if variable.value_from is not None:
            if (ref := variable.value_from.secret_key_ref) is not None:
                yield Object("Secret", ref.name)
            if (ref := variable.value_from.config_map_key_ref) is not None:
                yield Object("ConfigMap", ref.name)


def find(spec: api.Spec, keys: Keys) -> Credentials:
    """Where each credential comes from. Raises Missing for the first object or key that isn't there."""
    found: dict[str, Any] = _kafka(spec.queue.kafka, keys) if spec.queue.kafka is not None else {}
    if spec.vault is not None:
        secret = Object("Secret", spec.vault.credentials_secret_ref.name)
        _existing(keys, secret, "the keys accessKey and secretKey")
        found |= {
            "vault_access_key": _need(keys, secret, "accessKey", "the Vault access key"),
            "vault_secret_key": _need(keys, secret, "secretKey", "the Vault secret key"),
            "vault_ca": _needed_authority(keys, spec.vault.ca, "Vault's certificate authority"),
        }
    for variable in spec.worker.env:
        source = variable.value_from
        for kind, ref in (
            ("Secret", source.secret_key_ref if source else None),
            ("ConfigMap", source.config_map_key_ref if source else None),
        ):
            if ref is not None and not ref.optional:
                _need(keys, Object(kind, ref.name), ref.key, f"the variable {variable.name}")  # type: ignore[arg-type]
    return Credentials(**found)


def _kafka(kafka: api.Kafka, keys: Keys) -> dict[str, str | Source | None]:
    found: dict[str, str | Source | None] = {}
    if kafka.ca is not None:
        found["ca"] = _needed_authority(keys, kafka.ca, "the brokers' certificate authority")
    if kafka.credentials_secret_ref is None:
        return found
    secret = Object("Secret", kafka.credentials_secret_ref.name)
    if kafka.oauth is not None:
        there = _existing(keys, secret, "the keys clientId and clientSecret")
        found |= {
            "oauth_client_id": _need(keys, secret, "clientId", "the client's id at the OpenID Connect provider"),
            "oauth_client_secret": _need(keys, secret, "clientSecret", "the client's secret"),
            "oauth_ca": _needed_authority(keys, kafka.oauth.ca, "the token endpoint's certificate authority"),
        }
        return found | _tls(kafka, keys, secret, there, known_ca="ca" in found)
    there = _existing(keys, secret, "the keys username and password")
    strimzi = "user.crt" in there or "sasl.jaas.config" in there
    if kafka.security.startswith("SASL") and kafka.mechanism != "AWS_MSK_IAM":
        found["password"] = _need(keys, secret, "password", "the Kafka user's password")
        if kafka.username is not None:
            found["username"] = kafka.username
        elif "username" not in there and strimzi:
            found["username"] = secret.name  # Strimzi names the Secret after the user
        else:
            found["username"] = _need(keys, secret, "username", "the Kafka user's name (or give kafka.username)")
    return found | _tls(kafka, keys, secret, there, known_ca="ca" in found)


def _tls(kafka: api.Kafka, keys: Keys, secret: Object, there: frozenset[str], *, known_ca: bool) -> dict[str, Source]:
    """Return what the credentials Secret holds for TLS."""
    found: dict[str, Source] = {}
    if not kafka.security.endswith("SSL"):
        return found
    # ca.crt of a Strimzi user's Secret signs users, not brokers.
    if not known_ca and "ca.crt" in there and "user.crt" not in there and "sasl.jaas.config" not in there:
        found["ca"] = Source(secret, "ca.crt")
    certificate, key = ("user.crt", "user.key") if "user.crt" in there else ("tls.crt", "tls.key")
    if certificate in there or key in there:
        found["certificate"] = _need(keys, secret, certificate, "our client certificate")
        found["key"] = _need(keys, secret, key, "our client certificate's key")
    return found


def _needed_authority(keys: Keys, ca: api.CertificateAuthority | None, what: str) -> Source | None:
    if ca is None:
        return None
    source = _authority(ca)
    return _need(keys, source.object, source.key, what)


def _authority(ca: api.CertificateAuthority) -> Source:
    if ca.secret_key_ref is not None:
        return Source(Object("Secret", ca.secret_key_ref.name), ca.secret_key_ref.key)
    if ca.config_map_key_ref is None:
        raise Missing("SecretMissing", "a field ca names neither a Secret nor a ConfigMap: give one of them")
    return Source(Object("ConfigMap", ca.config_map_key_ref.name), ca.config_map_key_ref.key)


def _existing(keys: Keys, wanted: Object, what: str) -> frozenset[str]:
    there = keys.get(wanted)
    if there is None:
        raise Missing("SecretMissing", f"{wanted} is missing in this namespace: create it with {what}")
    return there


def _need(keys: Keys, wanted: Object, key: str, what: str) -> Source:
    if key not in _existing(keys, wanted, f"the key {key}, {what}"):
        raise Missing("SecretKeyMissing", f"{wanted} lacks the key {key}: add it, {what}")
    return Source(wanted, key)
