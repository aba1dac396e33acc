"""Real parts, started once per test run."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from uuid import uuid4

import pytest

from testbed import darknet, kubernetes
from testbed.gpu import environment
from testbed.kafka import Broker, available
from testbed.kubernetes import Cluster, gpus
from testbed.process import wait_for
from testbed.product import images
from tests.parts import need
from tests.real.namespace import Namespace, deployment, pod, ready
from tests.real.scene import Scene
from vaultml_worker import fetch
from vaultml_worker.dev import agent, footage


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
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A running cluster with two nodes of two GPUs each, gpu-0 and gpu-1; every test takes a namespace of its own."""
    need(kubernetes.available())
    failed_before = request.session.testsfailed
    with Cluster(images=images()) as running:
        for name in ("gpu-0", "gpu-1"):
            running.node(name, **gpus.whole(2))
        yield running
        if request.session.testsfailed > failed_before:
            running.keep_logs()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace of the test's own; what is left in it ends at once."""
    name = f"test-{uuid4().hex[:8]}"
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    made = Namespace(cluster, name)
    made.wait_service_account()
    yield made
    made.remove()


@pytest.fixture(scope="session")
def removed(cluster: Cluster) -> Namespace:
    """A Deployment whose pod's node has been removed; asked for early, for Kubernetes takes a minute to find out."""
    name = "removed-node"
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    namespace = Namespace(cluster, name)
    namespace.wait_service_account()
    node = cluster.node("removed", labels={"group": "removed"})
    namespace.apply(deployment("app", 1, pod("app", nodeSelector={"group": "removed"})))
    wait_for(lambda: any(ready(item) for item in namespace.pods()), 30, "the pod to run")
    node.remove()
    return namespace


@pytest.fixture(scope="session")
def original() -> None:
    """The original Darknet is on this machine."""
    need(darknet.available())


@pytest.fixture(scope="session")
def clips() -> list[bytes]:
    """A few recordings of one second, cut from real footage; the worker's default model is there, too."""
    fetch.model("yolov3-tiny")
    cutting = agent.cut(footage.find(None), 1.0)
    return [body for body, _, _ in islice(cutting, 3)]


@pytest.fixture(scope="session")
def gpu() -> dict[str, str]:
    """Variables that give a process the stand-in for a GPU."""
    need(environment.available())
    return environment.stand_in()


@pytest.fixture
def stage(
    kafka: Broker, clips: list[bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Scene]]:
    """Makes a scene; the logs of its workers are kept when the test fails."""
    failed_before = request.session.testsfailed
    scenes: list[Scene] = []

    with ExitStack() as stack:

        def make(partitions: int = 1) -> Scene:
            scenes.append(Scene(kafka, tmp_path, clips, stack, partitions))
            return scenes[-1]

        yield make
        if request.session.testsfailed > failed_before:
            for worker in (worker for scene in scenes for worker in scene.workers):
                worker.keep_log()


@pytest.fixture
def scene(stage: Callable[..., Scene]) -> Scene:
    """A queue of one partition with its target and dead-letter topic."""
    made = stage()
    made.create(made.queue, made.target, made.dead)
    return made
