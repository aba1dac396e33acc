"""Kubernetes' REST API for the node: plain dictionaries, and patience with an API server that is away."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_GONE = 410
_TOO_MANY = 429
_TIMEOUT = aiohttp.ClientTimeout(total=30)
# Bookmarks come every minute; a connection that brings nothing for longer is dead.
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=90)


class ApiError(Exception):
    """The API server refused; `reason` is its word for it, as in NotFound, the text is its message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Client:
    """An async context manager; every call waits for as long as the API server is away or overloaded."""

    def __init__(self, url: str, token: str, ca_file: Path) -> None:
        """Talk to the API server at `url` with a bearer token."""
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._tls = ssl.create_default_context(cafile=str(ca_file))
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=32)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.close()

    async def request(
        self, method: str, path: str, body: Object | None = None, *, content_type: str = "application/json"
    ) -> Object:
        """Return the answer's object. Raises ApiError when the server refuses for a reason that waiting won't heal."""
        data = None if body is None else json.dumps(body).encode()
        pause = _FIRST_PAUSE_S
        while True:
            try:
                async with self._open.request(
                    method, self._url + path, data=data, headers={"Content-Type": content_type}, timeout=_TIMEOUT
                ) as answer:
                    text = await answer.read()
            except (aiohttp.ClientError, TimeoutError):
                pass
            else:
                if answer.status < 300:
                    result: Object = json.loads(text)
                    return result
                if answer.status < 500 and answer.status not in (_TOO_MANY, 401):
                    raise _refusal(answer.status, text)
                pause = max(pause, min(_seconds(answer.headers.get("Retry-After")), _LONGEST_PAUSE_S))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def get(self, path: str) -> Object:
        """GET `path`."""
        return await self.request("GET", path)

    async def follow(self, path: str, selector: str) -> AsyncIterator[tuple[str, Any]]:
        """List and watch for ever: yields ("SYNC", all objects) first and after every gap, else (event type, object).

        `selector` is a query, as in fieldSelector=spec.nodeName=a.
        """
        while True:
            listed = await self.get(f"{path}?{selector}")
            yield "SYNC", listed["items"]
            version = listed["metadata"]["resourceVersion"]
            pause = _FIRST_PAUSE_S
            while version:
                try:
                    async for event, item in self._watch(path, selector, version):
                        pause = _FIRST_PAUSE_S
                        version = item["metadata"]["resourceVersion"]
                        if event != "BOOKMARK":
                            yield event, item
                except ApiError as error:
                    if error.status == _GONE:
                        version = ""
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _watch(self, path: str, selector: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        url = f"{self._url}{path}?{selector}&watch=1&allowWatchBookmarks=1&resourceVersion={version}"
        async with self._open.get(url, timeout=_WATCH_TIMEOUT) as answer:
            if answer.status >= 300:
                raise _refusal(answer.status, await answer.read())
            buffer = b""
            async for chunk in answer.content.iter_any():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _refusal(event["object"].get("code", 500), json.dumps(event["object"]).encode())
                    yield event["type"], event["object"]

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used outside its context")
        return self._session


def _refusal(status: int, text: bytes) -> ApiError:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    return ApiError(status, answer.get("reason", ""), answer.get("message", text.decode(errors="replace")))


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isdecimal() else 0.0
