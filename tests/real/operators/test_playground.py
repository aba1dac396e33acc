"""`make cluster`: what it prints is all that a person with kubectl needs, and Ctrl-C takes everything down."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from testbed.playground import missing
from testbed.process import Process, wait_for
from testbed.service import environment
from tests.parts import need

START_S = 120


@pytest.fixture
def playground(tmp_path: Path) -> Iterator[Process]:
    need(missing())
    command = [sys.executable, "-m", "testbed", "--nodes", "2", "--gpus", "1"]
    with Process(command, env=environment({}), log=tmp_path / "log", cwd=Path(__file__).parents[3]) as process:
        wait_for(lambda: "describe vmlp" in process.log_text(), START_S, "what to try", process=process)
        yield process


def test_what_is_printed_works_and_all_of_it_goes(playground: Process) -> None:
    printed = playground.log_text()
    exports = dict(re.findall(r"^export (\w+)=(\S+)$", printed, re.MULTILINE))
    folder = Path(exports["KUBECONFIG"]).parent
    assert folder.is_dir()
    env = {**os.environ, **exports, "PATH": exports["PATH"].replace("$PATH", os.environ["PATH"])}

    def kubectl(arguments: str) -> str:
        return subprocess.run(
            ["kubectl", *shlex.split(arguments)], env=env, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    commands = [line.partition("#")[0].strip() for line in printed.splitlines() if line.startswith("  kubectl ")]
    known = [each.removeprefix("kubectl ") for each in commands]
    kubectl(next(each for each in known if each.startswith("config set-context")))
    kubectl(next(each for each in known if each.startswith("apply")))
    kubectl("wait --for=condition=Ready vmlp/highway --timeout=180s")
    assert "ScaledToZero" in kubectl("get pipelines")
    kubectl(next(each for each in known if each.startswith("patch")))
    reason = "jsonpath={.status.conditions[?(@.type=='Ready')].reason}"
    kubectl(f'wait "--for={reason}=Unschedulable" vmlp/highway --timeout=90s')
    assert "Insufficient nvidia.com/gpu" in kubectl("describe vmlp highway")
    assert "leading" in kubectl("logs -n vaultml-system -l app.kubernetes.io/name=vaultml-operator --tail=-1")
    assert "2/2" in kubectl("get deployment vaultml-operator -n vaultml-system")

    started = psutil.Process(playground.pid).children(recursive=True)
    os.kill(playground.pid, signal.SIGINT)
    wait_for(lambda: playground.returncode is not None, 120, "the playground to end")
    assert playground.returncode == 0, playground.log_text()
    wait_for(lambda: not any(each.is_running() and each.status() != "zombie" for each in started), 60, "all to end")
    wait_for(lambda: not folder.exists(), 20, "its folder to go")
