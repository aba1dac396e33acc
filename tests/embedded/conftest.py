"""Stand-ins that pip installs."""

from collections.abc import Iterator

import pytest

from vaultml_worker.dev.broker import EmbeddedBroker


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    """The embedded broker; every test takes topics of its own."""
    with EmbeddedBroker() as running:
        yield running
