"""The running operator: watches, work queue, checks, leadership, health and metrics, started and ended together."""

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kopf
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from vaultml_operator import handlers
from vaultml_operator.autoscaler.gpus import Pool
from vaultml_operator.autoscaler.scaler import Scaler
from vaultml_operator.cluster import ApiError, Cluster, connect
from vaultml_operator.leader import Leadership, LeadershipLost
from vaultml_operator.metrics import Metrics
from vaultml_operator.probes import Probes
from vaultml_operator.reconcile import Reconciler
from vaultml_operator.scaling import Key
from vaultml_operator.workqueue import Queue

_log = structlog.get_logger(__name__)

LEASE = "vaultml-operator"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_STUCK = 3
"""A reconcile that is so many deadlines old has not heard that it was cancelled: the loop is stuck."""
_RETRY_S = 2.0
"""How often something that the start waits for is asked again: the CRD, rights, the API server."""
_DIGEST_KEY = "-digest-key"
"""Ends the name of the Lease that keeps the key; see credentials.py."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the operator runs.

    No `namespaces` means the whole cluster. `lease_namespace` None: the pod's own, else `default`. Port 0 picks one.
    """

    namespaces: Sequence[str] = ()
    image: str
    lease_namespace: str | None = None
    lease_name: str = LEASE
    host: str = "::"
    """Address of health and metrics; `::` means all addresses, IPv4 and IPv6: probes come from outside the pod."""
    port: int = 8080
    concurrency: int = 16
    resync_seconds: float = 600.0
    deadline_seconds: float = 120.0


