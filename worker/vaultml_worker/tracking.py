"""Which detections in the sampled frames are the same object, and which objects move.

Frames lie a second or more apart, so boxes of one object often don't overlap: trackers that match by overlap fail.
Matching is by how far a box centre would have travelled in box sizes per second, by box size and by label.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from vaultml_worker.records import Box, Detection, Sighting, Track

SPEED = 1.5
"""Fastest believable travel, in box sizes (root of the area) per second."""
_REACH = 4.0
"""… but never further than this many box sizes between two sightings."""
_JITTER = 0.3
"""What a detector's boxes wobble by between frames, in box sizes, whatever the time between them."""
_RATIO = 2.0
"""Largest believable change of width or height between two sightings."""
_OTHER_LABEL = 0.6
"""Cost of a change of label: only for something that stays nearly where it was."""
_SAME_BOX = 0.6
"""Boxes of different labels in one frame that overlap more than this are one object with two names."""


def track(
    frames: Sequence[Sequence[Detection]], timestamps: Sequence[float], *, move_distance: float
) -> tuple[Track, ...]:
    """Tracks through `frames` (detections by frame) seen at `timestamps` (ms), in order of first sighting.

    A track is static when its distance is below `move_distance` (pixels of the recording); see Track.
    """
    trajectories: list[list[Sighting]] = []
    for index, detections in enumerate(frames):
        objects = _merge(detections)
        pairs = _match(trajectories, objects, index, timestamps)
        for place, detection in enumerate(objects):
            sighting = Sighting(index, detection)
            trajectory = pairs.get(place)
            if trajectory is None:
                trajectories.append([sighting])
            else:
                trajectories[trajectory].append(sighting)
    return tuple(_finish(number, trajectory, move_distance) for number, trajectory in enumerate(trajectories, 1))


def _centre(box: Box) -> tuple[float, float]:
    """The middle of a box, in its pixels."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _finish(number: int, trajectory: Sequence[Sighting], move_distance: float) -> Track:
    label = Counter(sighting.detection.label for sighting in trajectory).most_common(1)[0][0]
    centres = [_centre(sighting.detection.box) for sighting in trajectory]
    # The farthest two sightings: neither a box that jitters nor a way that loops back hides or fakes a movement.
    distance = max((math.dist(a, b) for i, a in enumerate(centres) for b in centres[:i]), default=0.0)
    return Track(number, label, distance, distance < move_distance, tuple(trajectory))


def _merge(detections: Sequence[Detection]) -> list[Detection]:
    """One detection per object: a box may carry several labels (car and truck), of which the surest stays."""
    objects: list[Detection] = []
    for detection in sorted(detections, key=lambda item: -item.probability):
        if all(other.label == detection.label or _overlap(other.box, detection.box) < _SAME_BOX for other in objects):
            objects.append(detection)
    return objects


@dataclass(slots=True)
class _Place:
    """Where a box lies: its centre, its width and height (at least 1), and the root of its area."""

    centre: tuple[float, float]
    width: float
    height: float
    size: float


@dataclass(slots=True)
class _Trajectory:
    """What is known of a track before a new frame: its last place, labels so far, and a guess where it is now.

    `allowed` is how far it may have gone since, in box sizes.
    """

    place: _Place
    labels: frozenset[str]
    guess: tuple[float, float]
    allowed: float


def _match(
    trajectories: Sequence[Sequence[Sighting]], objects: Sequence[Detection], index: int, timestamps: Sequence[float]
) -> dict[int, int]:
    """Object number → trajectory number, at the least total cost."""
    if not trajectories or not objects:
        return {}
    known = [_summary(trajectory, index, timestamps) for trajectory in trajectories]
    places = [_place(item.box) for item in objects]
    cost = np.array(
        [
            [_cost(trajectory, place, item.label) for trajectory in known]
            for place, item in zip(places, objects, strict=True)
        ]
    )
    rows, columns = linear_sum_assignment(np.where(np.isfinite(cost), cost, 1e6))
    return {int(row): int(column) for row, column in zip(rows, columns, strict=True) if np.isfinite(cost[row, column])}


def _summary(trajectory: Sequence[Sighting], index: int, timestamps: Sequence[float]) -> _Trajectory:
    last = trajectory[-1]
    elapsed = max(0.04, (timestamps[index] - timestamps[last.frame]) / 1000)
    place = _place(last.detection.box)
    guess = here = place.centre
    if len(trajectory) > 1:
        before = trajectory[-2]
        there = _centre(before.detection.box)
        seconds = max(0.04, (timestamps[last.frame] - timestamps[before.frame]) / 1000)
        guess = (
            here[0] + (here[0] - there[0]) / seconds * elapsed,
            here[1] + (here[1] - there[1]) / seconds * elapsed,
        )
    labels = frozenset(item.detection.label for item in trajectory)
    return _Trajectory(place, labels, guess, min(_JITTER + SPEED * elapsed, _REACH))


def _cost(trajectory: _Trajectory, place: _Place, label: str) -> float:
    """How unlikely it is that what is seen here continues the trajectory; infinite when it can't."""
    before, allowed = trajectory.place, trajectory.allowed
    size = math.sqrt(before.size * place.size)
    travelled = math.dist(before.centre, place.centre) / size
    if travelled > allowed:
        return math.inf
    # Off the way that it was going: who walks on rarely turns round between two frames, someone else often comes along.
    astray = math.dist(trajectory.guess, place.centre) / size
    ratio = max(
        before.width / place.width,
        place.width / before.width,
        before.height / place.height,
        place.height / before.height,
    )
    other = label not in trajectory.labels
    if ratio > _RATIO or astray > allowed or (other and travelled > _JITTER):
        return math.inf
    surprise = min(travelled, astray + _JITTER / 2)
    return surprise / allowed + 0.5 * math.log(ratio) + (_OTHER_LABEL if other else 0)


def _place(box: Box) -> _Place:
    width, height = max(1.0, box[2] - box[0]), max(1.0, box[3] - box[1])
    return _Place(_centre(box), width, height, math.sqrt(width * height))


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
