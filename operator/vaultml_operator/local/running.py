"""What is known of a pod that runs here, and how its status tells it."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from vaultml_operator.local.address import Address
from vaultml_operator.local.container import Container
from vaultml_operator.local.gpus import Device


@dataclass
class Running:
    """A pod in the making, at work, or going.

    `pause` is what comes before its next restart, in seconds; `state` and `last` are the container's as Kubernetes
    writes them; `unplaced` says why it has no place, if so.
    """

    namespace: str
    name: str
    uid: str
    address: Address
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None
    container: Container | None = None
    devices: tuple[Device, ...] = ()
    restarts: int = 0
    pause: float = 0.0
    started: bool = False
    ready: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    unplaced: str = ""

    def status(self, image: str) -> dict[str, Any]:
        """The pod's status, as a kubelet writes it."""
        scheduled = {"type": "PodScheduled", "status": "False" if self.unplaced else "True"}
        if self.unplaced:
            scheduled |= {"reason": "Unschedulable", "message": self.unplaced}
        ready = self.ready and "running" in self.state
        found: dict[str, Any] = {
            "phase": "Running" if self.restarts or "running" in self.state else "Pending",
            "podIP": self.address.host,
            "conditions": [scheduled, {"type": "Ready", "status": "True" if ready else "False"}],
        }
        if not self.unplaced:
            container = {
                "name": "worker",
                "image": image,
                "ready": ready,
                "started": self.started,
                "restartCount": self.restarts,
                "state": self.state,
                "lastState": self.last,
            }
            found["containerStatuses"] = [container]
        return found
