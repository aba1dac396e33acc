"""A file of pipelines: what is taken, with which defaults, and what is said of what can't be."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.real.operators.test_resource import BAD, ONE_SENTENCE, spoilt
from vaultml_operator import crd
from vaultml_operator.local import documents
from vaultml_operator.local.documents import SLOT, BadFile

RULES = json.dumps(crd.definition(), ensure_ascii=False)
"""All sentences of the CRD's rules: those are said word for word; in what its types refuse the words may differ."""
QUEUE: dict[str, Any] = {"name": "in", "target": "out", "kafka": {"brokers": ["b:9092"], "group": "g"}}


def pipeline(name: str = "p", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "ml.kerberos.io/v1alpha1",
        "kind": "VaultMLPipeline",
        "metadata": {"name": name},
        "spec": {"queue": QUEUE, **spec},
    }


def written(folder: Path, *given: Any) -> Path:
    file = folder / "pipeline.yaml"
    file.write_text("---\n".join(each if isinstance(each, str) else yaml.safe_dump(each) for each in given))
    return file


def refusal(folder: Path, *given: Any) -> str:
    with pytest.raises(BadFile) as caught:
        documents.read(written(folder, *given))
    return str(caught.value)


def test_a_pipeline_has_its_defaults_and_a_secret_its_data(tmp_path: Path) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "stringData": {"a": "plain"},
        "data": {"b": "ZW5jb2RlZA=="},
    }
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"ca.crt": "PEM"}}
    found = documents.read(written(tmp_path, secret, config, pipeline())).objects
    spec = found["VaultMLPipeline", "default", "p"]["spec"]
    assert spec["autoscaling"]["minReplicas"] == 1
    assert spec["worker"]["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}
    data = found["Secret", "default", "s"]["data"]
    assert {key: base64.b64decode(value) for key, value in data.items()} == {"a": b"plain", "b": b"encoded"}
    assert found["ConfigMap", "default", "c"]["data"] == {"ca.crt": "PEM"}


def test_the_examples_can_be_read(tmp_path: Path) -> None:
    root = Path(__file__).parents[2] / "examples"
    for path in [*root.glob("*.yaml"), *root.glob("local/*.yaml")]:
        if path.stem not in ("hub-ml", "onnx-pvc"):
            assert documents.read(path).pipelines, path


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"worker": {"gpus": {}}}, "spec.worker.gpus: no such field; did you mean gpu?"),
        ({"queue": {**QUEUE, "zzz": 1}}, "spec.queue.zzz: no such field; there are kafka, name, system, target"),
        ({"queue": {"name": "in"}}, "spec.queue: system KAFKA needs the block kafka: give brokers and group"),
        ({"queue": {**QUEUE, "target": "in"}}, "spec.queue: target must differ from name"),
        ({"queue": {"target": "x"}}, "spec.queue.name: field required"),
        ({"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}, "minReplicas must not exceed maxReplicas"),
        ({"autoscaling": {"minReplicas": -1}}, "spec.autoscaling.minReplicas: input should be greater than"),
        (
            {"queue": {**QUEUE, "kafka": {**QUEUE["kafka"], "security": "SASL_SSL"}}},
            "spec.queue.kafka: security SASL_PLAINTEXT and SASL_SSL need credentialsSecretRef",
        ),
        ({"queue": {**QUEUE, "kafka": {**QUEUE["kafka"], "brokers": ["b:99999"]}}}, "a broker's port lies between"),
        ({"vault": {"apiUrl": "ftp://v", "credentialsSecretRef": {"name": "v"}}}, "spec.vault: apiUrl must look like"),
        ({"worker": {"env": [{"name": "MY_TOKEN", "value": "x"}]}}, "spec.worker.env[0]: this looks like a secret"),
        (
            {"worker": {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "512Mi"}}}},
            "the request of memory must not exceed its limit",
        ),
        ({"worker": {"resources": {"requests": {"cpu": "many"}}}}, "an amount is written like 500m"),
        ({"model": {"path": "/a.onnx", "url": "http://h/a.onnx"}}, "give one of name (a published model)"),
        (
            {"model": {"path": "a.onnx", "persistentVolumeClaim": {"claimName": "c"}}},
            "there are no claims here: leave it out, and give absolute paths",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_to_write(tmp_path: Path, spec: dict[str, Any], says: str) -> None:
    said = refusal(tmp_path, pipeline(**spec))
    assert says in said
    assert "VaultMLPipeline p: spec." in said


@pytest.mark.parametrize(("where", "value", "sentence"), BAD, ids=[f"{n}-{each[0]}" for n, each in enumerate(BAD)])
def test_what_a_real_api_server_refuses_is_refused_here(tmp_path: Path, where: str, value: Any, sentence: str) -> None:
    said = refusal(tmp_path, spoilt(where, value))
    assert sentence in said or sentence not in RULES, said


@pytest.mark.parametrize(
    ("where", "value", "sentence"), ONE_SENTENCE, ids=[f"{n}-{each[0]}" for n, each in enumerate(ONE_SENTENCE)]
)
def test_a_fault_is_answered_by_one_sentence(tmp_path: Path, where: str, value: Any, sentence: str) -> None:
    said = refusal(tmp_path, json.dumps(spoilt(where, value)))
    assert sentence in said
    assert "\n  " not in said


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("[1, 2]\n", "document 1: must be an object"),
        ({"kind": "Deployment", "metadata": {"name": "d"}}, "Deployment d: kind Deployment is of no use here"),
        ({"metadata": {"name": "d"}}, "document 1, d: kind is missing"),
        ({**pipeline(), "apiVersion": "v1"}, "apiVersion must be ml.kerberos.io/v1alpha1"),
        ({**pipeline(), "metadata": {}}, "metadata.name is missing"),
        ({**pipeline(), "metadata": {"name": "p", "annotations": {"ml.kerberos.io/paused": True}}}, "put it in quotes"),
        ({**pipeline(), "more": 1}, "more: no such field of a VaultMLPipeline"),
        ({**pipeline(), "spec": None}, "spec is missing"),
        (pipeline("A.b"), "a pipeline's name has at most 52 characters"),
        ("", "holds no VaultMLPipeline: see examples/local/pipeline.yaml"),
        ("a: {\n", "line 2, column 1: "),
        ("kind: [a]\nmetadata: {name: p}\n", "is of no use here"),
        ({**pipeline(), "metadata": {"name": "p", "namespace": 5}}, "metadata.namespace must be text"),
        ("when: 2020-13-45\n", "looks like a date"),
        (
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": 1}},
            "stringData.a: mus",
        ),
        ({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "ö"}}, "data.a: not base64"),
    ],
)
def test_a_document_that_is_none_of_ours_is_refused(tmp_path: Path, document: Any, says: str) -> None:
    assert says in refusal(tmp_path, document)


