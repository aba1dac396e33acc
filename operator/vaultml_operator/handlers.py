"""From an event of a watch to the key of a pipeline on the queue; nothing else happens here.

kopf watches the whole cluster. An operator for some namespaces watches each of them by itself (`Events.sources`), for
kopf ends altogether when one namespace is missing, deleted or refused.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import kopf
from kubernetes.aio.client.configuration import Configuration

from vaultml_operator import api
from vaultml_operator.credentials import Object
from vaultml_operator.manifests import MANAGER, PIPELINE
from vaultml_operator.scaling import Key
from vaultml_operator.workqueue import Queue

_CHILDREN = (
    ("apps", "v1", "deployments"),
    ("policy", "v1", "poddisruptionbudgets"),
    ("", "v1", "serviceaccounts"),
    ("", "v1", "pods"),
)
_READ = (("Secret", "secrets"), ("ConfigMap", "configmaps"))
_ECHO_S = 0.3
"""One change echoes in many events of Deployment and pods: they share a look, and let changed specs go first."""
# Helm's release Secrets are large and many; the others are of other trades.
_NOT_READ = ("helm.sh/release.v1", "kubernetes.io/service-account-token", "kubernetes.io/dockerconfigjson")


class Source(NamedTuple):
    """One kind of object to watch: where it is served, the query of list and watch, and the callback of each event."""

    group: str
    version: str
    plural: str
    query: dict[str, str]
    handle: Callable[[str | None, dict[str, Any]], None]

    def path(self, namespace: str) -> str:
        """Where the API server lists the kind."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{root}/namespaces/{namespace}/{self.plural}"


class Events:
    """Puts each pipeline that an event is about on the queue; `readers` names those that read an object."""

    def __init__(self, queue: Queue[Key], readers: Callable[[str, Object], list[Key]]) -> None:
        self._queue = queue
        self._readers = readers
        self._seen: dict[Key, tuple[Any, ...]] = {}
        """What was seen last: a status that we write ourselves is no news."""

    def sources(self) -> Iterator[Source]:
        """Return every kind that is watched."""
        yield Source(api.GROUP, api.VERSION, api.PLURAL, {}, self._pipeline)
        for group, version, plural in _CHILDREN:
            query = {"labelSelector": f"app.kubernetes.io/managed-by={MANAGER}"}
            yield Source(group, version, plural, query, self._child)
        for kind, plural in _READ:
            query = {"fieldSelector": ",".join(f"type!={each}" for each in _NOT_READ)} if kind == "Secret" else {}
            yield Source("", "v1", plural, query, self._read(kind))

    def listed(self, source: Source, namespace: str, items: list[dict[str, Any]]) -> None:
        """Take in a list: each object is an event, and a pipeline may have missed one while nothing was watched."""
        for each in items:
            source.handle(None, each)
        for key in self._queue.keys:
            if key.namespace == namespace:
                self._queue.add_after(key, _ECHO_S)

    def forget(self, namespace: str) -> list[Key]:
        """Return the pipelines of a namespace that is watched no longer; they are news when they are seen again."""
        for key in [each for each in self._seen if each.namespace == namespace]:
            del self._seen[key]
        return [key for key in self._queue.keys if key.namespace == namespace]

    def _pipeline(self, kind: str | None, found: dict[str, Any]) -> None:
        metadata = found["metadata"]
        key = Key(metadata["namespace"], metadata["name"])
        now = (
            metadata["uid"],
            metadata["generation"],
            *((metadata.get("annotations") or {}).get(name) for name in api.ANNOTATIONS),
            metadata.get("deletionTimestamp"),
        )
        if kind == "DELETED":
            self._seen.pop(key, None)
        elif self._seen.get(key) == now:
            return
        else:
            self._seen[key] = now
        self._queue.add(key)

    def _child(self, _: str | None, found: dict[str, Any]) -> None:
        metadata = found["metadata"]
        if owner := (metadata.get("labels") or {}).get(PIPELINE):
            self._queue.add_after(Key(metadata["namespace"], owner), _ECHO_S)

    def _read(self, kind: Any) -> Callable[[str | None, dict[str, Any]], None]:
        def handle(_: str | None, found: dict[str, Any]) -> None:
            metadata = found["metadata"]
            for key in self._readers(metadata["namespace"], Object(kind, metadata["name"])):
                self._queue.add(key)

        return handle


def registry(configuration: Configuration, events: Events) -> kopf.OperatorRegistry:
    """Return kopf's handlers for each kind that is watched."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await _connection(configuration)

    def handler(handle: Callable[[str | None, dict[str, Any]], None]) -> Callable[..., Any]:
        async def handled(event: Any, **_: Any) -> None:
            handle(event["type"], event["object"])

        return handled

    for source in events.sources():
        where = (source.group, source.version, source.plural)
        kopf.on.event(*where, id=source.plural, registry=found)(handler(source.handle))
    return found


class _NoEssence(kopf.DiffBaseStorage):
    """Remembers nothing of an object: kopf copies each one deeply, for the sake of handlers that we have none of."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:  # noqa: ARG002 - kopf's names
        return {}

    def fetch(self, *, body: Any) -> Any:  # noqa: ARG002
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        pass


def settings() -> kopf.OperatorSettings:
    """Have kopf be a source of events only: nothing is written to any object, no other operator is looked for."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    # Each object's last event is kept for this long, all of a thousand pipelines' at the start.
    chosen.queueing.idle_timeout = 0.1
    chosen.persistence.diffbase_storage = _NoEssence()
    # We wait for the CRD ourselves, and may not list CRDs or namespaces.
    chosen.scanning.disabled = True
    chosen.watching.connect_timeout = 10
    chosen.process.ultimate_exiting_timeout = None
    for _, _, plural in _CHILDREN:
        chosen.watching.label_selectors[plural] = f"app.kubernetes.io/managed-by={MANAGER}"
    chosen.watching.field_selectors["secrets"] = ",".join(f"type!={each}" for each in _NOT_READ)
    return chosen


async def _connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """The credentials of the client that all else uses; read anew, since a ServiceAccount's token changes."""
    header = await configuration.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or ("Bearer" if token else None),
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
