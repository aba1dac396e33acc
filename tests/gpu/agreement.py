"""When two engines say the same of a picture, though they round differently."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaultml_worker.onnx_graph import Precision
from vaultml_worker.records import Detection
from vaultml_worker.yolo import Candidates

Frames = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two engines may be apart."""

    pixels: float
    probability: float


# fp16 has 10 bits behind the point; TensorRT multiplies fp32 in TF32, which has as many, but keeps fp32 in between.
TOLERANCES: dict[Precision, Tolerance] = {"fp32": Tolerance(1.0, 0.01), "fp16": Tolerance(2.0, 0.02)}


def differences(
    ones: Sequence[Detection], others: Sequence[Detection], threshold: float, tolerance: Tolerance
) -> list[str]:
    """Where two lists of detections differ, both down to `threshold` less the tolerance; empty when they agree.

    What either sees above the threshold the other sees, too, each its own.
    """
    return [*_unseen(ones, others, threshold, tolerance), *_unseen(others, ones, threshold, tolerance)]


def _unseen(
    ones: Sequence[Detection], others: Sequence[Detection], threshold: float, tolerance: Tolerance
) -> list[str]:
    left = list(others)
    told = []
    for one in ones:
        if one.probability <= threshold:
            continue
        like = [
            other
            for other in left
            if other.label == one.label
            and np.abs(np.subtract(other.box, one.box)).max() <= tolerance.pixels
            and abs(other.probability - one.probability) <= tolerance.probability
        ]
        if like:
            left.remove(like[0])
        else:
            told.append(f"{one} is not among {left}")
    return told


def near(ones: Candidates, others: Candidates, tolerance: Tolerance, best: int = 100) -> bool:
    """Whether the `best` candidates of either are among the other's: their order is a matter of the last digit."""
    return _among(ones, others, tolerance, best) and _among(others, ones, tolerance, best)


def _among(ones: Candidates, others: Candidates, tolerance: Tolerance, best: int) -> bool:
    for number in np.argsort(-ones.scores)[:best]:
        same = others.classes == ones.classes[number]
        boxes = np.abs(others.boxes[same] - ones.boxes[number]).max(axis=1, initial=0)
        scores = np.abs(others.scores[same] - ones.scores[number])
        if not ((boxes <= tolerance.pixels) & (scores <= tolerance.probability)).any():
            return False
    return True
