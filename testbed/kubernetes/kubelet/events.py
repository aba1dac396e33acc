"""Events as a kubelet records them, for `kubectl describe pod`."""

import asyncio
import contextlib
from uuid import uuid4

from testbed.kubernetes.kubelet.client import MERGE, ApiError, Client, Object
from testbed.kubernetes.kubelet.status import now

_REMEMBERED = 1000


class Recorder:
    """Posts events in the background; one that comes again raises the first one's count."""

    def __init__(self, client: Client, node: str) -> None:
        """Record as this node's kubelet."""
        self._client = client
        self._source = {"component": "kubelet", "host": node}
        self._known: dict[tuple[str, ...], tuple[str, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def normal(self, pod: Object, reason: str, message: str, container: str | None = None) -> None:
        """Record that something usual happened to a pod."""
        self._record(pod, "Normal", reason, message, container)

    def warning(self, pod: Object, reason: str, message: str, container: str | None = None) -> None:
        """Record that something is wrong with a pod."""
        self._record(pod, "Warning", reason, message, container)

    def _record(self, pod: Object, kind: str, reason: str, message: str, container: str | None) -> None:
        metadata = pod["metadata"]
        key = (metadata["uid"], container or "", reason, message)
        path = f"/api/v1/namespaces/{metadata['namespace']}/events"
        name, count = self._known.pop(key, (f"{metadata['name']}.{uuid4().hex[:16]}", 0))
        self._known[key] = name, count + 1
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        if count:
            self._send("PATCH", f"{path}/{name}", {"count": count + 1, "lastTimestamp": now()})
            return
        involved = {"apiVersion": "v1", "kind": "Pod"} | {k: metadata[k] for k in ("name", "namespace", "uid")}
        if container is not None:
            involved["fieldPath"] = f"spec.containers{{{container}}}"
        event: Object = {
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": involved,
            "type": kind,
            "reason": reason,
            "message": message,
            "source": self._source,
            "reportingComponent": "kubelet",
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        }
        self._send("POST", path, event)

    def _send(self, method: str, path: str, body: Object) -> None:
        async def send() -> None:
            kind = MERGE if method == "PATCH" else "application/json"
            # The namespace is going away, or the first event has not arrived: nobody will miss it.
            with contextlib.suppress(ApiError):
                await self._client.request(method, path, body, content_type=kind)

        task = asyncio.create_task(send())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
