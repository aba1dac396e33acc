"""A worker's probes, as its pod's template says them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from vaultml_operator.local.address import Address

Probe = Mapping[str, Any]


async def passes(probe: Probe, session: aiohttp.ClientSession, address: Address) -> bool:
    """Whether one look succeeds. A probe that is no HTTP request is not made here: it passes."""
    if (get := probe.get("httpGet")) is None:
        return True
    url = f"http://{address.host}:{address.port}{get.get('path', '/')}"
    patience = aiohttp.ClientTimeout(total=float(probe.get("timeoutSeconds", 1)))
    try:
        async with session.get(url, timeout=patience, allow_redirects=False) as answer:
            return 200 <= answer.status < 400
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def until_passed(probe: Probe | None, look: Callable[[Probe], Awaitable[bool]]) -> bool:
    """Look until it passes; False: it failed too often in a row."""
    if probe is None:
        return True
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    for _ in range(int(probe.get("failureThreshold", 3))):
        if await look(probe):
            return True
        await asyncio.sleep(float(probe.get("periodSeconds", 10)))
    return False


async def until_failed(probe: Probe | None, look: Callable[[Probe], Awaitable[bool]]) -> None:
    """Return when it has failed too often in a row; without a probe, never."""
    if probe is None:
        await asyncio.get_running_loop().create_future()
        return
    failures = 0
    while failures < int(probe.get("failureThreshold", 3)):
        await asyncio.sleep(float(probe.get("periodSeconds", 10)))
        failures = 0 if await look(probe) else failures + 1


async def follow(probe: Probe | None, look: Callable[[Probe], Awaitable[bool]], told: Callable[[bool], None]) -> None:
    """Tell of each change between passing and failing, for ever; without a probe it passes."""
    if probe is None:
        told(True)
        await asyncio.get_running_loop().create_future()
        return
    state, failures = False, 0
    while True:
        good = await look(probe)
        failures = 0 if good else failures + 1
        if good != state and (good or failures >= int(probe.get("failureThreshold", 3))):
            state = good
            told(state)
        await asyncio.sleep(float(probe.get("periodSeconds", 10)))
