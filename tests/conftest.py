"""Parts that several suites use, fetched or started once per run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from flask import Flask
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before anything imports onnxruntime

from tests.parts import need
from vaultml_worker import fetch
from vaultml_worker.dev import footage
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.dev.vault import VaultServer
from vaultml_worker.records import InvalidInput

_HERE = Path(__file__).parent
# A busy machine is no fault of an example.
hypothesis.settings.register_profile("tests", print_blob=True)
hypothesis.settings.load_profile("tests")


class _TwoGroups(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Two groups run side by side, each in its own order: the tests on a Kubernetes cluster, and those on other parts.

    Unit tests follow, a file at a time, wherever there is room: they share nothing. xdist's own groups (3.8) are none
    with pytest 9.2: each test would go where there is room, and all that a session starts be started twice.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/unit/"):
            return nodeid.partition("::")[0]
        cluster = nodeid.startswith("tests/real/operators/") or "/test_kubernetes_" in nodeid
        return "kubernetes" if cluster else "everything else"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _TwoGroups:
    """How xdist shares out the tests."""
    return _TwoGroups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's folder is its mark: embedded, real, gpu."""
    for item in items:
        for name in ("embedded", "real", "gpu"):
            if item.path.is_relative_to(_HERE / name):
                item.add_marker(name)
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.timeout(1200))  # TensorRT may take minutes for each engine


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of the trained YOLOv3-tiny."""
    try:
        return fetch.model("yolov3-tiny")
    except InvalidInput as error:
        need(str(error))
        raise


@pytest.fixture(scope="session")
def surveillance() -> Path:
    """Real surveillance footage."""
    path = footage.surveillance()
    need(None if path else "no surveillance footage: it is in Debian's package opencv-doc (run apt-get update first)")
    assert path is not None
    return path


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    """The embedded broker; every test takes topics of its own."""
    with EmbeddedBroker() as running:
        yield running


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
