"""From ONNX to a plan (a serialized engine). On TensorRT for RTX with a `target` this needs no GPU."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vaultml_worker.engines.base import EngineStopped, Observer
from vaultml_worker.engines.tensorrt.device import OutOfMemory, megabytes
from vaultml_worker.records import EngineError, InvalidInput

INPUT = "frames"
OUTPUTS = ("boxes", "scores", "classes")
_KEPT_ERRORS = 5


class BuildFailed(EngineError):  # noqa: N818 - says what happened
    """TensorRT could not build or load an engine; the text has TensorRT's own words."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a plan is built from, apart from the graph.

    `height`, `width`: the network's input in pixels; `max_batch`: frames, profile 1…max_batch, tuned for the most,
    which is what a worker with a backlog runs; `workspace`: bytes of scratch memory a layer may use; `target`: compute
    capability to build for (TensorRT for RTX only), None: the GPU that is here.
    """

    height: int
    width: int
    max_batch: int
    workspace: int
    target: tuple[int, int] | None = None


def make_logger(trt: Any, observer: Observer) -> Any:
    """TensorRT's logger: warnings and errors go to `observer`; `last_errors()` gives the latest for messages of ours.

    TensorRT also complains in calls that succeed: `forget()` before one whose failure is judged by its words.
    TensorRT has one logger per process: give the same one to builder and runtime.
    """
    severity = trt.ILogger

    class Logger(trt.ILogger):  # type: ignore[misc] # the base class is known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
            self._lock = threading.Lock()

        def log(self, level: Any, message: str) -> None:
            # Called from TensorRT's threads, which can do nothing with an exception.
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                with self._lock:
                    self._errors.append(message)
                observer.warning(f"TensorRT: {message}")
            elif level == severity.WARNING:
                observer.info(f"TensorRT: {message}")

        @property
        def complained(self) -> bool:
            """Whether there was an error since they were last forgotten."""
            return bool(self._errors)

        def forget(self) -> None:
            """Forget what TensorRT complained of so far."""
            with self._lock:
                self._errors.clear()

        def last_errors(self) -> str:
            """What TensorRT complained of since it was last forgotten, and forget it."""
            with self._lock:
                text = "; ".join(self._errors)
                self._errors.clear()
            return text or "TensorRT gave no reason"

    return Logger()


def out_of_memory(errors: str) -> bool:
    """Whether TensorRT's own words mean that memory ran out: it answers None or False then, like for anything else."""
    return any(word in errors.lower().replace(" ", "") for word in ("outofmemory", "out_of_memory"))


def flags(trt: Any) -> tuple[str, ...]:
    """Names of what is switched on in a build, for the key of the plan."""
    return ("strongly-typed", *(("runtime-activation-resize",) if _resize(trt) is not None else ()))


def _resize(trt: Any) -> Any:
    """The feature that makes memory follow the batch in use; what has no such switch does it anyway."""
    return getattr(getattr(trt, "PreviewFeature", None), "RUNTIME_ACTIVATION_RESIZE_10_10", None)


def build(
    trt: Any,
    logger: Any,
    onnx: bytes,
    recipe: Recipe,
    *,
    observer: Observer,
    stopped: Callable[[], bool],
    timings: bytes = b"",
) -> tuple[bytes, bytes]:
    """The plan, and what was learnt about the speed of kernels on this GPU (empty where TensorRT learns nothing).

    `timings` is what was learnt before. Raises InvalidInput for a graph that TensorRT can't take, OutOfMemory,
    EngineStopped, BuildFailed.
    """
    builder = started(trt.Builder, logger)
    network = builder.create_network(_network_flags(trt))
    _parse(trt, logger, network, onnx)
    _keep_outputs(network)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace)
    if (resize := _resize(trt)) is not None:
        config.set_preview_feature(resize, True)
    profile = builder.create_optimization_profile()
    frame = (recipe.height, recipe.width, 3)
    # Raises ValueError by itself when the shapes contradict each other.
    profile.set_shape(INPUT, (1, *frame), (recipe.max_batch, *frame), (recipe.max_batch, *frame))
    if config.add_optimization_profile(profile) < 0:
        raise BuildFailed(f"TensorRT refuses the profile 1…{recipe.max_batch} × {frame}: {logger.last_errors()}")
    if recipe.target is not None:
        _aim(trt, config, recipe.target)
    # TensorRT for RTX chooses its kernels when the engine is loaded: it has nothing to learn here.
    learnt = _use_timings(config, timings) if recipe.target is None else None
    monitor = _monitor(trt, observer, stopped)
    config.progress_monitor = monitor
    logger.forget()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        errors = logger.last_errors()
        if monitor.cancelled:
            raise EngineStopped
        if out_of_memory(errors):
            raise OutOfMemory(
                f"building the engine for batches up to {recipe.max_batch}, workspace {megabytes(recipe.workspace)}: "
                f"{errors}"
            )
        raise BuildFailed(f"TensorRT could not build the engine: {errors}")
    observer.building(1.0)
    return bytes(plan), _learnt(learnt)


