"""All of it on this machine, for people: Kubernetes with GPU nodes, Kafka, Vault, and the operator."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed import kafka, kubernetes
from testbed.kubernetes import Cluster, gpus
from testbed.process import LOOPBACK, free_port
from testbed.product import images
from vaultml_operator import install
from vaultml_worker.dev.vault import Account, VaultServer, application, publisher

NAMESPACE = "kerberos-hub"
ACCOUNT = Account("youruser", "yoursecret")
TOPICS = {"ml-queue": 3, "ml-results": 1, "ml-dead-letters": 1}


@dataclass(frozen=True, slots=True)
class Playground:
    """Where everything is."""

    cluster: Cluster
    broker: kafka.Broker
    vault: str

    def __str__(self) -> str:
        return f"""
export KUBECONFIG={self.cluster.kubeconfig}
export PATH={kubernetes.binaries()}:$PATH

Kubernetes   {self.cluster.api_url}
Kafka        {self.broker.plaintext} without login; {self.broker.sasl_plaintext} with SASL_PLAINTEXT
Topics       {", ".join(TOPICS)}
Vault        {self.vault}
Secrets      kafka-credentials, vault-credentials in namespace {NAMESPACE}

In another terminal, after the two exports:
  kubectl get nodes -L nvidia.com/gpu.product
  kubectl get vmlp -n {NAMESPACE} --watch
  kubectl logs -n {install.NAMESPACE} deployment/{install.NAME} --follow
Make recordings, as cameras do:
  vaultml dev agent --help
"""


@contextmanager
def playground(nodes: int = 2, gpus_each: int = 2) -> Iterator[Playground]:
    """Start it all, and take it all down at the end of the block."""
    with ExitStack() as stack:
        broker = stack.enter_context(kafka.Broker())
        for topic, partitions in TOPICS.items():
            broker.create_topic(topic, partitions)
        recordings = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vaultml-vault-")))
        api = application(recordings, ACCOUNT, publisher(broker.plaintext, "ml-queue"))
        vault = VaultServer(api, LOOPBACK, free_port())
        stack.callback(vault.close)
        cluster = stack.enter_context(Cluster(images=images()))
        for number in range(nodes):
            cluster.node(f"gpu-{number}", **gpus.whole(gpus_each))
        cluster.kubectl("create", "namespace", NAMESPACE)
        for name, data in {
            "kafka-credentials": {"username": broker.username, "password": broker.password},
            "vault-credentials": {"accessKey": ACCOUNT.access_key, "secretKey": ACCOUNT.secret_key},
        }.items():
            cluster.apply(_secret(name, data))
        install_operator(cluster)
        yield Playground(cluster, broker, vault.url)


def install_operator(cluster: Cluster) -> None:
    """Install the operator as users do, with this checkout's code as its image; returns once it serves."""
    cluster.apply(*install.manifests("vaultml/operator:dev", "vaultml/worker:dev", ()))
    cluster.kubectl("rollout", "status", "-n", install.NAMESPACE, f"deployment/{install.NAME}", "--timeout=60s")


def missing() -> str | None:
    """What isn't on this machine that a playground needs, in one sentence."""
    return kubernetes.available() or kafka.available()


def _secret(name: str, data: dict[str, str]) -> kubernetes.Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "stringData": data,
    }
