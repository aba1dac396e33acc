"""A double of TensorRT's Python bindings, as far as the engine uses them.

Plans hold the ONNX itself; an execution context runs it on onnxruntime, on the addresses it was given, when the
stand-in driver's stream gets to it. Where TensorRT answers None or False, `faults` makes the double do so, with the
words that the real one would have logged. Names and meanings are the real ones': test_tensorrt_rtx.py compares them.
"""

import ctypes
import enum
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime

__version__ = "11.4.0.106"

_MAGIC = b"double of TensorRT 11.4\n"
_PER_FRAME = 1 << 20
"""Bytes of activations that a frame needs."""
_LAUNCH_FAILED = 719


class Faults:
    """Failures to come, by call."""

    def __init__(self) -> None:
        self._planned: dict[str, list[tuple[int, str]]] = {}

    def inject(self, call: str, words: str = "injected", after: int = 0) -> None:
        """Let `call` fail once, logging `words`, after so many more that succeed."""
        self._planned.setdefault(call, []).append((after, words))

    def clear(self) -> None:
        """No more failures."""
        self._planned.clear()

    @property
    def left(self) -> list[str]:
        """Calls that have yet to fail."""
        return [call for call, planned in self._planned.items() if planned]

    def hit(self, call: str, logger: "ILogger") -> bool:
        """Whether this call fails."""
        planned = self._planned.get(call, [])
        for number, (after, words) in enumerate(planned):
            if after == 0:
                del planned[number]
                logger.log(ILogger.ERROR, words)
                return True
            planned[number] = (after - 1, words)
        return False


faults = Faults()
statistics = {"builds": 0, "enqueued": 0, "kernels": 0}


class Severity(enum.IntEnum):
    """How bad a line of the log is."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    """Base of loggers."""

    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        pass

    def log(self, severity: int, message: str) -> None:
        """Take a line."""
        raise NotImplementedError


class IProgressMonitor:
    """Base of monitors."""

    def __init__(self) -> None:
        pass


class DataType(enum.Enum):
    """Types of tensors."""

    FLOAT, HALF, INT32, INT64, UINT8, BOOL = range(6)


class ComputeCapability(enum.Enum):
    """GPUs that TensorRT for RTX builds for."""

    NONE, CURRENT, SM75, SM89 = range(4)


class TensorIOMode(enum.Enum):
    """What a tensor is for."""

    NONE, INPUT, OUTPUT = range(3)


class MemoryPoolType(enum.Enum):
    """Pools with a limit."""

    WORKSPACE = 0


class ExecutionContextAllocationStrategy(enum.Enum):
    """Whose the activations' memory is."""

    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    """Kinds of networks."""

    STRONGLY_TYPED = 1


_TYPES = {
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(uint8)": DataType.UINT8,
}


class _Tensor:
    def __init__(self, name: str) -> None:
        self.name = name


class _Network:
    def __init__(self) -> None:
        self.onnx = b""
        self.outputs: list[_Tensor] = []

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_output(self, index: int) -> _Tensor:
        return self.outputs[index]

    def unmark_output(self, tensor: _Tensor) -> None:
        self.outputs.remove(tensor)


class _ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def node(self) -> int:
        return 7

    def node_name(self) -> str:
        return "conv_7"

    def node_operator(self) -> str:
        return "Conv"

    def desc(self) -> str:
        return self._text


class OnnxParser:
    """Reads ONNX into a network."""

    def __init__(self, network: _Network, logger: ILogger) -> None:
        self._network = network
        self._logger = logger
        self._errors: list[_ParserError] = []

    def parse(self, model: bytes) -> bool:
        """Whether that worked."""
        if faults.hit("parse", self._logger):
            self._errors.append(_ParserError("injected"))
            return False
        try:
            graph = onnx.load_model_from_string(model).graph
        except Exception as error:
            self._errors.append(_ParserError(str(error)))
            return False
        self._network.onnx = model
        self._network.outputs = [_Tensor(output.name) for output in graph.output]
        return True

    @property
    def num_errors(self) -> int:
        """How many there were."""
        return len(self._errors)

    def get_error(self, index: int) -> _ParserError:
        """One of them."""
        return self._errors[index]


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Sequence[int], ...]] = {}

    def set_shape(self, name: str, least: Sequence[int], best: Sequence[int], most: Sequence[int]) -> None:
        self.shapes[name] = (least, best, most)


class _TimingCache:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def serialize(self) -> bytes:
        return self.body or b"timings"


