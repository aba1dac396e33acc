"""All of it on this machine, for people: Kubernetes with GPU nodes, Kafka, Vault, and the operator."""

import sys
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
from vaultml_worker.dev import footage
from vaultml_worker.dev.vault import Account, VaultServer, application, publisher

NAMESPACE = "kerberos-hub"
# The credentials that `vaultml dev agent` uses where it is told no others.
ACCOUNT = Account("dev-access", "dev-secret")
TOPICS = {"ml-queue": 3, "ml-results": 1, "ml-results.dlq": 1}
_PIPELINE = """\
apiVersion: ml.kerberos.io/v1alpha1
kind: VaultMLPipeline
metadata:
  name: highway
  namespace: {namespace}
spec:
  queue:
    name: ml-queue
    target: ml-results
    kafka:
      brokers: ["{brokers}"]
      group: vault-ml
      ensurePartitions: 4 # as many as there are GPUs: a worker without a partition sits idle
      security: SASL_PLAINTEXT
      credentialsSecretRef:
        name: kafka-credentials
  vault:
    apiUrl: {vault}
    credentialsSecretRef:
      name: vault-credentials
  detection:
    moveDistance: 50
  autoscaling:
    minReplicas: 0
    drainSeconds: 60
    pollingSeconds: 5
    cooldownSeconds: 60
  worker:
    engine: onnxruntime # the GPUs here exist in name only
"""


@dataclass(frozen=True, slots=True)
class Playground:
    """Where everything is."""

    cluster: Cluster
    broker: kafka.Broker
    vault: str
    pipeline: Path

    def __str__(self) -> str:
        return f"""
export KUBECONFIG={self.cluster.kubeconfig}
export PATH={kubernetes.binaries()}:{Path(sys.executable).parent}:$PATH

Kafka   {self.broker.plaintext} without login; {self.broker.sasl_plaintext} with SASL_PLAINTEXT
Topics  {", ".join(TOPICS)}
Vault   {self.vault}
Secrets kafka-credentials and vault-credentials in namespace {NAMESPACE}, made the default by:
  kubectl config set-context --current --namespace={NAMESPACE}

In another terminal, after those three lines:
  kubectl apply -f {self.pipeline}
  kubectl get vmlp --watch
What it would take, and why it runs what it runs:
  vaultml-operator explain highway --what-if lag=500,gpus=2
Recordings, as cameras make them, and what is seen in them (--count 500 instead of --rate: so many at once):
  vaultml dev agent --vault {self.vault} --footage {footage.surveillance() or "FILE.mp4"} --seconds 5 --rate 0.5
  vaultml results --kafka {self.broker.plaintext} --topic ml-results --follow
Then break it, and let it tell you what is wrong:
  kubectl patch vmlp highway --type=merge --patch='{{"spec":{{"replicas":9,"autoscaling":{{"mode":"Manual"}}}}}}'
  kubectl delete secret vault-credentials          # or change kafka-credentials
  kubectl set env deployment/highway QUEUE_NAME=x  # put right again at once
  kubectl describe vmlp highway
The operator's log:
  kubectl logs -n {install.NAMESPACE} deployment/{install.NAME} --follow
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
        pipeline = cluster.folder / "pipeline.yaml"
        brokers, url = broker.sasl_plaintext, f"{vault.url}/api"
        pipeline.write_text(_PIPELINE.format(namespace=NAMESPACE, brokers=brokers, vault=url))
        yield Playground(cluster, broker, url, pipeline)


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
