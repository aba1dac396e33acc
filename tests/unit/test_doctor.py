"""What `vaultml doctor` says where there is no GPU and no queue: states, advice, exit codes, secrets."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, redirect
from typer.testing import CliRunner

from testbed.process import LOOPBACK, free_port
from tests.networks import CFG, tiny_weights
from tests.unit.test_settings import HUB_ML
from vaultml_worker import cli, darknet, fetch, settings, vault_check
from vaultml_worker import doctor as doctor_
from vaultml_worker.dev.vault import Account, VaultServer, application
from vaultml_worker.engines import tensorrt
from vaultml_worker.queues import SYSTEMS
from vaultml_worker.queues.kafka.settings import KafkaSettings
from vaultml_worker.records import Finding, State, VaultAccess

ACCOUNT = Account("access!@#$%", "s3cret!@#$%")
NO_GPU = tensorrt.missing()

Doctor = Callable[..., tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A network that takes no time to load."""
    cfg = tmp_path / "small.cfg"
    cfg.write_text(CFG)
    tiny_weights(darknet.read_cfg(cfg), tmp_path / "small.weights", seed=3)
    (tmp_path / "small.names").write_text("one\ntwo\nthree\n")
    return cfg


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: Path) -> dict[str, str]:
    """hub-ml's variables, with addresses where nobody listens."""
    for name, *_ in settings.variables():
        monkeypatch.delenv(name, raising=False)
    nobody = {"KAFKA_BROKER": f"{LOOPBACK}:{free_port()}", "VAULT_API_URL": f"http://{LOOPBACK}:{free_port()}/api"}
    return {**HUB_ML, **nobody, "MODEL": str(small), "VAULTML_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Doctor:
    """Runs the command with variables over those; gives its exit code and the last finding of each name."""

    def run(**variables: str) -> tuple[int, dict[str, dict[str, str]]]:
        for name, value in (environment | variables).items():
            monkeypatch.setenv(name, value)
        done = CliRunner().invoke(cli.cli, ["doctor", "--json"])
        findings: list[dict[str, str]] = json.loads(done.stdout)
        assert all(list(one) == ["name", "state", "found", "advice"] for one in findings)
        assert all(one["advice"] for one in findings if one["state"] == "wrong")
        assert not [value for name, value in HUB_ML.items() if "!@#$%" in value and value in done.output], "a secret"
        assert done.exit_code == any(one["state"] == "wrong" for one in findings)
        return done.exit_code, {one["name"]: one for one in findings}

    return run


def states(found: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: one["state"] for name, one in found.items()}


def test_every_part_is_judged_though_others_are_wrong(doctor: Doctor) -> None:
    code, found = doctor(KAFKA_SECURITY="PLAINTEXT")
    assert code == 1
    wrong = {name for name, state in states(found).items() if state == "wrong"}
    assert wrong == {"broker", "Vault"}
    assert "not reachable" in found["broker"]["found"]
    assert "Connection refused" in found["broker"]["found"]
    assert found["broker"]["advice"].startswith("check KAFKA_BROKER")
    assert "no connection" in found["Vault"]["found"]
    assert found["model"]["found"].startswith("small, sha256 ")
    assert "h264, hevc, mjpeg" in found["codecs"]["found"]
    assert found["decoders"]["state"] == "ok"


def test_wrong_settings_are_all_named_and_only_what_needs_them_is_left_out(doctor: Doctor) -> None:
    code, found = doctor(KAFKA_GROUP="", VAULT_SECRET_KEY="", MOVE_DISTANCE="-1", MODEL="/none.cfg")
    assert code == 1
    assert found["settings"]["state"] == "wrong"
    for name, variable in (("broker", "KAFKA_GROUP"), ("Vault", "VAULT_SECRET_KEY"), ("model", "MODEL")):
        assert found[name]["state"] == "info"
        assert variable in found[name]["found"]
    assert found["codecs"]["state"] == found["decoders"]["state"] == "ok"


def test_settings_that_are_wrong_keep_the_others(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in (environment | {"KAFKA_SSL_KEY": __file__, "QUEUE_NAME": "", "HTTP_PORT": "x"}).items():
        monkeypatch.setenv(name, value)
    loaded, wrong = settings.examine()
    assert [line.partition(": ")[0] for line in wrong] == ["QUEUE_NAME", "HTTP_PORT", "KAFKA_SSL_CERT, KAFKA_SSL_KEY"]
    assert (loaded.queue_target, loaded.http_port) == ("ml-results", 8080)
    queue = loaded.queue
    assert isinstance(queue, KafkaSettings)
    assert queue.kafka_password.get_secret_value() == HUB_ML["KAFKA_PASSWORD"]


@pytest.mark.skipif(NO_GPU is None, reason="needs a machine without a GPU")
def test_a_missing_gpu_is_wrong_only_where_it_was_asked_for(doctor: Doctor) -> None:
    elsewhere = {"KAFKA_GROUP": "", "VAULT_API_URL": "", "VAULT_ACCESS_KEY": "", "VAULT_SECRET_KEY": ""}
    parts = ("driver", "CUDA", "pycuda", "TensorRT", "device")
    for engine in ("auto", "onnxruntime"):
        _, found = doctor(**elsewhere, ENGINE=engine)
        assert not {found[part]["state"] for part in parts} & {"warning", "wrong"}
        assert "the network runs on the CPU" in found["onnxruntime"]["found"]
        assert "engine cache" not in found
    code, found = doctor(**elsewhere, ENGINE="tensorrt")
    assert code == 1
    assert found["TensorRT"]["state"] == "wrong"
    assert "'vaultml[gpu]'" in found["TensorRT"]["advice"]
    assert "onnxruntime" not in found
    assert found["engine cache"]["state"] == "ok"


def test_nothing_wrong_is_exit_code_0(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, lambda _names, _settings: [])
    server = VaultServer(application(tmp_path, Account(HUB_ML["VAULT_ACCESS_KEY"], HUB_ML["VAULT_SECRET_KEY"])))
    try:
        code, found = doctor(VAULT_API_URL=f"{server.url}/api")
    finally:
        server.close()
    assert code == 0
    assert found["Vault"]["state"] == "ok"


def broken(monkeypatch: pytest.MonkeyPatch, check: Callable[..., Any]) -> None:
    """Have another check of the queue."""
    monkeypatch.setitem(SYSTEMS, "KAFKA", replace(SYSTEMS["KAFKA"], check=check))


def test_the_lines_are_plain_and_one_each_when_piped(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (environment | {"KAFKA_GROUP": "", "VAULT_API_URL": f"http://{'long.' * 40}test/api"}).items():
        monkeypatch.setenv(name, value)
    broken(monkeypatch, lambda _names, _settings: 1 / 0)
    done = CliRunner().invoke(cli.cli, ["doctor"])
    lines = done.stdout.splitlines()
    assert all(line.split()[0] in {"ok", "info", "warning", "wrong"} for line in lines)
    assert len({line.index(line.split(maxsplit=1)[1]) for line in lines}) == 1
    assert "\x1b" not in done.stdout


def test_a_secret_in_anothers_words_is_masked(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"user a, password {HUB_ML['KAFKA_PASSWORD']}, ache"
    broken(monkeypatch, lambda _names, _settings: [Finding("broker", State.OK, words)])
    _, found = doctor(VAULT_ACCESS_KEY="ac")
    assert found["broker"]["found"] == "user a, password ***, ache"


def test_a_check_that_hangs_is_a_finding(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(doctor_, "_SECONDS", 4)
    monkeypatch.setattr("vaultml_worker.vault_check.check", lambda _access, _http: go_on.wait(60))
    code, found = doctor(KAFKA_GROUP="")
    go_on.set()
    assert code == 1
    assert "not known after 4 s" in found["Vault"]["found"]


def test_a_check_that_breaks_is_a_finding(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_names: Any, _settings: Any) -> Any:
        raise RuntimeError(HUB_ML["KAFKA_PASSWORD"])

    broken(monkeypatch, breaks)
    code, found = doctor()
    assert code == 1
    assert found["broker"]["found"] == "the check failed (RuntimeError)"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended the process that loaded them"),
        ("import threading; threading.Event().wait(60)", "gave no answer within 3 s"),
    ],
)
def test_a_gpu_library_that_crashes_or_hangs(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, says: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor_, "_GPU_SECONDS", 3)
    code, found = doctor(KAFKA_GROUP="", ENGINE="tensorrt")
    assert code == 1
    assert says in found["GPU"]["found"]
    assert found["model"]["state"] == found["decoders"]["state"] == "ok"


@pytest.mark.parametrize(
    ("variables", "state", "says"),
    [
        ({"MODEL": "yolov3"}, "info", "the first start fetches https://pjreddie.com"),
        (
            {"MODEL": "https://models.test/a.onnx", "MODEL_SHA256": "0" * 64},
            "info",
            "fetches https://models.test/a.onn",
        ),
        ({"MODEL_SHA256": "0" * 64}, "wrong", "not 0000"),
        ({"DETECTION_CLASSES": "one,four"}, "wrong", "DETECTION_CLASSES: the model has no label four"),
        ({"MODEL": __file__}, "wrong", "a model is a Darknet .cfg"),
    ],
)
def test_the_model(doctor: Doctor, variables: dict[str, str], state: str, says: str) -> None:
    _, found = doctor(**variables, KAFKA_GROUP="")
    assert found["model"]["state"] == state
    assert says in found["model"]["found"]


def test_a_model_that_would_be_fetched_needs_a_place(doctor: Doctor, small: Path) -> None:
    _, found = doctor(MODEL="yolov3", ENGINE_CACHE=f"{small}/below", KAFKA_GROUP="")
    assert found["model"]["state"] == "wrong"
    assert "can't be kept in" in found["model"]["found"]


def test_looking_for_a_model_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULTML_CACHE", str(tmp_path / "cache"))
    assert fetch.missing("yolov3", None, tmp_path) == (fetch._YOLOV3_URL, tmp_path / "models" / "yolov3")
    assert fetch.missing("own.cfg") is None
    (tmp_path / "cache" / "models" / "yolov3").mkdir(parents=True)
    assert fetch.missing("yolov3", None, tmp_path) is None


def answering(answer: Any) -> Flask:
    app = Flask("scripted")
    app.post("/ping")(lambda: answer)
    return app


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Response("pong"), ""),
        (Response("no", 401), "refuses the keys .401.*VAULT_ACCESS_KEY"),
        (Response("<html>", 503), "is failing .503.*storage"),
        (redirect("https://elsewhere.test/api"), "redirect .302.*correct VAULT_API_URL"),
        (Response("<!doctype html>"), "is not a Vault, it answers with a web page.*/api"),
        (Response("", 404), "is not a Vault .404"),
    ],
)
def test_vaults_answers(serve: Callable[[Flask], str], answer: Any, says: str) -> None:
    found = vault_check.check(VaultAccess(serve(answering(answer)), ACCOUNT.access_key, ACCOUNT.secret_key))
    assert found.state is (State.WRONG if says else State.OK)
    assert re.search(says, f"{found.found}; {found.advice}")


def test_a_vault_that_speaks_no_tls(serve: Callable[[Flask], str]) -> None:
    url = serve(answering("pong")).replace("http:", "https:")
    found = vault_check.check(VaultAccess(url, ACCOUNT.access_key, ACCOUNT.secret_key))
    assert found.state is State.WRONG
    assert "no TLS" in found.found


def test_keys_that_no_header_can_hold(serve: Callable[[Flask], str]) -> None:
    found = vault_check.check(VaultAccess(serve(answering("pong")), "line\nbreak", ACCOUNT.secret_key))
    assert found.state is State.WRONG
    assert "malformed" in found.found
    assert "break" not in found.found
