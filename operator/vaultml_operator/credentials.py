"""Which key of which Secret or ConfigMap holds what, and whether a value that the workers use has changed. Pure.

The values in use are compared by a keyed digest (HMAC-SHA-256) in an annotation of the pods. Its key is random and is
kept in a Lease beside the operator's own: both replicas and every restart have it, and the operator needs no right to
write Secrets. Whoever may read both that Lease and the pods can test guesses of a weak password. The uid or
resourceVersion of an object plays no part, so that an object that is relabelled, or recreated with the same values,
changes nothing.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from vaultml_operator import api
from vaultml_operator.reasons import Reason


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
    """An object or key that the spec names isn't there; the message says what to do."""

    def __init__(self, reason: Literal[Reason.SECRET_MISSING, Reason.SECRET_KEY_MISSING], message: str) -> None:
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
    for _, source, _ in _env(spec):
        yield source.object


def _env(spec: api.Spec) -> Iterator[tuple[str, Source, bool]]:
    """Yield the variables of `worker.env` that reference a key: the name, the key, whether it may be missing."""
    for variable in spec.worker.env:
        if variable.value_from is not None:
            if (ref := variable.value_from.secret_key_ref) is not None:
                yield variable.name, Source(Object("Secret", ref.name), ref.key), bool(ref.optional)
            if (ref := variable.value_from.config_map_key_ref) is not None:
                yield variable.name, Source(Object("ConfigMap", ref.name), ref.key), bool(ref.optional)


def used(spec: api.Spec, found: Credentials) -> dict[Object, tuple[str, ...]]:
    """Return the keys that the workers use, by object: those of the credentials and those of `worker.env`."""
    keys: dict[Object, set[str]] = {}
    for source in (*found.sources, *(source for _, source, _ in _env(spec))):
        keys.setdefault(source.object, set()).add(source.key)
    return {each: tuple(sorted(names)) for each, names in sorted(keys.items())}


def value(there: Mapping[str, Any] | None, source: Source) -> bytes | None:
    """Return the value that an object, as the API server gives it, holds for a key; None where it has none."""
    there = there or {}
    if source.object.kind == "ConfigMap" and (text := (there.get("data") or {}).get(source.key)) is not None:
        return str(text).encode()
    encoded = (there.get("data" if source.object.kind == "Secret" else "binaryData") or {}).get(source.key)
    return None if encoded is None else base64.b64decode(encoded)


def revision(
    key: bytes, uid: str, uses: Mapping[Object, tuple[str, ...]], there: Mapping[Object, Mapping[str, Any] | None]
) -> str:
    """Return the digests of the values in use, by object, as JSON; `uid` is the pipeline's, `there` the objects."""
    digests = {}
    for each, names in uses.items():
        values = [value(there.get(each), Source(each, name)) for name in names]
        texts = [None if given is None else base64.b64encode(given).decode() for given in values]
        said = json.dumps([uid, *each, list(zip(names, texts, strict=True))])
        digests[str(each)] = hmac.new(key, said.encode(), hashlib.sha256).hexdigest()[:32]
    return json.dumps(digests, sort_keys=True)


def changed(before: str | None, after: str) -> tuple[str, ...]:
    """Return the objects, as in `Secret kafka-login`, whose values differ between two revisions that both have them."""
    was, now = _digests(before), _digests(after)
    return tuple(name for name, digest in now.items() if was.get(name, digest) != digest)


def _digests(given: str | None) -> dict[str, str]:
    try:
        found = json.loads(given or "{}")
    except ValueError:  # written by an earlier version
        return {}
    return found if isinstance(found, dict) else {}


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
    for name, source, optional in _env(spec):
        if not optional:
            _need(keys, source.object, source.key, f"used by env {name}")
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
            found["username"] = _need(keys, secret, "username", "the Kafka user's name, unless kafka.username is set")
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
        raise Missing(Reason.SECRET_MISSING, "a field ca references neither a Secret nor a ConfigMap: set one of them")
    return Source(Object("ConfigMap", ca.config_map_key_ref.name), ca.config_map_key_ref.key)


def _existing(keys: Keys, wanted: Object, what: str) -> frozenset[str]:
    there = keys.get(wanted)
    if there is None:
        raise Missing(Reason.SECRET_MISSING, f"{wanted} is missing in this namespace: create it with {what}")
    return there


def _need(keys: Keys, wanted: Object, key: str, what: str) -> Source:
    if key not in _existing(keys, wanted, f"the key {key} ({what})"):
        raise Missing(Reason.SECRET_KEY_MISSING, f"{wanted} lacks the key {key} ({what}): add it")
    return Source(wanted, key)
