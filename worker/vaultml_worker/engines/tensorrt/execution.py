"""Running batches: two slots of page-locked and device buffers around one execution context.

While the GPU computes the batch of one slot, the other slot's frames are copied to it and results back. Each slot has a
copy stream; the execution context is only ever enqueued on the one compute stream; events order the three:

    slot.stream:  copy frames → [uploaded]                          wait [computed] → copy results → [downloaded]
    compute:                    wait [uploaded] → run → [computed]

Everything here belongs to the thread that claimed the GPU.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaultml_worker.engines.tensorrt.bindings import RTX, Bindings
from vaultml_worker.engines.tensorrt.build import INPUT, OUTPUTS, BuildFailed, out_of_memory
from vaultml_worker.engines.tensorrt.device import OutOfMemory, megabytes
from vaultml_worker.records import EngineError
from vaultml_worker.yolo import Candidates

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no hidden ordering against the legacy default stream
_SLOTS = 2


class ExecutionFailed(EngineError):  # noqa: N818 - says what happened
    """TensorRT or CUDA refused to run; the text names the tensor or call."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An output: its type, and its shape without the batch."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _Slot:
    """Buffers for one batch of up to `batch` frames, the stream that copies them, and the events around it."""

    def __init__(self, cuda: Any, batch: int, frame: tuple[int, ...], outputs: Sequence[_Tensor]) -> None:
        self._cuda = cuda
        self.stream: Any = None
        self.uploaded: Any = None
        self.computed: Any = None
        self.downloaded: Any = None
        self.host: dict[str, NDArray[Any]] = {}
        self.device: dict[str, Any] = {}
        try:
            self.stream = cuda.Stream(_NON_BLOCKING)
            untimed = int(cuda.event_flags.DISABLE_TIMING)
            self.uploaded = cuda.Event(untimed)
            self.computed = cuda.Event(untimed)
            # The only one that this thread waits for: asleep, for the decoders need the cores.
            self.downloaded = cuda.Event(untimed | int(cuda.event_flags.BLOCKING_SYNC))
            shapes = {INPUT: (frame, np.dtype(np.uint8)), **{o.name: (o.shape, o.dtype) for o in outputs}}
            for name, (shape, dtype) in shapes.items():
                self._add(name, (batch, *shape), dtype)
        except BaseException:
            self.free()
            raise

    def _add(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        size = prod(shape) * dtype.itemsize
        try:
            self.host[name] = self._cuda.pagelocked_empty(shape, dtype)
            self.device[name] = self._cuda.mem_alloc(size)
        except self._cuda.MemoryError as error:
            kind = "page-locked host memory" if name not in self.host else "GPU memory"
            raise OutOfMemory(f"{megabytes(size)} of {kind} for {name} {shape} ({error})") from None

    def free(self) -> None:
        """Give everything back; nothing may be under way any more."""
        for memory in self.device.values():
            memory.free()
        for array in self.host.values():
            array.base.free()  # type: ignore[union-attr] # pycuda keeps the allocation there
        self.device.clear()
        self.host.clear()
        # pycuda destroys these with their last reference, which is here.
        self.uploaded = self.computed = self.downloaded = None
        self.stream = None


@dataclass(frozen=True, slots=True)
class Running:
    """A batch under way: its slot's number and how many frames it has."""

    slot: int
    frames: int


class Execution:
    """An execution context and its buffers, for batches of up to `batch` frames; `allocate` first."""

    def __init__(
        self, bindings: Bindings, engine: Any, logger: Any, frame: tuple[int, int, int], kernels: bytes = b""
    ) -> None:
        """Prepare `engine` for frames of shape (height, width, 3); `kernels` are what `kernels()` once gave.

        Raises OutOfMemory, ExecutionFailed, BuildFailed.
        """
        trt = bindings.trt
        self._cuda = bindings.cuda
        self._trt = trt
        self._logger = logger
        self._frame = frame
        self._slots: list[_Slot] = []
        self._memory: Any = None
        self._memory_size = 0
        self._shaped = 0
        self.batch = 0
        self._compute: Any = None
        logger.forget()
        self._context, self._kernels = _context(bindings, engine, kernels)
        if self._context is None:
            errors = logger.last_errors()
            if out_of_memory(errors):
                raise OutOfMemory(f"an execution context ({errors})")
            raise ExecutionFailed(f"TensorRT gives no execution context: {errors}")
        try:
            self._compute = bindings.cuda.Stream(_NON_BLOCKING)
            self._dtypes = _check(trt, engine)
            self._needs_memory = engine.device_memory_size_v2 > 0
        except BaseException:
            self.close()
            raise

    def allocate(self, batch: int) -> None:
        """Get the memory for batches of up to `batch` frames, giving back what there was; nothing may be under way.

        Raises OutOfMemory with what was asked for; there is no memory then, and a smaller batch may be tried.
        """
        self._free()
        try:
            outputs = [_Tensor(name, dtype, self._shape(name, batch)[1:]) for name, dtype in self._dtypes.items()]
            # A smaller batch may, oddly, need more: the most of all is what any of them may use.
            needed = max(self._needed(frames) for frames in range(1, batch + 1))
            try:
                self._memory = self._cuda.mem_alloc(max(1, needed))
            except self._cuda.MemoryError as error:
                raise OutOfMemory(f"{megabytes(needed)} of GPU memory for activations ({error})") from None
            self._memory_size = needed
            self._use_memory()
            for _ in range(_SLOTS):
                self._slots.append(_Slot(self._cuda, batch, self._frame, outputs))
        except BaseException:
            self._free()
            raise
        self._shaped = 0
        self.batch = batch

    def kernels(self) -> bytes:
        """What TensorRT for RTX has compiled for this GPU so far; empty with TensorRT, whose engines hold it."""
        serialized = None if self._kernels is None else self._kernels.serialize()
        return b"" if serialized is None else bytes(serialized)

    @property
    def memory(self) -> int:
        """Bytes of GPU memory held for activations and buffers."""
        frames = sum(array.nbytes for slot in self._slots for array in slot.host.values())
        return self._memory_size + frames

    def start(self, pieces: Sequence[NDArray[np.uint8]], slot: int) -> Running:
        """Copy and enqueue a batch made of `pieces`, each uint8 (n, height, width, 3), in slot 0 or 1.

        It is under way when this returns; the pieces are copied and may be changed. Raises OutOfMemory,
        ExecutionFailed, or pycuda's errors; nothing of this batch is under way then, unless the GPU itself has failed.
        """
        use = self._slots[slot]
        count = sum(len(piece) for piece in pieces)
        try:
            first = 0
            for piece in pieces:
                np.copyto(use.host[INPUT][first : first + len(piece)], piece)
                first += len(piece)
            self._cuda.memcpy_htod_async(use.device[INPUT], use.host[INPUT][:count], use.stream)
            use.uploaded.record(use.stream)
            self._compute.wait_for_event(use.uploaded)
            self._shape_for(count)
            self._enqueue(use, count)
            use.computed.record(self._compute)
            use.stream.wait_for_event(use.computed)
            for name in self._dtypes:
                self._cuda.memcpy_dtoh_async(use.host[name][:count], use.device[name], use.stream)
            use.downloaded.record(use.stream)
        except self._cuda.MemoryError as error:
            self._settle(use)
            raise OutOfMemory(f"running a batch of {count} ({error})") from None
        except (OutOfMemory, ExecutionFailed):
            self._settle(use)
            raise
        return Running(slot, count)

    def time(self, frames: int, repeats: int) -> float:
        """Seconds that the GPU takes to compute a batch of `frames`, without copies; the mean of `repeats`, after one.

        Nothing may be under way. Raises ExecutionFailed, or pycuda's errors.
        """
        self._shape_for(frames)
        start, end = self._cuda.Event(), self._cuda.Event()
        self._enqueue(self._slots[0], frames)
        start.record(self._compute)
        for _ in range(repeats):
            self._enqueue(self._slots[0], frames)
        end.record(self._compute)
        end.synchronize()
        return float(start.time_till(end)) / 1000 / repeats

    def device_memory(self) -> tuple[int, int]:
        """Bytes of the GPU's memory in use, by anybody, and in all."""
        free, total = self._cuda.mem_get_info()
        return int(total) - int(free), int(total)

    def done(self, running: Running) -> bool:
        """Whether the batch's results are on the host."""
        return bool(self._slots[running.slot].downloaded.query())

    def finish(self, running: Running) -> list[Candidates]:
        """Wait for a batch; gives its candidates by frame, in memory of their own."""
        use = self._slots[running.slot]
        use.downloaded.synchronize()
        boxes, scores, classes = (use.host[name][: running.frames] for name in OUTPUTS)
        return [
            Candidates(
                boxes[index].astype(np.float32, copy=True),
                scores[index].astype(np.float32, copy=True),
                classes[index].copy(),
            )
            for index in range(running.frames)
        ]

    def close(self) -> None:
        """Wait for what is under way and free everything, in order; afterwards only the engine is left."""
        self._free()
        self._context = None  # before its stream, on which it may hold resources
        self._kernels = None
        self._compute = None

    def _use_memory(self) -> None:
        """Give the context its memory; it says only in the log that it won't have it."""
        self._logger.forget()
        self._context.set_device_memory(int(self._memory), self._memory_size)
        if self._logger.complained:
            raise ExecutionFailed(
                f"TensorRT refuses {megabytes(self._memory_size)} for activations: {self._logger.last_errors()}"
            )

    def _free(self) -> None:
        for slot in self._slots:
            with suppress(self._cuda.Error):  # the GPU has failed: nothing runs any more, and freeing is all there is
                self._settle(slot)
        for slot in self._slots:
            slot.free()
        self._slots.clear()
        if self._memory is not None:
            self._memory.free()
            self._memory = None
        self._memory_size = self._shaped = self.batch = 0

    def _settle(self, slot: _Slot) -> None:
        """Wait until nothing uses the slot's buffers any more."""
        slot.stream.synchronize()
        self._compute.synchronize()
        slot.stream.synchronize()  # results may have waited for the compute stream

    def _enqueue(self, use: _Slot, frames: int) -> None:
        self._logger.forget()
        for name, memory in use.device.items():
            if not self._context.set_tensor_address(name, int(memory)):
                raise ExecutionFailed(f"TensorRT refuses the address of {name}: {self._logger.last_errors()}")
        if not self._context.execute_async_v3(self._compute.handle):
            errors = self._logger.last_errors()
            if out_of_memory(errors):
                raise OutOfMemory(f"running a batch of {frames} ({errors})")
            raise ExecutionFailed(f"TensorRT can't run a batch of {frames}: {errors}")

    def _shape_for(self, frames: int) -> None:
        if frames == self._shaped:
            return
        self._shaped = 0
        needed = self._needed(frames)
        if needed > self._memory_size:
            raise ExecutionFailed(
                f"a batch of {frames} needs {megabytes(needed)} for activations, not the "
                f"{megabytes(self._memory_size)} that TensorRT asked for at first"
            )
        self._shaped = frames

    def _needed(self, frames: int) -> int:
        """Bytes that a batch's activations need; leaves the context shaped for that batch."""
        self._set_shape(frames)
        needed = int(self._context.update_device_memory_size_for_shapes())
        if needed == 0 and self._needs_memory:
            raise ExecutionFailed(
                f"TensorRT can't tell what memory a batch of {frames} needs: {self._logger.last_errors()}"
            )
        return needed

    def _shape(self, name: str, frames: int) -> tuple[int, ...]:
        self._set_shape(frames)
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        if len(shape) < 2 or min(shape) < 0 or shape[0] != frames:
            raise ExecutionFailed(
                f"output {name} has shape {shape} for {frames} frames (-1: it depends on the data); see docs/models.md"
            )
        return shape

    def _set_shape(self, frames: int) -> None:
        shape = (frames, *self._frame)
        self._logger.forget()
        if not self._context.set_input_shape(INPUT, shape):
            raise ExecutionFailed(f"TensorRT refuses {INPUT} {shape}: {self._logger.last_errors()}")
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as error:
            raise ExecutionFailed(f"TensorRT can't infer shapes for {INPUT} {shape}: {error}") from None
        if unknown:
            raise ExecutionFailed(f"TensorRT lacks the shapes of {', '.join(unknown)}")


def _context(bindings: Bindings, engine: Any, kernels: bytes) -> tuple[Any, Any]:
    """An execution context, None when TensorRT gives none; and TensorRT for RTX's store of kernels, else None.

    The activations' memory is ours, so that a smaller batch can do with less of it without another engine.
    """
    trt = bindings.trt
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if bindings.flavour != RTX:
        return engine.create_execution_context(strategy), None
    # It compiles kernels when they first run, which takes seconds at every start unless they are kept.
    settings = engine.create_runtime_config()
    settings.set_execution_context_allocation_strategy(strategy)
    # At once, when a size first runs: else others run meanwhile, and those under way at the end are not kept.
    settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    cache = settings.create_runtime_cache()
    if cache is not None:
        if kernels:
            cache.deserialize(kernels)  # False: from another GPU, driver or version; they are made anew
        if not settings.set_runtime_cache(cache):
            cache = None
    return engine.create_execution_context(settings), cache


def _check(trt: Any, engine: Any) -> dict[str, np.dtype[Any]]:
    """Types of the outputs; BuildFailed when the engine's tensors are not the contract's."""
    known = {
        trt.DataType.FLOAT: np.float32,
        trt.DataType.HALF: np.float16,
        trt.DataType.INT32: np.int32,
        trt.DataType.INT64: np.int64,
    }
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = {name: engine.get_tensor_dtype(name) for name in names if name not in inputs}
    if inputs != [INPUT] or set(outputs) != set(OUTPUTS):
        raise BuildFailed(f"the engine has inputs {inputs} and outputs {sorted(outputs)}; see docs/models.md")
    if (dtype := engine.get_tensor_dtype(INPUT)) != trt.DataType.UINT8:
        raise BuildFailed(f"the engine's input {INPUT} is {dtype}, not UINT8; see docs/models.md")
    for name, dtype in outputs.items():
        if dtype not in known:
            raise BuildFailed(f"the engine's output {name} is {dtype}; see docs/models.md")
    return {name: np.dtype(known[outputs[name]]) for name in OUTPUTS}
