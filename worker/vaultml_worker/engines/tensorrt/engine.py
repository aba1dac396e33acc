"""The engine: one thread that owns the GPU, and a queue of frames in front of it."""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaultml_worker.engines.base import EngineStopped, Gpu, Options
from vaultml_worker.engines.tensorrt import bindings as bindings_
from vaultml_worker.engines.tensorrt.build import make_logger
from vaultml_worker.engines.tensorrt.device import OutOfMemory, claimed
from vaultml_worker.engines.tensorrt.execution import Execution, Running
from vaultml_worker.engines.tensorrt.load import Built, Loader
from vaultml_worker.engines.tensorrt.store import Store
from vaultml_worker.records import EngineError, InvalidInput, Model
from vaultml_worker.yolo import Candidates

_LOOK_S = 0.0005
"""How often the thread looks whether the GPU is done, while it has no other frames to copy meanwhile."""


class EngineBroken(EngineError):  # noqa: N818 - says what happened
    """The GPU failed, or the engine was closed: it takes no more frames."""


@dataclass(slots=True, eq=False)
class _Job:
    """Frames of one `detect`, and their candidates as they come."""

    frames: NDArray[np.uint8]
    answer: Future[list[Candidates]] = field(default_factory=Future)
    taken: int = 0
    found: list[Candidates] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a job that goes into one batch."""

    job: _Job
    first: int
    count: int

    @property
    def frames(self) -> NDArray[np.uint8]:
        return self.job.frames[self.first : self.first + self.count]


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """Something else to do for the GPU's thread, when no batch is under way."""

    do: Callable[[Execution], Any]
    answer: Future[Any] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Batch:
    running: Running
    pieces: tuple[_Piece, ...]


