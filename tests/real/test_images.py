"""The images, built as users build them, and run: small, without rights, and working with nothing added."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from testbed import images, kubernetes
from testbed.images import Container
from testbed.kafka import Broker
from testbed.kubernetes import Cluster
from testbed.operator import Pipelines
from testbed.process import wait_for
from tests.parts import need
from tests.real.operators.test_reconcile import body
from tests.real.scene import ACCOUNT, WAIT_S, Scene, keys_of
from vaultml_operator import install

# The first build makes the base and fetches all packages.
pytestmark = pytest.mark.timeout(900)

CHECKOUT = Path(__file__).parents[2]
USER = 65532
MEGABYTE = 1 << 20
LARGEST = {"worker": 700 * MEGABYTE, "operator": 200 * MEGABYTE}
"""Bytes that an image may have beside its base, all told."""
NOT_NEEDED = ("cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "cmake", "nvcc", "git")


@pytest.fixture(scope="module")
def worker_image() -> Iterator[Container]:
    need(images.available())
    with images.unpacked(images.worker()) as container:
        yield container


@pytest.fixture(scope="module")
def operator_image() -> Iterator[Container]:
    need(images.available())
    with images.unpacked(images.operator()) as container:
        yield container


@pytest.fixture(params=["worker", "operator"])
def image(request: pytest.FixtureRequest) -> tuple[str, Container]:
    container: Container = request.getfixturevalue(f"{request.param}_image")
    return request.param, container


@pytest.fixture(scope="module")
def site(worker_image: Container, operator_image: Container, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster with one node, which runs these images and no stand-ins for them."""
    need(kubernetes.available())
    failed_before = request.session.testsfailed
    table = {"vaultml/worker": worker_image.image(), "vaultml/operator": operator_image.image()}
    with Cluster(images=table) as cluster:
        cluster.node("machine")
        yield cluster
        if request.session.testsfailed > failed_before:
            cluster.keep_logs()


@pytest.fixture
def here(site: Cluster) -> Iterator[Pipelines]:
    name = f"t-{uuid4().hex[:8]}"
    site.kubectl("create", "namespace", name)
    yield Pipelines(site, name)
    site.kubectl("delete", "namespace", name, "--wait=false")


def find(container: Container, expression: str) -> list[str]:
    """What `find` finds in the image, or in one's writable folders when told so."""
    return container.run("sh", "-c", f"find / -xdev {expression} 2>/dev/null || true").split()


