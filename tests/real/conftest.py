"""Real parts, started once per test run."""

from collections.abc import Iterator

import pytest

from testbed import darknet
from testbed.kafka import Broker, available
from tests.parts import need


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A running broker; its topics and groups are shared, so every test takes names of its own."""
    need(available())
    failed_before = request.session.testsfailed
    with Broker() as broker:
        yield broker
        if request.session.testsfailed > failed_before:
            broker.keep_log()


@pytest.fixture(scope="session")
def original() -> None:
    """The original Darknet is on this machine."""
    need(darknet.available())
