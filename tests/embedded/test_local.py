"""`vaultml-operator local` as a person runs it: real workers on the CPU, real footage, embedded broker and Vault."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from testbed.process import free_port, wait_for
from testbed.service import Service
from testbed.site import ACCOUNT, Site, event, site
from vaultml_operator.autoscaler.lag import Ask, Reading
from vaultml_operator.autoscaler.lag.kafka import KafkaReader
from vaultml_operator.probes import Connection
from vaultml_worker.dev import agent
from vaultml_worker.dev.broker import EmbeddedBroker

START_S = 90
"""A worker's start, with others beside it."""


class Box:
    """The command, what it says of its one pipeline, and its processes."""

    def __init__(self, file: Path, logs: Path, port: int, service: Service) -> None:
        self.file, self.logs, self.port, self.service = file, logs, port, service

    def write(self, spec: dict[str, Any], *more: dict[str, Any]) -> None:
        write(self.file, spec, *more)

    @property
    def row(self) -> dict[str, Any]:
        status, text = self.service.get("/")
        rows: list[dict[str, Any]] = json.loads(text) if status == 200 else []
        return rows[0] if rows else {}

    def events(self, reason: str) -> list[str]:
        status, text = self.service.get("/events")
        return [each["message"] for each in json.loads(text) if each["reason"] == reason] if status == 200 else []

    def workers(self) -> list[psutil.Process]:
        """The worker processes, without their decoders."""
        try:
            children = psutil.Process(self.service.pid).children()
            return [each for each in children if "vaultml_worker" in each.cmdline()]
        except psutil.NoSuchProcess:
            return []

    def everything(self) -> list[psutil.Process]:
        """All processes below the command."""
        return psutil.Process(self.service.pid).children(recursive=True)

    def until(self, condition: Callable[[dict[str, Any]], Any], what: str, seconds: float = START_S) -> None:
        wait_for(lambda: condition(self.row), seconds, what, process=self.service.process)


def write(file: Path, spec: dict[str, Any], *more: dict[str, Any]) -> None:
    pipeline = {
        "apiVersion": "ml.kerberos.io/v1alpha1",
        "kind": "VaultMLPipeline",
        "metadata": {"name": "edge"},
        "spec": spec,
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "vault"},
        "stringData": {"accessKey": ACCOUNT.access_key, "secretKey": ACCOUNT.secret_key},
    }
    scratch = file.with_suffix(".part")
    scratch.write_text("---\n".join(json.dumps(each) + "\n" for each in (pipeline, secret, *more)))
    scratch.replace(file)


def spec(place: Site, worker: dict[str, Any] | None = None, **scaling: Any) -> dict[str, Any]:
    kafka = {"brokers": [place.broker.address], "group": place.name}
    return {
        "queue": {"name": place.name, "target": f"{place.name}-results", "kafka": kafka},
        "vault": {"apiUrl": f"{place.vault.url}/api", "credentialsSecretRef": {"name": "vault"}},
        "detection": {"numberOfPredictions": 2},
        "autoscaling": {"minReplicas": 0, "pollingSeconds": 1, "cooldownSeconds": 3, **scaling},
        "worker": {"gpu": {"count": 0}, **(worker or {})},
    }


@contextmanager
def local(folder: Path, given: dict[str, Any]) -> Iterator[Box]:
    folder.mkdir(exist_ok=True)
    file, logs, port = folder / "pipeline.yaml", folder / "logs", free_port()
    write(file, given)
    command = [sys.executable, "-m", "vaultml_operator", "local", "-f", str(file), "--port", str(port)]
    variables = {"CUDA_VISIBLE_DEVICES": ""}
    with Service("local", [*command, "--logs", str(logs)], variables, folder / "out", port) as service:
        box = Box(file, logs, port, service)
        box.until(bool, "the table")
        yield box


@pytest.fixture
def place(broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Site]:
    with site(broker, tmp_path) as running:
        yield running


