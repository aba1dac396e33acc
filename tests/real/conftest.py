"""Real parts, started once per test run. Everything in this folder is marked `real`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the test bed is not part of the installed packages

from testbed.kafka import Broker, available


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A running broker; its topics and groups are shared, so every test takes names of its own."""
    missing = available()
    if missing is not None:
        if os.environ.get("VAULTML_REQUIRE_REAL") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    failed_before = request.session.testsfailed
    with Broker() as broker:
        yield broker
        if request.session.testsfailed > failed_before:
            broker.keep_log()
