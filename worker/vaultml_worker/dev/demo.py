"""The demo: cameras, Vault, broker and a worker on this machine, from real footage to annotated videos."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from vaultml_worker import annotate, app, fetch
from vaultml_worker.decoders import Decoders
from vaultml_worker.dev import agent, footage
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.dev.vault import Account, VaultServer, application, publisher
from vaultml_worker.engines.onnx import cpus
from vaultml_worker.queues import reader
from vaultml_worker.records import VaultAccess
from vaultml_worker.video import Limits

_SECONDS = 8.0
_PATIENCE_S = 120.0
_TOPICS = ("ml-queue", "ml-results", "ml-results.dlq")


def run(out: Path, given_footage: str | None) -> bool:
    """Run the whole demo into the folder `out`; True when every recording got its result."""
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    console.print("[bold]Fetching the model and the footage[/] (once)")
    fetch.model("yolov3-tiny")
    clip = footage.find(given_footage)
    account = Account("demo-access", "demo-secret!@#$%", provider="local")
    recordings = out / "recordings"
    with EmbeddedBroker(topics=_TOPICS) as broker:
        vault = VaultServer(application(recordings, account, publisher(broker.address, _TOPICS[0])))
        try:
            environment = _worker_environment(broker.address, vault.url, account)
            console.print(
                f"Broker {broker.address}, Vault {vault.url}/api, footage {clip}; the worker's log follows.\n"
            )
            with _worker(environment):
                access = VaultAccess(f"{vault.url}/api", account.access_key, account.secret_key)
                upload = agent.upload(access, account.provider, clip, seconds=_SECONDS, cameras=2, rate=0)
                expected = set(upload)
                results = _await_results(broker.address, expected)
        finally:
            vault.close()
    _show(console, out, recordings / account.provider, results)
    missing = expected - results.keys()
    if missing:
        console.print(f"[red]No result for {len(missing)} of {len(expected)} recordings.[/]")
    return not missing and bool(expected)


def _worker_environment(broker: str, vault: str, account: Account) -> dict[str, str]:
    """hub-ml's variables, as its users set them; HTTP stays on this machine."""
    return {
        "QUEUE_SYSTEM": "KAFKA",
        "QUEUE_NAME": _TOPICS[0],
        "QUEUE_TARGET": _TOPICS[1],
        "KAFKA_BROKER": broker,
        "KAFKA_GROUP": "mygroup",
        "KAFKA_USERNAME": "",
        "KAFKA_PASSWORD": "",
        "KAFKA_MECHANISM": "PLAIN",
        "KAFKA_SECURITY": "PLAINTEXT",
        "VAULT_API_URL": f"{vault}/api",
        "VAULT_ACCESS_KEY": account.access_key,
        "VAULT_SECRET_KEY": account.secret_key,
        "NUMBER_OF_PREDICTIONS": "5",
        "FORWARDING_MEDIA": "false",
        "FORWARDING_METADATA": "false",
        "FORWARDING_OBJECT_THRESHOLD": "1",
        "REMOVE_AFTER_PROCESSED": "false",
        "MOVE_DISTANCE": "100",
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": "0",
    }


@contextmanager
def _worker(environment: Mapping[str, str]) -> Iterator[None]:
    """`vaultml worker` as a process of its own, its log on our stdout; stopped with SIGTERM."""
    kept = {
        name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "VAULTML_CACHE", "XDG_CACHE_HOME")
    }
    process = subprocess.Popen([sys.executable, "-m", "vaultml_worker.cli", "worker"], env={**kept, **environment})
    try:
        yield
        process.send_signal(signal.SIGTERM)
        if process.wait(30):
            raise RuntimeError(f"the worker ended with exit code {process.returncode}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _await_results(broker: str, expected: set[str]) -> dict[str, dict[str, Any]]:
    """Results by key, until all are there or nothing came for too long."""
    stop = threading.Event()
    found: dict[str, dict[str, Any]] = {}
    last = time.monotonic()
    for body in reader.follow({"bootstrap.servers": broker}, _TOPICS[1], stop):
        if body is not None:
            result = json.loads(body)
            found[result["payload"]["key"]] = result
            last = time.monotonic()
        if expected <= found.keys() or time.monotonic() - last > _PATIENCE_S:
            stop.set()
    return found


def _show(console: Console, out: Path, recordings: Path, results: Mapping[str, dict[str, Any]]) -> None:
    """The annotated videos, the contact sheet, and the table."""
    table = Table(Column("recording", overflow="fold"), "objects", "moving", "ms", title="What the worker saw")
    pictures = []
    decoders = Decoders(processes=cpus(), seconds=300, memory=2 << 30)
    try:
        for key, result in sorted(results.items()):
            vaultml, data = result["vaultml"], (recordings / key).read_bytes()
            path = out / f"{Path(key).stem}.mp4"
            decoders.run(annotate.video_file, data, vaultml, str(path), Limits())
            pictures.append(path.with_suffix(".jpg"))
            middle = vaultml["frames"]["timestamps"][vaultml["frames"]["decoded"] // 2]
            decoders.run(annotate.picture_file, data, vaultml, str(pictures[-1]), Limits(), middle)
            kinds = app.summary(vaultml).partition(";")[0]
            milliseconds = sum(vaultml["timings"].values())
            table.add_row(Path(key).name, kinds, str(vaultml["objects"]["moving"]), f"{milliseconds:.0f}")
    finally:
        decoders.close()
    console.print(table)
    if pictures:
        annotate.contact_sheet(pictures, out / "contact-sheet.jpg")
        for picture in pictures:
            picture.unlink()
        console.print(f"Annotated videos: {out}/*.mp4   all at a glance: {out}/contact-sheet.jpg", soft_wrap=True)
