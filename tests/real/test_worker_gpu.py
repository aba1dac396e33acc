"""The whole worker with ENGINE=tensorrt, on the stand-in for the driver, publishes what the CPU's worker does."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.real.scene import WAIT_S, Scene, keys_of


def run(scene: Scene, **variables: str) -> tuple[dict[str, Any], str, dict[str, float]]:
    """What a worker makes of six recordings, by key; its log and its metrics."""
    scene.create(scene.queue, scene.target, scene.dead)
    sent = scene.events(6)
    scene.send(*sent)
    worker = scene.worker(NUMBER_OF_PREDICTIONS="3", MODEL_PRECISION="fp32", **variables).wait_ready()
    scene.await_results(keys_of(sent))
    metrics = worker.metrics()
    assert worker.terminate() == 0
    bodies = [json.loads(body) for body in scene.target.bodies()]
    return {body["payload"]["key"]: body for body in bodies}, worker.log_text(), metrics


def test_it_publishes_what_the_cpu_does(stage: Callable[..., Scene], gpu: dict[str, str], tmp_path: Path) -> None:
    expected, _, _ = run(stage(), ENGINE="onnxruntime")
    found, log, metrics = run(stage(), **gpu, ENGINE_CACHE=str(tmp_path / "engines"), LOG_FORMAT="json")
    assert found.keys() == expected.keys()
    for key, body in found.items():
        assert body["vaultml"]["engine"] == "tensorrt"
        data, wanted = body["data"], expected[key]["data"]
        assert data["labels"] == wanted["labels"]
        np.testing.assert_allclose(numbers(data["boxes"]), numbers(wanted["boxes"]), atol=1)  # rounded to pixels
        np.testing.assert_allclose(numbers(data["probabilities"]), numbers(wanted["probabilities"]), atol=1e-3)
    assert any(body["data"]["labels"] for body in found.values())
    assert '"uuid": "GPU-00112233-4455-6677-8899-aabbccddeeff"' in log
    assert "engine built in" in log
    assert metrics["vaultml_engine_build_progress"] == 1
    assert metrics["vaultml_engine_batch_frames"] == 16
    assert len(list((tmp_path / "engines").glob("*.engine"))) == 1


def test_while_an_engine_is_built_it_is_alive_not_ready_and_ends_when_asked(
    stage: Callable[..., Scene], gpu: dict[str, str], tmp_path: Path
) -> None:
    scene = stage()
    scene.create(scene.queue, scene.target, scene.dead)
    hold = tmp_path / "hold"
    hold.touch()
    cache = tmp_path / "engines"
    worker = scene.worker(**gpu, ENGINE_CACHE=str(cache), VAULTML_TENSORRT_HOLD=str(hold))
    worker.wait_log("engine 10 % built")
    assert (worker.get("/healthz")[0], worker.get("/readyz")[0]) == (200, 503)
    assert 0 < worker.metrics()["vaultml_engine_build_progress"] < 1
    assert worker.terminate() == 0
    assert "the engine that was being built is given up" in worker.log_text()

    waiting = scene.worker(**gpu, ENGINE_CACHE=str(cache), VAULTML_TENSORRT_HOLD=str(hold))
    waiting.wait_log("engine 10 % built")
    other = scene.worker(**gpu, ENGINE_CACHE=str(cache))
    other.wait_log("another worker builds an engine")
    hold.unlink()
    waiting.wait_ready()
    other.wait_ready()
    assert "engine taken from the cache" in other.log_text()


def numbers(value: Any) -> list[float]:
    """Every number in a list of lists, in its order."""
    return [number for item in value for number in numbers(item)] if isinstance(value, list) else [float(value)]


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"LD_LIBRARY_PATH": ""}, r"ENGINE=tensorrt: the NVIDIA driver's libcuda\.so\.1 is not here"),
        ({"VAULTML_GPU_FAIL": "cuInit:0:100"}, r"ENGINE=tensorrt: the NVIDIA driver finds no usable GPU .*nvidia-smi"),
        ({"VAULTML_GPU_FAIL": "cuDevicePrimaryCtxRetain:0:999"}, r"the GPU failed: .*cuDevicePrimaryCtxRetain"),
    ],
)
def test_without_a_usable_gpu_it_ends_and_says_why(
    stage: Callable[..., Scene], gpu: dict[str, str], variables: dict[str, str], text: str
) -> None:
    scene = stage()
    scene.create(scene.queue, scene.target, scene.dead)
    worker = scene.worker(**{**gpu, **variables})
    status = worker.wait(WAIT_S)
    assert status in (1, 2)
    assert re.search(text, worker.log_text())
    assert "Traceback" not in worker.log_text()