class TensorRtEngine:
    """Runs the graph on the first visible GPU. Frames of several callers share batches.

    When memory runs out, batches are halved, down to single frames, and no frame is lost.
    """

    name = "tensorrt"

    def __init__(self, model: Model, options: Options | None = None) -> None:
        """Load the model's engine, building it if need be, which takes minutes.

        Raises InvalidInput when something is missing here or TensorRT can't take the model, EngineStopped, and
        EngineError for everything else: OutOfMemory when not even one frame fits, or TensorRT's or CUDA's own words.
        """
        self._model = model
        given = options or Options()
        # A start that is interrupted gives up its build, too.
        self._options = replace(given, stopped=lambda: given.stopped() or self._ended is not None)
        self._frame = (model.height, model.width, 3)
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._unanswered: set[_Job] = set()
        self._tasks: deque[_Task] = deque()
        self._ended: str | None = None
        self._built: Built | None = None
        self._store = Store(given.cache, given.observer)
        self._gpu: Gpu | None = None
        self._busy_since: float | None = None
        self._kernels = b""
        self._batch = self._options.max_batch
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._own_gpu, args=(ready,), name="gpu", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self.close()
            raise

    @property
    def gpu(self) -> Gpu:
        """See Engine."""
        assert self._gpu is not None  # set before the constructor returns
        return self._gpu

    @property
    def busy_seconds(self) -> float:
        """See Engine."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def batch(self) -> int:
        """Frames of the largest batch that fits."""
        return self._batch

    @property
    def built(self) -> Built:
        """The engine's plan."""
        assert self._built is not None  # set before the constructor returns
        return self._built

    def limit(self, frames: int) -> None:
        """Make batches of at most so many frames from now on, no more than it was built for. For benchmarks."""
        if not 1 <= frames <= self._options.max_batch:
            raise ValueError(f"a batch has 1 to {self._options.max_batch} frames, not {frames}")
        self._ask(lambda execution: self._fit(execution, frames))

    def time(self, frames: int, repeats: int) -> float:
        """Seconds that the GPU alone takes for a batch of `frames`, at most `batch`, without copies. For benchmarks."""
        if not 1 <= frames <= self._batch:
            raise ValueError(f"a batch has 1 to {self._batch} frames, not {frames}")
        return float(self._ask(lambda execution: execution.time(frames, repeats)))

    def memory(self) -> tuple[int, int]:
        """Bytes of GPU memory in use for activations and buffers, and in use on the GPU by anybody."""
        held, used = self._ask(lambda execution: (execution.memory, execution.device_memory()[0]))
        return held, used

    def warm_up(self) -> None:
        """Run the largest batch on grey, so that it is known to fit, then one frame."""
        self.detect(np.full((self._batch, *self._frame), 128, np.uint8))
        self.detect(np.full((1, *self._frame), 128, np.uint8))
        self._ask(self._keep_kernels)

    def detect(self, frames: NDArray[np.uint8]) -> list[Candidates]:
        """See Engine. Raises ValueError for frames of another shape or type, EngineBroken."""
        if frames.dtype != np.uint8 or frames.shape[1:] != self._frame:
            raise ValueError(f"frames are uint8 (n, {self._frame}), not {frames.dtype} {frames.shape}")
        if not len(frames):
            return []
        job = _Job(frames)
        with self._changed:
            if self._ended is not None:
                raise EngineBroken(self._ended)
            self._jobs.append(job)
            self._unanswered.add(job)
            self._changed.notify()
        return job.answer.result()

    def close(self) -> None:
        """Give the GPU back; whoever still waits for candidates gets EngineBroken."""
        self._end("the engine is closed")
        self._thread.join()

    def _ask(self, do: Callable[[Execution], Any]) -> Any:
        task = _Task(do)
        with self._changed:
            if self._ended is not None:
                raise EngineBroken(self._ended)
            self._tasks.append(task)
            self._changed.notify()
        return task.answer.result()

    def _end(self, reason: str) -> None:
        with self._changed:
            if self._ended is None:
                self._ended = reason
            self._changed.notify()

    def _own_gpu(self, ready: Future[None]) -> None:
        """The life of the GPU's thread: claim, load, serve, free."""
        try:
            self._claim_and_serve(ready)
        except (EngineError, EngineStopped, InvalidInput) as error:
            self._end(str(error))
            _refuse(ready, error)
        except BaseException as error:  # there is nobody above: whoever waits must hear of it
            broken = EngineBroken(f"the GPU failed: {type(error).__name__}: {error}")
            self._end(str(broken))
            _refuse(ready, broken)
        self._fail_all()

    def _claim_and_serve(self, ready: Future[None]) -> None:
        options = self._options
        bindings = bindings_.load()
        with claimed(bindings.cuda, bindings.runtime) as gpu:
            options.observer.gpu(gpu)
            logger = make_logger(bindings.trt, options.observer)
            loader = Loader(bindings, gpu, logger, options)
            engine: Any = None
            execution: Execution | None = None
            try:
                engine, self._built = loader.load(self._model)
                self._gpu = gpu
                self._kernels = self._store.kernels(self._built.path, gpu.name)
                execution = Execution(bindings, engine, logger, self._frame, self._kernels)
                self._fit(execution, options.max_batch)
                ready.set_result(None)
                self._serve(execution)
                self._keep_kernels(execution)  # with those of batches that came since
            finally:
                # In this order, and while the context is current: afterwards nothing can be freed any more.
                if execution is not None:
                    execution.close()
                _forget(sys.exception())
                del execution, engine
                loader.close()

    def _keep_kernels(self, execution: Execution) -> None:
        if (kernels := execution.kernels()) != self._kernels:
            self._store.keep_kernels(self.built.path, self.gpu.name, kernels)
            self._kernels = kernels

    def _fit(self, execution: Execution, batch: int) -> None:
        """Get memory for batches of `batch` frames, or as large as they can be."""
        while True:
            try:
                execution.allocate(batch)
            except OutOfMemory as error:
                if batch == 1:
                    raise
                self._options.observer.warning(
                    f"not enough memory for batches of {batch}: {error}; trying {batch // 2}"
                )
                batch //= 2
            else:
                self._batch = batch
                self._options.observer.batch(batch)
                return

    def _serve(self, execution: Execution) -> None:
        """Keep the GPU busy until the end: while one batch computes, the next is copied."""
        current: _Batch | None = None
        while True:
            pieces = self._take(execution, current)
            if pieces is None:
                return
            if current is None and not pieces:
                self._do_task(execution)
                continue
            following: _Batch | None = None
            try:
                if pieces:
                    slot = 0 if current is None else 1 - current.running.slot
                    running = execution.start([piece.frames for piece in pieces], slot)
                    following = _Batch(running, pieces)
                    if current is None:
                        self._busy_since = time.monotonic()
            except OutOfMemory as error:
                if current is not None:
                    self._deliver(execution, current)
                    current = self._busy_since = None
                self._halve(execution, error)
                self._put_back(pieces)
                continue
            if current is not None:
                self._deliver(execution, current)
                self._busy_since = None if following is None else time.monotonic()
            current = following

    def _take(self, execution: Execution, current: _Batch | None) -> tuple[_Piece, ...] | None:
        """Frames for the next batch; none when `current` is done, or a task is to do instead; None at the end."""
        with self._changed:
            while not self._jobs:
                if self._tasks and self._ended is None:
                    return ()
                if current is None:
                    if self._ended is not None:
                        return None
                    self._changed.wait()
                elif self._ended is not None or execution.done(current.running):
                    return ()
                else:
                    # CUDA can't wake a Python thread: frames that come now must not wait for this batch.
                    self._changed.wait(_LOOK_S)
            if self._ended is not None:
                return () if current is not None else None
            return tuple(self._gather(execution.batch))

    def _do_task(self, execution: Execution) -> None:
        with self._changed:
            task = self._tasks[0]
        task.answer.set_result(task.do(execution))  # if it fails, so does the engine, and `_fail_all` answers
        with self._changed:
            self._tasks.popleft()

    def _gather(self, room: int) -> list[_Piece]:
        pieces = []
        while self._jobs and room:
            job = self._jobs[0]
            count = min(room, len(job.frames) - job.taken)
            pieces.append(_Piece(job, job.taken, count))
            job.taken += count
            room -= count
            if job.taken == len(job.frames):
                self._jobs.popleft()
        return pieces

    def _put_back(self, pieces: tuple[_Piece, ...]) -> None:
        with self._changed:
            for piece in reversed(pieces):
                piece.job.taken = piece.first
                if not self._jobs or self._jobs[0] is not piece.job:
                    self._jobs.appendleft(piece.job)

    def _halve(self, execution: Execution, error: OutOfMemory) -> None:
        if execution.batch == 1:
            raise error
        half = execution.batch // 2
        self._options.observer.warning(
            f"not enough memory: {error}; going on with batches of {half}: give the GPU fewer workers to share it"
        )
        self._fit(execution, half)

    def _deliver(self, execution: Execution, batch: _Batch) -> None:
        found = execution.finish(batch.running)
        first = 0
        for piece in batch.pieces:
            job = piece.job
            job.found += found[first : first + piece.count]
            first += piece.count
            if len(job.found) == len(job.frames):
                with self._changed:
                    self._unanswered.discard(job)
                job.answer.set_result(job.found)

    def _fail_all(self) -> None:
        with self._changed:
            jobs, self._unanswered = self._unanswered, set()
            self._jobs.clear()
            tasks, self._tasks = self._tasks, deque()
            reason = self._ended or "the engine has ended"
        for job in jobs:
            job.answer.set_exception(EngineBroken(reason))
        for task in tasks:
            task.answer.set_exception(EngineBroken(reason))


def _refuse(ready: Future[None], error: BaseException) -> None:
    if not ready.done():
        ready.set_exception(error)


def _forget(error: BaseException | None) -> None:
    """Empty the frames of an exception under way: in them, objects of the GPU would outlive its context."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