def test_every_problem_is_said_at_once_and_twice_the_same_name_is_one(tmp_path: Path) -> None:
    said = refusal(tmp_path, pipeline("a"), pipeline("a"), pipeline("b", nope=1), {"kind": "Pod"})
    assert said.count("\n  ") == 3
    assert "VaultMLPipeline a: stands in the file twice" in said


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="can't be read: No such file"):
        documents.read(tmp_path / "gone.yaml")


def test_what_is_secret_is_never_quoted(tmp_path: Path) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "pl4nted!"}}
    assert "pl4nted" not in refusal(tmp_path, secret)
    assert "pl4nted" not in refusal(tmp_path, "stringData:\n  password: *pl4nted\n")
    assert "pl4nted" not in refusal(tmp_path, "stringData:\n  password: 'pl4nted\n")
    kafka = {**QUEUE["kafka"], "security": "pl4nted"}
    assert "pl4nted" not in refusal(tmp_path, pipeline(queue={**QUEUE, "kafka": kafka}))


def test_what_may_not_change_is_held_against_what_was_there(tmp_path: Path) -> None:
    before = documents.read(written(tmp_path, pipeline()))
    assert documents.read(written(tmp_path, pipeline(suspend=True)), before).pipelines


def test_a_worker_without_a_gpu_takes_slots_beside_what_the_pod_template_says(tmp_path: Path) -> None:
    own = {"containers": [{"name": "worker", "workingDir": "/w"}]}
    spec = {"gpu": {"count": 0}, "podTemplate": {"spec": own}}
    body = documents.read(written(tmp_path, pipeline(worker=spec))).pipelines["VaultMLPipeline", "default", "p"]
    (container,) = documents.with_slots(body, 3)["spec"]["worker"]["podTemplate"]["spec"]["containers"]
    assert container == {"name": "worker", "workingDir": "/w", "resources": {"limits": {SLOT: "3"}}}
    with_gpu = documents.read(written(tmp_path, pipeline())).pipelines["VaultMLPipeline", "default", "p"]
    assert documents.with_slots(with_gpu, 3) == with_gpu
