"""The GPU says what the CPU says, of real footage."""

from pathlib import Path

import pytest

import vaultml_worker
from benchmarks.networks import resized, write_random
from tests.gpu.agreement import TOLERANCES, Frames, differences, near
from tests.gpu.conftest import SIDE, Make
from vaultml_worker import darknet, model, yolo
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.letterbox import Letterbox
from vaultml_worker.onnx_graph import Precision

THRESHOLD = 0.5
CFG = Path(vaultml_worker.__file__).parent / "data" / "yolov3.cfg"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_detects_what_the_cpu_detects(make: Make, tiny: Path, frames: Frames, precision: Precision) -> None:
    """No frame has two boxes of one object whose probabilities are so near that rounding could swap them."""
    cfg = tiny / "yolov3-tiny.cfg"
    loaded = model.load(cfg)
    expected = OnnxEngine(loaded).detect(frames)
    found = make(model.load(cfg, precision=precision)).detect(frames)
    tolerance = TOLERANCES[precision]
    seen = 0
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.boxes.shape, ours.scores.shape, ours.classes.shape) == ((1000, 4), (1000,), (1000,))
        assert near(ours, theirs, tolerance)
        detected, wanted = (
            yolo.detections(
                candidates,
                labels=loaded.labels,
                letterbox=Letterbox(SIDE, SIDE, SIDE, SIDE),  # boxes stay in pixels of the network
                threshold=THRESHOLD - tolerance.probability,
            )
            for candidates in (ours, theirs)
        )
        assert not differences(detected, wanted, THRESHOLD, tolerance)
        seen += len(wanted)
    assert seen > len(frames)


def test_every_layer_of_yolov3_computes_what_the_cpu_computes(make: Make, tmp_path: Path, frames: Frames) -> None:
    """Random weights fill all three heads. With this seed the boxes, which are exponentials, stay below 150 pixels."""
    cfg = resized(CFG, tmp_path, SIDE, SIDE)
    write_random(darknet.read_cfg(cfg), cfg.with_suffix(".weights"), seed=1)
    expected = OnnxEngine(model.load(cfg)).detect(frames[:2])
    assert not near(expected[0], expected[1], TOLERANCES["fp16"]), "any two frames look the same"
    for precision, tolerance in TOLERANCES.items():
        engine = make(model.load(cfg, precision=precision), max_batch=2)
        found = engine.detect(frames[:2])
        assert all(near(ours, theirs, tolerance) for ours, theirs in zip(found, expected, strict=True)), precision
        engine.close()
