"""Health tells the truth about the loop, and namespaces are watched one by one."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from testbed.process import free_port
from vaultml_operator.app import Operator, Options
from vaultml_operator.cluster import ApiError
from vaultml_operator.scaling import Key


def test_health_fails_when_a_reconcile_does_not_end_long_after_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        released = asyncio.Event()

        async def never(_operator: Operator, _key: Key) -> None:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue

        monkeypatch.setattr(Operator, "_reconcile", never)
        monkeypatch.setattr(Operator, "_may_write", lambda _operator: True)
        operator = Operator(Options(image="i", host="127.0.0.1", port=0, deadline_seconds=0.1))
        server = await operator._serve()
        host, port = server.addresses[0]
        turning = asyncio.create_task(operator._queue.run())
        async with aiohttp.ClientSession() as session:

            async def status(path: str) -> int:
                async with session.get(f"http://{host}:{port}{path}") as answer:
                    return answer.status

            assert await status("/healthz") == 200
            assert await status("/readyz") == 503  # its watches aren't open
            operator._queue.add(Key("n", "p"))
            async with asyncio.timeout(10):
                while await status("/healthz") == 200:
                    await asyncio.sleep(0.02)
            released.set()
            async with asyncio.timeout(10):
                while await status("/healthz") != 200:
                    await asyncio.sleep(0.02)
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)
        await server.cleanup()

    asyncio.run(test())


def test_health_is_served_on_all_addresses_of_both_kinds() -> None:
    async def test() -> None:
        port = free_port()
        operator = Operator(Options(image="i", port=port))
        server = await operator._serve()
        async with aiohttp.ClientSession() as session:
            for host in ("127.0.0.1", "[::1]"):
                async with session.get(f"http://{host}:{port}/healthz") as answer:
                    assert answer.status == 200
        await server.cleanup()

    asyncio.run(test())


class Namespaces:
    """A cluster in which the namespace `gone` is refused once it has been listed; and its reconciler."""

    def __init__(self) -> None:
        self.served: Counter[str] = Counter()
        self.watched: set[str] = set()
        self.forgotten: list[Key] = []

    async def wait_served(self, namespace: str, _retry: float) -> None:
        self.served[namespace] += 1
        if namespace == "missing":
            await asyncio.Event().wait()

    async def follow(self, path: str, _query: Any, listed: Callable[[list[Any]], None], handle: Any) -> None:
        namespace = path.split("/namespaces/")[1].split("/")[0]
        listed([])
        if path.endswith("/vaultmlpipelines"):
            handle(None, {"metadata": {"namespace": namespace, "name": "p", "uid": "u", "generation": 1}})
        if namespace == "gone" and self.served[namespace] == 1:
            await asyncio.sleep(0.01)
            raise ApiError(403, "Forbidden", "no")
        self.watched.add(path)
        await asyncio.Event().wait()

    def readers(self, _namespace: str, _changed: Any) -> list[Key]:
        return []

    def forget(self, key: Key) -> None:
        self.forgotten.append(key)


def test_a_namespace_that_is_missing_or_refused_leaves_the_others_watched() -> None:
    async def test() -> None:
        operator = Operator(Options(image="i", namespaces=("missing", "gone", "kept")))
        found = Namespaces()
        operator._cluster = operator._reconciler = found  # type: ignore[assignment]
        end = asyncio.Event()
        watching = asyncio.create_task(operator._watch_namespaces(end))
        async with asyncio.timeout(10):
            while len(found.watched) < 14:  # seven kinds in two namespaces
                await asyncio.sleep(0.01)
        assert operator._watching.is_set()
        assert found.served == {"missing": 1, "gone": 2, "kept": 1}
        assert found.forgotten == [Key("gone", "p")]
        assert not watching.done()
        end.set()
        await watching

    asyncio.run(test())
