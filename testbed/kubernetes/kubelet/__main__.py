"""The process node's process, started by `testbed.kubernetes.node.Node`."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from testbed.kubernetes.images import Image
from testbed.kubernetes.kubelet import claims
from testbed.kubernetes.kubelet.addresses import Addresses
from testbed.kubernetes.kubelet.agent import Agent
from testbed.kubernetes.kubelet.client import Client
from testbed.kubernetes.kubelet.events import Recorder
from testbed.kubernetes.kubelet.machine import Machine
from testbed.kubernetes.kubelet.server import serve


async def main(settings: dict[str, Any]) -> None:
    """Be the node that `settings` describe, until killed."""
    async with Client(settings["api_url"], settings["token"], Path(settings["ca_file"])) as client:
        machine = Machine(
            name=settings["name"],
            client=client,
            recorder=Recorder(client, settings["name"]),
            addresses=Addresses(),
            images={name: Image(**image) for name, image in settings["images"].items()},
            services=_services(settings["pods_api_url"]),
            allocatable=settings["capacity"],
            folder=Path(settings["folder"]),
            logs=Path(settings["logs"]),
            first_back_off=settings["first_back_off"],
            longest_back_off=settings["longest_back_off"],
        )
        await serve(machine, Path(settings["server_cert"]), Path(settings["server_key"]))
        async with asyncio.TaskGroup() as group:
            group.create_task(Agent(machine, settings).run())
            group.create_task(claims.provision(client, Path(settings["storage"])))
            group.create_task(claims.reclaim(client))


def _services(api_url: str) -> dict[str, str]:
    """How pods find the API server."""
    address = urlsplit(api_url)
    host, port = str(address.hostname), str(address.port)
    return {
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": port,
        "KUBERNETES_SERVICE_PORT_HTTPS": port,
        "KUBERNETES_PORT": f"tcp://{host}:{port}",
    }


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
