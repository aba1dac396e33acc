"""The running command: a file's pipelines on this machine, by the operator's own parts, until SIGTERM."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from vaultml_operator import api
from vaultml_operator.autoscaler.gpus import Pool
from vaultml_operator.autoscaler.scaler import Scaler
from vaultml_operator.credentials import Object
from vaultml_operator.local import documents, machine, table
from vaultml_operator.local.deployments import Deployments
from vaultml_operator.local.documents import BadFile as BadFile  # for the command
from vaultml_operator.local.documents import Documents
from vaultml_operator.local.kubelet import Backoff, Kubelet
from vaultml_operator.local.logs import Logs
from vaultml_operator.local.rows import row
from vaultml_operator.local.server import Server
from vaultml_operator.local.store import Store
from vaultml_operator.manifests import PIPELINE, Manifest
from vaultml_operator.metrics import Metrics
from vaultml_operator.probes import Probes
from vaultml_operator.reconcile import Reconciler
from vaultml_operator.scaling import Key
from vaultml_operator.workqueue import Queue

_log = structlog.get_logger(__name__)

_ECHO_S = 0.3
"""As in handlers.py: one change echoes in many."""
_FILE_S = 1.0
_SCREEN_S = 0.5
_DEADLINE_S = 120.0
_STUCK = 3
_SCRATCH = "vaultml-"
"""Short: sockets lie in it, whose paths may not be long."""


class CannotListen(Exception):  # noqa: N818 - named for what it is about
    """The port is not to be had; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run and where. Port 0 picks one; `logs`: the folder of the workers' logs; `cache`: what is kept."""

    file: Path
    port: int = 8090
    logs: Path
    cache: Path
    backoff: Backoff = field(default_factory=Backoff)


