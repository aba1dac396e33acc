"""What `vaultml-operator install` prints is taken by a real API server, and its names by the real kustomize."""

import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from testbed import kubernetes
from testbed.kubernetes import Cluster
from testbed.kubernetes.distribution import binaries
from tests.parts import need
from tests.unit.test_install import ALL
from vaultml_operator import install
from vaultml_operator.cli import app

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("arguments", [(), ALL])
def test_an_api_server_takes_the_installation(crds: Cluster, arguments: tuple[str, ...]) -> None:
    for name in (install.NAMESPACE, "a", "b"):
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        crds.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(namespace))
    printed = CliRunner().invoke(app, ["install", *arguments], env={"WORKER_IMAGE": ""}).output
    taken = crds.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=printed)
    assert len(taken.splitlines()) == len(list(yaml.safe_load_all(printed)))


def test_kustomize_renames_references(tmp_path: Path) -> None:
    need(kubernetes.available())
    (tmp_path / "pipeline.yaml").write_text((ROOT / "examples" / "kafka-oauth.yaml").read_text())
    (tmp_path / "kustomizeconfig.yaml").write_text((ROOT / "deploy" / "kustomizeconfig.yaml").read_text())
    names = {"namespace": "kerberos-hub"}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["pipeline.yaml"],
        "configurations": ["kustomizeconfig.yaml"],
        "namePrefix": "test-",
        "secretGenerator": [
            {"name": "kafka-client", "literals": ["clientId=a"], **names},
            {"name": "vault-credentials", "literals": ["accessKey=a"], **names},
        ],
        "configMapGenerator": [{"name": "authorities", "literals": ["ca.crt=a"], **names}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    built = subprocess.run(
        [binaries() / "kubectl", "kustomize", tmp_path], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    objects = {each["metadata"]["name"].rpartition("-")[0]: each for each in yaml.safe_load_all(built)}
    spec = objects["test"]["spec"]
    made = {name: each["metadata"]["name"] for name, each in objects.items()}
    kafka = spec["queue"]["kafka"]
    assert kafka["credentialsSecretRef"]["name"] == made["test-kafka-client"]
    assert spec["vault"]["credentialsSecretRef"]["name"] == made["test-vault-credentials"]
    for ca in (kafka["ca"], kafka["oauth"]["ca"], spec["vault"]["ca"]):
        assert ca["configMapKeyRef"]["name"] == made["test-authorities"]
