"""The container runtime: starts a container's process through `launch.py`, tells when it ends, sends it signals."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LAUNCH = Path(__file__).with_name("launch.py")


def available() -> str | None:
    """Return None when containers can be run here, else one sentence saying what is missing."""
    for tool in ("unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"A process node needs {tool} (util-linux) on the PATH."
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ["unshare", *user, "--mount", "--uts", "--pid", "--fork", "true"]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode != 0:
        return "A process node needs root's rights, or user namespaces that any user may make."
    return None


class StartError(Exception):
    """The command can't be run; `reason` and the text are those of a container's status."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Running:
    """One start of a container; it can't outlive this process."""

    def __init__(self, launcher: subprocess.Popen[bytes], pid: int) -> None:
        """Wait for the end of a launcher whose command is process `pid` of this machine."""
        self.pid = pid
        self._launcher = launcher
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            self._command = os.pidfd_open(pid)
        except ProcessLookupError:  # it was over at once
            self._command = -1
        self._end = os.pidfd_open(launcher.pid)
        asyncio.get_running_loop().add_reader(self._end, self._reap)

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._ended.done()

    async def wait(self) -> int:
        """Return the exit code once it has ended: 128 and the signal's number, if a signal ended it."""
        return await asyncio.shield(self._ended)

    def signal(self, number: signal.Signals) -> None:
        """Signal the main process, which is process 1 to itself: one without a handler for SIGTERM ignores it."""
        if not self.ended and self._command != -1:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._command, number)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)
        if self._command != -1:
            os.close(self._command)
        self._ended.set_result(self._launcher.wait())


async def start(spec: Mapping[str, Any], log: Path) -> Running:
    """Start what `spec` says (see launch.py), its output appended to `log`; returns once the command runs.

    Raises StartError when it can't.
    """
    order = os.memfd_create("container")  # not a pipe, whose size has a limit, nor a file, for there are secrets in it
    told, tell = os.pipe()
    try:
        os.write(order, json.dumps(spec).encode())
        os.lseek(order, 0, os.SEEK_SET)
        with log.open("ab") as output:
            launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", _LAUNCH, str(tell), str(os.getpid())],
                env={},
                stdin=order,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(tell,),
                start_new_session=True,
            )
    finally:
        os.close(order)
        os.close(tell)
    try:
        lines = (await _read_all(told)).splitlines()
    except asyncio.CancelledError:
        launcher.kill()  # and its command dies with it
        launcher.wait()
        raise
    facts = {key: value for line in lines for key, value in json.loads(line).items()}
    if "pid" not in facts or "message" in facts:
        launcher.wait()
        raise StartError(facts.get("reason", "StartError"), facts.get("message", "the launcher failed: see the log"))
    return Running(launcher, facts["pid"])


async def _read_all(descriptor: int) -> bytes:
    """Everything up to the end: it comes when the command has been started, or its start has failed."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    parts: list[bytes] = []

    def read() -> None:
        if part := os.read(descriptor, 65536):
            parts.append(part)
        elif not done.done():
            done.set_result(None)

    loop.add_reader(descriptor, read)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return b"".join(parts)
