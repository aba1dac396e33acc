"""The objects of this machine, in memory: what a reconcile asks of an API server."""

import copy
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vaultml_operator import api
from vaultml_operator.cluster import KINDS, SCALER, ApiError
from vaultml_operator.local.documents import Documents, Name
from vaultml_operator.manifests import PIPELINE, Manifest

_KEPT_EVENTS = 200
_NOT_HERE = ("PodMonitor", "Event")


@dataclass(frozen=True, slots=True)
class Event:
    """What was told of a pipeline: Normal or Warning, a reason and a sentence; `count`: how often in a row."""

    time: datetime
    kind: str
    pipeline: str
    reason: str
    note: str
    count: int = 1


Heard = Callable[[str, Manifest, bool], None]
"""Hears of each change: the kind, the object (which it must not change), whether it is gone."""


class Store:
    """See `objects.Objects`; gives copies, and keeps what it is given. To be used in one asyncio loop."""

    def __init__(self) -> None:
        self._objects: dict[Name, Manifest] = {}
        self._version = 0
        self._heard: list[Heard] = []
        self.events: deque[Event] = deque(maxlen=_KEPT_EVENTS)

    def listen(self, heard: Heard) -> None:
        """Tell of each change from now on."""
        self._heard.append(heard)

    # --- what a reconcile asks --------------------------------------------------------------------------------------

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """See Objects."""
        return copy.deepcopy(self._objects.get((kind, namespace, name)))

    async def children(self, kind: str, namespace: str, pipeline: str) -> list[Manifest]:
        """See Objects."""
        return [
            copy.deepcopy(each)
            for each in self.listed(kind)
            if each["metadata"]["namespace"] == namespace
            and (each["metadata"].get("labels") or {}).get(PIPELINE) == pipeline
        ]

    async def nodes(self) -> list[Manifest] | None:
        """See Objects."""
        return copy.deepcopy(self.listed("Node"))

    async def apply(self, manifest: Manifest, *, creating: bool = False) -> Manifest:
        """See Objects."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        if kind in _NOT_HERE or kind not in KINDS:
            raise ApiError(404, "NotFound", f"this machine knows no {kind}")
        live = self._objects.get((kind, metadata["namespace"], metadata["name"]))
        if live is not None and creating:
            raise ApiError(409, "Conflict", f"{kind} {metadata['name']} is there already")
        new = copy.deepcopy(manifest)
        if live is not None:
            if "replicas" in (live.get("spec") or {}):
                new["spec"].setdefault("replicas", live["spec"]["replicas"])
            new["metadata"] = {**live["metadata"], **new["metadata"]}
            new["status"] = live.get("status") or {}
        return copy.deepcopy(self.put(new))

    async def scale(self, deployment: Manifest, replicas: int) -> None:
        """See Objects."""
        metadata = deployment["metadata"]
        live = self._objects.get(("Deployment", metadata["namespace"], metadata["name"]))
        if live is None or live["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise ApiError(409, "Conflict", f"Deployment {metadata['name']} has changed")
        fields = {"managedFields": [{"manager": SCALER, "subresource": "scale"}]}
        self.put({**live, "metadata": {**live["metadata"], **fields}, "spec": {**live["spec"], "replicas": replicas}})

    async def delete(self, live: Manifest) -> None:
        """See Objects."""
        metadata = live["metadata"]
        there = self._objects.get((live["kind"], metadata["namespace"], metadata["name"]))
        if there is not None and there["metadata"]["uid"] == metadata["uid"]:
            self.remove(there)

    async def write_status(self, body: Manifest, status: Mapping[str, Any]) -> None:
        """See Objects."""
        live = self._same(api.KIND, body)
        if live is not None:
            self.put({**live, "status": copy.deepcopy(dict(status))})

    async def post_event(self, body: Manifest, kind: str, reason: str, action: str, note: str) -> None:  # noqa: ARG002
        """See Objects."""
        self.tell(kind, f"{body['metadata']['namespace']}/{body['metadata']['name']}", reason, note)

    async def annotate_pod(self, pod: Manifest, annotations: Mapping[str, str]) -> None:
        """See Objects."""
        live = self._same("Pod", pod)
        if live is not None:
            metadata = live["metadata"]
            together = {**(metadata.get("annotations") or {}), **annotations}
            self.put({**live, "metadata": {**metadata, "annotations": together}})

    # --- what this machine does -------------------------------------------------------------------------------------

    def listed(self, kind: str) -> list[Manifest]:
        """All objects of a kind, in the order in which they were made; not to be changed."""
        return [each for (its, _, _), each in self._objects.items() if its == kind]

    def find(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object itself, which must not be changed."""
        return self._objects.get((kind, namespace, name))

    def put(self, manifest: Manifest) -> Manifest:
        """Keep an object: a new one, or one in the place of what it was made from. Gives it as it is kept."""
        metadata = manifest["metadata"]
        name = (manifest["kind"], metadata.get("namespace", ""), metadata["name"])
        live = self._objects.get(name)
        if live is not None and _said(live) == _said(manifest):
            return live
        self._version += 1
        generation = 1
        if live is not None:
            generation = live["metadata"]["generation"] + (live.get("spec") != manifest.get("spec"))
        kept = {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": moment(),
            **metadata,
            "generation": generation,
            "resourceVersion": str(self._version),
        }
        self._objects[name] = {**manifest, "metadata": kept}
        self._hear(self._objects[name], gone=False)
        return self._objects[name]

    def remove(self, live: Manifest) -> None:
        """Forget an object, and all that it owns."""
        metadata = live["metadata"]
        if self._objects.pop((live["kind"], metadata.get("namespace", ""), metadata["name"]), None) is None:
            return
        self._hear(live, gone=True)
        for other in [*self._objects.values()]:
            owners = {owner["uid"] for owner in other["metadata"].get("ownerReferences") or []}
            # A pod goes in its own time.
            if metadata["uid"] in owners and other["kind"] != "Pod":
                self.remove(other)

    def load(self, wanted: Documents, before: Documents) -> None:
        """Bring pipelines, Secrets and ConfigMaps to what the file holds now."""
        # What is read comes before those who read it.
        for name, body in sorted(wanted.objects.items(), key=lambda item: item[0][0] == api.KIND):
            live = self._objects.get(name)
            if live is None:
                self.put(body)
                continue
            own = {key: live["metadata"][key] for key in ("uid", "creationTimestamp", "generation", "resourceVersion")}
            status = {"status": live["status"]} if "status" in live else {}
            self.put({**body, **status, "metadata": {**body["metadata"], **own}})
        for name in before.objects.keys() - wanted.objects.keys():
            if (live := self._objects.get(name)) is not None:
                self.remove(live)

    def tell(self, kind: str, pipeline: str, reason: str, note: str) -> None:
        """Keep an Event; the same one again only counts."""
        now = datetime.now(UTC)
        last = self.events[-1] if self.events else None
        count = 1
        if last is not None and (last.pipeline, last.reason, last.note) == (pipeline, reason, note):
            count = last.count + 1
            self.events.pop()
        self.events.append(Event(now, kind, pipeline, reason, note, count))

    def _same(self, kind: str, given: Manifest) -> Manifest | None:
        metadata = given["metadata"]
        live = self._objects.get((kind, metadata["namespace"], metadata["name"]))
        return live if live is not None and live["metadata"]["uid"] == metadata["uid"] else None

    def _hear(self, manifest: Manifest, *, gone: bool) -> None:
        for each in self._heard:
            each(manifest["kind"], manifest, gone)


def moment() -> str:
    """Now, as the API server writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _said(manifest: Manifest) -> Manifest:
    metadata = {
        key: value for key, value in manifest["metadata"].items() if key not in ("generation", "resourceVersion")
    }
    return {**manifest, "metadata": metadata}
