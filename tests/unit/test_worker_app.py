"""The whole worker in one process, on a queue system that is registered as any other."""

import json
import threading
from collections import deque
from contextlib import closing
from pathlib import Path

import pytest
import requests

from testbed.process import LOOPBACK, free_port, wait_for
from tests import memory_queue
from tests.networks import CFG, tiny_weights
from tests.recordings import clip
from vaultml_worker import app, cli, darknet, self_test, settings
from vaultml_worker.decoders import Decoders
from vaultml_worker.dev.vault import Account, VaultServer, application
from vaultml_worker.queues import SYSTEMS
from vaultml_worker.video import Limits

ACCOUNT = Account("access", "s3cret", "local")


def test_a_second_queue_system_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SYSTEMS, "MEMORY", memory_queue.SYSTEM)
    (tmp_path / "small.cfg").write_text(CFG)
    tiny_weights(darknet.read_cfg(tmp_path / "small.cfg"), tmp_path / "small.weights", seed=7)
    (tmp_path / "small.names").write_text("a\nb\nc\n")
    path = tmp_path / "vault" / "local" / "u" / "0.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(clip(1))
    vault = VaultServer(application(tmp_path / "vault", ACCOUNT))
    server = memory_queue.SERVERS["app"] = memory_queue.Server()
    bodies = [json.dumps({"source": "local", "payload": {"key": f"u/{number}.mp4"}}).encode() for number in range(2)]
    server.waiting["in"] = deque([*bodies, b"{"])
    port = free_port()
    for name, value in {
        "QUEUE_SYSTEM": "MEMORY",
        "QUEUE_NAME": "in",
        "QUEUE_TARGET": "out",
        "MEMORY_SERVER": "app",
        "VAULT_API_URL": f"{vault.url}/api",
        "VAULT_ACCESS_KEY": ACCOUNT.access_key,
        "VAULT_SECRET_KEY": ACCOUNT.secret_key,
        "MODEL": str(tmp_path / "small.cfg"),
        "HTTP_HOST": LOOPBACK,
        "HTTP_PORT": str(port),
        "LOG_FORMAT": "json",
    }.items():
        monkeypatch.setenv(name, value)
    stop = threading.Event()
    worker = threading.Thread(target=app.work, args=(settings.load(), stop))
    worker.start()
    try:
        wait_for(server.gone.is_set, 60, "the queue to be empty")
        metrics = requests.get(f"http://{LOOPBACK}:{port}/metrics", timeout=5).text
    finally:
        stop.set()
        worker.join(60)
        vault.close()
    assert [json.loads(result)["payload"]["key"] for result in server.results] == ["u/0.mp4"]
    assert sorted(str(failure.cause) for _, failure in server.dead) == ["bad-event", "not-found"]
    assert 'vaultml_recordings_total{outcome="published"} 1.0' in metrics
    assert 'vaultml_recordings_total{outcome="dead-letter"} 2.0' in metrics
    capsys.readouterr()
    monkeypatch.setenv("QUEUE_TARGET", "out")
    cli.results()
    assert capsys.readouterr().out.endswith("  u/0.mp4\n")


def test_decoders_whose_limits_leave_no_room_end_the_start() -> None:
    with closing(Decoders(processes=1, seconds=30, memory=1 << 22)) as cramped:
        failure = self_test.decode(cramped, 40_000_000)
    assert failure is not None
    with closing(Decoders(processes=1, seconds=30, memory=1 << 30, limits=Limits(pixels=100_000))) as small:
        assert self_test.decode(small, 100_000) is None
