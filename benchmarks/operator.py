"""The operator with 10, 100 and 1,000 pipelines: memory, CPU, requests, and how soon a change is applied."""

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import table
from testbed.kafka import Broker
from testbed.kubernetes import Cluster, gpus
from testbed.kubernetes.api import Api
from testbed.operator import Operator, grant
from testbed.process import wait_for
from testbed.product import images
from vaultml_operator import api, crd

SIZES = tuple(int(each) for each in os.environ.get("SIZES", "10,100,1000").split(","))
_IDLE_S = 60
_SAMPLES = 20
_BURST = 200
_START_S = 600
_THREADS = 4
_SPACES = ("first", "second")
_WRITES = ("patch", "create", "delete")
_CONNECTIONS = 20
"""Brokers' worth of groups: the one broker under so many spellings of its name, each a connection of its own."""
_POLLING_S = 15
_POLLS = "vaultml_pipeline_polls_total{"
_CALLS = "vaultml_operator_queue_calls"


def run(_footage: Path | None) -> str:
    """The figures of every size, and of two operators that share the largest one."""
    rows: list[list[str]] = []
    with Broker() as broker:
        for number in range(_CONNECTIONS):
            broker.create_topic(f"queue-{number}", 3)
        for size in SIZES:
            for row in _Bench(broker, size).rows():
                print(" | ".join(row), file=sys.stderr, flush=True)  # the whole takes a quarter of an hour
                rows.append(row)
    header = [
        *("pipelines", "operators", "RSS, MB", "CPU idle, %", "reads / min idle", "writes / min idle"),
        *(
            "polls / min",
            "Kafka calls / poll",
            "change applied p50, s",
            "p95, s",
            f"burst of {_BURST} (or all), s",
            "all reconciled after restart, s",
        ),
    ]
    return (
        "Hollow pods on one machine, shared with the control plane; one Kafka for all pipelines, one worker each. Idle "
        f"for {_IDLE_S} s, without the Lease and kopf's watches. Change: from the PATCH of a threshold until the "
        "Deployment shows it, with nothing else going on. Restart: from the start of the process. "
        f"Every queue is polled each {_POLLING_S} s, each 5 s where nothing waits; {_CONNECTIONS} brokers' worth of "
        "groups. Goals at 1,000: RSS ≤ 300 MB, CPU ≤ 1 core, no writes when idle, p95 ≤ 1 s, burst ≤ 20 s, restart "
        "≤ 60 s.\n\n" + table(header, rows)
    )


