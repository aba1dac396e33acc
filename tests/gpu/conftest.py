"""These tests need a GPU that `ENGINE=tensorrt` can use, and are skipped where there is none."""

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu.agreement import Frames
from vaultml_worker import model
from vaultml_worker.dev import agent, footage
from vaultml_worker.engines import Options
from vaultml_worker.engines.tensorrt import TensorRtEngine, missing
from vaultml_worker.records import Model
from vaultml_worker.video import Limits, sample

BATCH = 8
SIDE = 416


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    """Not `parts.need`: a GPU is never required, not even where all real parts are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TensorRT's modules warn of when they are first imported isn't ours
        why = missing()
    if why is not None:
        pytest.skip(why)


@pytest.fixture(scope="session")
def recordings() -> list[bytes]:
    """Four recordings of four seconds, cut from real footage."""
    return [body for body, _, _ in islice(agent.cut(footage.find(None), 4.0), 4)]


@pytest.fixture(scope="session")
def frames(recordings: list[bytes]) -> Frames:
    """Twenty frames of them, as a worker takes them for a network of 416 × 416."""
    samples = (sample(body, 5, (SIDE, SIDE), Limits()) for body in recordings)
    return np.stack([frame.pixels for taken in samples for frame in taken.frames])


@pytest.fixture(scope="session")
def trained(tiny: Path) -> Model:
    """YOLOv3-tiny, in the GPU's precision."""
    return model.load(tiny / "yolov3-tiny.cfg", precision="fp16")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built engines: TensorRT takes a minute for each."""
    return tmp_path_factory.mktemp("engines")


Make = Callable[..., TensorRtEngine]


@pytest.fixture
def make(cache: Path) -> Iterator[Make]:
    """Makes engines, and closes them."""
    made: list[TensorRtEngine] = []

    def start(loaded: Model, **options: Any) -> TensorRtEngine:
        made.append(TensorRtEngine(loaded, Options(**{"cache": cache, "max_batch": BATCH, **options})))
        return made[-1]

    yield start
    for engine in made:
        engine.close()
