"""Detectors of the form that Ultralytics exports, against the numbers of their own output."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from tests.exports import CELLS, SIZE, exported
from vaultml_worker import model
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.records import InvalidInput


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, *SIZE, 3), np.uint8)


def raw(path: Path, frame: np.ndarray, *, first: bool, half: bool) -> np.ndarray:
    """(anchors, values) of one frame, by the exported model itself."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    picture = (frame.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)).astype(
        np.float16 if half else np.float32
    )
    (output,) = session.run(["output0"], {"images": picture})
    return np.asarray(output[0].T if first else output[0], np.float32)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"constants": True},
        {"objectness": True},
        {"first": False},
        {"objectness": True, "first": False},
        {"half": True},
        {"batch": "batch"},
        {"batch": "batch", "size": ("height", "width"), "metadata": {"imgsz": "[64, 96]", "names": "['a', 'b', 'c']"}},
        {"opset": 12},
    ],
    ids=str,
)
def test_what_it_says_is_what_comes_out(form: dict[str, object], tmp_path: Path) -> None:
    path = exported(tmp_path / "yolo.onnx", **form)  # type: ignore[arg-type]
    loaded = model.load(path)
    assert (loaded.width, loaded.height, loaded.labels) == (96, 64, ("a", "b", "c"))
    onnx.checker.check_model(onnx.load_model_from_string(loaded.onnx))
    engine = OnnxEngine(loaded)
    engine.warm_up()
    objectness, half = bool(form.get("objectness")), bool(form.get("half"))
    for frame, found in zip(frames(3), engine.detect(frames(3)), strict=True):
        rows = raw(path, frame, first=bool(form.get("first", True)), half=half)
        scores = rows[:, 5:] * rows[:, 4:5] if objectness else rows[:, 4:]
        best = scores.max(axis=1)
        order = np.argsort(-best, kind="stable")
        assert len(found.scores) == len(best) == CELLS * (3 if objectness else 1)
        np.testing.assert_allclose(found.scores, best[order], atol=2e-3 if half else 1e-5)
        if half:
            continue  # equal scores may come in another order
        np.testing.assert_array_equal(found.classes, scores.argmax(axis=1)[order])
        x, y, w, h = rows[order, :4].T
        corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
        np.testing.assert_allclose(found.boxes, corners, atol=1e-3)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"outputs": 2}, "with the outputs output0 .*, raw .*; a detector has one: yolo export"),
        ({"metadata": {"task": "segment"}}, "is a model of task segment"),
        ({"metadata": {"task": "pose"}}, "is a model of task pose"),
        ({"batch": 4}, "its batch is fixed at 4"),
        ({"batch": "batch", "size": ("height", "width")}, "height and width of its input are not fixed"),
        ({"opset": 11}, "its opset is 11: export it with opset=12"),
        ({"strides": (8, 16)}, r"its output \[7, 120\] is not that of a YOLO detector for 96 x 64 pixels"),
        ({"metadata": {"names": "{0: 'a'}"}}, "has 1 label, but the model has 3 classes"),
        ({"metadata": {}}, "has 3 classes and no labels"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_is_said(form: dict[str, object], says: str, tmp_path: Path) -> None:
    path = exported(tmp_path / "yolo.onnx", **form)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=says) as caught:
        model.load(path)
    assert "yolo.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_that_cannot_be_made_dynamic_is_refused(tmp_path: Path) -> None:
    """A shape that is computed, not constant, stays as it is."""
    path = exported(tmp_path / "yolo.onnx")
    proto = onnx.load_model(path)
    for node in [node for node in proto.graph.node if node.op_type == "Reshape"]:
        made = helper.make_node("Add", [node.input[1], "nothing"], [f"{node.output[0]}_shape"])
        node.input[1] = made.output[0]
        proto.graph.node.insert(0, made)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.int64), "nothing"))
    onnx.save_model(proto, path)
    with pytest.raises(InvalidInput, match=r"its batch is fixed at 1: export it with dynamic=True imgsz=64,96"):
        model.load(path)


def test_a_network_that_does_not_run_is_one_sentence(tmp_path: Path) -> None:
    path = exported(tmp_path / "yolo.onnx")
    proto = onnx.load_model(path)
    proto.graph.node[0].input[1] = "gone"
    onnx.save_model(proto, path)
    with pytest.raises(InvalidInput, match=r"yolo.onnx: onnxruntime can't run it: .*gone") as caught:
        model.load(path)
    assert "\n" not in str(caught.value)
