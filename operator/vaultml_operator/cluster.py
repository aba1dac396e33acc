"""The only file that calls the Kubernetes API, besides kopf's own watches."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import structlog
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException as ConfigException  # for whoever connects
from kubernetes.aio.config import list_kube_config_contexts, load_incluster_config, load_kube_config

from vaultml_operator import api
from vaultml_operator.manifests import MANAGER, PIPELINE, Manifest

_log = structlog.get_logger(__name__)

SCALER = "vaultml-scaler"
"""Field manager of `deployments/scale`: whoever else wants to own the number of workers can see who does."""

DIGEST_KEY = f"{api.GROUP}/digest-key"
"""Annotation of a Lease: the random key of the digests by which changed credentials are recognized, in hex."""

_TIMEOUT_S = 15
_NODES_S = 30
_REFUSALS = 5
"""How often in a row a watch may be refused before that is believed: half a minute."""
_WATCH_S = 300
_REMIND_S = 60
_PAGE = 500
_CONNECTIONS = 32
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Kind(NamedTuple):
    """Where a kind of object is served."""

    api_version: str
    plural: str


KINDS = {
    "Deployment": Kind("apps/v1", "deployments"),
    "PodDisruptionBudget": Kind("policy/v1", "poddisruptionbudgets"),
    "ServiceAccount": Kind("v1", "serviceaccounts"),
    "PodMonitor": Kind("monitoring.coreos.com/v1", "podmonitors"),
    "Pod": Kind("v1", "pods"),
    "Secret": Kind("v1", "secrets"),
    "ConfigMap": Kind("v1", "configmaps"),
    "Event": Kind("events.k8s.io/v1", "events"),
    "Lease": Kind("coordination.k8s.io/v1", "leases"),
    api.KIND: Kind(api.API_VERSION, api.PLURAL),
}


class ApiError(Exception):
    """The API server refused or could not be reached (`status` 0).

    `retry_after` is in seconds, where the server asked for it. `fields` are the paths of invalid fields, as in
    `spec.template.spec.restartPolicy`, where the server's validation names them; an admission policy names none.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after: float | None = None,
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.fields = fields


class NotLeading(Exception):  # noqa: N818 - a state, not a fault
    """A write was asked for while leadership is not certain; nothing was sent."""


Seen = Callable[[str, Manifest], None]
"""Hears of a watch's event: ADDED, MODIFIED or DELETED, and the object."""


@dataclass(frozen=True)
class Measured:
    """What a request was, for the metrics: verb as in RBAC, HTTP status (0: no answer), seconds."""

    verb: str
    status: int
    seconds: float


async def connect() -> ApiClient:
    """A client for the cluster that we run in, else for the one of the kubeconfig.

    Raises ConfigException when there is neither.
    """
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except ConfigException:
        await load_kube_config(client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]
    configuration.connection_pool_maxsize = _CONNECTIONS
    return ApiClient(configuration)


def default_namespace() -> str:
    """The namespace that kubectl would take: the pod's that we run in, the kubeconfig's, else `default`."""
    if _OWN_NAMESPACE.is_file():
        return _OWN_NAMESPACE.read_text().strip()
    _, current = list_kube_config_contexts()  # type: ignore[no-untyped-call]
    return str((current or {}).get("context", {}).get("namespace") or "default")


