"""Ends processes that a killed program leaves behind: one that dies by SIGKILL cleans up nothing."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


class Guard:
    """A small process that watches this one and, should it end first, kills the process groups given to `watch`.

    It removes `folder` then, too. As a context manager it goes away at the end of the block, and does neither.
    """

    def __init__(self, folder: Path) -> None:
        """Start the guard."""
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(folder)],
            env={},
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal ends the program, then its guard
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._popen.kill()
        self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def watch(self, group: int) -> None:
        """Kill this process group when this process ends before `forget` is called."""
        self._tell(f"+{group}")

    def forget(self, group: int) -> None:
        """The group has ended; its id may be someone else's from now on."""
        self._tell(f"-{group}")

    def _tell(self, line: str) -> None:
        if self._popen.stdin is None:
            raise RuntimeError("the guard has no standard input")
        print(line, file=self._popen.stdin, flush=True)


def _keep_watch(parent: int, folder: str) -> None:
    groups: set[int] = set()
    try:
        watched = os.pidfd_open(parent)
    except ProcessLookupError:
        watched = -1
    buffer = b""
    while watched != -1:
        ready = select.select([watched, 0], [], [])[0]
        if 0 in ready:
            chunk = os.read(0, 4096)
            if not chunk:  # the parent is ending, and nothing more will be told
                select.select([watched], [], [])
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
        if watched in ready and 0 not in ready:
            break
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _keep_watch(int(sys.argv[1]), sys.argv[2])
