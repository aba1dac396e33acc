"""This machine as a node: its GPUs, and how many workers without one its cores and memory carry."""

import math
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vaultml_common.machine import cpus, free_memory
from vaultml_operator import api
from vaultml_operator.local import gpus
from vaultml_operator.local.documents import SLOT
from vaultml_operator.local.gpus import Device
from vaultml_operator.local.rules import nano
from vaultml_operator.manifests import Manifest

_MOST_SLOTS = 1000


@dataclass(frozen=True)
class Hardware:
    """What there is: `cores`, free `memory` in bytes, GPUs; `trouble` says why there are no GPUs."""

    cores: int
    memory: int
    devices: tuple[Device, ...] = ()
    trouble: str = ""
    name: str = field(default_factory=socket.gethostname)


def look() -> Hardware:
    """What this process may use, right now."""
    devices, trouble = gpus.find()
    return Hardware(cores=cpus(), memory=free_memory(), devices=devices, trouble=trouble)


def slots(requests: Mapping[str, str], hardware: Hardware) -> int:
    """How many workers with these requests there is room for: at least one, or a small machine would do nothing."""
    room = [_MOST_SLOTS]
    for name, there in (("cpu", hardware.cores), ("memory", hardware.memory)):
        if asked := nano(requests.get(name, "0")):
            room.append(there * 10**9 // asked)
    return max(1, min(room))


@dataclass(frozen=True)
class Sharing:
    """The machine in slots: `total`, and how many a worker of each pipeline takes."""

    total: int
    taken: Mapping[str, int]


def share(pipelines: Mapping[str, api.Spec], hardware: Hardware) -> Sharing:
    """Slots that are small enough for every pipeline's workers to be a whole number of them."""
    room = {
        key: slots(spec.worker.resources.requests or {}, hardware)
        for key, spec in pipelines.items()
        if not spec.worker.gpu.count
    }
    total = math.lcm(*room.values()) if room else 0
    return Sharing(total, {key: total // number for key, number in room.items()})


def node(hardware: Hardware, total_slots: int) -> Manifest:
    """The machine as a Node with what can be shared out."""
    offered: dict[str, Any] = {SLOT: str(total_slots)} if total_slots else {}
    for resource in {device.resource for device in hardware.devices}:
        offered[resource] = str(sum(device.resource == resource for device in hardware.devices))
    labels = {"kubernetes.io/hostname": hardware.name}
    products = {re.sub(r"\s+", "-", device.product) for device in hardware.devices}
    if len(products) == 1:
        # As NVIDIA's feature discovery names it: a selector for one kind of GPU works here, too.
        labels["nvidia.com/gpu.product"] = products.pop()
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": hardware.name, "labels": labels},
        "status": {"allocatable": offered, "conditions": [{"type": "Ready", "status": "True"}]},
    }


class Devices:
    """Who has which GPU, and how many slots."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self._devices = tuple(devices)
        self._held: dict[str, tuple[Device, ...]] = {}
        self._slots: dict[str, int] = {}
        self.total_slots = 0

    def take(self, uid: str, asked: Mapping[str, int]) -> tuple[Device, ...] | None:
        """Give a pod what it asks for, by resource; None: it is not all free."""
        chosen: list[Device] = []
        busy = {device for held in self._held.values() for device in held}
        for resource, number in asked.items():
            if resource == SLOT:
                if sum(self._slots.values()) + number > self.total_slots:
                    return None
                continue
            free = [each for each in self._devices if each.resource == resource and each not in busy]
            if len(free) < number:
                return None
            chosen += free[:number]
        self._held[uid] = tuple(chosen)
        self._slots[uid] = asked.get(SLOT, 0)
        return self._held[uid]

    def resize(self, uid: str, slots: int) -> None:
        """A pod that runs takes another number of slots, since they have become smaller or larger."""
        if uid in self._slots:
            self._slots[uid] = slots

    def give_back(self, uid: str) -> None:
        """The pod is gone."""
        self._held.pop(uid, None)
        self._slots.pop(uid, None)
