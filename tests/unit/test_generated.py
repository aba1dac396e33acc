"""Files that our own commands write are what those commands write now."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vaultml_operator.cli import app

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("crd", "crds/vaultmlpipelines.ml.kerberos.io.yaml"),
        ("install", "deploy/install.yaml"),
        ("kustomizeconfig", "deploy/kustomizeconfig.yaml"),
        ("reasons", "docs/reasons.md"),
    ],
)
def test_the_committed_file_is_current(command: str, file: str) -> None:
    written = CliRunner().invoke(app, [command], env={"WORKER_IMAGE": ""})
    assert written.exit_code == 0
    assert written.output == (ROOT / file).read_text(), f"{file} is stale: make docs"


def test_rights_in_some_namespaces_only_name_no_cluster_role() -> None:
    written = CliRunner().invoke(app, ["install", "--namespace", "a", "--namespace", "b"]).output
    assert "ClusterRole" not in written
    assert "--namespace=a" in written
    assert "namespace: b" in written


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.startswith("vaultml-operator ")