class Local:
    """All parts. `run` returns the exit status."""

    def __init__(self, options: Options, hardware: machine.Hardware, first: Documents, scratch: Path) -> None:
        self._options = options
        self._hardware = hardware
        self._documents = Documents({})
        self._first = first
        self._store = Store()
        self._pool = Pool()
        self._devices = machine.Devices(hardware.devices)
        self._metrics = Metrics()
        self._queue: Queue[Key] = Queue(
            self._reconcile,
            deadline=_DEADLINE_S,
            on_done=lambda _key, outcome, seconds: self._metrics.reconciled(outcome, seconds),
            on_error=_complain,
        )
        self._probes: Probes[Key] = Probes(self._queue.add)
        self._scaler: Scaler[Key] = Scaler(self._queue.add, pool=self._pool, told=self._metrics.decided)
        self._reconciler = Reconciler(
            self._store,
            self._probes,
            self._scaler,
            again=self._queue.add,
            image="this machine",
            told=lambda key, status: self._metrics.told(key.namespace, key.name, status),
            gone=self._gone,
        )
        self._kubelet = Kubelet(
            self._store,
            self._devices,
            self._pool,
            Logs(options.logs),
            private=scratch,
            cache=options.cache,
            backoff=options.backoff,
        )
        self._store.listen(self._heard)
        self._deployments = Deployments(self._store, self._kubelet)
        self._server = Server(self._store, self._metrics.registry, self._healthy)
        self._seen: dict[Key, tuple[Any, ...]] = {}
        self._metrics.depth.set_function(lambda: self._queue.depth)
        self._metrics.oldest.set_function(lambda: self._queue.oldest)
        self._metrics.leading.set(1)

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT: workers then finish what they have in work; a second signal ends them at once.

        Raises CannotListen.
        """
        try:
            await self._server.start(self._options.port)
        except OSError as error:
            raise CannotListen(
                f"can't listen on 127.0.0.1:{self._options.port} ({error.strerror}): give a free port with --port, or 0"
            ) from None
        stop, now = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, lambda: (now if stop.is_set() else stop).set())
        heading = f"{self._options.file} on {self._server.url}; workers' logs in {self._options.logs}"
        screen = table.screen(sys.stdout, heading)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {name: group.create_task(each, name=name) for name, each in self._parts(screen).items()}
                await stop.wait()
                for name in ("queue", "deployments", "file"):  # nothing is decided any more
                    tasks[name].cancel()
                self._store.tell("Normal", "", "Stopping", "the workers finish what they have in work")
                await self._let_finish(now)
                for task in tasks.values():
                    task.cancel()
        finally:
            self._show(screen)
            screen.close()
            await self._server.close()
        return 0

    def _parts(self, screen: table.Screen) -> Mapping[str, Any]:
        self._load(self._first)
        if self._hardware.trouble:
            _log.info("no GPUs", why=self._hardware.trouble)
        return {
            "queue": self._queue.run(),
            "checks": self._probes.run(),
            "scaler": self._scaler.run(),
            "deployments": self._deployments.run(),
            "pods": self._kubelet.run(),
            "file": self._follow_file(),
            "screen": self._refresh(screen),
        }

    async def _let_finish(self, now: asyncio.Event) -> None:
        ending, hurry = asyncio.create_task(self._kubelet.stop_all()), asyncio.create_task(now.wait())
        await asyncio.wait({ending, hurry}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ending, hurry):
            task.cancel()
        await asyncio.gather(ending, hurry, return_exceptions=True)

    # --- the file -----------------------------------------------------------------------------------------------------

    def _load(self, wanted: Documents) -> None:
        """Take what the file says now."""
        specs = {"/".join(name): api.Spec.model_validate(body["spec"]) for name, body in wanted.pipelines.items()}
        sharing = machine.share(specs, self._hardware)
        self._devices.total_slots = sharing.total
        self._store.put(machine.node(self._hardware, sharing.total))
        self._kubelet.room_changed()
        sized = {
            name: documents.with_slots(body, sharing.taken.get("/".join(name), 1)) if name[0] == api.KIND else body
            for name, body in wanted.objects.items()
        }
        self._store.load(Documents(sized), self._documents)
        self._documents = wanted
        if wanted.secret and _is_open(self._options.file):
            name = self._options.file.name
            self._store.tell("Warning", "", "FileReadable", f"{name} holds Secrets and others may read it: chmod 600")

    async def _follow_file(self) -> None:
        """Take each new version of the file; one that can't be used leaves all as it is, and is told."""
        file = self._options.file
        known = _signature(file)
        while True:
            await asyncio.sleep(_FILE_S)
            now = _signature(file)
            if now == known:
                continue
            known = now
            try:
                self._load(documents.read(file, self._documents))
            except BadFile as error:
                _log.warning("the file can't be used: all stays as it is", error=str(error))
                self._store.tell("Warning", "", "FileRefused", f"all stays as it is: {file.name}: {error.short}")
            else:
                self._store.tell("Normal", "", "FileApplied", f"{file.name} has changed, and is what counts now")

    # --- changes ------------------------------------------------------------------------------------------------------

    async def _reconcile(self, key: Key) -> float | None:
        return await self._reconciler.reconcile(key)

    def _heard(self, kind: str, manifest: Manifest, gone: bool) -> None:
        """What watches do in a cluster: keep the pool told, and queue each pipeline that a change is about."""
        metadata = manifest["metadata"]
        match kind:
            case "Node":
                self._pool.node_seen(manifest)
            case api.KIND:
                self._pipeline_heard(Key(metadata["namespace"], metadata["name"]), manifest, gone)
            case "Secret" | "ConfigMap":
                for key in self._reconciler.readers(metadata["namespace"], Object(kind, metadata["name"])):
                    self._queue.add(key)
            case _:
                if kind == "Pod":
                    self._pool.pod_gone(metadata["uid"]) if gone else self._pool.pod_seen(manifest)
                if owner := (metadata.get("labels") or {}).get(PIPELINE):
                    self._queue.add_after(Key(metadata["namespace"], owner), _ECHO_S)

    def _pipeline_heard(self, key: Key, body: Manifest, gone: bool) -> None:
        metadata = body["metadata"]
        annotations = metadata.get("annotations") or {}
        now = (metadata["uid"], metadata["generation"], *(annotations.get(name) for name in api.ANNOTATIONS), gone)
        # A status that was written is no news.
        if self._seen.get(key) != now:
            self._seen[key] = now
            self._queue.add(key)

    def _gone(self, key: Key) -> None:
        self._seen.pop(key, None)
        self._queue.forget(key)
        self._metrics.gone(key.namespace, key.name)

    # --- what is seen -------------------------------------------------------------------------------------------------

    async def _refresh(self, screen: table.Screen) -> None:
        while True:
            self._show(screen)
            await asyncio.sleep(_SCREEN_S)

    def _show(self, screen: table.Screen) -> None:
        screen.show([row(body) for body in self._store.listed(api.KIND)], list(self._store.events))

    def _healthy(self) -> bool:
        return self._queue.oldest <= _STUCK * _DEADLINE_S


def run(options: Options) -> int:
    """Run a file's pipelines. Raises BadFile, CannotListen."""
    first = documents.read(options.file)
    hardware = machine.look()
    with _scratch() as scratch:
        return asyncio.run(Local(options, hardware, first, scratch).run())


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for us alone, in memory where there is such a place: certificates' keys lie in it."""
    memory = Path("/dev/shm")  # noqa: S108 - made for us alone, below
    parent = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    # What one left behind that was killed.
    for old in parent.glob(f"{_SCRATCH}*"):
        pid = old.name.removeprefix(_SCRATCH).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and old.stat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _signature(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _is_open(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & 0o077)
    except OSError:
        return False


def _complain(key: Key, error: BaseException, retry_in: float) -> None:
    # A conflict is what two changes at once come to; the next look settles it.
    _log.warning("will be tried again", pipeline=str(key), error=str(error), seconds=retry_in, exc_info=error)
