"""Stand-ins that pip installs, the tiny model and the footage: started or fetched once per run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultml_worker import fetch
from vaultml_worker.dev import footage
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.records import InvalidInput


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.embedded)


def _skip_or_fail(reason: str) -> None:
    if os.environ.get("VAULTML_REQUIRE_REAL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of the trained YOLOv3-tiny."""
    try:
        return fetch.model("yolov3-tiny")
    except InvalidInput as error:
        _skip_or_fail(str(error))
        raise


@pytest.fixture(scope="session")
def surveillance() -> Path:
    """Real surveillance footage."""
    path = footage.surveillance()
    if path is None:
        _skip_or_fail("no surveillance footage: it is in Debian's package opencv-doc (apt-get update first)")
        raise AssertionError
    return path


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    """The embedded broker; every test takes topics of its own."""
    with EmbeddedBroker() as running:
        yield running
