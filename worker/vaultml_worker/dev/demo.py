"""The demo: cameras, Vault, broker and autoscaled workers on this machine, from real footage to annotated videos."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.table import Column, Table

from vaultml_common.machine import cpus
from vaultml_worker import annotate, fetch, reports
from vaultml_worker.decoders import Decoders
from vaultml_worker.dev import agent, footage
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.dev.vault import Account, VaultServer, application, publisher
from vaultml_worker.queues.kafka import reader
from vaultml_worker.records import InvalidInput, VaultAccess
from vaultml_worker.video import Limits

_SECONDS = 8.0
_BURST = 24
"""So many recordings are uploaded at once: enough for more than one worker."""
_SHOWN = 10
"""At most so many of them are made into annotated videos, each another stretch of the footage."""
_CAMERAS = 4
_PATIENCE_S = 120.0
_TOPICS = ("ml-queue", "ml-results", "ml-results.dlq")
_NAME = "demo"


def run(out: Path, given_footage: str | None) -> bool:
    """Run the whole demo into the folder `out`; True when every recording got its result and all workers went."""
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    console.print("[bold]Fetching the model and the footage[/] (once)")
    fetch.model("yolov3-tiny")
    clip = footage.find(given_footage)
    console.print(f"Cutting recordings from {clip}", soft_wrap=True)
    # What is short comes again, as if it were later, until there is a burst.
    cuts = list(agent.cut(clip, _SECONDS))
    burst = list(itertools.islice(itertools.cycle(cuts), _BURST))
    account = Account("demo-access", "demo-secret!@#$%", provider="local")
    recordings = out / "recordings"
    with EmbeddedBroker(topics=_TOPICS) as broker:
        vault = VaultServer(application(recordings, account, publisher(broker.address, _TOPICS[0])))
        try:
            file = out / "pipeline.yaml"
            _write(file, broker.address, vault.url, account)
            console.print(f"Broker {broker.address}, Vault {vault.url}/api", soft_wrap=True)
            console.print(f"[bold]vaultml-operator local -f {file}[/]: {_BURST} recordings at once\n", soft_wrap=True)
            with _operator(file, out / "logs") as operator:
                access = VaultAccess(f"{vault.url}/api", account.access_key, account.secret_key)
                sent = agent.send(access, account.provider, burst, seconds=_SECONDS, cameras=_CAMERAS, rate=0)
                expected = set(sent)
                results = _await_results(broker.address, expected, operator)
                gone = expected <= results.keys() and operator.wait_empty(_PATIENCE_S)
        finally:
            vault.close()
    _show(console, out, recordings / account.provider, results, min(_SHOWN, len(cuts)))
    missing = expected - results.keys()
    if missing:
        console.print(f"[red]No result for {len(missing)} of {len(expected)} recordings: see {out}/logs.[/]")
    elif not gone:
        console.print(f"[red]The workers were not scaled in: see {out}/logs.[/]")
    return gone and bool(expected)


def _write(file: Path, broker: str, vault: str, account: Account) -> None:
    """The pipeline, and the Secret beside it: JSON, which is YAML."""
    pipeline = {
        "apiVersion": "ml.kerberos.io/v1alpha1",
        "kind": "VaultMLPipeline",
        "metadata": {"name": _NAME},
        "spec": {
            "queue": {
                "name": _TOPICS[0],
                "target": _TOPICS[1],
                "kafka": {"brokers": [broker], "group": "vault-ml"},
            },
            "vault": {"apiUrl": f"{vault}/api", "credentialsSecretRef": {"name": "vault-credentials"}},
            "detection": {"numberOfPredictions": 5, "moveDistance": 100},
            "worker": {"gpu": {"count": 0}, "logFormat": "console"},
            "autoscaling": {
                "minReplicas": 0,
                "drainSeconds": 10,
                "lagPerReplica": 8,
                "pollingSeconds": 1,
                "cooldownSeconds": 5,
            },
        },
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "vault-credentials"},
        "stringData": {"accessKey": account.access_key, "secretKey": account.secret_key},
    }
    file.touch(mode=0o600)
    file.write_text("---\n".join(f"{json.dumps(each, indent=2)}\n" for each in (pipeline, secret)))


@dataclass(frozen=True)
class _Operator:
    """`vaultml-operator local` as it runs; `url` is where its JSON is."""

    process: "subprocess.Popen[bytes]"
    url: str

    def replicas(self) -> tuple[int, str] | None:
        """How many workers there are, and what is said of them; None: not known right now."""
        with requests.Session() as session:
            session.trust_env = False
            try:
                status = session.get(f"{self.url}/pipelines/{_NAME}", timeout=5).json().get("status") or {}
            except (requests.RequestException, ValueError):
                return None
        return int(status.get("replicas", 0)), str(status.get("workers", ""))

    def wait_ready(self) -> None:
        """Return once it has looked at the pipeline, and there is no worker."""
        self._wait(lambda found: found == (0, "0/0"), 60)

    def wait_empty(self, seconds: float) -> bool:
        """Whether no worker is left in so many seconds."""
        return self._wait(lambda found: found == (0, "0/0"), seconds)

    def _wait(self, wanted: Any, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise InvalidInput(f"the operator ended with exit code {self.process.returncode}; it said why above")
            if wanted(self.replicas()):
                return True
            time.sleep(0.2)
        return False


@contextmanager
def _operator(file: Path, logs: Path) -> Iterator[_Operator]:
    """The operator as a process of its own, on our screen; stopped with SIGTERM. Its module is named, not imported."""
    port = _free_port()
    command = [sys.executable, "-m", "vaultml_operator", "local", "-f", str(file), "--logs", str(logs)]
    process = subprocess.Popen([*command, "--port", str(port)])
    try:
        operator = _Operator(process, f"http://127.0.0.1:{port}")
        operator.wait_ready()
        yield operator
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            raise InvalidInput(f"the operator ended with exit code {process.returncode}; it said why above")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_results(broker: str, expected: set[str], operator: _Operator) -> dict[str, dict[str, Any]]:
    """Results by key, until all are there or nothing came for too long."""
    stop = threading.Event()
    found: dict[str, dict[str, Any]] = {}
    last = time.monotonic()
    for body in reader.follow({"bootstrap.servers": broker}, _TOPICS[1], stop):
        if body is not None:
            result = json.loads(body)
            found[result["payload"]["key"]] = result
            last = time.monotonic()
        late = time.monotonic() - last > _PATIENCE_S
        if expected <= found.keys() or late or operator.process.poll() is not None:
            stop.set()
    return found


def _show(console: Console, out: Path, recordings: Path, results: Mapping[str, dict[str, Any]], shown: int) -> None:
    """The annotated videos, the contact sheet, and the table."""
    table = Table(Column("recording", overflow="fold"), "objects", "moving", "ms", title="What the workers saw")
    pictures = []
    decoders = Decoders(processes=cpus(), seconds=300, memory=2 << 30)
    try:
        for key, result in sorted(results.items())[:shown]:
            vaultml, data = result["vaultml"], (recordings / key).read_bytes()
            path = out / f"{Path(key).stem}.mp4"
            decoders.run(annotate.video_file, data, vaultml, str(path), Limits())
            pictures.append(path.with_suffix(".jpg"))
            shown_frame = annotate.richest_frame(vaultml)
            decoders.run(annotate.picture_file, data, vaultml, str(pictures[-1]), Limits(), shown_frame)
            kinds = reports.summary(vaultml).partition(";")[0]
            milliseconds = sum(vaultml["timings"].values())
            table.add_row(Path(key).name, kinds, str(vaultml["objects"]["moving"]), f"{milliseconds:.0f}")
    finally:
        decoders.close()
    console.print(table)
    if len(results) > shown:
        console.print(f"and {len(results) - shown} more")
    if pictures:
        annotate.contact_sheet(pictures, out / "contact-sheet.jpg")
        for picture in pictures:
            picture.unlink()
        console.print(f"Annotated videos: {out}/*.mp4   all at a glance: {out}/contact-sheet.jpg", soft_wrap=True)
    console.print(f"The workers' logs: {out}/logs   what they were started from: {out}/pipeline.yaml", soft_wrap=True)
