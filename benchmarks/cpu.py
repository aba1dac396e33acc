"""Frames a second of our CPU engine beside OpenVINO (where it can be imported), with their start, memory and size.

Every contender computes in processes of its own, as workers do: `python -m benchmarks.cpu ENGINE ONNX THREADS` is one.
"""

import importlib
import importlib.metadata
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.measure import Contender, interleave, ratio, table
from benchmarks.networks import prepared
from vaultml_worker import model
from vaultml_worker.records import Model

_FRAMES = {"yolov3-tiny-416": 20, "yolov3-416": 2, "yolov3-608": 1}
"""Networks, and how many frames a process computes in one round."""
_SHAPES = ((1, 1), (1, 2), (2, 1))
"""Processes, and threads of each."""
_ROUNDS = 5
_OURS = "onnxruntime"
_Detect = Callable[[NDArray[np.uint8]], object]
_PACKAGES = ("onnxruntime", "openvino", "openvino-telemetry")


def run(_footage: Path | None) -> str:
    """Measure all networks; gives Markdown."""
    rows: list[list[str]] = []
    costs: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for network in _FRAMES:
            graph = Path(scratch) / f"{network}.onnx"
            graph.write_bytes(model.load(*prepared(network, Path(scratch))).onnx)
            for processes, threads in _SHAPES:
                row, cost = _measure(network, graph, processes, threads)
                rows.append(row)
                costs += cost if (processes, threads) == _SHAPES[0] else []
            graph.unlink()
    names = _contenders()
    others = [name for name in names if name != _OURS]
    header = ["network", "processes x threads"]
    header += [f"{name}, frames/s" for name in names] + [f"{name} / {_OURS}" for name in others]
    sizes = [f"{package} {_installed(package) / 1e6:.0f} MB" for package in _PACKAGES if _version(package)]
    version = _version("openvino")
    about = (
        f"OpenVINO {version}; where a CPU has bf16, it is OpenVINO's own choice."
        if version
        else "OpenVINO is not installed: only ours is measured."
    )
    return (
        "From uint8 frames to decoded boxes, all processes together, medians; contenders take turns in one run. "
        f"yolov3-tiny has its trained weights, yolov3 random ones. {about}\n\n{table(header, rows)}\n\n"
        "Start: from the command to the first frame's boxes, of one process with one thread; memory: what is resident "
        f"of it at the end. On disk: {', '.join(sizes)}.\n\n"
        f"{table(['network', 'engine', 'start, s', 'memory, MB'], costs)}"
    )


def _contenders() -> tuple[str, ...]:
    return (_OURS, *(("OpenVINO fp32", "OpenVINO bf16") if _version("openvino") else ()))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed(package: str) -> int:
    """Bytes of its files."""
    files = (Path(str(file.locate())) for file in importlib.metadata.files(package) or ())
    return sum(file.stat().st_size for file in files if file.is_file())


def _measure(network: str, graph: Path, processes: int, threads: int) -> tuple[list[str], list[list[str]]]:
    """A row of speeds, and each contender's start and memory."""
    frames = _FRAMES[network]
    with ExitStack() as stack:
        crews = {name: stack.enter_context(_Crew(name, graph, processes, threads)) for name in _contenders()}
        seconds = interleave(
            {name: Contender(partial(crew.compute, frames), _ROUNDS) for name, crew in crews.items()},
            time.perf_counter,
        )
    costs = [[network, name, f"{crew.start:.1f}", f"{crew.memory / 1e6:.0f}"] for name, crew in crews.items()]
    speeds = [f"{processes * frames / statistics.median(taken):.2f}" for taken in seconds.values()]
    beside = [f"{ratio(seconds[_OURS], taken):.2f}" for name, taken in seconds.items() if name != _OURS]
    return [network, f"{processes} x {threads}", *speeds, *beside], costs


class _Crew:
    """Processes with one engine each; `start`: seconds until all were ready; `memory`: bytes of the largest."""

    def __init__(self, engine: str, graph: Path, processes: int, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.cpu", engine, str(graph), str(threads)]
        begin = time.perf_counter()
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        self.memory = 0
        self._hear()
        self.start = time.perf_counter() - begin

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.communicate()  # its input ends, and so does it

    def compute(self, frames: int) -> None:
        """Let every process compute so many frames, at the same time."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{frames}\n")
            process.stdin.flush()
        self._hear()

    def _hear(self) -> None:
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{process.args!r} ended with status {process.wait()}")
            self.memory = max(self.memory, int(line))


def _child(engine: str, graph: Path, threads: int) -> None:
    """Compute as many frames as each line of the input says, and answer with the memory that is resident then."""
    loaded = model.load(graph)
    frame = np.random.default_rng(0).integers(0, 256, (1, loaded.height, loaded.width, 3), np.uint8)
    detect = _ours(loaded, threads) if engine == _OURS else _openvino(engine, loaded, threads)
    detect(frame)
    while True:
        print(psutil.Process().memory_info().rss, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        for _ in range(int(line)):
            detect(frame)


def _ours(loaded: Model, threads: int) -> _Detect:
    from vaultml_worker.engines.onnx import OnnxEngine  # here, for with OpenVINO it would count as memory, too

    return OnnxEngine(loaded, threads).detect


def _openvino(engine: str, loaded: Model, threads: int) -> _Detect:
    core: Any = importlib.import_module("openvino").Core()  # not there when types are checked
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": {"OpenVINO fp32": "f32", "OpenVINO bf16": "bf16"}[engine],
        # It is its default, and puts two processes of one thread each on one core.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(loaded.onnx), "CPU", settings)
    return lambda frames: compiled(frames)


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