class _Config:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.progress_monitor: Any = None
        self.profiles: list[_Profile] = []
        self.workspace = 0
        self.num_compute_capabilities = 0

    def set_compute_capability(self, capability: ComputeCapability, index: int) -> bool:
        return index < self.num_compute_capabilities and capability is not ComputeCapability.NONE

    def set_memory_pool_limit(self, _pool: MemoryPoolType, size: int) -> None:
        self.workspace = size

    def add_optimization_profile(self, profile: _Profile) -> int:
        if faults.hit("add_optimization_profile", self._logger):
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, body: bytes) -> _TimingCache | None:
        return None if faults.hit("create_timing_cache", self._logger) else _TimingCache(body)

    def set_timing_cache(self, _cache: _TimingCache, _ignore_mismatch: bool) -> bool:
        return not faults.hit("set_timing_cache", self._logger)


class Builder:
    """Builds plans."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> _Network:
        """An empty network; any but a strongly typed one is refused."""
        if flags != 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED:
            raise ValueError(f"flags {flags}")
        return _Network()

    def create_builder_config(self) -> _Config:
        """Settings of a build."""
        return _Config(self._logger)

    def create_optimization_profile(self) -> _Profile:
        """An empty profile."""
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        """The plan, or None."""
        monitor = config.progress_monitor
        statistics["builds"] += 1
        for phase in ("Building Engine", "Tactic Timing"):
            monitor.phase_start(phase, None, 4)
            for number in range(4):
                if not monitor.step_complete(phase, number):
                    return None
                while _held():
                    if not monitor.step_complete(phase, number):
                        return None
                    time.sleep(0.01)
            monitor.phase_finish(phase)
        faults.hit("a tactic", self._logger)  # it is skipped, and another taken
        if faults.hit("build_serialized_network", self._logger):
            return None
        (shapes,) = (profile.shapes for profile in config.profiles)
        most = shapes["frames"][2][0]
        names = ",".join(tensor.name for tensor in network.outputs)
        return _MAGIC + f"{most} {names} {hashlib.sha256(network.onnx).hexdigest()}\n".encode() + network.onnx


def _held() -> bool:
    """Whether builds are to stay where they are: while the file exists that VAULTML_TENSORRT_HOLD names."""
    path = os.environ.get("VAULTML_TENSORRT_HOLD")
    return path is not None and Path(path).exists()


class Runtime:
    """Loads plans."""

    _engine: ClassVar["type[_Engine]"]

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> "_Engine | None":
        """The engine, or None for what isn't ours."""
        if faults.hit("deserialize_cuda_engine", self._logger):
            return None
        if not plan.startswith(_MAGIC):
            self._logger.log(ILogger.ERROR, "The engine plan file is not compatible with this version of TensorRT")
            return None
        head, _, body = plan[len(_MAGIC) :].partition(b"\n")
        most, names, digest = head.decode().split()
        if hashlib.sha256(body).hexdigest() != digest:
            raise AssertionError("a damaged plan reached TensorRT, which may crash over it")
        return self._engine(body, int(most), names.split(","), self._logger)


