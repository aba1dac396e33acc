"""`vaultml worker` as a process of its own, started as hub-ml's users start it."""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from testbed.process import LOOPBACK, free_port, wait_for
from testbed.service import Service


class Worker(Service):
    """A worker on this machine."""

    def __init__(self, variables: Mapping[str, str], log: Path) -> None:
        """Start it with hub-ml's `variables`; its log is appended to the file `log`."""
        port = free_port()
        command = [sys.executable, "-m", "vaultml_worker", "worker"]
        super().__init__("worker", command, {"HTTP_HOST": LOOPBACK, "HTTP_PORT": str(port), **variables}, log, port)

    def kill(self) -> None:
        """End the worker with SIGKILL, and return once the processes that it had started have ended by themselves."""
        self.signal(signal.SIGKILL)
        wait_for(lambda: self.returncode is not None, 10, "the worker to be killed")
        wait_for(lambda: not self.started(), 10, "the killed worker's processes to end")
        self.process.kill()

    def started(self) -> dict[int, int]:
        """The processes that it started and that still run: the parent of each, by id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == self.pid:
                continue
            try:
                state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(group) == self.pid and state != "Z":
                found[int(entry.name)] = int(parent)
        return found
