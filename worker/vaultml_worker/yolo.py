"""From a network's candidates to detections: threshold, non-maximum suppression per class, labels."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vaultml_worker.letterbox import Letterbox
from vaultml_worker.records import Detection

IOU = 0.45
"""Boxes of one class that overlap more than this are the same object, as in Darknet."""
_ROWS = 32
"""Boxes that are compared with all others at a time."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a network says of one frame.

    `boxes` float32 (n, 4): x1, y1, x2, y2 in network pixels; `scores` float32 (n,): 0..1; `classes` integer (n,).
    """

    boxes: NDArray[np.float32] = field(repr=False)
    scores: NDArray[np.float32] = field(repr=False)
    classes: NDArray[np.integer] = field(repr=False)


def detections(
    candidates: Candidates,
    *,
    labels: Sequence[str],
    letterbox: Letterbox,
    threshold: float,
    wanted: Collection[str] = (),
) -> tuple[Detection, ...]:
    """Return the detections above `threshold`, best first, boxes in pixels of the recording.

    `wanted` empty means every label.
    """
    chosen = np.flatnonzero(candidates.scores > threshold)
    if not chosen.size:
        return ()
    boxes, scores, classes = candidates.boxes[chosen], candidates.scores[chosen], candidates.classes[chosen]
    if wanted:
        named = np.array([label(labels, index) in wanted for index in classes], dtype=bool)
        boxes, scores, classes = boxes[named], scores[named], classes[named]
    kept = suppress(boxes, scores, classes)
    restored = letterbox.restore(boxes[kept])
    return tuple(
        Detection(label(labels, classes[index]), float(scores[index]), box)
        for index, box in zip(kept, restored, strict=True)
        if box[2] > box[0] and box[3] > box[1]
    )


def label(labels: Sequence[str], number: int | np.integer) -> str:
    """Return the label of class `number`; one that has none, in a model whose number of classes is unknown, its number.

    The labels are checked when a model is loaded, so far as its graph shows its classes.
    """
    return labels[int(number)] if 0 <= number < len(labels) else f"class {number}"


def suppress(boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.integer]) -> NDArray[np.intp]:
    """Return the indexes of the boxes that non-maximum suppression within each class leaves, best score first."""
    order = np.argsort(-scores, kind="stable")
    if len(order) < 2:
        return order
    # Boxes of different classes are moved so far apart that they can't overlap: one pass serves all classes.
    apart = boxes[order].astype(np.float64)
    apart += classes[order, None].astype(np.float64) * (2 * float(np.abs(apart).max()) + 1)
    x1, y1, x2, y2 = np.ascontiguousarray(apart.T)
    area = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(order), dtype=bool)
    for first in range(0, len(order), _ROWS):
        rows = slice(first, first + _ROWS)
        width = np.minimum(x2[rows, None], x2) - np.maximum(x1[rows, None], x1)
        height = np.minimum(y2[rows, None], y2) - np.maximum(y1[rows, None], y1)
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        apart_enough = shared <= IOU * (area[rows, None] + area - shared)
        for best, row in enumerate(apart_enough, first):
            if alive[best]:
                alive[best + 1 :] &= row[best + 1 :]
    return order[alive]
