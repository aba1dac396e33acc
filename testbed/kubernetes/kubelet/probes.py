"""One probe of a container, in a kubelet's words."""

import asyncio
import contextlib
import os

import aiohttp

from testbed.kubernetes.kubelet.client import Object

_MOST_OUTPUT = 10 * 1024


async def probe(
    definition: Object, port_names: dict[str, int], address: str, pid: int, env: dict[str, str]
) -> str | None:
    """Run a probe once against a pod's address or process. Returns None for success, else a kubelet's words for why."""
    seconds = definition.get("timeoutSeconds", 1)
    if "httpGet" in definition:
        return await _http(definition["httpGet"], port_names, address, seconds)
    if "tcpSocket" in definition:
        target = definition["tcpSocket"]
        return await _tcp(target.get("host") or address, _port(target["port"], port_names), seconds)
    if "exec" in definition:
        return await _command(definition["exec"]["command"], pid, env, seconds)
    return "the test bed has no probes of this type"


async def run_inside(command: list[str], pid: int, env: dict[str, str]) -> tuple[int, str]:
    """Run a command in the container of process `pid`; returns its exit code and output. Cancelling kills it."""
    nsenter = ["nsenter", "--target", str(pid), "--mount", "--uts", "--pid", "--root", "--wd"]
    if os.geteuid() != 0:
        nsenter += ["--user", "--preserve-credentials"]
    process = await asyncio.create_subprocess_exec(
        *nsenter,
        "--",
        # The PATH is the container's; nsenter itself must be found by ours.
        *(["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in env.items())] if env else []),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output[:_MOST_OUTPUT].decode(errors="replace")


async def _http(target: Object, names: dict[str, int], address: str, seconds: float) -> str | None:
    scheme, path = target.get("scheme", "HTTP").lower(), target.get("path", "/")
    url = f"{scheme}://{target.get('host') or address}:{_port(target['port'], names)}/{path.removeprefix('/')}"
    headers = {header["name"]: header["value"] for header in target.get("httpHeaders", [])}
    headers = {"User-Agent": "kube-probe/1.36", "Connection": "close", "Accept": "*/*"} | headers
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(url, headers=headers, ssl=False) as answer,
        ):
            await answer.read()
    except TimeoutError:
        return f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'
    except aiohttp.ClientConnectorError as error:
        return f'Get "{url}": dial tcp {error.host}:{error.port}: connect: {_words(error.os_error)}'
    except aiohttp.ClientError as error:
        return f'Get "{url}": {error}'
    return None if 200 <= answer.status < 400 else f"HTTP probe failed with statuscode: {answer.status}"


async def _tcp(host: str, port: int, seconds: float) -> str | None:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), seconds)
    except TimeoutError:
        return f"dial tcp {host}:{port}: i/o timeout"
    except OSError as error:
        return f"dial tcp {host}:{port}: connect: {_words(error)}"
    writer.close()
    return None


async def _command(command: list[str], pid: int, env: dict[str, str], seconds: float) -> str | None:
    try:
        code, output = await asyncio.wait_for(run_inside(command, pid, env), seconds)
    except TimeoutError:
        return f"command timed out: {command} timed out after {seconds:g}s"
    return None if code == 0 else output or f"command {command} exited with {code}"


def _port(port: int | str, names: dict[str, int]) -> int:
    return names[port] if isinstance(port, str) and port in names else int(port)


def _words(error: OSError) -> str:
    """As Go spells it; asyncio's own text repeats the address."""
    return os.strerror(error.errno or 0).lower()
