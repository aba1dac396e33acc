"""The kubelet's HTTPS port, as far as `kubectl logs` needs it."""

import asyncio
import ssl
from collections import deque
from pathlib import Path

from aiohttp import web

from testbed.kubernetes.kubelet.machine import Machine

PORT = 10250
_POLL_S = 0.2
_CHUNK = 65536


async def serve(machine: Machine, certificate: Path, key: Path) -> web.AppRunner:
    """Serve containers' logs on the node's address; returns the server, to be kept and cleaned up."""
    app = web.Application()
    app["machine"] = machine
    app.add_routes([web.get("/containerLogs/{namespace}/{pod}/{container}", _logs)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    await web.TCPSite(runner, machine.addresses.node, PORT, ssl_context=tls).start()
    return runner


async def _logs(request: web.Request) -> web.StreamResponse:
    """One container's log of its present start, or the one before; options `tailLines` and `follow`."""
    machine, options = request.app["machine"], request.query
    namespace, pod, container = (request.match_info[key] for key in ("namespace", "pod", "container"))
    pods = sorted((machine.logs / namespace).glob(f"{pod}_*"), key=lambda path: path.stat().st_mtime)
    starts = sorted((pods[-1] / container).glob("*.log"), key=lambda path: int(path.stem)) if pods else []
    if options.get("previous") == "true":
        starts = starts[:-1]
    if not starts:
        return web.Response(status=404, text=f'container "{container}" in pod "{pod}" has no such log\n')
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    with starts[-1].open("rb") as log:
        if "tailLines" in options:
            await response.write(b"".join(deque(log, int(options["tailLines"]))))
        while chunk := log.read(_CHUNK):
            await response.write(chunk)
        while options.get("follow") == "true" and _lives(machine, f"{namespace}_{pods[-1].name}", container):
            if chunk := log.read(_CHUNK):
                await response.write(chunk)
            else:
                await asyncio.sleep(_POLL_S)
        await response.write(log.read())
    await response.write_eof()
    return response


def _lives(machine: Machine, pod: str, container: str) -> bool:
    return (machine.folder / "pods" / pod / "containers" / container / "pid").exists()
