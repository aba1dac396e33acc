"""The engine on a real GPU: many callers at once, engines kept, memory given back."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from tests.gpu.agreement import TOLERANCES, Frames, near
from tests.gpu.conftest import BATCH, Make
from tests.real.gpu import Heard
from vaultml_worker.records import Model

ROUNDING = TOLERANCES["fp16"]


def test_many_callers_get_what_one_gets(make: Make, trained: Model, frames: Frames) -> None:
    engine = make(trained)
    alone = [engine.detect(frame[None])[0] for frame in frames]
    assert not any(near(one, other, ROUNDING, best=5) for one, other in pairwise(alone)), "a mix-up would not show"
    # Every size of a batch, and more than one batch; each caller's frames begin elsewhere.
    asked = [
        [(first + number) % len(frames) for number in range(size)]
        for first, size in enumerate([2 * BATCH + 1, *range(1, BATCH + 1)])
    ]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda numbers: engine.detect(frames[numbers]), asked))
    for numbers, found in zip(asked, answers, strict=True):
        assert len(found) == len(numbers)
        assert all(near(one, alone[number], ROUNDING) for one, number in zip(found, numbers, strict=True))


def test_the_second_start_takes_the_engine_from_the_cache(
    make: Make, trained: Model, frames: Frames, tmp_path: Path
) -> None:
    first, second = Heard(), Heard()
    engine = make(trained, cache=tmp_path, observer=first)
    engine.warm_up()
    assert engine.built.seconds > 0
    (before,) = engine.detect(frames[:1])
    engine.close()
    again = make(trained, cache=tmp_path, observer=second)
    again.warm_up()
    assert (again.built.path, again.built.seconds) == (engine.built.path, 0.0)
    assert second.progress == [1.0]
    assert "engine taken from the cache" in second.lines
    assert first.gpus == second.gpus
    assert (first.warnings, second.warnings) == ([], [])
    assert near(again.detect(frames[:1])[0], before, ROUNDING)


def test_a_closed_engine_gives_its_memory_back(make: Make, trained: Model) -> None:
    used = []
    for _ in range(3):
        engine = make(trained)
        engine.warm_up()
        held, on_the_gpu = engine.memory()
        used.append(on_the_gpu)
        engine.close()
    assert used[-1] - used[1] < held / 2
