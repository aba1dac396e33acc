"""The whole product: kubectl apply, real workers on two GPU nodes, real recordings, results on the topic."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from testbed import kubernetes
from testbed.kafka import Broker
from testbed.kubernetes import Cluster, Node, gpus
from testbed.operator import Operator, Pipelines, grant
from testbed.process import wait_for
from testbed.product import images
from tests.parts import need
from tests.real.scene import Scene
from vaultml_operator import crd
from vaultml_worker.dev import agent
from vaultml_worker.dev.vault import Account, VaultServer, application, publisher
from vaultml_worker.records import VaultAccess

EXAMPLE = Path(__file__).parents[3] / "examples" / "kafka-sasl.yaml"
START_S = 90


@pytest.fixture(scope="module")
def gpu_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An operator and two nodes with one GPU each; a silent node is taken for dead after 4 s."""
    need(kubernetes.available())
    with Cluster(images=images(), node_grace=4) as cluster:
        cluster.apply(crd.definition())
        grant(cluster)
        with Operator(cluster, tmp_path_factory.mktemp("operator") / "operator.log") as operator:
            operator.wait_ready()
            yield cluster


@pytest.fixture
def nodes(gpu_cluster: Cluster) -> Iterator[list[Node]]:
    made = [gpu_cluster.node(f"gpu-{uuid4().hex[:6]}", **gpus.whole(1)) for _ in range(2)]
    yield made
    for node in made:
        node.remove()


@pytest.fixture
def here(gpu_cluster: Cluster) -> Iterator[Pipelines]:
    name = f"t-{uuid4().hex[:8]}"
    gpu_cluster.kubectl("create", "namespace", name)
    yield Pipelines(gpu_cluster, name)
    # Not waited for: the control plane takes its time over pods of a dead node.
    gpu_cluster.kubectl("delete", "namespace", name, "--wait=false")


class User:
    """A SCRAM user of the test's own, whose password can be changed."""

    def __init__(self, kafka: Broker) -> None:
        self.name = f"user-{uuid4().hex[:8]}"
        self._admin = AdminClient({"bootstrap.servers": kafka.plaintext, "log_level": 0})

    def password(self, value: str) -> str:
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(self.name, info, value.encode())
        self._admin.alter_user_scram_credentials([change])[self.name].result(timeout=30)
        return value


def pipeline(kafka: Broker, queue: str, target: str, group: str, vault_url: str, **spec: Any) -> dict[str, Any]:
    """The example, with this machine's addresses, on the CPU engine."""
    body: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    body["spec"]["queue"] |= {"name": queue, "target": target}
    body["spec"]["queue"]["kafka"] |= {
        "brokers": [kafka.sasl_plaintext],
        "security": "SASL_PLAINTEXT",
        "group": group,
    }
    body["spec"]["vault"]["apiUrl"] = vault_url
    body["spec"]["worker"] = {"engine": "onnxruntime", "terminationGracePeriodSeconds": 30}
    return {**body, "spec": {**body["spec"], **spec}}


