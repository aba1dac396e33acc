"""The same picture for programs: JSON, metrics, health and explanations on a port of this machine."""

import json
import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from vaultml_operator import api, explain
from vaultml_operator.local.rows import row
from vaultml_operator.local.store import Store
from vaultml_operator.manifests import Manifest

_HOST = "127.0.0.1"


class Server:
    """Serves until closed; `healthy` says whether work goes on."""

    def __init__(self, store: Store, registry: CollectorRegistry, healthy: Callable[[], bool]) -> None:
        self._store = store
        self._registry = registry
        self._healthy = healthy
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, port: int) -> None:
        """Listen on `port`, 0: a free one. Raises OSError."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._rows),
                web.get("/events", self._events),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/explain/{name:.+}", self._explain),
                web.get("/pipelines/{name:.+}", self._pipeline),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, _HOST, port)
        await site.start()
        bound = self._runner.addresses[0][1]
        self.url = f"http://{_HOST}:{bound}"

    async def close(self) -> None:
        """Serve no longer."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _rows(self, _: web.Request) -> web.Response:
        return _json([row(body) for body in self._store.listed(api.KIND)])

    async def _events(self, _: web.Request) -> web.Response:
        told = [
            {
                "time": event.time.isoformat(timespec="seconds").replace("+00:00", "Z"),
                "pipeline": event.pipeline,
                "type": event.kind,
                "reason": event.reason,
                "message": event.note,
                "count": event.count,
            }
            for event in self._store.events
        ]
        return _json(told)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _: web.Request) -> web.Response:
        good = self._healthy()
        return web.Response(status=200 if good else 503, text="working\n" if good else "stuck\n")

    async def _explain(self, request: web.Request) -> web.Response:
        body = self._named(request)
        try:
            case = explain.parse(request.query.get("what-if", ""))
        except explain.BadCase as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        return web.Response(text=explain.account(body, case, time.time()))

    async def _pipeline(self, request: web.Request) -> web.Response:
        return _json(self._named(request))

    def _named(self, request: web.Request) -> Manifest:
        """The pipeline of this name, or of this namespace and name."""
        wanted = request.match_info["name"]
        for body in self._store.listed(api.KIND):
            metadata = body["metadata"]
            if wanted in (metadata["name"], f"{metadata['namespace']}/{metadata['name']}"):
                return body
        names = ", ".join(each["metadata"]["name"] for each in self._store.listed(api.KIND))
        raise web.HTTPNotFound(text=f"there is no pipeline {wanted}: there are {names or 'none'}\n")


def _json(found: object) -> web.Response:
    return web.Response(text=json.dumps(found, indent=2) + "\n", content_type="application/json")