@pytest.mark.parametrize("name", ["worker", "operator"])
def test_hadolint_has_no_complaints(name: str) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    need(None if hadolint else "The Dockerfiles are checked with hadolint: make setup installs it.")
    command = [str(hadolint), "--no-color", str(CHECKOUT / f"Dockerfile.{name}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_says_what_it_is(image: tuple[str, Container]) -> None:
    name, container = image
    config = container.built.config
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"].startswith(f"VaultML {name}")
    assert labels["version"] == version("vaultml")
    assert labels["licenses"] == "Apache-2.0"
    assert labels["description"]
    assert labels["base.name"] == images.base()
    assert config["User"] == f"{USER}:{USER}"
    assert config["Healthcheck"]["Test"][0] == "CMD"


def test_it_is_small_and_brings_no_tools_along(image: tuple[str, Container], record_property: Any) -> None:
    name, container = image
    with images.unpacked(images.Built(images.base(), {}, 0)) as base:
        added = container.bytes() - base.bytes()
    record_property("bytes", container.bytes())
    record_property("bytes without the base", added)
    assert added < LARGEST[name], f"{added / MEGABYTE:.0f} MB beside the base"
    assert [tool for tool in NOT_NEEDED if list(container.root.glob(f"*/**/bin/{tool}"))] == []
    found = {str(path.relative_to(container.root)) for path in (container.root / "opt/vaultml").rglob("*")}
    packages = {path.partition("site-packages/")[2].partition("/")[0] for path in found}
    assert {"vaultml_operator", "vaultml_worker"} <= packages
    assert packages & {"pytest", "mypy", "ruff", "wheel", "hypothesis", "tests", "testbed"} == set()
    # Nothing of the build is left: neither what pip kept, nor what was compiled from.
    left = ("src", "tools", "wheels", "added", "weights", "root/.cache", "tmp/.cache")
    assert [path for path in left if (container.root / path).exists()] == []
    assert not any(path.is_file() for path in (container.root / "var/cache/vaultml").rglob("*"))


def test_its_user_can_write_to_its_cache_and_nowhere_else(image: tuple[str, Container]) -> None:
    name, container = image
    assert container.run("id", "-u").strip() == str(USER)
    assert container.run("id", "-G").split() == [str(USER)]
    writable = container.run(
        "sh",
        "-c",
        "find / -xdev -writable ! -type l ! -path '/proc/*' ! -path '/dev/*' ! -path '/sys/*' 2>/dev/null || true",
    ).split()
    usual = {"/tmp", "/var/tmp", "/run/lock", "/var/lock"}
    assert set(writable) - usual == ({"/var/cache/vaultml"} if name == "worker" else set())
    assert find(container, "-perm /6000 -path '/opt/*'") == []


def test_the_operator_installs_itself_and_has_a_worker_look_at_a_recording(
    site: Cluster,
    here: Pipelines,
    operator_image: Container,
    kafka: Broker,
    stage: Callable[..., Scene],
) -> None:
    scene = stage()
    scene.create(scene.queue, scene.target, scene.dead)
    wanted = list(yaml.safe_load_all(operator_image.run("vaultml-operator", "install", "--replicas", "1")))
    site.apply(*wanted)
    site.kubectl(
        "wait", "deployment", install.NAME, "-n", install.NAMESPACE, "--for=condition=Available", "--timeout=60s"
    )

    here.secret("vault", accessKey=ACCOUNT.access_key, secretKey=ACCOUNT.secret_key)
    described = body(
        kafka,
        scene.queue.name,
        replicas=1,
        vault={"apiUrl": scene.vault.url, "credentialsSecretRef": {"name": "vault"}},
        worker={"gpu": {"count": 0}},
    )
    described["spec"]["queue"] |= {"target": scene.target.name}
    here.apply(described)
    here.wait("p", "Running", timeout=90)
    made = here.get("deployment", "p")
    assert made is not None
    assert made["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == USER

    # The root of these pods is read-only, as the operator asks for.
    sent = scene.events(1)
    scene.send(*sent)
    wait_for(lambda: keys_of(sent) <= set(scene.target.keys()), WAIT_S, "the result")
    (pod,) = here.all("pods")
    log = site.log(here.namespace, pod["metadata"]["name"])
    assert "yolov3-tiny" in log
    assert processes(pod["status"]["podIP"]) == {USER}


def processes(address: str) -> set[int]:
    """The users of the processes that have this pod's address in their environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if f"HTTP_HOST={address}\0".encode() in (entry / "environ").read_bytes():
                    found.add(entry.stat().st_uid)
            except OSError:
                continue
    return found


def test_the_worker_needs_nothing_but_hub_ml_s_variables(
    site: Cluster, here: Pipelines, worker_image: Container, stage: Callable[..., Scene]
) -> None:
    scene = stage()
    scene.create(scene.queue, scene.target, scene.dead)
    # All pods share this machine's ports: an address of its own is what a container would have anyway.
    own = {"name": "HTTP_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    variables = [{"name": name, "value": value} for name, value in scene.environment().items()]
    check = worker_image.built.config["Healthcheck"]["Test"][1:]
    container = {
        "name": "worker",
        "image": "vaultml/worker",
        "env": [*variables, own],
        "readinessProbe": {"exec": {"command": check}, "periodSeconds": 1, "timeoutSeconds": 10},
    }
    here.kubectl(
        "apply",
        "-f",
        "-",
        stdin=yaml.safe_dump(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, "spec": {"containers": [container]}}
        ),
    )
    here.kubectl("wait", "pod/worker", "--for=condition=Ready", "--timeout=60s")
    sent = scene.events(1)
    scene.send(*sent)
    wait_for(lambda: keys_of(sent) <= set(scene.target.keys()), 2 * WAIT_S, "the result")
    here.kubectl("delete", "pod/worker", "--timeout=60s")
    assert "stopped: everything in work was finished" in site.log(here.namespace, "worker")


def test_the_health_check_fails_where_nobody_answers(worker_image: Container) -> None:
    check = worker_image.built.config["Healthcheck"]["Test"][1:]
    with pytest.raises(RuntimeError, match="ConnectionRefusedError"):
        worker_image.run("env", "HTTP_PORT=1", *check)
