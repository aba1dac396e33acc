"""Frames out of a recording that lies in memory. Runs inside decoder processes: see decoders.py.

A recording is demuxed whole, which decodes nothing. Then the frames to sample are chosen by their times, and only the
stretches between a keyframe and the last frame wanted of it are decoded. How times, keyframes and colours are read from
files that lie about them is in `media`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np

from vaultml_worker.failures import Cause, Failure
from vaultml_worker.letterbox import Letterbox
from vaultml_worker.media import containers
from vaultml_worker.media.colour import Picture
from vaultml_worker.media.film import Contradiction, Film
from vaultml_worker.records import Frame, Sample


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds against hostile files: pixels in one frame, frames in one recording."""

    pixels: int = 40_000_000
    frames: int = 200_000


def sample(data: bytes, count: int, network: tuple[int, int], limits: Limits) -> Sample:
    """Return `count` frames spread evenly over the whole recording, letterboxed to `network` (width, height) pixels.

    Frame i is the one nearest to (i + ½)·duration/count; where keyframes are at least as dense as that, the nearest
    keyframe stands in for it, and only keyframes are decoded. Fewer frames come back when the recording has fewer.
    Raises Failure that names what is wrong with the file.
    """
    with _open(data, limits) as source:
        return source.take(source.spread(count), count, network)


def sample_all(data: bytes, first: int, count: int, network: tuple[int, int], limits: Limits) -> tuple[Sample, int]:
    """Return frames number `first` … `first + count − 1` in display order, and how many the recording has in all."""
    with _open(data, limits) as source:
        window = range(first, min(first + count, source.count))
        return source.take(window, len(window), network), source.count


def pictures(data: bytes, limits: Limits) -> Iterator[tuple[float, Picture]]:
    """Yield every frame that decodes, in display order: its time in ms, its upright RGB picture (height, width, 3)."""
    with _open(data, limits) as source:
        yield from source.decode_all()


class _Still:
    """A single picture: a JPEG is a recording of one frame."""

    count = 1

    def __init__(self, data: bytes, limits: Limits) -> None:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # honours the EXIF orientation
        if picture is None:
            raise Failure(Cause.NO_FRAMES, "the picture is cut off or damaged")
        height, width = picture.shape[:2]
        if width * height > limits.pixels:
            raise containers.too_many_pixels(width, height, limits.pixels)
        self._picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)

    def spread(self, _count: int) -> Sequence[int]:
        return (0,)

    def take(self, wanted: Sequence[int], asked: int, network: tuple[int, int]) -> Sample:
        height, width = self._picture.shape[:2]
        frame = Frame(Letterbox(width, height, *network).apply(self._picture), 0.0)
        return Sample((frame,) * len(wanted), asked, width, height, 0.0)

    def decode_all(self) -> Iterator[tuple[float, Picture]]:
        yield 0.0, self._picture


class _Video:
    """Moving pictures, fitted to the network."""

    def __init__(self, film: Film) -> None:
        self._film = film
        self.count = film.count

    def spread(self, count: int) -> Sequence[int]:
        return self._film.spread(count)

    def take(self, wanted: Sequence[int], asked: int, network: tuple[int, int]) -> Sample:
        """Decode the frames of these numbers; a change of size in mid-stream is fitted to the first frame's."""
        film = self._film
        frames, size = self._believed(wanted, network)
        if not frames:
            raise Failure(Cause.NO_FRAMES, "none of the frames can be decoded")
        corrupt = film.corrupt or len(frames) < len(wanted)
        return Sample(tuple(frames), asked, *size, film.line.duration, film.truncated, corrupt, film.line.timing)

    def _believed(self, wanted: Sequence[int], network: tuple[int, int]) -> tuple[list[Frame], tuple[int, int]]:
        """Decode; where the container is found to be wrong, correct that and decode again."""
        corrupt = self._film.corrupt
        while True:
            try:
                return self._fitted(wanted, network)
            except Contradiction as found:
                self._film.corrupt = corrupt
                self._film.correct(found)

    def _fitted(self, wanted: Sequence[int], network: tuple[int, int]) -> tuple[list[Frame], tuple[int, int]]:
        frames: list[Frame] = []
        size = (0, 0)
        for time, picture in self._film.decode(wanted):
            if not frames:
                size = picture.shape[1], picture.shape[0]
            fitting = picture if picture.shape[1::-1] == size else np.asarray(cv2.resize(picture, size), np.uint8)
            frames.append(Frame(Letterbox(*size, *network).apply_fast(fitting), time))
        return frames, size

    def decode_all(self) -> Iterator[tuple[float, Picture]]:
        return self._film.decode_all()


@contextmanager
def _open(data: bytes, limits: Limits) -> Iterator[_Video | _Still]:
    with containers.opened(data, limits.pixels, limits.frames) as source:
        if source.container.format.name.endswith("_pipe") and len(source.packets) <= 1:
            yield _Still(data, limits)
        else:
            yield _Video(Film(source, data, limits.pixels))
