"""A command of ours that serves health and metrics, as a process of its own."""

import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from testbed.process import LOOPBACK, Process, wait_for

_KEPT_LOGS = Path(__file__).parents[1] / ".test-output"
# What a shell brings along; the caches hold the model.
_SHELL = ("PATH", "HOME", "VAULTML_CACHE", "XDG_CACHE_HOME")


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a command of ours: a shell's, and these variables; nothing else of this process."""
    return {name: os.environ[name] for name in _SHELL if name in os.environ} | dict(variables)


class Service:
    """Runs from construction on until `terminate` or `kill`; signals go to the process alone, as Kubernetes does it.

    As a context manager it is killed at the end of the block, with the processes that it started.
    """

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str], log: Path, port: int) -> None:
        """Start it; `name` is what messages and kept logs call it, `port` where it serves."""
        self._name = name
        self._url = f"http://{LOOPBACK}:{port}"
        self._session = requests.Session()
        self._session.trust_env = False
        self.process = Process(command, env=environment(variables), log=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self._session.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, then its exit status."""
        return self.process.returncode

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page; status 0 while nobody listens."""
        try:
            answer = self._session.get(self._url + path, timeout=10)
        except requests.ConnectionError:
            return 0, ""
        return answer.status_code, answer.text

    def ready(self) -> bool:
        """Whether /readyz says so."""
        return self.get("/readyz")[0] == 200

    def wait_ready(self, timeout: float = 60) -> Self:
        """Return once it is ready; raises RuntimeError when it ends before, TimeoutError when it takes too long."""
        wait_for(self.ready, timeout, f"the {self._name} to become ready", process=self.process)
        return self

    def wait_log(self, text: str, timeout: float = 60) -> None:
        """Return once `text` stands in the log; raises as `wait_ready` does."""
        wait_for(
            lambda: text in self.log_text(), timeout, f"{text!r} in the log of the {self._name}", process=self.process
        )

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by name and labels, as in `vaultml_recordings_total{outcome="published"}`."""
        samples = (line.rpartition(" ") for line in self.get("/metrics")[1].splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def log_text(self) -> str:
        """All of the log so far."""
        return self.process.log_text()

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process, or to those that it started as well, as Ctrl-C in a terminal does."""
        if group:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 30) -> int:
        """Return the exit status once it has ended; raises TimeoutError when it doesn't."""
        wait_for(lambda: self.returncode is not None, timeout, f"the {self._name} to end")
        return self.process.kill()

    def terminate(self, timeout: float = 30) -> int:
        """Send SIGTERM and return the exit status; raises TimeoutError when it goes on running."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it, and what is left in its group, with SIGKILL."""
        self.process.kill()

    def keep_log(self) -> Path:
        """Copy the log to `.test-output/`, as is done on failure; returns where it lies."""
        _KEPT_LOGS.mkdir(exist_ok=True)
        return Path(shutil.copy(self.process.log, _KEPT_LOGS / f"{self._name}-{self.pid}.log"))
