"""Every example on the real API server: the environment of its golden file, and as far as it runs here, Ready."""

import copy
import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from testbed import oidc
from testbed.kafka import Broker, OAuthBroker
from testbed.kubernetes import Cluster, gpus
from testbed.operator import Pipelines
from testbed.process import LOOPBACK, wait_for
from testbed.service import environment
from tests.real.scene import ACCOUNT, Scene
from vaultml_worker.dev.vault import VaultServer, application
from vaultml_worker.model import coco

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml") if path.stem != "hub-ml")


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    return found


def secrets(pipelines: Pipelines, kafka: Broker) -> None:
    """All that the examples name, with what is right on this machine."""
    authority = kafka.ca_file.read_text()
    pipelines.secret("vault-credentials", accessKey=ACCOUNT.access_key, secretKey=ACCOUNT.secret_key)
    pipelines.secret(
        "kafka-credentials", **{"username": kafka.username, "password": kafka.password, "ca.crt": authority}
    )
    # As Strimzi names it: after the user.
    pipelines.secret("vault-ml", **{"password": kafka.password, "sasl.jaas.config": "…"})
    pipelines.secret(kafka.username, **{"password": kafka.password, "sasl.jaas.config": "…"})
    pipelines.secret("main-cluster-ca-cert", **{"ca.crt": authority, "ca.p12": "…"})
    pipelines.secret("kafka-client", clientId=oidc.CLIENT_ID, clientSecret=oidc.CLIENT_SECRET)
    pipelines.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "data": {"ca.crt": authority},
            "metadata": {"name": "authorities", "namespace": pipelines.namespace},
        }
    )


def authorities(pipelines: Pipelines, pem: str) -> None:
    metadata = {"name": "authorities"}
    pipelines.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": pem}})


def here(name: str, kafka: Broker, scene: Scene) -> dict[str, Any]:
    """The example with addresses, topics and, for Strimzi, the user of this machine."""
    body = copy.deepcopy(example(name))
    queue, kafka_block = body["spec"]["queue"], body["spec"]["queue"]["kafka"]
    queue |= {"name": scene.queue.name, "target": scene.target.name}
    tls = kafka_block.get("security") == "SASL_SSL"
    kafka_block |= {"brokers": [kafka.sasl_ssl if tls else kafka.plaintext], "group": scene.group}
    if name == "strimzi":
        kafka_block["credentialsSecretRef"] = {"name": kafka.username}
    body["spec"]["vault"]["apiUrl"] = scene.vault.url
    return body


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_environment_is_the_golden_files(name: str, pipelines: Pipelines, kafka: Broker) -> None:
    secrets(pipelines, kafka)
    body = example(name)
    pipelines.apply(body)
    made = wait_for(lambda: pipelines.get("deployment", body["metadata"]["name"]), 30, "the Deployment")
    manifests = yaml.safe_load_all((ROOT / "tests" / "unit" / "goldens" / f"{name}.yaml").read_text())
    golden = next(each for each in manifests if each["kind"] == "Deployment")
    live, wanted = (each["spec"]["template"]["spec"]["containers"][0]["env"] for each in (made, golden))
    for variable in live:
        if "fieldRef" in variable.get("valueFrom", {}):
            variable["valueFrom"]["fieldRef"].pop("apiVersion")  # filled in by the API server
    assert live == wanted


@pytest.fixture(scope="module")
def gpu_kinds(crds: Cluster) -> None:
    """A node in name only for each kind of GPU that the examples ask for."""
    crds.node("mig", hollow=True, **gpus.mig(8))
    crds.node("shared", hollow=True, **gpus.time_sliced(1, 8, renamed=True))


@pytest.mark.parametrize("name", [each for each in EXAMPLES if each not in ("cpu-edge", "onnx-pvc", "kafka-oauth")])
def test_it_becomes_ready(
    name: str, pipelines: Pipelines, kafka: Broker, scene: Scene, gpu_kinds: None, crds: Cluster
) -> None:
    secrets(pipelines, kafka)
    body = here(name, kafka, scene)
    if "runtimeClassName" in body["spec"].get("worker", {}):
        crds.apply(
            {
                "apiVersion": "node.k8s.io/v1",
                "kind": "RuntimeClass",
                "metadata": {"name": body["spec"]["worker"]["runtimeClassName"]},
                "handler": "nvidia",
            }
        )
    pipelines.apply(body)
    idle = body["spec"].get("autoscaling", {}).get("minReplicas") == 0
    pipelines.wait(body["metadata"]["name"], "ScaledToZero" if idle else "Running", timeout=60)


def answered(scene: Scene) -> None:
    events = scene.events(1)
    scene.send(*events)
    wait_for(lambda: set(scene.target.keys()) >= {events[0]["payload"]["key"]}, 60, "the result of a recording")


