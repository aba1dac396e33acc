"""The wiring of kopf: an event puts the key of a pipeline on the queue; nothing else happens here."""

from collections.abc import Callable
from typing import Any

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


def registry(
    configuration: Configuration, queue: Queue[Key], readers: Callable[[str, Object], list[Key]]
) -> kopf.OperatorRegistry:
    """Handlers that queue each pipeline that an event is about; `readers` names those that read an object."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await _connection(configuration)

    # What was seen last: a status that we write ourselves is no news.
    seen: dict[Key, tuple[Any, ...]] = {}

    @kopf.on.event(api.GROUP, api.VERSION, api.PLURAL, registry=found)
    async def pipeline(event: Any, **_: Any) -> None:
        metadata = event["object"]["metadata"]
        key = Key(metadata["namespace"], metadata["name"])
        now = (
            metadata["uid"],
            metadata["generation"],
            *((metadata.get("annotations") or {}).get(name) for name in api.ANNOTATIONS),
            metadata.get("deletionTimestamp"),
        )
        if event["type"] == "DELETED":
            seen.pop(key, None)
        elif seen.get(key) == now:
            return
        else:
            seen[key] = now
        queue.add(key)

    async def child(event: Any, **_: Any) -> None:
        metadata = event["object"]["metadata"]
        if owner := (metadata.get("labels") or {}).get(PIPELINE):
            queue.add_after(Key(metadata["namespace"], owner), _ECHO_S)

    for group, version, plural in _CHILDREN:
        kopf.on.event(group, version, plural, id=f"child-{plural}", registry=found)(child)

    def read(kind: Any) -> Callable[..., Any]:
        async def changed(event: Any, **_: Any) -> None:
            metadata = event["object"]["metadata"]
            for key in readers(metadata["namespace"], Object(kind, metadata["name"])):
                queue.add(key)

        return changed

    for kind, plural in _READ:
        kopf.on.event("", "v1", plural, id=f"read-{plural}", registry=found)(read(kind))
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