class _Bench:
    def __init__(self, broker: Broker, size: int) -> None:
        port = broker.plaintext.rpartition(":")[2]
        self._brokers = [f"{_spelling(number)}:{port}" for number in range(_CONNECTIONS)]
        self._size = size
        self._names = [(_SPACES[number % 2], f"p{number}") for number in range(size)]
        self._thresholds = iter(0.2 + number / 1e5 for number in range(50_000))

    def rows(self) -> Iterator[list[str]]:
        with (
            Cluster(images=images()) as cluster,
            ThreadPoolExecutor(_THREADS) as self._threads,
            tempfile.TemporaryDirectory() as folder,
        ):
            self._cluster = cluster
            cluster.apply(crd.definition())
            grant(cluster)
            cluster.node("hollow", hollow=True, **gpus.whole(10 * self._size))
            for name in _SPACES:
                cluster.kubectl("create", "namespace", name)
            with Operator(cluster, Path(folder) / "log") as operator:
                operator.wait_ready().wait_leads()
                list(self._threads.map(self._create, self._names))
                wait_for(lambda: self._ready() == self._size, _START_S, "all to be ready", process=operator.process)
                operator.terminate()
            with Operator(cluster, Path(folder) / "log-1") as operator:
                yield self._measure(operator)
            if self._size == max(SIZES):
                yield self._shared(Path(folder))

    def _measure(self, operator: Operator) -> list[str]:
        restart = self._all_reconciled(operator, self._size)
        idle = self._idle(operator)
        seconds = sorted(self._change(random.choice(self._names)) for _ in range(_SAMPLES))
        burst = self._burst(random.sample(self._names, min(_BURST, self._size)))
        p95 = seconds[round(0.95 * (len(seconds) - 1))]
        figures = [f"{idle[0]:.0f}", f"{idle[1]:.1f}", *(f"{each:.0f}" for each in idle[2:5]), f"{idle[5]:.2f}"]
        figures += [f"{statistics.median(seconds):.2f}", f"{p95:.2f}", f"{burst:.1f}", f"{restart:.1f}"]
        return [f"{self._size:,}", "1", *figures]

    def _shared(self, folder: Path) -> list[str]:
        """Two operators with a namespace each."""
        started = [
            Operator(self._cluster, folder / name, "--namespace", name, "--lease-name", name) for name in _SPACES
        ]
        with started[0], started[1]:
            restart = max(self._all_reconciled(each, self._size // 2) for each in started)
            idle = [self._idle(each) for each in started]
            seconds = sorted(self._change(random.choice(self._names)) for _ in range(_SAMPLES))
            burst = self._burst(random.sample(self._names, min(_BURST, self._size)))
        each = [" + ".join(f"{figures[column]:.0f}" for figures in idle) for column in range(5)]
        each.append(" + ".join(f"{figures[5]:.2f}" for figures in idle))
        p95 = seconds[round(0.95 * (len(seconds) - 1))]
        times = [f"{statistics.median(seconds):.2f}", f"{p95:.2f}", f"{burst:.1f}", f"{restart:.1f}"]
        return [f"{self._size:,}", "2", *each, *times]

    def _all_reconciled(self, operator: Operator, count: int) -> float:
        """Seconds from the process's start until each pipeline's gauge is there."""
        began = psutil.Process(operator.pid).create_time()

        def told() -> bool:
            return sum(name.startswith("vaultml_pipeline_ready{") for name in operator.metrics()) >= count

        wait_for(told, _START_S, "all to be reconciled", process=operator.process)
        seconds = time.time() - began
        wait_for(lambda: operator.metrics()["vaultml_operator_queue_depth"] == 0, _START_S, "an empty queue")
        return seconds

    def _idle(self, operator: Operator) -> tuple[float, ...]:
        """RSS in MB, CPU in percent, reads, writes and polls a minute, calls to Kafka per poll."""
        process = psutil.Process(operator.pid)
        self._settle(operator)
        before, cpu = operator.metrics(), process.cpu_times()
        time.sleep(_IDLE_S)
        after, later = operator.metrics(), process.cpu_times()
        busy = (later.user + later.system - cpu.user - cpu.system) / _IDLE_S * 100
        done = {
            name: after[name] - before.get(name, 0)
            for name in after
            if name.startswith("vaultml_operator_api_requests_total")
        }
        writes = sum(count for name, count in done.items() if any(f'verb="{verb}"' in name for verb in _WRITES))
        minutes = _IDLE_S / 60
        reads = sum(done.values()) - writes
        polls = sum(after[name] - before.get(name, 0) for name in after if name.startswith(_POLLS))
        calls = after[_CALLS] - before[_CALLS]
        rss = process.memory_info().rss / 1e6
        return rss, busy, reads / minutes, writes / minutes, polls / minutes, calls / max(polls, 1)

    def _settle(self, operator: Operator) -> None:
        """Wait until what went before has echoed away: no reconcile for three seconds."""
        last, since = -1.0, time.monotonic()

        def quiet() -> bool:
            nonlocal last, since
            count = operator.metrics()["vaultml_operator_reconcile_seconds_count"]
            if count != last:
                last, since = count, time.monotonic()
            return time.monotonic() - since > 3

        wait_for(quiet, _START_S, "quiet")

    def _change(self, name: tuple[str, str]) -> float:
        """Seconds from a PATCH until the Deployment shows it."""
        value = next(self._thresholds)
        with self._api() as client:
            began = time.monotonic()
            self._patch(client, name, value)
            path = f"/apis/apps/v1/namespaces/{name[0]}/deployments/{name[1]}"
            wait_for(lambda: _shows(client.request("GET", path), value), 60, "the change")
            return time.monotonic() - began

    def _burst(self, names: list[tuple[str, str]]) -> float:
        value = next(self._thresholds)
        began = time.monotonic()

        def patch(name: tuple[str, str]) -> None:
            with self._api() as client:
                self._patch(client, name, value)

        list(self._threads.map(patch, names))

        # One after the other, so that looking costs the API server next to nothing.
        with self._api() as client:
            for space, name in names:
                path = f"/apis/apps/v1/namespaces/{space}/deployments/{name}"
                wait_for(lambda path=path: _shows(client.request("GET", path), value), _START_S, "the burst")  # type: ignore[misc]
        return time.monotonic() - began

    def _create(self, name: tuple[str, str]) -> None:
        number = int(name[1][1:]) % _CONNECTIONS
        queue = {"name": f"queue-{number}", "kafka": {"brokers": [self._brokers[number]], "group": name[1]}}
        body = {
            "apiVersion": api.API_VERSION,
            "kind": api.KIND,
            "metadata": {"namespace": name[0], "name": name[1]},
            "spec": {"queue": queue, "autoscaling": {"pollingSeconds": _POLLING_S}},
        }
        with self._api() as client:
            client.request("POST", _path(name).rpartition("/")[0], body)

    def _patch(self, client: Api, name: tuple[str, str], threshold: float) -> None:
        change = {"spec": {"detection": {"threshold": threshold}}}
        client.request("PATCH", _path(name), change, content_type="application/merge-patch+json")

    def _ready(self) -> int:
        found = self._list(f"/apis/{api.API_VERSION}/{api.PLURAL}")
        return sum((each.get("status") or {}).get("workers") == "1/1" for each in found)

    def _list(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._cluster.get(path)["items"]
        return items

    @contextmanager
    def _api(self) -> Iterator[Api]:
        client = Api(self._cluster.api_url, self._cluster.credentials.admin, str(self._cluster.credentials.ca_file))
        try:
            yield client
        finally:
            client.close()


def _spelling(number: int) -> str:
    """`localhost` with small and capital letters: the same to the resolver."""
    return "".join(letter.upper() if number >> place & 1 else letter for place, letter in enumerate("localhost"))


def _path(name: tuple[str, str]) -> str:
    return f"/apis/{api.API_VERSION}/namespaces/{name[0]}/{api.PLURAL}/{name[1]}"


def _shows(deployment: dict[str, Any], threshold: float) -> bool:
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return any(each["name"] == "DETECTION_THRESHOLD" and each["value"] == f"{threshold:.10g}" for each in env)
