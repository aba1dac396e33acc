"""Health tells the truth about the loop."""

import asyncio

import aiohttp
import pytest

from testbed.process import free_port
from vaultml_operator.app import Operator, Options
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