def ended(processes: list[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


def test_a_burst_scales_out_is_done_and_all_workers_go(
    tiny: Path, surveillance: Path, place: Site, tmp_path: Path
) -> None:
    with local(tmp_path / "box", spec(place, lagPerReplica=4)) as box:
        box.until(lambda row: row.get("reason") == "ScaledToZero", "nothing to do")
        assert box.workers() == []
        bodies = [each[0] for each in itertools.islice(agent.cut(surveillance, 2), 12)]
        keys = [place.store(f"17000000{number:02}_6-0_cam_0-0-0-0_1_2.mp4", body) for number, body in enumerate(bodies)]
        place.announce(*(event(key) for key in keys))
        wait_for(lambda: len(box.workers()) > 1, START_S, "more than one worker")
        assert set(place.results(len(keys), timeout=120)) == set(keys)
        box.until(lambda row: row.get("reason") == "ScaledToZero" and row["processed"] == 12, "all workers to go")
        wait_for(lambda: box.workers() == [], 60, "the processes to end")
        (out,), said = box.events("ScaledOut"), box.events("ScaledIn")
        assert "4 per worker" in out
        assert said
        assert box.row["lag"] == 0

        status, explained = box.service.get("/explain/edge")
        assert status == 200
        assert "CPU slots" in explained
        assert "assuming lag=500" in box.service.get("/explain/edge?what-if=lag=500")[1]
        assert box.service.get("/explain/nobody")[0] == 404
        assert box.service.get("/healthz")[0] == 200
        metrics = box.service.metrics()
        assert metrics['vaultml_pipeline_lag{namespace="default",pipeline="edge"}'] == 0

        box.service.terminate()
        assert box.service.returncode == 0
        written = [box.service.log_text(), *(path.read_text() for path in box.logs.iterdir())]
        pages = [explained, json.dumps(metrics)]
        for secret in (ACCOUNT.access_key, ACCOUNT.secret_key):
            assert not any(secret in text for text in [*written, *pages])


def test_a_killed_worker_is_replaced_and_sigterm_leaves_no_process(tiny: Path, place: Site, tmp_path: Path) -> None:
    with local(tmp_path / "box", spec(place, minReplicas=1)) as box:
        box.until(lambda row: row.get("ready") == "True", "a worker")
        for path in ("/", "/events", "/pipelines/edge", "/explain/edge"):
            text = box.service.get(path)[1]
            assert ACCOUNT.secret_key not in text
            assert ACCOUNT.access_key not in text
        (worker,) = box.workers()
        assert ACCOUNT.secret_key not in " ".join(worker.cmdline())
        family = worker.children(recursive=True)
        worker.kill()
        box.until(lambda row: row["ready"] == "False", "the loss to be told")
        box.until(lambda row: row["ready"] == "True", "another worker")
        (other,) = box.workers()
        assert other.pid != worker.pid
        wait_for(lambda: ended(family), 10, "what the killed worker had started to end")
        assert any("ended with exit code 137" in text for text in box.events("CrashLooping"))
        everything = box.everything()
        assert box.service.terminate(60) == 0
        assert ended(everything)


def test_workers_die_with_a_killed_command(tiny: Path, place: Site, tmp_path: Path) -> None:
    with local(tmp_path / "box", spec(place, minReplicas=1)) as box:
        box.until(lambda row: row.get("ready") == "True", "a worker")
        everything = box.everything()
        assert len(everything) > 1
        box.service.signal(signal.SIGKILL)
        wait_for(lambda: ended(everything), 10, "the workers to end")


def test_a_crash_is_told_and_an_edit_heals_it_and_a_broken_edit_changes_nothing(
    tiny: Path, place: Site, tmp_path: Path
) -> None:
    wrong = {"env": [{"name": "DECODER_SECONDS", "value": "never"}]}
    with local(tmp_path / "box", spec(place, wrong, minReplicas=1)) as box:
        box.until(lambda row: row.get("reason") == "CrashLooping", "the crash to be told")
        assert "DECODER_SECONDS" in box.row["message"]
        assert box.events("FileReadable")
        box.file.chmod(0o600)
        box.write({**spec(place, minReplicas=1), "wrong": 1})
        wait_for(lambda: box.events("FileRefused"), 10, "the broken edit to be told")
        assert "spec.wrong: no such field" in box.events("FileRefused")[0]
        assert box.row["reason"] == "CrashLooping"
        box.write(spec(place, minReplicas=1))
        box.until(lambda row: row["ready"] == "True", "the edit to heal it")
        (worker,) = box.workers()
        extra = {"name": "MORE", "value": "1"}
        patch = {"podTemplate": {"spec": {"containers": [{"name": "worker", "env": [extra]}]}}}
        box.write(spec(place, patch, minReplicas=1))
        wait_for(lambda: ended([worker]), 30, "the old worker to be replaced")
        box.until(lambda row: row["ready"] == "True" and row["replicas"] == "1/1", "the new worker")
        (other,) = box.workers()
        assert other.environ()["MORE"] == "1"


def test_a_gpu_that_is_not_there_is_said_and_nothing_runs_on_the_cpu(place: Site, tmp_path: Path) -> None:
    given = spec(place, minReplicas=1) | {"worker": {}}
    with local(tmp_path / "box", given) as box:
        box.until(lambda row: row.get("reason") == "NoGpuNode" and row["desired"] == 0, "the reason")
        assert "set worker.gpu.count to 0" in box.row["message"]
        assert box.workers() == []


def test_a_changed_secret_replaces_the_workers(tiny: Path, place: Site, tmp_path: Path) -> None:
    variable = {"name": "EXTRA", "valueFrom": {"secretKeyRef": {"name": "extra", "key": "k"}}}
    given = spec(place, {"env": [variable]}, minReplicas=1)

    def secret(value: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "extra"}, "stringData": {"k": value}}

    with local(tmp_path / "box", given) as box:
        box.until(lambda row: row.get("reason") == "SecretMissing", "the missing Secret to be told")
        box.write(given, secret("one"))
        box.until(lambda row: row["ready"] == "True", "a worker")
        assert box.workers()[0].environ()["EXTRA"] == "one"
        box.write(given, secret("two"))
        wait_for(lambda: [each.environ()["EXTRA"] for each in box.workers()] == ["two"], START_S, "the new value")


def test_the_embedded_broker_is_read_at_once_though_it_describes_nothing(place: Site) -> None:
    place.announce(b"1", b"2", b"3")
    ask, reader = Ask(place.name, place.name), KafkaReader(Connection((place.broker.address,)))
    try:
        began = time.monotonic()
        for _ in range(3):
            reading = reader.read([ask])[ask]
            assert isinstance(reading, Reading)
            assert (reading.lag, reading.members) == (3, None)
        assert time.monotonic() - began < 8
    finally:
        reader.close()


def test_a_port_that_is_taken_and_a_screen_that_is_gone(place: Site, tmp_path: Path) -> None:
    with local(tmp_path / "box", spec(place)) as box:
        port = box.port
        command = [sys.executable, "-m", "vaultml_operator", "local", "-f", str(box.file)]
        taken = [*command, "--port", str(port), "--logs", str(tmp_path / "more")]
        done = subprocess.run(taken, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
        assert done.returncode == 1
        assert f"can't listen on 127.0.0.1:{port} (" in done.stderr
        assert "--port" in done.stderr
    reading, writing = os.pipe()
    piped = subprocess.Popen([*command, "--port", "0", "--logs", str(tmp_path / "logs")], stdout=writing)
    try:
        os.close(writing)
        os.close(reading)
        log = tmp_path / "logs" / "operator.log"
        wait_for(lambda: log.is_file() and "nobody is looking" in log.read_text(), 30, "the loss to be logged")
        piped.terminate()
        assert piped.wait(30) == 0
    finally:
        piped.kill()
        piped.wait()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "can't be read: No such file or directory"),
        ("kind: Deployment\n", "kind Deployment is of no use here"),
        ("{", "line "),
    ],
)
def test_a_file_that_can_not_be_used_ends_the_command(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "pipeline.yaml"
    if text is not None:
        file.write_text(text)
    command = [sys.executable, "-m", "vaultml_operator", "local", "-f", str(file), "--logs", str(tmp_path / "logs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert done.returncode == 1
    assert done.stderr.startswith(f"vaultml-operator: {file}")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
