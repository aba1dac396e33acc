"""Drawing a result onto its recording. Decodes, so it runs in decoder processes (decoders.py)."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vaultml_worker import video
from vaultml_worker.media.colour import Picture, encodable, tag_bt709

_STATIC = (190, 190, 190)
_MOVING = (
    (255, 90, 60),
    (60, 200, 90),
    (70, 140, 255),
    (255, 200, 40),
    (220, 90, 230),
    (50, 210, 220),
    (255, 140, 170),
)
_LINGER_MS = 500.0
"""An object stays drawn this long before its first and after its last sighting, at most half a sample spacing."""
_FAINTEST = 0.2
"""Opacity halfway between two sightings, where a box is only a guess."""
_CLOCK = 90_000
"""Ticks a second of the annotated copy."""


@dataclass(frozen=True, slots=True)
class _Trajectory:
    """A track by time: `times` in ms, `boxes` in pixels of the recording, `frames` numbers of sampled frames."""

    name: str
    static: bool
    colour: tuple[int, int, int]
    frames: Sequence[int]
    times: Sequence[float]
    boxes: Sequence[tuple[float, ...]]

    def at(self, time: float, linger: float) -> tuple[tuple[float, ...], float] | None:
        """Return the box at `time` and its opacity, between two sightings in proportion; None when it wasn't there."""
        if not self.times[0] - linger <= time <= self.times[-1] + linger:
            return None
        after = bisect_right(self.times, time)
        if after in (0, len(self.times)):
            nearest = min(after, len(self.boxes) - 1)
            away = abs(self.times[nearest] - time)
            return self.boxes[nearest], 1 - away / linger if away else 1.0
        start, end = self.times[after - 1], self.times[after]
        part = (time - start) / (end - start)
        box = tuple(a + (b - a) * part for a, b in zip(self.boxes[after - 1], self.boxes[after], strict=True))
        return box, 1 - (1 - _FAINTEST) * 2 * min(part, 1 - part)


def video_file(data: bytes, vaultml: Mapping[str, Any], target: str, limits: video.Limits) -> None:
    """Write the whole recording to `target` (mp4, H.264, plays in a browser) with the result's tracks drawn in.

    A box is solid in the frames that it was seen in, and fades in between.
    """
    trajectories, linger = _trajectories(vaultml)
    reformatter, last = VideoReformatter(), -1
    with av.open(target, "w", options={"movflags": "+faststart"}) as container:
        stream: VideoStream | None = None
        for time, picture in video.pictures(data, limits):
            for each in trajectories:
                found = each.at(time, linger)
                if found is not None and found[1] > 0:
                    _draw(picture, each, *found, time)
            if stream is None:
                stream = _stream(container, picture)
            height, width = stream.height, stream.width
            fitting = picture[:height, :width]
            if fitting.shape[:2] != (height, width):
                fitting = np.asarray(cv2.resize(picture, (width, height)), np.uint8)
            frame = encodable(np.ascontiguousarray(fitting), reformatter)
            # Frames of one moment are a tick apart: a copy's times have to increase.
            last = max(last + 1, round(time * _CLOCK / 1000))
            frame.pts, frame.time_base = last, Fraction(1, _CLOCK)
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode(None))


def picture_file(data: bytes, vaultml: Mapping[str, Any], target: str, limits: video.Limits, number: int = 0) -> None:
    """Write sampled frame `number` to `target` (jpg or png) with the objects that were seen in it drawn in."""
    trajectories, _ = _trajectories(vaultml)
    time = vaultml["frames"]["timestamps"][number]
    nearest = min(_upto(video.pictures(data, limits), time), key=lambda item: abs(item[0] - time))
    for each in trajectories:
        if number in each.frames:
            _draw(nearest[1], each, each.boxes[each.frames.index(number)], 1.0, time)
    if not cv2.imwrite(target, cv2.cvtColor(nearest[1], cv2.COLOR_RGB2BGR)):
        raise OSError(f"{target} can't be written")


