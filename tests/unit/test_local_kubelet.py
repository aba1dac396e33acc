"""Pods as processes: placed, started, looked after, restarted with pauses, ended, and nothing left behind."""

import asyncio
import os
import random
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed.process import wait_for
from vaultml_operator import api, pods
from vaultml_operator.autoscaler.gpus import Pool
from vaultml_operator.local import address, machine
from vaultml_operator.local.documents import SLOT
from vaultml_operator.local.kubelet import Backoff, Kubelet
from vaultml_operator.local.logs import Logs
from vaultml_operator.local.machine import Devices, Hardware
from vaultml_operator.local.store import Store
from vaultml_operator.reasons import Reason

WORKER = api.Spec.model_validate({"queue": {"name": "q", "kafka": {"brokers": ["b:1"], "group": "g"}}}).worker
SERVE = (
    "import http.server, os, sys, pathlib\n"
    "class Handler(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        good = self.path == '/healthz' or pathlib.Path(sys.argv[1]).exists()\n"
    "        self.send_response(200 if good else 503); self.end_headers()\n"
    "    def log_message(self, *_): pass\n"
    "http.server.HTTPServer((os.environ['HTTP_HOST'], int(os.environ['HTTP_PORT'])), Handler).serve_forever()\n"
)


class Box:
    """A kubelet with everything that it needs; times are short."""

    def __init__(self, folder: Path, slots: int = 2) -> None:
        self.store = Store()
        self.devices = Devices([])
        self.devices.total_slots = slots
        self.pool = Pool()
        self.pool.node_seen(machine.node(Hardware(1, 1 << 30, name="box"), slots))
        self.logs = Logs(folder / "logs")
        self.private = folder / "private"
        backoff = Backoff(first=0.05, most=0.1, reset=60)
        places = {"private": self.private, "cache": folder / "cache"}
        self.kubelet = Kubelet(self.store, self.devices, self.pool, self.logs, **places, backoff=backoff)
        self._task = asyncio.create_task(self.kubelet.run())

    def start(self, name: str, *command: str, grace: int = 5, **more: Any) -> dict[str, Any]:
        container = {
            "name": "worker",
            "command": list(command),
            "env": [{"name": "HTTP_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "resources": {"limits": {SLOT: "1"}},
            **more,
        }
        spec = {"containers": [container], "terminationGracePeriodSeconds": grace}
        pod = self.store.put({"kind": "Pod", "metadata": {"name": name, "namespace": "n"}, "spec": spec, "status": {}})
        self.kubelet.admit(pod)
        return pod

    def pod(self, name: str) -> dict[str, Any]:
        return self.store.find("Pod", "n", name) or {}

    def container(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(iter((self.pod(name).get("status") or {}).get("containerStatuses") or [{}]))
        return found

    async def until(self, condition: Callable[[], Any], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        await self.kubelet.stop_all()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def run(folder: Path, scenario: Callable[[Box], Awaitable[None]], slots: int = 2) -> None:
    async def whole() -> None:
        box = Box(folder, slots)
        try:
            await scenario(box)
        finally:
            await box.end()

    asyncio.run(whole())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_crash_is_told_with_its_last_words_and_tried_again_after_growing_pauses(tmp_path: Path) -> None:
    async def scenario(box: Box) -> None:
        box.start("p", "sh", "-c", "echo it is broken; exit 3")
        await box.until(lambda: box.container("p").get("restartCount", 0) >= 2)
        await box.until(lambda: "waiting" in box.container("p")["state"])
        status = box.container("p")
        assert status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        assert status["lastState"]["terminated"]["exitCode"] == 3
        told = pods.diagnose([box.pod("p")], WORKER, None)
        assert told is not None
        assert told.reason == "CrashLooping"
        assert "pod p ended with exit code 3: it is broken" in told.message

    run(tmp_path, scenario)


def test_the_first_restart_is_at_once_and_the_pauses_are_bounded() -> None:
    backoff = Backoff()
    assert (backoff.first, backoff.most, backoff.reset) == (10, 300, 600)


def test_a_worker_is_ready_when_it_says_so_and_no_longer_when_not(tmp_path: Path) -> None:
    flag = tmp_path / "ready"
    probe = {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 0.05, "failureThreshold": 1}
    startup = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 0.05, "failureThreshold": 200}

    async def scenario(box: Box) -> None:
        box.start("p", sys.executable, "-c", SERVE, str(flag), readinessProbe=probe, startupProbe=startup)
        await box.until(lambda: box.container("p").get("state", {}).get("running"))
        assert not box.container("p")["ready"]
        flag.touch()
        await box.until(lambda: box.container("p")["ready"])
        flag.unlink()
        await box.until(lambda: not box.container("p")["ready"])

    run(tmp_path, scenario)


def test_a_worker_that_no_longer_answers_is_replaced(tmp_path: Path) -> None:
    liveness = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 0.05, "failureThreshold": 2}

    async def scenario(box: Box) -> None:
        box.start("p", "sleep", "100", livenessProbe=liveness)
        await box.until(lambda: box.container("p").get("restartCount", 0) >= 1)
        ended = box.container("p")["lastState"]["terminated"]
        assert ended["exitCode"] == 143
        assert ended["message"].startswith("the liveness probe failed")

    run(tmp_path, scenario)


def test_a_pod_waits_for_its_share_and_says_so(tmp_path: Path) -> None:
    async def scenario(box: Box) -> None:
        first = box.start("a", "sleep", "100")
        box.start("b", "sleep", "100")
        await box.until(lambda: box.container("a").get("state", {}).get("running"))
        await box.until(lambda: (box.pod("b")["status"].get("conditions") or [{}])[0].get("reason") == "Unschedulable")
        assert "nodeName" not in box.pod("b")["spec"]
        box.kubelet.stop(first)
        await box.until(lambda: box.container("b").get("state", {}).get("running"))
        assert box.pod("b")["spec"]["nodeName"] == "box"
        assert box.pod("a") == {}

    run(tmp_path, scenario, slots=1)


def test_the_end_is_gentle_then_certain_and_takes_all_that_was_started(tmp_path: Path) -> None:
    async def scenario(box: Box) -> None:
        gentle = box.start(
            "gentle", "sh", "-c", "trap 'echo drained; exit 0' TERM; echo up; while :; do sleep 0.05; done"
        )
        stubborn = box.start("stubborn", "sh", "-c", "trap '' TERM; sleep 100 & echo $!; wait; sleep 100", grace=1)
        await box.until(lambda: box.logs.size("stubborn"))
        await box.until(lambda: box.logs.size("gentle"))
        child = int(box.logs.path("stubborn").read_text())
        box.kubelet.stop(gentle)
        box.kubelet.stop(stubborn)
        assert "deletionTimestamp" in box.pod("gentle")["metadata"]
        await box.until(lambda: not box.pod("gentle") and not box.pod("stubborn"))
        assert "drained" in box.logs.path("gentle").read_text()
        wait_for(lambda: not alive(child), 5, "what the pod left behind to end")
        assert not any(box.private.iterdir())

    run(tmp_path, scenario)


def test_what_can_not_be_started_is_said(tmp_path: Path) -> None:
    async def scenario(box: Box) -> None:
        missing = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
        box.start("p", "true", env=[missing])
        await box.until(lambda: "message" in box.container("p").get("state", {}).get("waiting", {}))
        told = pods.diagnose([box.pod("p")], WORKER, None)
        assert told == pods.Problem(Reason.CONTAINER_CONFIG_ERROR, "pod p can't start: Secret s lacks the key k")
        box.store.put({"kind": "Secret", "metadata": {"name": "s", "namespace": "n"}, "data": {"k": "dg=="}})
        await box.until(
            lambda: box.container("p").get("restartCount", 0) > 0 or "running" in box.container("p")["state"]
        )

    run(tmp_path, scenario)


def test_a_command_that_is_not_there_is_told_in_its_last_words(tmp_path: Path) -> None:
    async def scenario(box: Box) -> None:
        box.start("p", "no-such-command")
        await box.until(lambda: box.container("p").get("restartCount", 0) > 0)
        ended = box.container("p")["lastState"]["terminated"]
        assert ended["message"] == "no-such-command: No such file or directory"

    run(tmp_path, scenario)


@contextmanager
def listening(port: int) -> Iterator[int]:
    with socket.socket() as everywhere:
        everywhere.bind(("0.0.0.0", port))
        everywhere.listen()
        yield everywhere.getsockname()[1]


def test_each_worker_has_an_address_of_its_own_and_a_taken_port_is_left_to_who_has_it() -> None:
    rng = random.Random(1)
    with listening(0) as taken:
        found = address.choose(taken, set(), rng)
    assert found.port != taken
    assert found.host.startswith("127.")
    free = address.choose(taken, {found.host}, rng)
    assert free.port == taken
    assert free.host != found.host


def test_a_large_log_begins_anew_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultml_operator.local.logs._LARGEST", 10)
    monkeypatch.setattr("vaultml_operator.local.logs._KEPT", 2)
    logs = Logs(tmp_path)
    descriptor = logs.open("p")
    os.write(descriptor, b"a long line of text\n")
    logs.keep_small("p")
    os.write(descriptor, b"news\n")
    os.close(descriptor)
    assert logs.path("p").read_text() == "news\n"
    assert (tmp_path / "p.log.1").read_text() == "a long line of text\n"
    assert logs.last_words("p", since=100) == "news"
    for number, name in enumerate("abc"):
        logs.path(name).touch()
        os.utime(logs.path(name), (number, number))
    logs.forget({"a"})
    assert sorted(path.stem for path in tmp_path.glob("*.log")) == ["a", "c", "p"]
