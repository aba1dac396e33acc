"""One run of a container: a process in a group of its own that ends with us, whatever becomes of us."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from vaultml_operator.local.launch import Launch

_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")


class Container:
    """A process that was started; `wait` for its end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, launch: Launch, more: Mapping[str, str], log: int) -> Self:
        """Start it, with `more` variables; it writes to the descriptor `log`. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            # -I, -S: nothing but the standard library, and none of the variables that are meant for the worker.
            *(sys.executable, "-I", "-S", str(_DIE_WITH_PARENT), str(os.getpid()), *launch.command),
            env={**launch.env, **more},
            cwd=launch.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process id, which is its group's, too."""
        return self._process.pid

    async def wait(self) -> int:
        """The exit code, once it has ended: 128 and more for a signal; what it left behind in its group is ended."""
        code = await self._process.wait()
        self._kill_group()
        return code if code >= 0 else 128 - code

    async def stop(self, grace: float) -> int:
        """End it with SIGTERM, or after `grace` seconds with SIGKILL; gives the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            self.kill()
            return await self.wait()

    def kill(self) -> None:
        """End it, and all in its group, at once."""
        if self._process.returncode is None:
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
