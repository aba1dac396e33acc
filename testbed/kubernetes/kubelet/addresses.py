"""Addresses for pods out of 127.0.0.0/8, none given twice on this machine at one time."""

import random
import socket
from collections.abc import Iterator

_HOSTS = range(2, 255)


class Addresses:
    """A node's own address and those of its pods, from /24 networks that no other process of this machine uses."""

    def __init__(self) -> None:
        """Reserve the first network."""
        self._reservations: list[socket.socket] = []
        self._free: Iterator[str] = iter(())
        self._taken: set[str] = set()
        self.node = f"{self._reserve()}.1"

    def take(self) -> str:
        """Return an address for a pod; one that was given back comes again as late as can be."""
        for _ in range(2):
            for address in self._free:
                if address not in self._taken:
                    self._taken.add(address)
                    return address
            networks = [reservation.getsockname()[1:].decode().rpartition("-")[2] for reservation in self._reservations]
            if len(self._taken) >= len(networks) * len(_HOSTS) // 2:
                networks.append(self._reserve())
            self._free = (f"{network}.{host}" for network in networks for host in _HOSTS)
        raise RuntimeError("no free address")

    def give_back(self, address: str) -> None:
        """The pod has ended."""
        self._taken.discard(address)

    def _reserve(self) -> str:
        """A free network, as in 127.12.34; the name of an abstract socket is this machine's lock on it."""
        for _ in range(1000):
            network = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}"
            reservation = socket.socket(socket.AF_UNIX)
            try:
                reservation.bind(f"\0testbed-{network}")
            except OSError:
                reservation.close()
                continue
            self._reservations.append(reservation)
            return network
        raise RuntimeError("no free network found in 127.0.0.0/8")
