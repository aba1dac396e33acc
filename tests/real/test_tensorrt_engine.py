"""The GPU engine with the real pycuda, on a stand-in for the driver and a double of TensorRT."""

import gc
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from testbed.gpu import double
from testbed.gpu import driver as driver_
from testbed.gpu import pycuda as pycuda_
from testbed.gpu.driver import LAUNCH_FAILED, NO_DEVICE, OUT_OF_MEMORY, UNKNOWN, Driver
from tests.parts import need
from tests.real.gpu import Heard, chunks, importable, noise, same, small_model
from vaultml_worker import cli, engines, model
from vaultml_worker.engines import EngineStopped, Options
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.engines.tensorrt import EngineBroken, TensorRtEngine, bindings, execution
from vaultml_worker.engines.tensorrt.execution import Execution
from vaultml_worker.records import EngineError, InvalidInput, Model

SEED = int(os.environ.get("VAULTML_SEED", "20261125"))
BATCH = 4
SOAK = int(os.environ.get("VAULTML_SOAK_BATCHES", "10000"))


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Driver]:
    """The stand-in driver in this process, and the real pycuda on it."""
    need(driver_.available() or pycuda_.available())
    loaded = Driver(driver_.build([pycuda_.library()]))
    with importable(pycuda_.installed(), "pycuda"):
        yield loaded


@pytest.fixture
def driver(stand_in: Driver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Driver]:
    """A GPU just switched on; at the end everything must have been given back, and nothing have gone wrong silently."""
    stand_in.reset()
    double.faults.clear()
    double.statistics.update(builds=0, enqueued=0, kernels=0)
    monkeypatch.setattr(bindings, "tensorrt", lambda: (double, "tensorrt"))
    print(f"VAULTML_SEED={SEED}")  # noqa: T201 - pytest shows it with a failure
    yield stand_in
    gc.collect()
    assert "PyCUDA" not in capfd.readouterr().err, "something was freed after the context was given back"
    assert stand_in.violations == []
    assert stand_in.live() == {}
    assert (stand_in.faults_left, double.faults.left) == (0, [])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_model(tmp_path_factory.mktemp("small"), SEED)


@pytest.fixture
def make(driver: Driver) -> Iterator[Callable[..., TensorRtEngine]]:
    """Makes engines, and closes them."""
    made: list[TensorRtEngine] = []

    def start(loaded: Model, **options: Any) -> TensorRtEngine:
        made.append(TensorRtEngine(loaded, Options(**{"max_batch": BATCH, **options})))
        return made[-1]

    yield start
    for engine in made:
        engine.close()


Make = Callable[..., TensorRtEngine]


@pytest.mark.parametrize("own_first", [False, True])
def test_it_says_what_the_cpu_engine_says(driver: Driver, make: Make, small: Model, own_first: bool) -> None:
    driver.set(own_first=own_first)
    frames = noise(small, 41, SEED)
    engine = make(small)
    engine.warm_up()
    found = [candidates for chunk in chunks(frames, (1, 5, 2, 11)) for candidates in engine.detect(chunk)]
    assert same(found, OnnxEngine(small).detect(frames))


def test_it_says_what_the_cpu_engine_says_of_the_trained_network(make: Make, tiny: Path) -> None:
    loaded = model.load(tiny / "yolov3-tiny.cfg")
    frames = noise(loaded, 6, SEED)
    assert same(make(loaded).detect(frames), OnnxEngine(loaded).detect(frames))


