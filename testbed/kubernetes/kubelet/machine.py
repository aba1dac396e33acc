"""What the parts of a node share."""

from dataclasses import dataclass
from pathlib import Path

from testbed.kubernetes.images import Image
from testbed.kubernetes.kubelet.addresses import Addresses
from testbed.kubernetes.kubelet.client import Client
from testbed.kubernetes.kubelet.events import Recorder


@dataclass(frozen=True, slots=True)
class Machine:
    """A node's settings and tools."""

    name: str
    client: Client
    recorder: Recorder
    addresses: Addresses
    images: dict[str, Image]
    services: dict[str, str]
    allocatable: dict[str, str]
    folder: Path
    logs: Path
    first_back_off: float
    longest_back_off: float
