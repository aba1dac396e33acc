"""A proxy in front of the API server that sees every request and can spoil it."""

import asyncio
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

from testbed.kubernetes.cluster import Cluster
from testbed.process import LOOPBACK, free_port

_HOP = {"Transfer-Encoding", "Connection", "Content-Length", "Keep-Alive", "Host"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came: `path` without query, `watch` for those that never end."""

    method: str
    path: str
    query: str
    watch: bool

    @property
    def writes(self) -> bool:
        """Whether it changes something; leadership's own renewals left out."""
        return self.method not in ("GET", "HEAD") and "/leases" not in self.path


@dataclass(frozen=True, slots=True)
class Spoil:
    """What to do to a request instead of passing it on.

    `status` is answered (with `retry_after` seconds, if given); 0 drops the connection. With `done`, the API server
    gets the request first, and only its answer is lost. With `hold`, nothing happens until the event is set.
    """

    status: int = 0
    retry_after: int | None = None
    done: bool = False
    hold: threading.Event | None = None


Rule = Callable[[Request], Spoil | None]


@dataclass
class Proxy:
    """Plain HTTP at `url`, the API server behind it. As a context manager it serves until the end of the block."""

    cluster: Cluster
    rule: Rule = field(default=lambda _request: None)
    seen: list[Request] = field(default_factory=list)
    """Every request, in order."""

    def __post_init__(self) -> None:
        """Choose the port."""
        self._port = free_port()
        self.url = f"http://{LOOPBACK}:{self._port}"
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._open: set[asyncio.Transport] = set()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def writes(self) -> list[Request]:
        """The requests so far that change something."""
        return [each for each in self.seen if each.writes]

    def cut(self) -> None:
        """Break every connection there is, watches among them; new ones are judged by the rule as ever."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def _abort_all(self) -> None:
        for each in tuple(self._open):
            each.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        trust = ssl.create_default_context(cafile=str(self.cluster.credentials.ca_file))
        connector = aiohttp.TCPConnector(ssl=trust, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            app = web.Application(client_max_size=64 << 20)
            self._session = session
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(runner, LOOPBACK, self._port).start()
            self._started.set()
            await self._stop.wait()
            await runner.cleanup()
            held = asyncio.all_tasks() - {asyncio.current_task()}
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
        await asyncio.sleep(0.25)  # as aiohttp advises: transports close in later turns of the loop

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        if (transport := incoming.transport) is None:
            return web.Response()
        self._open.add(transport)
        try:
            return await self._judge(incoming)
        finally:
            self._open.discard(transport)

    async def _judge(self, incoming: web.Request) -> web.StreamResponse:
        request = Request(incoming.method, incoming.path, incoming.query_string, "watch=" in incoming.query_string)
        self.seen.append(request)
        spoil = self.rule(request)
        if spoil is not None:
            if spoil.done:
                await self._pass_on(incoming, silent=True)
            while spoil.hold is not None and not spoil.hold.is_set():
                await asyncio.sleep(0.02)
            if spoil.status:
                headers = {} if spoil.retry_after is None else {"Retry-After": str(spoil.retry_after)}
                body = {"kind": "Status", "code": spoil.status, "reason": "Spoilt", "message": "spoilt by the proxy"}
                return web.json_response(body, status=spoil.status, headers=headers)
            if not (spoil.hold is not None and not spoil.done):
                if incoming.transport is not None:
                    incoming.transport.abort()
                return web.Response()
        return await self._pass_on(incoming)

    async def _pass_on(self, incoming: web.Request, *, silent: bool = False) -> web.StreamResponse:
        headers = {name: value for name, value in incoming.headers.items() if name not in _HOP}
        url = f"{self.cluster.api_url}{incoming.path_qs}"
        try:
            body = await incoming.read() or None
            async with self._session.request(incoming.method, url, headers=headers, data=body) as answer:
                if silent:
                    await answer.read()
                    return web.Response()
                kept = {name: value for name, value in answer.headers.items() if name not in _HOP}
                outgoing = web.StreamResponse(status=answer.status, headers=kept)
                await outgoing.prepare(incoming)
                async for chunk in answer.content.iter_any():
                    await outgoing.write(chunk)
                await outgoing.write_eof()
                return outgoing
        except (aiohttp.ClientError, ConnectionError):
            # The API server is away, or the client is: either sees a connection that ends.
            if incoming.transport is not None:
                incoming.transport.abort()
            return web.Response()