@pytest.mark.parametrize("own_first", [False, True])
def test_callers_share_batches_and_get_their_own(driver: Driver, make: Make, small: Model, own_first: bool) -> None:
    driver.set(own_first=own_first)
    frames = [noise(small, 1 + number % 7, SEED + number) for number in range(60)]
    engine, cpu = make(small), OnnxEngine(small)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(engine.detect, frames))
    assert all(same(one, cpu.detect(given)) for one, given in zip(found, frames, strict=True))
    assert double.statistics["enqueued"] < sum(-(-len(given) // BATCH) for given in frames), "no batch was shared"


def test_batches_can_be_limited(make: Make, small: Model) -> None:
    engine = make(small)
    frames = noise(small, 6, SEED)
    for limit, batches in ((2, 3), (BATCH, 2)):
        engine.limit(limit)
        before = double.statistics["enqueued"]
        assert same(engine.detect(frames), OnnxEngine(small).detect(frames))
        assert (engine.batch, double.statistics["enqueued"] - before) == (limit, batches)
    for wrong in (0, BATCH + 1):
        with pytest.raises(ValueError, match=f"1 to {BATCH}"):
            engine.limit(wrong)


def test_frames_of_another_shape_are_refused(make: Make, small: Model) -> None:
    engine = make(small)
    with pytest.raises(ValueError, match="uint8"):
        engine.detect(np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="32, 32, 3"):
        engine.detect(np.zeros((1, 16, 32, 3), np.uint8))
    assert engine.detect(np.zeros((0, 32, 32, 3), np.uint8)) == []


def test_two_batches_are_under_way_at_once(make: Make, small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = [0, 0]
    start, finish = Execution.start, Execution.finish

    def started(self: Execution, *arguments: Any) -> Any:
        running = start(self, *arguments)
        depth[0] += 1
        depth[1] = max(depth)
        return running

    def finished(self: Execution, *arguments: Any) -> Any:
        depth[0] -= 1
        return finish(self, *arguments)

    monkeypatch.setattr(Execution, "start", started)
    monkeypatch.setattr(Execution, "finish", finished)
    make(small).detect(noise(small, 5 * BATCH, SEED))
    assert depth == [0, 2]


def test_the_gpu_is_known(make: Make, small: Model) -> None:
    heard = Heard()
    make(small, observer=heard)
    (gpu,) = heard.gpus
    assert (gpu.name, gpu.memory, gpu.compute_capability) == ("Stand-in GPU", driver_.MEMORY, (8, 9))
    assert gpu.uuid == "GPU-00112233-4455-6677-8899-aabbccddeeff"
    assert gpu.runtime == f"tensorrt {double.__version__}"
    assert heard.batches == [BATCH]


# ---- engines are kept


def test_an_engine_is_built_once_and_kept(make: Make, small: Model, tmp_path: Path) -> None:
    first, second = Heard(), Heard()
    make(small, cache=tmp_path, observer=first).close()
    make(small, cache=tmp_path, observer=second).warm_up()
    assert double.statistics["builds"] == 1
    assert first.progress == sorted(first.progress)
    assert (first.progress[0], first.progress[-1]) == (0.0, 1.0)
    assert second.progress == [1.0]
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".engine", ".lock", ".timings"]


def test_tensorrt_for_rtx_keeps_its_kernels_too(
    make: Make, small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bindings, "tensorrt", lambda: (double, bindings.RTX))
    frames = noise(small, 5, SEED)
    for seen in range(2):
        engine = make(small, cache=tmp_path)
        engine.warm_up()
        assert same(engine.detect(frames), OnnxEngine(small).detect(frames))
        assert double.statistics["kernels"] == seen
    (kernels,) = tmp_path.glob("*-Stand-in-GPU.kernels")
    kernels.write_bytes(b"another driver's")
    make(small, cache=tmp_path).warm_up()
    assert kernels.read_bytes() == b"kernels"
    assert double.statistics["builds"] == 1


def test_another_batch_is_another_engine(make: Make, small: Model, tmp_path: Path) -> None:
    make(small, cache=tmp_path)
    make(small, cache=tmp_path, max_batch=2)
    assert len(list(tmp_path.glob("*.engine"))) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another model's"])
def test_a_damaged_engine_is_built_anew(make: Make, small: Model, tmp_path: Path, damage: str) -> None:
    make(small, cache=tmp_path).close()
    (path,) = tmp_path.glob("*.engine")
    body = path.read_bytes()
    head, _, plan = body.partition(b"\n")
    path.write_bytes(
        {
            "cut": body[:-10],
            "flipped": body[:-10] + bytes([body[-10] ^ 1]) + body[-9:],
            "empty": b"",
            "another model's": head.replace(small.name.encode(), b"x").replace(b'"onnx": "', b'"onnx": "0')
            + b"\n"
            + plan,
        }[damage]
    )
    heard = Heard()
    make(small, cache=tmp_path, observer=heard).warm_up()
    assert double.statistics["builds"] == 2
    assert any("damaged" in line for line in heard.warnings)
    assert path.read_bytes() == body


def test_an_engine_that_tensorrt_refuses_is_built_anew_once(make: Make, small: Model, tmp_path: Path) -> None:
    make(small, cache=tmp_path).close()
    double.faults.inject("deserialize_cuda_engine", "serialized by another version")
    heard = Heard()
    make(small, cache=tmp_path, observer=heard).warm_up()
    assert double.statistics["builds"] == 2
    assert any("another version" in line for line in heard.warnings)


def test_two_workers_build_once(make: Make, small: Model, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: make(small, cache=tmp_path), range(2)))
    assert double.statistics["builds"] == 1
    for engine in made:
        engine.warm_up()


def test_a_folder_that_cannot_be_written_costs_only_time(make: Make, small: Model, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    heard = Heard()
    make(small, cache=blocked / "engines", observer=heard).warm_up()
    assert any("ENGINE_CACHE" in line for line in heard.warnings)


def test_a_build_is_given_up_when_the_worker_is_to_end(make: Make, small: Model, tmp_path: Path) -> None:
    asked = itertools.count()
    with pytest.raises(EngineStopped):
        make(small, cache=tmp_path, stopped=lambda: next(asked) > 2)
    assert list(tmp_path.glob("*.engine")) == []


# ---- memory


def test_batches_are_halved_until_they_fit(driver: Driver, make: Make, small: Model) -> None:
    driver.set(memory=3 << 20)  # four frames' activations alone are 4 MiB
    heard = Heard()
    engine = make(small, observer=heard)
    engine.warm_up()
    frames = noise(small, 9, SEED)
    assert same(engine.detect(frames), OnnxEngine(small).detect(frames))
    assert (engine.batch, heard.batches) == (2, [2])
    assert any("4 MiB of GPU memory for activations" in line for line in heard.warnings)


def test_too_little_memory_for_one_frame_says_so(driver: Driver, make: Make, small: Model) -> None:
    driver.set(memory=1 << 19)
    with pytest.raises(EngineError, match="1 MiB of GPU memory for activations"):
        make(small)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_memory_that_runs_out_later_loses_no_frame(make: Make, small: Model, after: int) -> None:
    heard = Heard()
    engine = make(small, observer=heard)
    engine.warm_up()
    double.faults.inject("execute_async_v3", "Cuda Runtime (out of memory)", after=after)
    frames = noise(small, 6 * BATCH, SEED)
    with ThreadPoolExecutor(3) as pool:
        found = [one for part in pool.map(engine.detect, np.split(frames, 6)) for one in part]
    assert same(found, OnnxEngine(small).detect(frames))
    assert heard.batches == [BATCH, BATCH // 2]


# ---- commands


def test_the_commands_build_and_measure(driver: Driver, tiny: Path, tmp_path: Path) -> None:
    cfg = str(tiny / "yolov3-tiny.cfg")
    build = ["model", "build", cfg, "--cache", str(tmp_path), "--batch", "2"]
    first, second = (CliRunner().invoke(cli.cli, build) for _ in range(2))
    (path,) = tmp_path.glob("*.engine")
    assert re.fullmatch(rf"{re.escape(str(path))}: \d+\.\d MiB, \d+\.\d s\n", first.stdout)
    assert second.stdout.endswith("MiB, was there already\n")

    bench = ["model", "bench", cfg, "--cache", str(tmp_path), "--batches", "2,1", "--seconds", "0.1"]
    table = CliRunner().invoke(cli.cli, bench).stdout.splitlines()
    assert table[0] == f"yolov3-tiny, tensorrt, Stand-in GPU (tensorrt {double.__version__})"
    assert [line.split()[0] for line in table[2:4]] == ["1", "2"]
    assert table[4].startswith("GPU memory: ")
    found = json.loads(CliRunner().invoke(cli.cli, [*bench, "--json"]).stdout)
    assert found["gpu"]["uuid"].startswith("GPU-")
    assert [one["batch"] for one in found["batches"]] == [1, 2]
    assert all(one["latency"] > 0 and one["throughput"] > 0 and one["compute"] > 0 for one in found["batches"])
    assert found["memory"]["gpu"] >= found["memory"]["engine"] > 2 * (1 << 20)
    assert double.statistics["builds"] == 1


# ---- failures, each with its outcome


@dataclass(frozen=True)
class Fault:
    """A call of the driver (with a code) or of TensorRT (with the words that it logs) that fails once."""

    call: str
    how: int | str
    after: int = 0
    times: int = 1


# While it starts: the error and what its text must say.
STARTING = {
    "no driver": (Fault("cuInit", NO_DEVICE), InvalidInput, "finds no usable GPU.*nvidia-smi"),
    "no count": (Fault("cuDeviceGetCount", UNKNOWN), InvalidInput, "finds no usable GPU"),
    "no device": (Fault("cuDeviceGet", 101, 1), EngineBroken, "cuDeviceGet failed"),
    "no context": (Fault("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY), EngineBroken, "cuDevicePrimaryCtxRetain failed"),
    "no push": (Fault("cuCtxPushCurrent", UNKNOWN), EngineBroken, "cuCtxPushCurrent failed"),
    "no stream": (Fault("cuStreamCreate", UNKNOWN), EngineBroken, "cuStreamCreate failed"),
    "no slot's stream": (Fault("cuStreamCreate", UNKNOWN, 2), EngineBroken, "cuStreamCreate failed"),
    "no event": (Fault("cuEventCreate", UNKNOWN, 4), EngineBroken, "cuEventCreate failed"),
    "no parse": (Fault("parse", "x"), InvalidInput, r"node 7 conv_7 \(Conv\): injected"),
    "no profile": (Fault("add_optimization_profile", "bad profile"), EngineError, "profile 1…4.*bad profile"),
    "no build": (Fault("build_serialized_network", "no tactic"), EngineError, "could not build.*no tactic"),
    "no memory to build": (
        Fault("build_serialized_network", "OutOfMemory: 1 GB"),
        EngineError,
        "building the engine for batches up to 4, workspace 2,048 MiB.*1 GB",
    ),
    "no load": (
        Fault("deserialize_cuda_engine", "bad magic"),
        EngineError,
        "refuses the engine that it has just built",
    ),
    "no memory to load": (Fault("deserialize_cuda_engine", "out of memory"), EngineError, "loading an engine of"),
    "no execution context": (Fault("create_execution_context", "why"), EngineError, "no execution context: why"),
    "no shape": (Fault("set_input_shape", "outside"), EngineError, r"refuses frames \(4, 32, 32, 3\): outside"),
    "no inferred shape": (Fault("infer_shapes", "x"), EngineError, "lacks the shapes of frames"),
    "a size that depends on data": (Fault("get_tensor_shape", "x"), EngineError, r"boxes has shape \(4, -1\)"),
    "no size of memory": (
        Fault("update_device_memory_size_for_shapes", "unknown"),
        EngineError,
        "can't tell what memory a batch of 1 needs: unknown",
    ),
    "refused memory": (
        Fault("set_device_memory", "misaligned"),
        EngineError,
        "refuses 4 MiB for activations: misaligned",
    ),
}
# While it works: what the one who waits is told; afterwards the engine takes no more.
WORKING = {
    "upload": (Fault("cuMemcpyHtoDAsync", UNKNOWN), "cuMemcpyHtoDAsync failed"),
    "record": (Fault("cuEventRecord", UNKNOWN), "cuEventRecord failed"),
    "second record": (Fault("cuEventRecord", UNKNOWN, 1), "cuEventRecord failed"),
    "wait": (Fault("cuStreamWaitEvent", UNKNOWN), "cuStreamWaitEvent failed"),
    "second wait": (Fault("cuStreamWaitEvent", UNKNOWN, 1), "cuStreamWaitEvent failed"),
    "address": (Fault("set_tensor_address", "misaligned"), "refuses the address of .*: misaligned"),
    "execute": (Fault("execute_async_v3", "cuDNN"), "can't run a batch of 3: cuDNN"),
    "shape": (Fault("set_input_shape", "outside"), "refuses frames"),
    "download": (Fault("cuMemcpyDtoHAsync", UNKNOWN), "cuMemcpyDtoHAsync failed"),
    "synchronize": (Fault("cuEventSynchronize", LAUNCH_FAILED), "cuEventSynchronize failed"),
}
# Neither the one nor the other: it goes on, with this batch. (pycuda collects garbage and tries again to allocate.)
GOING_ON = {
    "activations": (Fault("cuMemAlloc", OUT_OF_MEMORY, times=2), 2),
    "device buffer": (Fault("cuMemAlloc", OUT_OF_MEMORY, 3, times=2), 2),
    "pinned buffer": (Fault("cuMemHostAlloc", OUT_OF_MEMORY, 1), 2),
    "second slot": (Fault("cuMemHostAlloc", OUT_OF_MEMORY, 6), 2),
    "no timing cache": (Fault("create_timing_cache", "x"), 4),
    "a foreign timing cache": (Fault("set_timing_cache", "x"), 4),
}


def inject(driver: Driver, fault: Fault) -> None:
    for _ in range(fault.times):
        if isinstance(fault.how, int):
            driver.fail(fault.call, fault.how, fault.after)
        else:
            double.faults.inject(fault.call, fault.how, fault.after)


@pytest.mark.parametrize("case", STARTING)
def test_a_failure_at_the_start_is_told(driver: Driver, make: Make, small: Model, case: str) -> None:
    fault, kind, text = STARTING[case]
    inject(driver, fault)
    with pytest.raises(kind, match=text):
        make(small)


@pytest.mark.parametrize("case", WORKING)
def test_a_failure_at_work_ends_the_engine(driver: Driver, make: Make, small: Model, case: str) -> None:
    fault, text = WORKING[case]
    engine = make(small)
    engine.warm_up()
    inject(driver, fault)
    with pytest.raises(EngineBroken, match=text):
        engine.detect(noise(small, 3, SEED))
    with pytest.raises(EngineBroken, match=text):
        engine.detect(noise(small, 1, SEED))


def test_what_was_complained_of_before_is_no_reason_for_a_failure_now(driver: Driver, make: Make, small: Model) -> None:
    double.faults.inject("a tactic", "OutOfMemory: skipping tactic")
    engine = make(small)
    double.faults.inject("execute_async_v3", "API usage error")
    with pytest.raises(EngineBroken, match="can't run a batch of 3: API usage error"):
        engine.detect(noise(small, 3, SEED))


@pytest.mark.parametrize(
    ("capability", "text"), [((7, 0), "compute capability 7.0, and TensorRT needs 7.5"), ((7, 5), "")]
)
def test_a_gpu_that_is_too_old_is_none(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], text: str
) -> None:
    driver.set(capability=capability)
    assert text in (bindings.missing() or "")
    assert engines.choose("auto")[0] == ("onnxruntime" if text else "tensorrt")


def test_a_gpu_that_tensorrt_for_rtx_does_not_know_is_none(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "tensorrt", lambda: (double, bindings.RTX))
    assert bindings.missing() is None
    driver.set(capability=(9, 0))
    assert "does not know Stand-in GPU (compute capability 9.0)" in (bindings.missing() or "")


def test_it_says_for_how_long_a_batch_is_under_way(make: Make, small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(small)
    engine.warm_up()
    assert engine.busy_seconds == 0
    seen: list[float] = []
    finish = Execution.finish

    def slowly(self: Execution, running: Any) -> Any:
        seen.append(engine.busy_seconds)
        return finish(self, running)

    monkeypatch.setattr(Execution, "finish", slowly)
    engine.detect(noise(small, 3, SEED))
    assert seen
    assert min(seen) > 0
    assert engine.busy_seconds == 0


@pytest.mark.parametrize("case", GOING_ON)
def test_a_failure_that_is_no_trouble(driver: Driver, make: Make, small: Model, case: str) -> None:
    fault, batch = GOING_ON[case]
    inject(driver, fault)
    engine = make(small)
    frames = noise(small, 7, SEED)
    assert same(engine.detect(frames), OnnxEngine(small).detect(frames))
    assert engine.batch == batch


def test_everyone_who_waits_hears_of_a_broken_gpu(driver: Driver, make: Make, small: Model) -> None:
    engine = make(small)
    driver.fail("cuEventSynchronize", LAUNCH_FAILED)
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(engine.detect, noise(small, 6, SEED)) for _ in range(5)]
        for future in asked:
            with pytest.raises(EngineBroken):
                future.result()


def test_a_closed_engine_takes_no_more(make: Make, small: Model) -> None:
    engine = make(small)
    engine.close()
    engine.close()
    with pytest.raises(EngineBroken, match="closed"):
        engine.detect(noise(small, 1, SEED))


def test_no_gpu_is_never_replaced_by_the_cpu(driver: Driver, small: Model) -> None:
    driver.set(devices=0)
    with pytest.raises(InvalidInput, match=r"ENGINE=tensorrt: there is no GPU: .* set ENGINE=onnxruntime"):
        engines.create("tensorrt", small)
    assert engines.create("auto", small).name == "onnxruntime"


def test_auto_means_the_gpu_where_there_is_one(driver: Driver, small: Model) -> None:
    engine = engines.create("auto", small)
    assert engine.name == "tensorrt"
    engine.close()


# ---- mistakes that the stand-in must find


@pytest.fixture
def planted(driver: Driver, small: Model) -> Iterator[Callable[[bool], bool]]:
    """Whether an engine says what the CPU says, with streams run in either order; then as after a reboot."""

    def right(own_first: bool) -> bool:
        driver.set(own_first=own_first)
        engine, cpu = TensorRtEngine(small, Options(max_batch=BATCH)), OnnxEngine(small)
        try:
            frames = noise(small, 5 * BATCH, SEED)
            return same(engine.detect(frames), cpu.detect(frames))
        finally:
            engine.close()

    yield right
    gc.collect()
    driver.reset()


@pytest.mark.parametrize("event", ["uploaded", "computed", "downloaded"])
def test_a_missing_event_is_found(planted: Callable[[bool], bool], monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    cuda = bindings.load().cuda

    class Unrecorded(cuda.Event):  # type: ignore[misc, name-defined]
        def record(self, _stream: Any = None) -> Any:
            return self

    whole = execution._Slot.__init__

    def without(self: Any, *arguments: Any) -> None:
        whole(self, *arguments)
        setattr(self, event, Unrecorded())

    assert planted(False), "without a mistake all is well"
    assert planted(True)
    monkeypatch.setattr(execution._Slot, "__init__", without)
    assert not (planted(False) and planted(True))


def test_a_buffer_of_the_wrong_size_is_found(
    driver: Driver, planted: Callable[[bool], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "prod", lambda shape: int(np.prod(shape)) // 2)
    with pytest.raises(EngineBroken):
        planted(False)
    assert any("too small" in line for line in driver.violations)


def test_a_freed_buffer_is_found(
    driver: Driver, planted: Callable[[bool], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Execution.start

    def start(self: Execution, pieces: Any, slot: int) -> Any:
        running = whole(self, pieces, slot)
        self._slots[slot].device["scores"].free()
        return running

    monkeypatch.setattr(Execution, "start", start)
    with pytest.raises(EngineBroken):
        planted(False)
    assert any("was freed" in line for line in driver.violations)


def test_a_context_on_two_streams_is_found(
    driver: Driver, planted: Callable[[bool], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = bindings.load().cuda
    start, close = Execution.start, Execution.close
    kept: list[Any] = []

    def on_another(self: Execution, pieces: Any, slot: int) -> Any:
        kept.append(self._compute)
        self._compute = cuda.Stream()
        return start(self, pieces, slot)

    def close_all(self: Execution) -> None:
        for stream in kept:
            stream.synchronize()
        kept.clear()
        close(self)

    monkeypatch.setattr(Execution, "start", on_another)
    monkeypatch.setattr(Execution, "close", close_all)
    planted(False)
    assert any("two streams" in line for line in driver.violations)


def test_a_replaced_pinned_buffer_is_found(
    driver: Driver, planted: Callable[[bool], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What most public samples do: the copy is then from memory that is not page-locked, and not asynchronous."""
    whole = Execution.start

    def start(self: Execution, pieces: Any, slot: int) -> Any:
        use = self._slots[slot]
        pinned, use.host["frames"] = use.host["frames"], np.ascontiguousarray(use.host["frames"].copy())
        try:
            return whole(self, pieces, slot)
        finally:
            use.host["frames"] = pinned

    monkeypatch.setattr(Execution, "start", start)
    with pytest.raises(EngineBroken):
        planted(False)
    assert any("not page-locked" in line for line in driver.violations)


# ---- for long


def test_many_batches_take_no_more_memory(driver: Driver, make: Make, small: Model) -> None:
    """10,000 batches, or as many as VAULTML_SOAK_BATCHES says."""
    engine = make(small)
    frames = noise(small, BATCH, SEED)

    def ask(batches: int) -> None:
        for _ in range(batches):
            engine.detect(frames)

    def load(batches: int) -> None:
        with ThreadPoolExecutor(3) as pool:
            for asked in [pool.submit(ask, batches // 3) for _ in range(3)]:
                asked.result()

    process = psutil.Process()
    load(SOAK // 4)
    gc.collect()
    held, before = driver.live(), process.memory_info().rss
    load(SOAK)
    gc.collect()
    assert driver.live() == held
    assert process.memory_info().rss <= before * 1.05