def test_apply_watch_change_rotate_delete(
    kafka: Broker, here: Pipelines, nodes: list[Node], surveillance: Path, tmp_path: Path, stage: Callable[..., Scene]
) -> None:
    scene = stage(partitions=2)
    scene.create(scene.queue, scene.target, scene.dead)
    account = Account("an-access-key", "a-secret-key", provider="kstorage")
    server = VaultServer(application(tmp_path / "vault", account, publisher(kafka.plaintext, scene.queue.name)))
    try:
        user = User(kafka)
        here.secret("kafka-credentials", username=user.name, password=user.password("the-f1rst-one"))
        here.secret("vault-credentials", accessKey=account.access_key, secretKey=account.secret_key)
        url = f"{server.url}/api"
        body = pipeline(kafka, scene.queue.name, scene.target.name, scene.group, url)
        here.apply(body)
        here.wait("highway", "Running", timeout=START_S)

        def uploaded(count: int) -> set[str]:
            access = VaultAccess(url, account.access_key, account.secret_key)
            uploads = agent.upload(access, account.provider, surveillance, seconds=3, cameras=2, rate=0)
            return set(islice(uploads, count))

        keys = uploaded(4)
        wait_for(lambda: keys <= set(scene.target.keys()), 60, "the results of four recordings")
        row = here.kubectl("get", "vmlp", "-o", "wide").splitlines()[1].split()
        assert row[:3] == ["highway", "True", "2/2"]
        assert {"nvidia.com/gpu:1", "Running"} < set(row)
        labels = {
            label for each in scene.target.bodies() for frame in json.loads(each)["data"]["labels"] for label in frame
        }
        assert labels & {"person", "car", "truck"}
        assert {pod["spec"]["nodeName"] for pod in here.all("pods")} == {node.name for node in nodes}

        # Two workers on two GPUs, and none to spare: rolled one after the other.
        before = {pod["metadata"]["uid"] for pod in here.all("pods")}
        body["spec"]["detection"] |= {"threshold": 0.9}
        here.apply(body)
        wait_for(lambda: not before & {pod["metadata"]["uid"] for pod in here.all("pods")}, START_S, "new workers")
        here.wait("highway", "Running", timeout=START_S, generation=2)

        # The Secret first, then the broker: what the Secret says is refused until the broker knows it, too.
        before = {pod["metadata"]["uid"] for pod in here.all("pods")}
        here.secret("kafka-credentials", username=user.name, password="the-sec0nd-one")
        here.wait("highway", "AuthenticationFailed", timeout=30)
        user.password("the-sec0nd-one")
        wait_for(lambda: not before & {pod["metadata"]["uid"] for pod in here.all("pods")}, START_S, "new workers")
        here.wait("highway", "Running", timeout=2 * START_S)
        more = uploaded(2)
        wait_for(lambda: more <= set(scene.target.keys()), 60, "results after the rotation")
        for word in ("the-f1rst-one", "the-sec0nd-one", "a-secret-key"):
            assert word not in here.kubectl("get", "vmlp,deploy,rs,pods,events.events.k8s.io", "-o", "yaml")

        here.kubectl("delete", "vmlp", "highway")
        wait_for(lambda: here.all("deployment,rs,pods,pdb") == [], 60, "everything to be gone")
    finally:
        server.close()


def test_a_node_dies_in_the_middle_of_a_recording(
    kafka: Broker, here: Pipelines, nodes: list[Node], gpu_cluster: Cluster, stage: Callable[..., Scene]
) -> None:
    scene = stage(partitions=2)
    scene.create(scene.queue, scene.target, scene.dead)
    here.secret("kafka-credentials", username=kafka.username, password=kafka.password)
    environment = scene.environment()
    here.secret(
        "vault-credentials", accessKey=environment["VAULT_ACCESS_KEY"], secretKey=environment["VAULT_SECRET_KEY"]
    )
    by_hand = {"replicas": 2, "autoscaling": {"mode": "Manual"}}
    here.apply(pipeline(kafka, scene.queue.name, scene.target.name, scene.group, scene.vault.url, **by_hand))
    here.wait("highway", "Running", timeout=START_S)
    wait_for(
        lambda: sorted(len(each) for each in scene.members().values()) == [1, 1], 30, "a partition for each worker"
    )

    # One recording for each worker, held at the Vault's door: both are in the middle of it.
    scene.vault.allow(0)
    events = scene.events(2)
    scene.send(*events)
    wait_for(lambda: len(scene.vault.asked) == 2, 30, "both workers to be at work")
    lost = {pod["metadata"]["uid"] for pod in here.all("pods") if pod["spec"]["nodeName"] == nodes[0].name}
    nodes[0].kill()
    scene.vault.allow(None)
    keys = {each["payload"]["key"] for each in events}
    # The broker's session time-out is 6 s here; 10 s and 20 more are what is promised.
    wait_for(lambda: keys <= set(scene.target.keys()), 30, "the other worker to answer both")

    # A third GPU: the lost worker is replaced there, 30 s after its node is known to be gone.
    gpu_cluster.node(f"{nodes[0].name}-new", **gpus.whole(1))
    here.wait("highway", "NotReady", timeout=60)
    here.wait("highway", "Running", timeout=2 * START_S)
    alive = [pod for pod in here.all("pods") if "deletionTimestamp" not in pod["metadata"]]
    assert len(alive) == 2
    assert not lost & {pod["metadata"]["uid"] for pod in alive}
