"""A pod's container as a process: variables, files and what it never gets."""

import base64
import stat
from pathlib import Path
from typing import Any

import pytest

from vaultml_operator.local.gpus import Device
from vaultml_operator.local.launch import CannotStart, Launch, prepare

OBJECTS: dict[tuple[str, str], dict[str, Any]] = {
    ("Secret", "s"): {"data": {"password": base64.b64encode(b"p$(A)").decode(), "tls.key": "S0VZ"}},
    ("ConfigMap", "c"): {"data": {"ca.crt": "PEM"}, "binaryData": {"b": "QklO"}},
}


def pod(container: dict[str, Any] | None = None, volumes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "metadata": {"name": "p-1", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "worker", **(container or {})}], "volumes": volumes or []},
        "status": {"podIP": "127.1.2.3"},
    }


def launched(folder: Path, given: dict[str, Any], devices: tuple[Device, ...] = ()) -> Launch:
    return prepare(
        given,
        lambda kind, name: OBJECTS.get((kind, name)),
        private=folder / "private",
        cache=folder / "cache",
        devices=devices,
    )


def ref(kind: str, name: str, key: str, **more: Any) -> dict[str, Any]:
    return {"valueFrom": {kind: {"name": name, "key": key, **more}}}


def test_variables_come_from_where_the_pod_says(tmp_path: Path) -> None:
    env = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)-$(NONE)-$$(A)"},
        {"name": "P", **ref("secretKeyRef", "s", "password")},
        {"name": "C", **ref("configMapKeyRef", "c", "ca.crt")},
        {"name": "D", **ref("configMapKeyRef", "c", "b")},
        {"name": "O", **ref("secretKeyRef", "s", "none", optional=True)},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
    ]
    found = launched(tmp_path, pod({"env": env})).env
    assert {name: found[name] for name in ("A", "B", "P", "C", "D", "IP", "L")} == {
        "A": "1",
        "B": "1-$(NONE)-$(A)",
        "P": "p$(A)",
        "C": "PEM",
        "D": "BIN",
        "IP": "127.1.2.3",
        "L": "b",
    }
    assert "O" not in found
    assert found["HOSTNAME"] == "p-1"


def test_all_of_a_secret_by_a_prefix(tmp_path: Path) -> None:
    found = launched(tmp_path, pod({"envFrom": [{"prefix": "X_", "secretRef": {"name": "s"}}]})).env
    assert found["X_password"] == "p$(A)"


def test_nothing_of_our_own_environment_but_where_things_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pl4nted")
    monkeypatch.setenv("QUEUE_NAME", "of-the-shell")
    monkeypatch.setenv("VAULTML_CACHE", "/cache")
    found = launched(tmp_path, pod()).env
    assert found["VAULTML_CACHE"] == "/cache"
    assert not {"AWS_SECRET_ACCESS_KEY", "QUEUE_NAME"} & found.keys()


def test_a_worker_sees_its_own_gpus_and_without_one_none(tmp_path: Path) -> None:
    assert launched(tmp_path, pod()).env["CUDA_VISIBLE_DEVICES"] == ""
    devices = (Device("r", "GPU-1", "p"), Device("r", "GPU-2", "p"))
    assert launched(tmp_path, pod(), devices).env["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"


def test_files_of_secrets_are_for_us_alone_and_found_by_the_variables(tmp_path: Path) -> None:
    sources = [
        {"secret": {"name": "s", "items": [{"key": "tls.key", "path": "tls.key"}]}},
        {"configMap": {"name": "c", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]
    container = {
        "env": [{"name": "KAFKA_SSL_KEY", "value": "/etc/tls/tls.key"}, {"name": "ELSE", "value": "/etc/tlsx"}],
        "volumeMounts": [{"name": "tls", "mountPath": "/etc/tls"}],
    }
    given = pod(container, [{"name": "tls", "projected": {"sources": sources}}])
    for _ in range(2):  # a restart finds them there
        found = launched(tmp_path, given).env
    key = Path(found["KAFKA_SSL_KEY"])
    assert key.read_text() == "KEY"
    assert (key.parent / "ca.crt").read_text() == "PEM"
    assert stat.S_IMODE(key.stat().st_mode) == 0o400
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (key.parent, tmp_path / "private"))
    assert found["ELSE"] == "/etc/tlsx"


def test_engines_are_kept_and_the_rest_is_not(tmp_path: Path) -> None:
    container = {
        "env": [
            {"name": "ENGINE_CACHE", "value": "/var/cache/vaultml"},
            {"name": "MODEL", "value": "/tmp/my/model.onnx"},
        ],
        "volumeMounts": [
            {"name": "engine-cache", "mountPath": "/var/cache/vaultml"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "host", "mountPath": "/models"},
        ],
    }
    volumes = [
        {"name": "engine-cache", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "host", "hostPath": {"path": "/srv"}},
    ]
    found = launched(tmp_path, pod(container, volumes)).env
    assert found["ENGINE_CACHE"] == str(tmp_path / "cache" / "engines")
    assert found["TMPDIR"] == str(tmp_path / "private" / "tmp")
    assert found["MODEL"] == "/tmp/my/model.onnx"  # a file of this machine


def test_the_command_is_the_worker_unless_the_pod_has_another(tmp_path: Path) -> None:
    assert launched(tmp_path, pod({"args": ["worker"]})).command[1:] == ("-m", "vaultml_worker", "worker")
    given = {"command": ["sh", "-c", "echo $(A)"], "env": [{"name": "A", "value": "x"}], "workingDir": "/"}
    found = launched(tmp_path, pod(given))
    assert (found.command, found.folder) == (("sh", "-c", "echo x"), Path("/"))


@pytest.mark.parametrize(
    ("container", "volumes", "says"),
    [
        ({"env": [{"name": "A", **ref("secretKeyRef", "s", "none")}]}, [], "Secret s lacks the key none"),
        ({"env": [{"name": "A", **ref("secretKeyRef", "gone", "k")}]}, [], "Secret gone lacks the key k"),
        ({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {}}}]}, [], "the variable A comes from something"),
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.none"}}}]}, [], "no field spec.none"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, [], "there is no volume v"),
        (
            {"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
            "name files by absolute paths",
        ),
        (
            {"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            [{"name": "v", "secret": {"secretName": "s", "items": [{"key": "password", "path": "../x"}]}}],
            "a file of a volume stays in it",
        ),
    ],
)
def test_what_this_machine_has_not_is_said(
    tmp_path: Path, container: dict[str, Any], volumes: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(CannotStart, match=says):
        launched(tmp_path, pod(container, volumes))
