"""The stand-ins: they answer as the real ones do."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import requests

from testbed.process import Process, free_port, wait_for
from testbed.service import environment
from tests.recordings import clip
from vaultml_common.vault import ACCESS_KEY, FILE_NAME, PROVIDER, SECRET_KEY
from vaultml_worker.dev import agent
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.dev.vault import Account, VaultServer, application
from vaultml_worker.events import parse
from vaultml_worker.recording_names import parse_name
from vaultml_worker.records import InvalidInput, VaultAccess
from vaultml_worker.vault import Download, Vault

ACCOUNT = Account("access", "secret!", "local")
AUTH = {ACCESS_KEY: ACCOUNT.access_key, SECRET_KEY: ACCOUNT.secret_key, PROVIDER: "local"}


@pytest.fixture(params=["", "/api"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    server = VaultServer(application(tmp_path / "vault", ACCOUNT))
    yield server.url + request.param
    server.close()


def test_the_vault_stores_serves_and_removes(base: str) -> None:
    name = {FILE_NAME: "1_6-0_cam_0-0-0-0_1_2.mp4"}
    stored = requests.post(
        f"{base}/storage", b"movie", headers={**AUTH, **name, "X-Kerberos-Storage-Directory": "u"}, timeout=5
    )
    assert stored.status_code == 200
    headers = AUTH | {FILE_NAME: "u/" + name[FILE_NAME]}
    assert requests.get(f"{base}/storage/blob", headers=headers, timeout=5).content == b"movie"
    signed = requests.get(f"{base}/storage", headers=headers, timeout=5).json()["data"]
    assert requests.get(signed, timeout=5).content == b"movie"
    assert requests.get(signed[:-4] + "0000", timeout=5).status_code == 403
    assert requests.post(f"{base}/storage/forward/media", headers=headers, timeout=5).status_code == 501
    assert requests.delete(f"{base}/storage", headers=headers, timeout=5).status_code == 200
    assert requests.get(f"{base}/storage/blob", headers=headers, timeout=5).status_code == 404


@pytest.mark.parametrize(
    ("directory", "file"),
    [
        ("benutzer", "1764300000_3-250_Tür Süd é_0-0-0-0_-1_29870.mp4"),
        ("früh", "1764300000_3-250_ö.ö_0-0-0-0_0_0_.mp4"),
        ("u", "前門 100%?#&+.mp4"),
        ("u", "é.mp4"),
    ],
)
@pytest.mark.parametrize("download", ["blob", "signed-url"])
def test_the_vault_finds_keys_with_any_letters(directory: str, file: str, download: Download, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    server = VaultServer(application(tmp_path / "vault", ACCOUNT, events.append))
    access = VaultAccess(f"{server.url}/api", ACCOUNT.access_key, ACCOUNT.secret_key)
    try:
        headers = {FILE_NAME: file.encode(), "X-Kerberos-Storage-Directory": directory.encode()}
        stored = requests.post(f"{access.url}/storage", b"movie", headers={**AUTH, **headers}, timeout=5)
        assert stored.status_code == 200
        event = parse(json.dumps(events[0]).encode())
        assert event.key == f"{directory}/{file}"
        name = parse_name(file)
        assert event.camera == (name.camera if name else None)
        vault = Vault(access, download=download)
        assert vault.fetch(event) == b"movie"
        vault.close()
    finally:
        server.close()


def test_the_vault_checks_credentials_and_echoes_keys_as_the_real_one(base: str) -> None:
    assert requests.get(f"{base}/health", timeout=5).status_code == 200
    assert requests.post(f"{base}/ping", headers=AUTH, timeout=5).status_code == 200
    assert requests.post(f"{base}/ping", timeout=5).status_code == 400
    wrong = requests.get(f"{base}/storage/blob", headers=AUTH | {SECRET_KEY: "n0pe"}, timeout=5)
    assert wrong.status_code == 401
    assert "n0pe" in wrong.text
    other = requests.get(f"{base}/storage/blob", headers=AUTH | {PROVIDER: "other", FILE_NAME: "u/x"}, timeout=5)
    assert other.status_code == 401
    for bad in ("../x", "u/../../x", "/etc/passwd", "", "x"):
        answer = requests.get(f"{base}/storage/blob", headers=AUTH | {FILE_NAME: bad}, timeout=5)
        assert answer.status_code == 400, bad


def test_an_agent_cuts_and_uploads_and_the_vault_announces(tmp_path: Path) -> None:
    footage = tmp_path / "footage.mp4"
    footage.write_bytes(clip(5))
    events: list[dict[str, object]] = []
    server = VaultServer(application(tmp_path / "vault", ACCOUNT, events.append))
    access = VaultAccess(f"{server.url}/api", ACCOUNT.access_key, ACCOUNT.secret_key)
    try:
        keys = list(agent.upload(access, "local", footage, seconds=2, cameras=2, rate=0))
        assert len(keys) == 3
        parsed = [parse(json.dumps(event).encode()) for event in events]
        assert [event.key for event in parsed] == keys
        assert [event.camera for event in parsed] == ["camera1", "camera2", "camera1"]
        vault = Vault(access)
        lengths = []
        for event in parsed:
            body = vault.fetch(event)
            assert len(body) == event.file_size
            path = tmp_path / "fetched.mp4"
            path.write_bytes(body)
            with av.open(str(path)) as video:
                lengths.append(len(list(video.decode(video=0))))
        assert lengths == [20, 20, 10]
        vault.close()
    finally:
        server.close()


def test_an_agent_says_what_is_wrong(tmp_path: Path) -> None:
    footage = tmp_path / "footage.mp4"
    footage.write_bytes(clip(1))
    server = VaultServer(application(tmp_path / "vault", ACCOUNT))
    try:
        wrong = VaultAccess(server.url, "a", "b")
        with pytest.raises(InvalidInput, match="answered 401"):
            list(agent.upload(wrong, "local", footage, seconds=1, cameras=1, rate=0))
        with pytest.raises(InvalidInput, match="can't be reached"):
            list(
                agent.upload(
                    VaultAccess("http://127.0.0.1:9", "a", "b"), "local", footage, seconds=1, cameras=1, rate=0
                )
            )
        with pytest.raises(InvalidInput, match="can't be read as a video"):
            list(agent.cut(tmp_path / "gone.mp4", 1))
    finally:
        server.close()


def test_the_commands_make_a_site(tmp_path: Path, broker: EmbeddedBroker) -> None:
    """Broker, Vault, Agent, and the results, each as a person would start it."""
    command = [sys.executable, "-m", "vaultml_worker"]
    footage, port, broker_port = tmp_path / "footage.mp4", free_port(), free_port()
    footage.write_bytes(clip(4))
    kafka = f"127.0.0.1:{broker_port}"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], env=environment({}), capture_output=True, text=True, timeout=60, check=False
        )

    with (
        Process(
            [*command, "dev", "broker", "--port", str(broker_port)], env=environment({}), log=tmp_path / "b"
        ) as one,
        Process(
            [*command, "dev", "vault", "--dir", str(tmp_path / "vault"), "--port", str(port), "--kafka", kafka],
            env=environment({}),
            log=tmp_path / "v",
        ) as other,
    ):
        wait_for(lambda: f"Broker: {kafka}" in one.log_text(), 20, "the broker", process=one)
        wait_for(lambda: "Vault: " in other.log_text(), 20, "the Vault", process=other)
        url = f"http://127.0.0.1:{port}/api"
        agents = run("dev", "agent", "--vault", url, "--footage", str(footage), "--seconds", "2")
        assert agents.returncode == 0, agents.stderr
        assert len(agents.stdout.splitlines()) == 2
        listed = run("results", "--kafka", kafka, "--topic", "ml-queue")
        assert len(listed.stdout.splitlines()) == 2, listed.stderr
        assert "camera1" in listed.stdout
        for process in (other, one):
            assert process.terminate() == 0
    missing = run("results", "--kafka", broker.address)
    assert missing.returncode == 2
    assert "QUEUE_TARGET" in missing.stderr


def test_the_demo(tiny: Path, tmp_path: Path) -> None:
    footage = tmp_path / "own.mp4"
    footage.write_bytes(clip(16, size=(320, 240)))
    done = subprocess.run(
        [sys.executable, "-m", "vaultml_worker", "dev", "demo", "--out", str(tmp_path / "out")],
        env=environment({"FOOTAGE": str(footage), "COLUMNS": "160"}),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What the workers saw" in done.stdout
    for reason in ("ScaledOut: from 0 to ", "ScaledIn: from ", "ScaledToZero: "):
        assert reason in done.stdout, done.stdout
    assert "demo-secret" not in done.stdout
    made = sorted(path.suffix for path in (tmp_path / "out").iterdir() if path.is_file())
    assert made == [".jpg", ".mp4", ".mp4", ".yaml"]
    logs = "".join(path.read_text() for path in (tmp_path / "out" / "logs").glob("demo-*.log"))
    assert logs.count("checking..") == 24


def test_the_demo_says_when_it_failed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vaultml_worker", "dev", "demo", "--out", str(tmp_path / "out")],
        env=environment({"FOOTAGE": str(tmp_path / "gone.mp4")}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    assert "FOOTAGE=" in done.stderr
