"""An address of this machine for each worker, so that all may listen on the same port, as pods do."""

import random
import socket
from collections.abc import Collection
from typing import NamedTuple

_TRIES = 50


class Address(NamedTuple):
    """Where a worker listens."""

    host: str
    port: int


def choose(port: int, taken: Collection[str], rng: random.Random) -> Address:
    """A loopback address of nobody, with `port` unless something listens on all addresses there; then with another."""
    for _ in range(_TRIES):
        # Linux answers on all of 127.0.0.0/8. Drawn at random: another program like this one may run beside.
        host = f"127.{rng.randint(1, 254)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"
        if host in taken:
            continue
        if (found := _bound(host, port)) is not None:
            return Address(host, found)
        if (found := _bound(host, 0)) is not None:
            return Address(host, found)
    raise OSError(f"no loopback address with a free port was found in {_TRIES} tries")


def _bound(host: str, port: int) -> int | None:
    """The port, if one can listen there right now."""
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])