def test_the_edge_box_looks_at_a_recording(
    pipelines: Pipelines, kafka: Broker, scene: Scene, machine: dict[str, Any]
) -> None:
    secrets(pipelines, kafka)
    body = here("cpu-edge", kafka, scene)
    body["spec"]["worker"] |= machine
    pipelines.apply(body)
    pipelines.wait("edge", "Running", timeout=90)
    answered(scene)


def test_a_network_of_ones_own_from_a_volume(
    pipelines: Pipelines,
    kafka: Broker,
    stage: Callable[..., Scene],
    machine: dict[str, Any],
    tiny: Path,
    tmp_path: Path,
    crds: Cluster,
) -> None:
    scene = stage()
    scene.create(scene.queue, scene.target, scene.dead)
    secrets(pipelines, kafka)
    network = tmp_path / "best.onnx"
    given = [str(tiny / f"yolov3-tiny.{kind}") for kind in ("cfg", "weights")]
    command = [sys.executable, "-m", "vaultml_worker", "model", "export", *given, "-o", str(network)]
    subprocess.run(command, env=environment({}), check=True, capture_output=True)
    network.with_suffix(".names").write_text("\n".join(["parcel", *coco()[1:]]) + "\n")
    for claim in ("models", "engines"):
        crds.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "namespace": pipelines.namespace},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }
        )
    # What a data scientist does with kubectl cp: the files go into the claim.
    copy_in = f"mkdir -p /models/parcels && cp {network} {network.with_suffix('.names')} /models/parcels/"
    loader = {
        "nodeSelector": machine["nodeSelector"],
        "tolerations": machine["tolerations"],
        "restartPolicy": "Never",
        "containers": [
            {
                "name": "loader",
                "image": "busybox",
                "command": ["sh", "-c", copy_in],
                "volumeMounts": [{"name": "models", "mountPath": "/models"}],
            }
        ],
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
    }
    metadata = {"name": "loader", "namespace": pipelines.namespace}
    crds.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": loader})
    pipelines.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/loader", "--timeout=30s")
    body = here("onnx-pvc", kafka, scene)
    body["spec"]["worker"] |= {"engine": "onnxruntime", **machine}
    pipelines.apply(body)
    pipelines.wait("parcels", "Running", timeout=90)
    answered(scene)
    result = json.loads(scene.target.bodies()[0])
    assert {label for frame in result["data"]["labels"] for label in frame} <= {"parcel"}


def test_logins_with_tokens_and_a_private_authority(
    pipelines: Pipelines, clips: list[bytes], machine: dict[str, Any], tmp_path: Path
) -> None:
    """Broker, token endpoint and Vault, all with TLS of authorities that only the spec names."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(LOOPBACK).configure_cert(context)
    provider = oidc.provider()
    with ExitStack() as stack:
        keys = stack.enter_context(closing(VaultServer(provider)))
        tokens = stack.enter_context(closing(VaultServer(provider, tls=context)))
        broker = stack.enter_context(OAuthBroker(f"{keys.url}/jwks"))
        scene = Scene(broker, tmp_path, clips, stack, 1)
        scene.create(scene.queue, scene.target, scene.dead)
        vault = stack.enter_context(closing(VaultServer(application(scene.vault._folder, ACCOUNT), tls=context)))
        secrets(pipelines, broker)
        authorities(pipelines, authority.cert_pem.bytes().decode() + broker.ca_file.read_text())
        body = here("kafka-oauth", broker, scene)
        body["spec"]["queue"]["kafka"]["oauth"]["tokenUrl"] = f"{tokens.url}/token"
        body["spec"]["vault"]["apiUrl"] = f"{vault.url}/api"
        body["spec"]["worker"] = {"gpu": {"count": 0}, **machine}
        pipelines.apply(body)
        pipelines.wait("highway", "Running", timeout=90)
        answered(scene)


def test_hub_ml_without_the_operator(
    pipelines: Pipelines, kafka: Broker, scene: Scene, machine: dict[str, Any], crds: Cluster
) -> None:
    secret, deployment = yaml.safe_load_all((ROOT / "examples" / "hub-ml.yaml").read_text())
    for each in (secret, deployment):
        each["metadata"]["namespace"] = pipelines.namespace
    secret["stringData"] = {
        "KAFKA_USERNAME": kafka.username,
        "KAFKA_PASSWORD": kafka.password,
        "VAULT_ACCESS_KEY": ACCOUNT.access_key,
        "VAULT_SECRET_KEY": ACCOUNT.secret_key,
    }
    pod = deployment["spec"]["template"]["spec"]
    pod |= machine
    changed = {
        "QUEUE_NAME": scene.queue.name,
        "QUEUE_TARGET": scene.target.name,
        "KAFKA_BROKER": kafka.sasl_plaintext,
        "KAFKA_GROUP": scene.group,
        "VAULT_API_URL": scene.vault.url,
    }
    for variable in pod["containers"][0]["env"]:
        if variable["name"] in changed:
            variable["value"] = changed[variable["name"]]
    crds.kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [secret, deployment]})
    )
    pipelines.kubectl("rollout", "status", "deployment/vault-ml", "--timeout=60s")
    answered(scene)