def richest_frame(vaultml: Mapping[str, Any]) -> int:
    """Return the sampled frame in which most objects were seen, moving ones first; the middle one of equals."""
    count = vaultml["frames"]["decoded"]
    seen = [[0, 0] for _ in range(count)]
    for item in vaultml["tracks"]:
        for sighting in item["boxes"]:
            seen[sighting["frame"]][item["static"]] += 1
    return max(range(count), key=lambda number: (*seen[number], -abs(number - count // 2)))


def contact_sheet(pictures: Sequence[Path], target: Path, *, columns: int = 2, width: int = 480) -> None:
    """Tile pictures, each `width` pixels wide, into one."""
    tiles = [cv2.imread(str(path)) for path in pictures]
    height = max(round(tile.shape[0] * width / tile.shape[1]) for tile in tiles if tile is not None)
    fitted = [cv2.resize(tile, (width, height), interpolation=cv2.INTER_AREA) for tile in tiles if tile is not None]
    blank = np.zeros((height, width, 3), np.uint8)
    fitted += [blank] * (-len(fitted) % columns)
    rows = [np.hstack(fitted[first : first + columns]) for first in range(0, len(fitted), columns)]
    cv2.imwrite(str(target), np.vstack(rows))


def _upto(frames: Iterator[tuple[float, Picture]], time: float) -> Iterator[tuple[float, Picture]]:
    for item in frames:
        yield item
        if item[0] >= time:
            return


def _trajectories(vaultml: Mapping[str, Any]) -> tuple[list[_Trajectory], float]:
    """Return the tracks, static ones first so that moving ones are drawn over them, and how long they linger (ms)."""
    times = vaultml["frames"]["timestamps"]
    found: list[_Trajectory] = []
    colours = cycle(_MOVING)
    for item in vaultml["tracks"]:
        sightings = item["boxes"]
        best = max(sighting["probability"] for sighting in sightings)
        found.append(
            _Trajectory(
                name=f"{item['label']} {best:.0%}" + (" static" if item["static"] else ""),
                static=item["static"],
                colour=_STATIC if item["static"] else next(colours),
                frames=[sighting["frame"] for sighting in sightings],
                times=[times[sighting["frame"]] for sighting in sightings],
                boxes=[tuple(sighting["box"]) for sighting in sightings],
            )
        )
    spacing = vaultml["duration"] / max(1, vaultml["frames"]["decoded"])
    return sorted(found, key=lambda item: not item.static), min(_LINGER_MS, spacing / 2)


def _stream(container: av.container.OutputContainer, picture: Picture) -> VideoStream:
    stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23"})
    height, width = picture.shape[:2]
    # 4:2:0 wants even sides: the last odd row or column is cut off, or a lone one doubled.
    stream.width, stream.height = max(2, width - width % 2), max(2, height - height % 2)
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, _CLOCK)
    tag_bt709(stream.codec_context)
    return stream


def _draw(picture: Picture, item: _Trajectory, box: tuple[float, ...], opacity: float, time: float) -> None:
    """Draw one object: a static one thin and grey, a moving one thick and coloured with its trajectory so far."""
    canvas = picture if opacity >= 1 else picture.copy()
    scale = max(0.4, picture.shape[1] / 1600)
    x1, y1, x2, y2 = (round(edge) for edge in box)
    thickness = max(1, round(scale * (2.5 if item.static else 4)))
    cv2.rectangle(canvas, (x1, y1), (x2, y2), item.colour, thickness)
    if not item.static:
        past = [_centre(b) for t, b in zip(item.times, item.boxes, strict=True) if t < time]
        line = np.array([*past, _centre(box)]).round().astype(np.int32)
        cv2.polylines(canvas, [line], isClosed=False, color=item.colour, thickness=thickness)
    _label(canvas, item, (x1, y1), scale)
    if canvas is not picture:
        cv2.addWeighted(canvas, opacity, picture, 1 - opacity, 0, dst=picture)


def _centre(box: tuple[float, ...]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _label(picture: Picture, item: _Trajectory, corner: tuple[int, int], scale: float) -> None:
    font, size, stroke = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, scale * 0.9), max(1, math.floor(scale * 1.5))
    (width, height), base = cv2.getTextSize(item.name, font, size, stroke)
    x, y = max(0, min(corner[0], picture.shape[1] - width)), max(corner[1], height + base)
    cv2.rectangle(picture, (x, y - height - base), (x + width, y), item.colour, cv2.FILLED)
    cv2.putText(picture, item.name, (x, y - base // 2 - 1), font, size, (20, 20, 20), stroke, cv2.LINE_AA)