class Operator:
    """All parts of one replica. `run` returns the exit status."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._metrics = Metrics()
        self._leadership: Leadership | None = None
        self._queue: Queue[Key] = Queue(
            self._reconcile,
            concurrency=options.concurrency,
            deadline=options.deadline_seconds,
            resync=options.resync_seconds,
            on_done=lambda _key, outcome, seconds: self._metrics.reconciled(outcome, seconds),
            on_error=_complain,
        )
        self._probes: Probes[Key] = Probes(self._queue.add)
        # Nodes, and the pods of other namespaces, are seen cluster-wide only.
        self._pool = None if options.namespaces else Pool()
        self._scaler: Scaler[Key] = Scaler(self._queue.add, pool=self._pool, told=self._metrics.decided)
        self._cluster: Cluster | None = None
        self._reconciler: Reconciler | None = None
        self._watching = asyncio.Event()
        self._metrics.depth.set_function(lambda: self._queue.depth)
        self._metrics.oldest.set_function(lambda: self._queue.oldest)
        self._metrics.queue_calls.set_function(lambda: self._scaler.calls)
        self._metrics.leading.set_function(lambda: int(self._may_write()))

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT (0), or until leadership is lost or a part fails (1).

        On a signal what is under way is cancelled, which is safe at any point, and the Lease is released.
        """
        stop = asyncio.Event()
        server = await self._serve()
        client = await connect()
        try:
            cluster = self._cluster = Cluster(client, may_write=self._may_write, measure=self._metrics.requested)
            self._reconciler = Reconciler(
                cluster,
                self._probes,
                self._scaler,
                again=self._queue.add,
                image=self._options.image,
                told=lambda key, status: self._metrics.told(key.namespace, key.name, status),
                gone=self._gone,
                dry_run=cluster.dry_run,
                pod_warnings=cluster.pod_warnings,
            )
            self._leadership = Leadership(
                client,
                namespace=self._options.lease_namespace or _own_namespace(),
                name=self._options.lease_name,
                identity=f"{os.environ.get('HOSTNAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}",
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            if not self._options.namespaces and not await _until(cluster.wait_served(None, _RETRY_S), stop):
                return 0
            return await self._work(client.configuration, stop)
        finally:
            await client.close()  # type: ignore[no-untyped-call]
            await server.cleanup()

    async def _work(self, configuration: Any, stop: asyncio.Event) -> int:
        assert self._leadership is not None
        assert self._reconciler is not None
        end_watching = asyncio.Event()
        # kopf ends every task that was begun after it when it ends: it is the first to start and the last to stop.
        watch = (
            self._watch_namespaces(end_watching)
            if self._options.namespaces
            else self._watch(configuration, end_watching)
        )
        watching = asyncio.create_task(watch, name="watches")
        await _until(self._watching.wait(), stop, watching)
        # kopf has taken the signals for itself by now.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        leading = asyncio.create_task(self._leadership.run(self._lead), name="leadership")
        stopping = asyncio.create_task(stop.wait(), name="signal")
        await asyncio.wait({watching, leading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        status = 0 if stop.is_set() else 1
        leading.cancel()
        stopping.cancel()
        led = await asyncio.gather(leading, return_exceptions=True)
        end_watching.set()
        watched = await asyncio.gather(watching, return_exceptions=True)
        for result in (*led, *watched):
            if isinstance(result, LeadershipLost):
                _log.error("leadership lost: this replica ends and starts again", error=str(result))
            elif isinstance(result, Exception):
                _log.error("a part of the operator failed: it ends and starts again", exc_info=result)
        return status

    async def _lead(self) -> None:
        assert self._leadership is not None
        _log.info("leading", identity=self._leadership.identity)
        await self._take_digest_key()
        async with asyncio.TaskGroup() as group:
            if self._pool is not None:
                await self._watch_gpus(group, self._pool)
            group.create_task(self._probes.run(), name="checks")
            group.create_task(self._scaler.run(), name="scaler")
            group.create_task(self._queue.run(), name="queue")

    async def _take_digest_key(self) -> None:
        """Give the reconciler the key of the digests, which all replicas share; retried until it is there."""
        assert self._cluster is not None
        assert self._leadership is not None
        assert self._reconciler is not None
        name = f"{self._options.lease_name}{_DIGEST_KEY}"
        while True:
            try:
                self._reconciler.digest_key = await self._cluster.digest_key(self._leadership.namespace, name)
            except ApiError as error:
                _log.warning("the digest key can't be read: retrying", lease=name, error=str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _watch_gpus(self, group: asyncio.TaskGroup, pool: Pool) -> None:
        """Keep the pool told of nodes and pods; returns once it knows all that there are."""
        assert self._cluster is not None
        known = [asyncio.Event(), asyncio.Event()]

        def nodes(items: list[dict[str, Any]]) -> None:
            for name in pool.nodes.keys() - {each["metadata"]["name"] for each in items}:
                pool.node_gone(name)
            for each in items:
                pool.node_seen(each)
            self._scaler.pool_changed()
            known[0].set()

        def node(kind: str, found: dict[str, Any]) -> None:
            gone = kind == "DELETED"
            if pool.node_gone(found["metadata"]["name"]) if gone else pool.node_seen(found):
                self._scaler.pool_changed()

        def pods(items: list[dict[str, Any]]) -> None:
            for uid in pool.pods.keys() - {each["metadata"]["uid"] for each in items}:
                pool.pod_gone(uid)
            for each in items:
                pool.pod_seen(each)
            self._scaler.pool_changed()
            known[1].set()

        def pod(kind: str, found: dict[str, Any]) -> None:
            gone = kind == "DELETED"
            if pool.pod_gone(found["metadata"]["uid"]) if gone else pool.pod_seen(found):
                self._scaler.pool_changed()

        running = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
        group.create_task(self._cluster.follow("/api/v1/nodes", {}, nodes, node), name="nodes")
        group.create_task(self._cluster.follow("/api/v1/pods", running, pods, pod), name="pods")
        for each in known:
            await each.wait()

    async def _watch(self, configuration: Any, end: asyncio.Event) -> None:
        """Watch the whole cluster, by kopf."""
        assert self._reconciler is not None
        assert self._leadership is not None
        await kopf.operator(
            registry=handlers.registry(configuration, handlers.Events(self._queue, self._reconciler.readers)),
            settings=handlers.settings(),
            clusterwide=True,
            ready_flag=self._watching,
            stop_flag=end,
            # Left to itself, kopf asks for the user's name, and an image's user has none.
            identity=self._leadership.identity,  # type: ignore[arg-type]
        )

    async def _watch_namespaces(self, end: asyncio.Event) -> None:
        """Watch each namespace by itself: one that is missing, deleted or refused does not touch the others."""
        assert self._reconciler is not None
        events = handlers.Events(self._queue, self._reconciler.readers)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._watch_namespace(each, events)) for each in self._options.namespaces]
            await end.wait()
            for task in tasks:
                task.cancel()

    async def _watch_namespace(self, namespace: str, events: handlers.Events) -> None:
        """Watch for ever; starts over when the namespace has been refused for a while, as one that was deleted is."""
        assert self._cluster is not None
        assert self._reconciler is not None
        while True:
            await self._cluster.wait_served(namespace, _RETRY_S)
            try:
                async with asyncio.TaskGroup() as group:
                    for source in events.sources():
                        group.create_task(self._follow(source, namespace, events))
            except* ApiError as refused:
                _log.warning(
                    "the namespace can't be watched: retrying", namespace=namespace, error=str(refused.exceptions[0])
                )
            for key in events.forget(namespace):
                self._reconciler.forget(key)

    async def _follow(self, source: handlers.Source, namespace: str, events: handlers.Events) -> None:
        assert self._cluster is not None

        def listed(items: list[dict[str, Any]]) -> None:
            events.listed(source, namespace, items)
            self._watching.set()

        await self._cluster.follow(source.path(namespace), source.query, listed, source.handle)

    async def _reconcile(self, key: Key) -> float | None:
        assert self._reconciler is not None
        return await self._reconciler.reconcile(key)

    def _gone(self, key: Key) -> None:
        self._queue.forget(key)
        self._metrics.gone(key.namespace, key.name)

    def _may_write(self) -> bool:
        return self._leadership is not None and self._leadership.is_held()

    async def _serve(self) -> web.AppRunner:
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._exposition),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        host = None if self._options.host == "::" else self._options.host.strip("[]")
        site = web.TCPSite(runner, host, self._options.port)
        await site.start()
        _log.info("serving health and metrics", address=site.name)
        return runner

    async def _healthz(self, _: web.Request) -> web.Response:
        # A standby's keys wait for leadership, however long.
        stuck = self._may_write() and self._queue.oldest > _STUCK * self._options.deadline_seconds
        return web.Response(status=503 if stuck else 200, text=f"oldest {self._queue.oldest:.0f} s\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self._watching.is_set()
        return web.Response(status=200 if ready else 503, text="watching\n" if ready else "starting\n")

    async def _exposition(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _until(work: Any, stop: asyncio.Event, *others: "asyncio.Task[Any]") -> bool:
    """Await `work`, unless `stop` is set or one of the others ends first. Whether `work` was done."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())]
    await asyncio.wait([*tasks, *others], return_when=asyncio.FIRST_COMPLETED)
    done: bool = tasks[0].done()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if done:
        tasks[0].result()
    return done


def _complain(key: Key, error: BaseException, retry_in: float) -> None:
    if isinstance(error, ApiError):
        _log.warning("retrying", pipeline=str(key), error=str(error), status=error.status, seconds=retry_in)
    else:
        _log.error("retrying", pipeline=str(key), seconds=retry_in, exc_info=error)


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.is_file() else "default"