class Cluster:
    """The API calls that a reconcile makes, on plain dicts as the API server gives them.

    `may_write` is asked before every write; `measure` is told of every request. All methods raise ApiError.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        may_write: Callable[[], bool] = lambda: True,
        measure: Callable[[Measured], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._may_write = may_write
        self._measure = measure
        self._nodes: tuple[float, list[Manifest] | None] | None = None
        self._listing_nodes = asyncio.Lock()

    async def wait_served(self, namespace: str | None, retry_seconds: float) -> None:
        """Return once our resource can be listed there (None: everywhere): before that, watches would find nothing."""
        path = f"/apis/{api.API_VERSION}" + (f"/namespaces/{namespace}" if namespace else "") + f"/{api.PLURAL}"
        logged, when = "", 0.0
        while True:
            try:
                await self._request("list", "GET", path, {"limit": "1"})
            except ApiError as error:
                sentence, cause = unserved(error, namespace), str(error)
            else:
                return
            if sentence != logged or time.monotonic() - when > _REMIND_S:
                _log.warning(sentence, error=cause)
                logged, when = sentence, time.monotonic()
            await asyncio.sleep(retry_seconds)

    async def digest_key(self, namespace: str, name: str) -> bytes:
        """Return the key that the Lease of this name keeps; the first leader that asks makes it."""
        live = await self.get("Lease", namespace, name)
        if live is None:
            metadata = {"name": name, "namespace": namespace, "annotations": {DIGEST_KEY: secrets.token_hex(32)}}
            body = {"apiVersion": KINDS["Lease"].api_version, "kind": "Lease", "metadata": metadata, "spec": {}}
            live = await self._write("create", "POST", _path("Lease", namespace), {}, body)
        annotations = live["metadata"].get("annotations") or {}
        try:
            return bytes.fromhex(annotations[DIGEST_KEY])
        except (KeyError, ValueError):  # edited by someone
            annotations = {**annotations, DIGEST_KEY: secrets.token_hex(32)}
            changed = {**live, "metadata": {**live["metadata"], "annotations": annotations}}
            await self._write("update", "PUT", _path("Lease", namespace, name), {}, changed)
            return bytes.fromhex(annotations[DIGEST_KEY])

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None when there is none, or no such kind."""
        try:
            return await self._request("get", "GET", _path(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def children(self, kind: str, namespace: str, pipeline: str) -> list[Manifest]:
        """The objects of a kind that carry the pipeline's label; none where the cluster knows no such kind."""
        # resourceVersion=0: from the API server's cache, which is fresh enough for what a status tells.
        query = {"labelSelector": f"{PIPELINE}={pipeline}", "resourceVersion": "0"}
        try:
            items: list[Manifest] = (await self._request("list", "GET", _path(kind, namespace), query))["items"]
        except ApiError as error:
            if error.status == 404:
                return []
            raise
        return items

    async def nodes(self) -> list[Manifest] | None:
        """All nodes, not older than half a minute; None when we may not see them."""
        async with self._listing_nodes:
            if self._nodes is None or time.monotonic() - self._nodes[0] > _NODES_S:
                try:
                    items = (await self._request("list", "GET", "/api/v1/nodes", {"resourceVersion": "0"}))["items"]
                except ApiError as error:
                    if error.status != 403:
                        raise
                    items = None
                self._nodes = (time.monotonic(), items)
            return self._nodes[1]

    async def follow(
        self, path: str, query: Mapping[str, str], listed: Callable[[list[Manifest]], None], event: "Seen"
    ) -> None:
        """List, then watch, until cancelled: `listed` hears of all that there is, `event` of each change after that.

        Starts over by itself after an outage. Raises ApiError when it goes on being refused: an API server that has
        just started refuses what its roles allow, as it has not read them yet.
        """
        failures = refusals = 0
        while True:
            try:
                version = await self._list(path, query, listed)
                failures = refusals = 0
                while True:
                    version = await self._watch(path, query, version, event)
            except ApiError as error:
                if error.status in (401, 403, 404):
                    refusals += 1
                    failures = refusals  # it answers again: what came before is over
                    if refusals > _REFUSALS:
                        raise
                    _log.warning("a watch is refused: trying again", path=path, error=str(error))
                else:
                    failures += 1
                if error.status != 410:
                    await asyncio.sleep(min(30.0, 0.5 * 2 ** min(failures, 6)))

    async def _list(self, path: str, query: Mapping[str, str], listed: Callable[[list[Manifest]], None]) -> str:
        items: list[Manifest] = []
        more: dict[str, str] = {}
        while True:
            answer = await self._request("list", "GET", path, {**query, "limit": str(_PAGE), **more})
            items += answer["items"]
            if not (token := answer["metadata"].get("continue")):
                listed(items)
                return str(answer["metadata"]["resourceVersion"])
            more = {"continue": token}

    async def _watch(self, path: str, query: Mapping[str, str], version: str, event: "Seen") -> str:
        """Pass events on until the server ends the watch; the version to go on from."""
        asked = {**query, "watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        asked["timeoutSeconds"] = str(_WATCH_S)
        answer = None
        try:
            answer = await self._send("GET", path, asked, None, "application/json", _WATCH_S + 30)
            if answer.status >= 300:
                raise _error(answer.status, await answer.read(), None)
            async for line in answer.response.content:
                found = json.loads(line)
                if found["type"] == "ERROR":
                    raise _error(int(found["object"].get("code") or 500), json.dumps(found["object"]).encode(), None)
                version = found["object"]["metadata"]["resourceVersion"]
                if found["type"] != "BOOKMARK":
                    event(found["type"], found["object"])
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, "Unreachable", f"the watch broke: {type(error).__name__}") from None
        finally:
            if answer is not None:
                answer.response.close()
        return version

    async def annotate_pod(self, pod: Manifest, annotations: Mapping[str, str]) -> None:
        """Set annotations of this very pod, if it is still there."""
        metadata = pod["metadata"]
        patch = {"metadata": {"uid": metadata["uid"], "annotations": dict(annotations)}}
        path = _path("Pod", metadata["namespace"], metadata["name"])
        try:
            await self._write("patch", "PATCH", path, {"fieldManager": SCALER}, patch, "application/merge-patch+json")
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def apply(self, manifest: Manifest, *, creating: bool = False) -> Manifest:
        """Server-side apply as `vaultml-operator`: what we name is ours, whoever changed it; the rest is left alone.

        When `creating`, nothing is taken over: should another's object have appeared by now, this is refused (409).
        """
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata["namespace"], metadata["name"])
        query = {"fieldManager": MANAGER, "force": str(not creating).lower()}
        return await self._write("patch", "PATCH", path, query, manifest, "application/apply-patch+yaml")

    async def dry_run(self, manifest: Manifest) -> None:
        """Apply as `apply` does, without storing anything: returns where that would succeed, else raises ApiError."""
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata["namespace"], metadata["name"])
        query = {"fieldManager": MANAGER, "force": "true", "dryRun": "All"}
        await self._write("patch", "PATCH", path, query, manifest, "application/apply-patch+yaml")

    async def pod_warnings(self, pod: Manifest, reasons: Collection[str], since: str) -> list[str]:
        """Return the notes of a pod's Warning Events of these reasons since a time (RFC 3339), the latest last.

        None where we may not list Events.
        """
        metadata = pod["metadata"]
        query = {"fieldSelector": f"regarding.uid={metadata['uid']},type=Warning"}
        try:
            items = (await self._request("list", "GET", _path("Event", metadata["namespace"]), query))["items"]
        except ApiError as error:
            if error.status != 403:
                raise
            return []
        found = [(_last_seen(each), str(each.get("note") or "")) for each in items if each.get("reason") in reasons]
        return [note for seen, note in sorted(found) if seen >= since]

    async def scale(self, deployment: Manifest, replicas: int) -> None:
        """Apply the number to the Deployment's scale subresource as `vaultml-scaler`, unless it has changed since."""
        metadata = deployment["metadata"]
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "spec": {"replicas": replicas},
        }
        path = _path("Deployment", metadata["namespace"], metadata["name"]) + "/scale"
        query = {"fieldManager": SCALER, "force": "true"}
        await self._write("patch", "PATCH", path, query, body, "application/apply-patch+yaml")

    async def delete(self, live: Manifest) -> None:
        """Delete just this object: not one that took its name in the meantime."""
        metadata = live["metadata"]
        body = {"preconditions": {"uid": metadata["uid"]}, "propagationPolicy": "Background"}
        path = _path(live["kind"], metadata["namespace"], metadata["name"])
        try:
            await self._write("delete", "DELETE", path, {}, body)
        except ApiError as error:
            if error.status != 404:
                raise

    async def write_status(self, body: Manifest, status: Mapping[str, Any]) -> None:
        """Replace the status of the pipeline that `body` is."""
        metadata = body["metadata"]
        patch = {"metadata": {"uid": metadata["uid"]}, "status": _merge_patch(body.get("status") or {}, status)}
        path = _path(api.KIND, metadata["namespace"], metadata["name"]) + "/status"
        query = {"fieldManager": MANAGER}
        await self._write("patch", "PATCH", path, query, patch, "application/merge-patch+json")

    async def post_event(self, body: Manifest, kind: str, reason: str, action: str, note: str) -> None:
        """Post an Event about the pipeline that `body` is; `kind` is Normal or Warning."""
        metadata = body["metadata"]
        now = datetime.now(UTC)
        event = {
            "apiVersion": KINDS["Event"].api_version,
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{time.time_ns():x}", "namespace": metadata["namespace"]},
            "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": f"{api.GROUP}/{MANAGER}",
            "reportingInstance": MANAGER,
            "type": kind,
            "reason": reason,
            "action": action,
            "note": note[:1024],
            "regarding": {
                "apiVersion": api.API_VERSION,
                "kind": api.KIND,
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }
        await self._write("create", "POST", _path("Event", metadata["namespace"]), {}, event)

    async def _write(
        self,
        verb: str,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Manifest,
        content_type: str = "application/json",
    ) -> Manifest:
        if not self._may_write():
            raise NotLeading(f"not sent, since another operator may lead by now: {method} {path}")
        return await self._request(verb, method, path, query, body, content_type)

    async def _request(
        self,
        verb: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        started = time.monotonic()
        status = 0
        try:
            answer = await self._send(method, path, query or {}, body, content_type, _TIMEOUT_S)
            text = await answer.read()
            status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            cause = str(error) or type(error).__name__
            raise ApiError(0, "Unreachable", f"the API server can't be reached: {cause}") from None
        finally:
            self._measure(Measured(verb, status, time.monotonic() - started))
        if status >= 300:
            raise _error(status, text, answer.headers.get("Retry-After"))
        found: Manifest = json.loads(text)
        return found

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Manifest | None,
        content_type: str,
        timeout: float,
    ) -> Any:
        method, url, headers, _, _ = await self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Content-Type": content_type, "Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        return await self._client.call_api(method, url, headers, body, _request_timeout=timeout)


def _last_seen(event: Manifest) -> str:
    """Return when an Event last occurred, in RFC 3339."""
    series = (event.get("series") or {}).get("lastObservedTime")
    return str(series or event.get("deprecatedLastTimestamp") or event.get("eventTime") or "")


def _merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The patch that makes one of the other: it leaves what it doesn't name, so what is gone is named as null."""
    gone = {key: None for key in before if key not in after}
    return gone | {
        key: _merge_patch(before[key], value)
        if isinstance(value, Mapping) and isinstance(before.get(key), Mapping)
        else value
        for key, value in after.items()
    }


def _path(kind: str, namespace: str, name: str | None = None) -> str:
    where = KINDS[kind]
    root = "/api/v1" if where.api_version == "v1" else f"/apis/{where.api_version}"
    return f"{root}/namespaces/{namespace}/{where.plural}" + (f"/{name}" if name else "")


def unserved(error: ApiError, namespace: str | None) -> str:
    """Return why the pipelines there (None: everywhere) can't be listed, and what to do."""
    where = f"in the namespace {namespace}" if namespace else "in all namespaces"
    if error.status == 404:
        return f"waiting for the CRD {api.PLURAL}.{api.GROUP}: apply crds/"
    if error.status == 0:
        return "waiting for the API server: it can't be reached"
    if error.status not in (401, 403):
        return f"waiting for the API server: it answers {error.status}"
    if namespace is None:
        return f"not allowed to list {api.PLURAL} {where}: apply the ClusterRole of deploy/install.yaml"
    return (
        f"not allowed to list {api.PLURAL} {where}: the namespace does not exist, or the operator has no Role in it; "
        f"apply what vaultml-operator install --namespace {namespace} prints"
    )


def _error(status: int, text: bytes, retry_after: str | None) -> ApiError:
    try:
        answer = json.loads(text)
        reason, message = str(answer.get("reason") or status), str(answer.get("message") or status)
        causes = (answer.get("details") or {}).get("causes") or ()
        fields = tuple(str(each["field"]) for each in causes if each.get("field"))
    except (ValueError, AttributeError):
        reason, message, fields = str(status), f"the API server answered {status}", ()
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return ApiError(status, reason, message, seconds, fields)
