"""The engine for a model on this GPU: from the store when it is good, else built, once."""

import hashlib
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultml_worker.engines.base import Gpu, Options
from vaultml_worker.engines.tensorrt.bindings import RTX, Bindings, tensorrt
from vaultml_worker.engines.tensorrt.build import BuildFailed, Recipe, build, flags, make_logger, out_of_memory, started
from vaultml_worker.engines.tensorrt.device import OutOfMemory, megabytes
from vaultml_worker.engines.tensorrt.store import Key, Store
from vaultml_worker.records import InvalidInput, Model

_WORKSPACE = 2 << 30  # more gains YOLOv3's convolutions nothing


@dataclass(frozen=True, slots=True)
class Built:
    """A plan in the store: where (None: it could not be kept), its bytes, and the seconds it took (0: it was there)."""

    path: Path | None
    size: int
    seconds: float


def key_for(trt: Any, flavour: str, model: Model, max_batch: int, on: Gpu | tuple[int, int]) -> Key:
    """The key of this model's plan on a GPU, or, for TensorRT for RTX, on any GPU of a compute capability.

    A plan of TensorRT for RTX holds for all GPUs of a compute capability: kernels are made for the one at hand when it
    is loaded. TensorRT has chosen them while building, by measuring, so its plans hold for one kind of GPU.
    """
    runtime = f"{flavour} {trt.__version__}"
    if flavour == RTX or isinstance(on, tuple):
        capability = on if isinstance(on, tuple) else on.compute_capability
        device, target, workspace = "", capability, _WORKSPACE
    else:
        capability, device, target = on.compute_capability, on.name, None
        workspace = min(_WORKSPACE, on.memory // 2)
    return Key(
        onnx=hashlib.sha256(model.onnx).hexdigest(),
        runtime=runtime,
        device=device,
        compute_capability=capability,
        recipe=Recipe(model.height, model.width, max_batch, workspace, target),
        flags=(*flags(trt), platform.machine()),
    )


def build_ahead(model: Model, options: Options, target: tuple[int, int]) -> Built:
    """Build for GPUs of a compute capability that are not here; workers find it in the same cache. Needs no GPU.

    Raises InvalidInput without TensorRT for RTX, or for a graph that it can't take; EngineError, EngineStopped.
    """
    trt, flavour = tensorrt()
    if flavour != RTX:
        raise InvalidInput(f"only TensorRT for RTX builds ahead of time, not {flavour}: build where the GPU is")
    key = key_for(trt, flavour, model, options.max_batch, target)
    store = Store(options.cache, options.observer)
    with store.building(key, options.stopped):
        if (there := store.plan(key)) is not None:
            return Built(store.path(key), len(there), 0.0)
        start = time.monotonic()
        logger = make_logger(trt, options.observer)
        plan, _ = build(trt, logger, model.onnx, key.recipe, observer=options.observer, stopped=options.stopped)
        seconds = time.monotonic() - start
        kept = store.keep(key, plan)
    return Built(store.path(key) if kept else None, len(plan), seconds)


class Loader:
    """Deserializes plans; owns TensorRT's runtime. Lives on the GPU's thread."""

    def __init__(self, bindings: Bindings, gpu: Gpu, logger: Any, options: Options) -> None:
        self._bindings = bindings
        self._gpu = gpu
        self._logger = logger
        self._options = options
        self._store = Store(options.cache, options.observer)
        self._runtime: Any = started(bindings.trt.Runtime, logger)

    def close(self) -> None:
        """Let the runtime go; every engine must be gone before."""
        self._runtime = None

    def load(self, model: Model) -> tuple[Any, Built]:
        """An ICudaEngine for the model, and its plan.

        A plan that TensorRT refuses, which is its way to say that it is from another version or GPU, is built again,
        once. Raises InvalidInput, OutOfMemory, EngineStopped, BuildFailed.
        """
        key = key_for(self._bindings.trt, self._bindings.flavour, model, self._options.max_batch, self._gpu)
        plan = self._store.plan(key)
        engine = self._deserialize(plan)
        if plan is not None and engine is not None:
            return engine, self._taken(key, plan)
        with self._store.building(key, self._options.stopped):
            again = self._store.plan(key)  # whoever held the lock may have built just this one
            if again is not None and again != plan:
                engine = self._deserialize(again)
                if engine is not None:
                    return engine, self._taken(key, again)
            plan, built = self._build(model, key)
            engine = self._deserialize(plan)
        if engine is None:
            raise BuildFailed(
                f"TensorRT ({self._gpu.runtime}) refuses the engine that it has just built on {self._gpu.name}: "
                f"{self._logger.last_errors()}"
            )
        return engine, built

    def _taken(self, key: Key, plan: bytes) -> Built:
        self._options.observer.building(1.0)
        self._options.observer.info("engine taken from the cache")
        return Built(self._store.path(key), len(plan), 0.0)

    def _deserialize(self, plan: bytes | None) -> Any:
        if plan is None:
            return None
        self._logger.forget()
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            errors = self._logger.last_errors()
            if out_of_memory(errors):
                # Not the plan's fault: to build it again would need even more.
                raise OutOfMemory(f"loading an engine of {megabytes(len(plan))}: {errors}")
            self._options.observer.warning(f"TensorRT refuses this engine ({errors})")
        return engine

    def _build(self, model: Model, key: Key) -> tuple[bytes, Built]:
        observer = self._options.observer
        observer.info(f"building an engine for {model.name} on {self._gpu.name}: this may take minutes")
        observer.building(0.0)
        start = time.monotonic()
        plan, timings = build(
            self._bindings.trt,
            self._logger,
            model.onnx,
            key.recipe,
            observer=observer,
            stopped=self._options.stopped,
            timings=self._store.timings(key),
        )
        seconds = time.monotonic() - start
        observer.info(f"engine built in {seconds:.0f} s, {megabytes(len(plan))}")
        kept = self._store.keep(key, plan)
        self._store.keep_timings(key, timings)
        return plan, Built(self._store.path(key) if kept else None, len(plan), seconds)
