"""SIGTERM ends both commands from their first moment on, also as process 1 of a container."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.process import wait_for

WAIT_S = 30
ENDLESS = "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(1000)\n"


@pytest.mark.parametrize(("module", "command"), [("vaultml_worker", "worker"), ("vaultml_operator", "run")])
def test_sigterm_ends_a_command_that_is_still_importing(module: str, command: str, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("only root can start a process as process 1")
    (tmp_path / "typer.py").write_text(ENDLESS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    # Process 1 of its namespace gets no signal that it doesn't handle.
    started = subprocess.Popen(
        [unshare, "--pid", "--fork", "--kill-child", sys.executable, "-m", module, command],
        cwd=tmp_path,
        env=environment,
    )
    try:
        wait_for((tmp_path / "importing").exists, WAIT_S, "the import")
        (first,) = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        assert started.wait(WAIT_S) == 128 + signal.SIGTERM
    finally:
        started.kill()
        started.wait()
