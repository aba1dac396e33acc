"""Plans on disk: one folder, shared by all workers of a node, perhaps of several."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vaultml_worker.engines.base import EngineStopped, Observer
from vaultml_worker.engines.tensorrt.build import Recipe

_FORMAT = 1
_MAGIC = b"vaultml-engine "
_POLL_S = 0.2
_LEFT_S = 3600.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class Key:
    """All that decides whether a plan fits: another value anywhere is another plan.

    `onnx` is the graph's sha256; `runtime` TensorRT's flavour and version; `device` the GPU's name;
    `compute_capability` (major, minor).
    """

    onnx: str
    runtime: str
    device: str
    compute_capability: tuple[int, int]
    recipe: Recipe
    flags: tuple[str, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {"format": _FORMAT, **json.loads(json.dumps(asdict(self)))}

    @property
    def digest(self) -> str:
        """sha256 of the facts."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    @property
    def hardware(self) -> str:
        """What the timings belong to, fit for a file name."""
        return _slug(f"{self.runtime}-{self.device}-sm{''.join(map(str, self.compute_capability))}")


class Store:
    """Reads and writes plans in `folder`; None, or a folder that can't be written, keeps nothing."""

    def __init__(self, folder: Path | None, observer: Observer) -> None:
        self._folder = folder
        self._observer = observer

    def plan(self, key: Key) -> bytes | None:
        """The plan of that key; None when there is none, or what is there is damaged.

        Damage is found here by digest: TensorRT itself may crash on a damaged plan.
        """
        path = self.path(key)
        if path is None:
            return None
        try:
            body = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._observer.warning(f"the engine {path} can't be read ({error.strerror}): it is built again")
            return None
        head, _, plan = body.partition(b"\n")
        if head != _head(key, plan):
            self._observer.warning(f"the engine {path} is damaged: it is built again")
            return None
        return plan

    def keep(self, key: Key, plan: bytes) -> bool:
        """Write a plan, whole or not at all; gives whether it is there now."""
        path = self.path(key)
        return path is not None and self._write(path, _head(key, plan) + b"\n" + plan)

    def timings(self, key: Key) -> bytes:
        """What builds on this hardware have learnt; empty when nothing."""
        path = self._timings(key)
        try:
            return b"" if path is None else path.read_bytes()
        except OSError:
            return b""

    def keep_timings(self, key: Key, timings: bytes) -> None:
        """Write what a build has learnt; hold `building` meanwhile, so that no other's is lost."""
        path = self._timings(key)
        if path is not None and timings:
            self._write(path, timings)

    def kernels(self, plan: Path | None, device: str) -> bytes:
        """The kernels that TensorRT for RTX has made for a plan on GPUs of that name; empty when there are none."""
        try:
            return b"" if plan is None else _kernels(plan, device).read_bytes()
        except OSError:
            return b""

    def keep_kernels(self, plan: Path | None, device: str, kernels: bytes) -> None:
        """Write them. No digest: TensorRT checks them itself, and makes them anew when they don't fit."""
        if plan is not None and kernels:
            self._write(_kernels(plan, device), kernels)

    @contextlib.contextmanager
    def building(self, key: Key, stopped: Callable[[], bool]) -> Iterator[None]:
        """One build at a time per kind of GPU: a second would wait for the same plan, or spoil the first's timing.

        The lock goes with the process that holds it, however it ends. Raises EngineStopped while waiting.
        """
        with contextlib.ExitStack() as stack:
            if self._folder is not None:
                self._lock(stack, self._folder / f"{key.hardware}.lock", stopped)
            yield

    def _lock(self, stack: contextlib.ExitStack, path: Path, stopped: Callable[[], bool]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return  # `keep` will say that nothing can be written here
        stack.callback(os.close, file)
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return  # a file system without locks: two workers may build the same, and either's plan is good
            else:
                return
            if not told:
                self._observer.info("another worker builds an engine for this kind of GPU: waiting for it")
                told = True
            if stopped():
                raise EngineStopped
            threading.Event().wait(_POLL_S)

    def path(self, key: Key) -> Path | None:
        """Where a plan belongs; None when nothing is kept."""
        return None if self._folder is None else self._folder / f"{key.onnx[:12]}-{key.digest[:32]}.engine"

    def _timings(self, key: Key) -> Path | None:
        return None if self._folder is None else self._folder / f"{key.hardware}.timings"

    def _write(self, path: Path, body: bytes) -> bool:
        # Not by the process's number, which is 1 in every container.
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_left(path)
            try:
                with scratch.open("wb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except OSError as error:
            self._observer.warning(
                f"{path} can't be written ({error.strerror}): it is made anew at every start; set ENGINE_CACHE to a "
                "folder that keeps it"
            )
            return False
        return True


def _kernels(plan: Path, device: str) -> Path:
    return plan.with_name(f"{plan.stem}-{_slug(device)}.kernels")


def _remove_left(path: Path) -> None:
    """Remove what a worker was writing when it was killed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_S:
                left.unlink()


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)


def _sync_folder(folder: Path) -> None:
    """Make a rename last."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _head(key: Key, plan: bytes) -> bytes:
    """The first line of a file: what it is of, and the digest of the plan behind it."""
    facts = {**key.facts, "size": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
    return _MAGIC + json.dumps(facts, sort_keys=True).encode()
