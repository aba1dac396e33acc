"""Parts that several unit tests use."""

from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from vaultml_worker.dev.vault import VaultServer


@pytest.fixture
def serve() -> Iterator[Callable[[Flask], str]]:
    """Serves applications, and gives their addresses."""
    servers: list[VaultServer] = []

    def start(app: Flask) -> str:
        servers.append(VaultServer(app))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()
