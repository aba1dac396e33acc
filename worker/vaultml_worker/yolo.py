"""From a network's candidates to detections: threshold, non-maximum suppression per class, labels."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from vaultml_worker.letterbox import Letterbox
from vaultml_worker.records import Detection

IOU = 0.45
"""Boxes of one class that overlap more than this are the same object, as in Darknet."""


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
    # From zero on: OpenCV moves the boxes of a class away from those of others by the largest coordinate.
    corners = boxes[:, :2] - np.minimum(boxes[:, :2].min(initial=0), 0)
    corners_and_sizes = np.column_stack((corners, boxes[:, 2:] - boxes[:, :2]))
    kept = cv2.dnn.NMSBoxesBatched(corners_and_sizes.tolist(), scores.tolist(), classes.tolist(), -1.0, IOU)
    return np.asarray(kept, np.intp).reshape(-1)  # of none it gives an empty tuple
