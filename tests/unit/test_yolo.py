import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultml_worker import yolo
from vaultml_worker.letterbox import Letterbox

SQUARE = Letterbox(100, 100, 100, 100)


def candidates(*rows: tuple[tuple[float, float, float, float], float, int]) -> yolo.Candidates:
    boxes, scores, classes = zip(*rows, strict=True)
    return yolo.Candidates(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(classes, np.int64))


def test_overlaps_go_within_a_class_only() -> None:
    found = yolo.detections(
        candidates(
            ((10, 10, 50, 50), 0.9, 0),
            ((12, 12, 52, 52), 0.8, 0),
            ((12, 12, 52, 52), 0.7, 1),
            ((60, 60, 90, 90), 0.6, 0),
            ((1, 1, 9, 9), 0.5, 0),
        ),
        labels=("car", "truck"),
        letterbox=SQUARE,
        threshold=0.5,
    )
    assert [(item.label, round(item.probability, 2)) for item in found] == [("car", 0.9), ("truck", 0.7), ("car", 0.6)]


def test_classes_do_not_touch_each_other_wherever_their_boxes_lie() -> None:
    boxes = np.array([[-300, -300, 310, 310], [0, 0, 310, 310]], np.float32)
    assert set(yolo.suppress(boxes, np.array([0.9, 0.8], np.float32), np.array([1, 0]))) == {0, 1}


def test_only_wanted_labels() -> None:
    both = candidates(((10, 10, 50, 50), 0.9, 0), ((10, 10, 50, 50), 0.8, 1))
    found = yolo.detections(both, labels=("car", "truck"), letterbox=SQUARE, threshold=0.5, wanted=("truck",))
    assert [item.label for item in found] == ["truck"]


def test_nothing_is_nothing() -> None:
    none = yolo.Candidates(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert yolo.detections(none, labels=("car",), letterbox=SQUARE, threshold=0.5) == ()


boxes = st.tuples(*[st.floats(0, 400, width=32)] * 2, *[st.floats(1, 200, width=32)] * 2)


@given(st.lists(st.tuples(boxes, st.floats(0, 1, width=32), st.integers(0, 2)), max_size=25))
def test_suppression_is_darknets(rows: list[tuple[tuple[float, float, float, float], float, int]]) -> None:
    """Against the plain two loops of Darknet's do_nms_sort."""
    corners = np.array([(x, y, x + w, y + h) for (x, y, w, h), _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    classes = np.array([number for _, _, number in rows], np.int64)
    kept = yolo.suppress(corners, scores, classes)
    order = sorted(range(len(rows)), key=lambda i: -scores[i])
    expected: list[int] = []
    for i in order:
        if all(classes[i] != classes[j] or _iou(corners[i], corners[j]) <= yolo.IOU + 1e-6 for j in expected):
            expected.append(i)
    borderline = any(abs(_iou(a, b) - yolo.IOU) < 1e-4 for n, a in enumerate(corners) for b in corners[:n])
    if not borderline:
        assert kept.tolist() == expected


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float), b.astype(float)
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def test_thresholds_are_strict() -> None:
    exact = candidates(((10, 10, 50, 50), 0.5, 0))
    assert yolo.detections(exact, labels=("car",), letterbox=SQUARE, threshold=0.5) == ()
    assert pytest.approx(0.5) == exact.scores[0]
