"""Local processes that leave nothing behind: own group, own log, explicit environment; waiting on conditions."""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
_POLL_S = 0.05
_TAIL_LINES = 40
# Below Linux's range for outgoing connections (32768 and up): there, a client that retries against a server which is
# down for a moment can be given the server's own port, connect to itself and keep the server from coming back.
_PORTS = range(20_000, 32_768)
_handed_out: set[int] = set()


def free_port() -> int:
    """Return a TCP port nobody listens on at 127.0.0.1, never the same one twice in this process."""
    for _ in range(1000):
        port = random.choice(_PORTS)
        if port in _handed_out:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        _handed_out.add(port)
        return port
    raise RuntimeError(f"no free port found between {_PORTS.start} and {_PORTS.stop - 1}")


class Process:
    """A command that runs from construction on, in its own process group, until `terminate` or `kill`.

    As a context manager it is terminated at the end of the block. Whatever the command started itself and left
    behind in its group ends with it.
    """

    def __init__(
        self, command: Sequence[str | Path], *, env: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        """Start `command` with exactly `env`; stdout and stderr are appended to the file `log`.

        Raises OSError when the command cannot be started.
        """
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while the command runs, then its exit status, or minus the number of the signal that ended it."""
        if self._popen.returncode is not None:
            return self._popen.returncode
        # WNOWAIT: not reaped before `kill`, so that the id stays ours and no later process can be hit in its place.
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def terminate(self, grace: float = 10) -> int:
        """Send SIGTERM to the group, SIGKILL to what is left after `grace` seconds, and return the exit status."""
        if self._popen.returncode is None:
            os.killpg(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while self.returncode is None and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        return self.kill()

    def kill(self) -> int:
        """Send SIGKILL to the group and return the exit status; a process that has ended keeps the status it has."""
        if self._popen.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
        return self._popen.wait()

    def log_text(self) -> str:
        """Return all the command has written so far, stdout and stderr in one."""
        return self.log.read_text(errors="replace")


def wait_for(condition: Callable[[], T | None], timeout: float, what: str, *, process: Process | None = None) -> T:
    """Poll `condition` until it returns something true, and return that.

    `what` completes "waited for …". Raises TimeoutError after `timeout` seconds, and RuntimeError as soon as
    `process` has ended; both carry the end of that process's log. What `condition` raises passes through.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if process is not None and process.returncode is not None:
            raise RuntimeError(
                f"waited for {what}, but the process ended with status {process.returncode}{_tail(process)}"
            )
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}, in vain{_tail(process)}")
        time.sleep(_POLL_S)


def _tail(process: Process | None) -> str:
    if process is None:
        return ""
    lines = process.log_text().splitlines()[-_TAIL_LINES:]
    return "\n".join(["; the end of its log:", *lines]) if lines else "; its log is empty"