def started(factory: Callable[[Any], Any], logger: Any) -> Any:
    """TensorRT's builder or runtime. Raises BuildFailed: without a usable driver TensorRT makes neither."""
    try:
        return factory(logger)
    except TypeError:  # what its bindings make of a null pointer
        raise BuildFailed(f"TensorRT can't start its {factory.__name__}: {logger.last_errors()}") from None


def _network_flags(trt: Any) -> int:
    # Since TensorRT 11 there is no other kind of network, and the flag may go; 10 has to be asked.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(trt: Any, logger: Any, network: Any, onnx: bytes) -> None:
    parser = trt.OnnxParser(network, logger)
    logger.forget()
    if parser.parse(onnx):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = "; ".join(
        f"node {error.node()} {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors
    )
    raise InvalidInput(f"TensorRT can't take this model: {told or logger.last_errors()}")


def _keep_outputs(network: Any) -> None:
    """Drop what nobody reads: every output would need memory and an address."""
    found = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in found:
        if tensor.name not in OUTPUTS:
            network.unmark_output(tensor)
    if missing := set(OUTPUTS) - {tensor.name for tensor in found}:
        raise InvalidInput(f"TensorRT finds no output {', '.join(sorted(missing))} in this model; see docs/models.md")


def _aim(trt: Any, config: Any, target: tuple[int, int]) -> None:
    name = f"SM{target[0]}{target[1]}"
    if not hasattr(config, "set_compute_capability"):
        raise InvalidInput("only TensorRT for RTX builds for a GPU that is not here: build where the GPU is")
    capability = getattr(trt.ComputeCapability, name, None)
    if capability is None:
        raise InvalidInput(f"this TensorRT for RTX ({trt.__version__}) can't build for {name.lower()}")
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(capability, 0):
        raise BuildFailed(f"TensorRT for RTX refuses to build for {name.lower()}")


def _use_timings(config: Any, timings: bytes) -> Any:
    """The timing cache in use, if there can be one."""
    cache = config.create_timing_cache(timings)
    # False: measured on another GPU or by another version. Measuring anew is all it costs.
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            return None
    return cache


def _learnt(cache: Any) -> bytes:
    serialized = None if cache is None else cache.serialize()
    return b"" if serialized is None else bytes(serialized)


def _monitor(trt: Any, observer: Observer, stopped: Callable[[], bool]) -> Any:
    """Progress of a build, over its outermost phases; `cancelled` once `stopped` said so."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # the base class is known only at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._lock = threading.Lock()  # phases may end on several threads
            self._open: dict[str, tuple[float, float, int]] = {}
            self._done = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self._lock:
                # A phase takes up one step of its parent; how many outermost ones there will be, TensorRT doesn't say:
                # each takes half of what is left.
                start, span, of = self._open.get(parent or "", (self._done, 1.0 - self._done, 2))
                self._open[phase] = (max(start, self._done), span / max(1, of), max(1, steps))

        def step_complete(self, phase: str, step: int) -> bool:
            with self._lock:
                start, span, steps = self._open.get(phase, (self._done, 0.0, 1))
                self._done = max(self._done, start + span * min(1.0, (step + 1) / steps))
                observer.building(self._done)  # under the lock: it never goes back
            if stopped():
                self.cancelled = True
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            with self._lock:
                start, span, _ = self._open.pop(phase, (self._done, 0.0, 1))
                self._done = max(self._done, start + span)

    return Monitor()
