"""How fast an engine is on this machine."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vaultml_worker.engines.base import Engine
from vaultml_worker.engines.tensorrt import TensorRtEngine
from vaultml_worker.records import Model

_CALLERS = 3  # two batches under way, and the next one waiting


@dataclass(frozen=True, slots=True)
class Measured:
    """One batch size.

    `latency` is the median of one caller's wait, in seconds, copies included; `throughput` is in frames per second with
    several callers, copies included; `compute` in frames per second without copies (None on a CPU).
    """

    batch: int
    latency: float
    throughput: float
    compute: float | None


def measure(engine: Engine, model: Model, batches: Sequence[int], seconds: float) -> list[Measured]:
    """Measure each batch size for about `seconds` each way, on noise, after a warm-up."""
    engine.warm_up()
    if not isinstance(engine, TensorRtEngine):
        return [_one(engine, model, batch, seconds) for batch in batches]
    most = engine.batch
    measured = []
    for batch in (batch for batch in batches if batch <= most):
        engine.limit(batch)  # else it would make larger ones of what several callers give it
        measured.append(_one(engine, model, batch, seconds))
    engine.limit(most)
    return measured


def _one(engine: Engine, model: Model, batch: int, seconds: float) -> Measured:
    shape = (batch, model.height, model.width, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def once() -> float:
        start = time.perf_counter()
        engine.detect(frames)
        return time.perf_counter() - start

    once()
    waits = [once()]
    while sum(waits) < seconds:
        waits.append(once())
    latency = float(np.median(waits))
    repeats = max(_CALLERS, int(seconds / latency))
    start = time.perf_counter()
    with ThreadPoolExecutor(_CALLERS) as pool:
        list(pool.map(lambda _: once(), range(repeats)))
    throughput = repeats * batch / (time.perf_counter() - start)
    compute = batch / engine.time(batch, repeats) if isinstance(engine, TensorRtEngine) else None
    return Measured(batch, latency, throughput, compute)
