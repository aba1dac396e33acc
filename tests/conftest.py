"""Parts that several suites use, fetched or started once per run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before anything imports onnxruntime

from tests.parts import need
from vaultml_worker import fetch
from vaultml_worker.dev import footage
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.records import InvalidInput

_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's folder is its mark: embedded, real, gpu. Two groups may run side by side, each in its own order."""
    for item in items:
        cluster = item.path.is_relative_to(_HERE / "real" / "operators") or item.path.match("test_kubernetes_*")
        item.add_marker(pytest.mark.xdist_group("kubernetes" if cluster else "everything else"))
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
