"""What needs a GPU is tried on the stand-in, so that it works on the day when there is one."""

import subprocess
import sys
from pathlib import Path

import pytest

from testbed.service import environment

ROOT = Path(__file__).parents[2]


def run(gpu: dict[str, str], *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a module of Python with a GPU."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment(gpu | variables),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(600)
def test_the_tests_for_a_gpu_pass_on_the_stand_in(gpu: dict[str, str], tmp_path: Path) -> None:
    arguments = ("-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", str(tmp_path / "gpu"))
    done = run(gpu, "pytest", "tests/gpu", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