class _Engine:
    _context: ClassVar["type[_Context]"]

    def __init__(self, body: bytes, most: int, outputs: Sequence[str], logger: ILogger) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(body, options, providers=["CPUExecutionProvider"])
        self.most = most
        self.logger = logger
        self.outputs = list(outputs)
        (self._input,) = self.session.get_inputs()
        self.frame = tuple(self._input.shape[1:])
        self._dtypes = {item.name: _TYPES[item.type] for item in (self._input, *self.session.get_outputs())}
        trial = self.session.run(self.outputs, {self._input.name: np.zeros((1, *self.frame), np.uint8)})
        self.shapes = {name: array.shape[1:] for name, array in zip(self.outputs, trial, strict=True)}
        self.bytes = {name: array.nbytes for name, array in zip(self.outputs, trial, strict=True)}

    @property
    def device_memory_size_v2(self) -> int:
        return self.most * _PER_FRAME

    @property
    def num_io_tensors(self) -> int:
        return 1 + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return str((self._input.name, *self.outputs)[index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name in self.outputs else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._dtypes[name]

    def create_runtime_config(self) -> "_RuntimeConfig":
        return _RuntimeConfig()

    def create_execution_context(
        self, given: "ExecutionContextAllocationStrategy | _RuntimeConfig"
    ) -> "_Context | None":
        strategy = given.strategy if isinstance(given, _RuntimeConfig) else given
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            raise ValueError(f"strategy {strategy}")
        return None if faults.hit("create_execution_context", self.logger) else self._context(self)


class _RuntimeCache:
    def __init__(self) -> None:
        self.loaded = False

    def deserialize(self, blob: bytes) -> bool:
        self.loaded = blob == b"kernels"
        statistics["kernels"] += self.loaded
        return self.loaded

    def serialize(self) -> bytes:
        return b"kernels"


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    """When TensorRT for RTX compiles kernels for the sizes in use."""

    LAZY, EAGER, NONE = range(3)


class _RuntimeConfig:
    def __init__(self) -> None:
        self.strategy: ExecutionContextAllocationStrategy | None = None
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> _RuntimeCache:
        return _RuntimeCache()

    def set_runtime_cache(self, _cache: _RuntimeCache) -> bool:
        return True


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine: Any = engine
        self._frames = 0
        self._addresses: dict[str, int] = {}
        self._partition = 0
        self._memory = (0, 0)
        self._under_way: dict[int, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        engine = self._engine
        if faults.hit("set_input_shape", engine.logger):
            return False
        if name != "frames" or tuple(shape[1:]) != engine.frame or not 1 <= shape[0] <= engine.most:
            engine.logger.log(ILogger.ERROR, f"{name} {shape} is outside of the profile")
            return False
        self._frames = shape[0]
        return True

    def infer_shapes(self) -> list[str]:
        return ["frames"] if faults.hit("infer_shapes", self._engine.logger) else []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if faults.hit("get_tensor_shape", self._engine.logger):
            return (self._frames, -1)
        return (self._frames, *self._engine.shapes[name])

    def update_device_memory_size_for_shapes(self) -> int:
        if faults.hit("update_device_memory_size_for_shapes", self._engine.logger):
            return 0
        self._partition = self._frames
        return self._frames * _PER_FRAME

    def set_device_memory(self, address: int, size: int) -> None:
        if faults.hit("set_device_memory", self._engine.logger):
            return
        self._memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if faults.hit("set_tensor_address", self._engine.logger):
            return False
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        if faults.hit("execute_async_v3", engine.logger):
            return False
        needed = self._frames * _PER_FRAME
        if self._partition < self._frames or self._memory[1] < needed:
            engine.logger.log(ILogger.ERROR, f"{self._memory[1]} bytes of device memory, {needed} needed")
            return False
        statistics["enqueued"] += 1
        return self._enqueue(stream)

    def _enqueue(self, stream: int) -> bool:
        """Enqueue the batch on a stream of the stand-in's."""
        if any(other != stream for other in self._under_way.values()):
            _library().standin_violation(b"one execution context is enqueued on two streams")
        number = next(_numbers)
        self._under_way[number] = stream
        engine, frames, addresses, memory = self._engine, self._frames, dict(self._addresses), self._memory[0]

        def compute() -> int:
            self._under_way.pop(number)
            return _compute(engine, frames, addresses, memory)

        _launch(stream, number, compute)
        return True


_Engine._context = _Context
Runtime._engine = _Engine

_numbers = itertools.count(1)
_pending: dict[int, Callable[[], int]] = {}


def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _run_pending(number: int) -> int:
    try:
        return _pending.pop(number)()
    except Exception as error:
        _library().standin_violation(f"{type(error).__name__}: {error}".encode())
        return _LAUNCH_FAILED


_run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(_run_pending)


def _launch(stream: int, number: int, compute: Callable[[], int]) -> None:
    _pending[number] = compute
    status = _library().standin_launch(ctypes.c_void_p(stream), _run, ctypes.c_void_p(number))
    if status != 0:
        raise AssertionError(f"the stand-in does not know stream {stream:#x} ({status})")


def _compute(engine: _Engine, frames: int, addresses: dict[str, int], memory: int) -> int:
    sizes = {name: frames * size for name, size in engine.bytes.items()}
    sizes["frames"] = frames * prod(engine.frame)
    regions = [(memory, frames * _PER_FRAME), *((addresses[name], size) for name, size in sizes.items())]
    for address, size in regions:
        status: int = _library().standin_check(b"computing", ctypes.c_void_p(address), ctypes.c_size_t(size))
        if status:
            return status
    ctypes.memset(memory, os.urandom(1)[0], frames * _PER_FRAME)  # what overlaps it is spoilt
    given = np.frombuffer((ctypes.c_ubyte * sizes["frames"]).from_address(addresses["frames"]), np.uint8)
    outputs = engine.session.run(engine.outputs, {"frames": given.reshape(frames, *engine.frame)})
    for name, array in zip(engine.outputs, outputs, strict=True):
        ctypes.memmove(addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)
    return 0
