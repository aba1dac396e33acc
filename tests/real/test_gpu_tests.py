"""What needs a GPU is tried on the stand-in, so that it works on the day when there is one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.service import environment

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"


def run(variables: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a module of Python."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment(variables),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(600)
def test_the_tests_for_a_gpu_pass_on_the_stand_in(gpu: dict[str, str], tmp_path: Path) -> None:
    arguments = ("-m", "gpu", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "gpu"))
    done = run(gpu, "pytest", "tests/gpu", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.timeout(600)
def test_the_benchmark_of_a_gpu_runs_on_the_stand_in(gpu: dict[str, str]) -> None:
    small = {"NETWORKS": "yolov3-tiny-416", "BATCHES": "1,2", "SECONDS": "0.2"}
    before = RESULTS.read_text()
    done = run(gpu | small, "benchmarks", "gpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GPU: Stand-in GPU (8 GiB, compute capability 8.9), driver unknown, tensorrt 11.4" in done.stdout
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| yolov3-tiny-416")]
    engine, worker = rows[:2], rows[2:]
    assert [row[:2] for row in engine] == [["yolov3-tiny-416", "1"], ["yolov3-tiny-416", "2"]]
    assert all(re.fullmatch(r"[\d.]+ [\d.]+ \d+ - - \d+", " ".join(row[2:])) for row in engine)
    assert [row[:3] for row in worker] == [["yolov3-tiny-416", "2", "4"], ["yolov3-tiny-416", "2", "16"]]
    assert all(float(row[3]) > 0 for row in worker)
    assert RESULTS.read_text() == before


def test_without_a_gpu_the_benchmark_says_what_is_missing_and_writes_nothing() -> None:
    before = RESULTS.read_text()
    done = run({"CUDA_VISIBLE_DEVICES": ""}, "benchmarks", "gpu", "--write")
    assert done.returncode == 2
    assert re.fullmatch(r"benchmarks: gpu: .*GPU.*\n", done.stderr)
    assert done.stdout == ""
    assert RESULTS.read_text() == before
