"""Frames out of a recording that lies in memory. Runs inside decoder processes: see decoders.py.

A recording is demuxed whole, which decodes nothing. Then the frames to sample are chosen by their times, and only the
stretches between a keyframe and the last frame wanted of it are decoded. How times, keyframes and colours are read from
files that lie about them is in `media`.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

from vaultml_worker.failures import Cause, Failure
from vaultml_worker.letterbox import Letterbox
from vaultml_worker.media import colour, containers, keyframes
from vaultml_worker.media.colour import Picture
from vaultml_worker.media.containers import Source
from vaultml_worker.media.timeline import Stamp, Timeline, spread, timeline
from vaultml_worker.media.truncation import ends_early
from vaultml_worker.records import Frame, Sample

_REORDER = 16
"""By how many packets decoding and display order can differ at most."""


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


@dataclass(frozen=True, slots=True)
class _Run:
    """Packets `first` … `last` to decode in one go, and the numbers of the frames wanted of them."""

    first: int
    last: int
    wanted: list[int]


class _FalseKeyframe(Exception):  # noqa: N818 - a finding, not an error
    """Decoding began at a packet that is no keyframe, though the container says so."""


class _Video:
    """A demuxed recording. Packets are known by their number in decoding order, frames by theirs in display order.

    While decoding, each packet's number is its timestamp: so frames are told apart whatever their times are.
    """

    def __init__(self, source: Source, data: bytes, limits: Limits) -> None:
        self._limits = limits
        self._context = source.stream.codec_context
        self._packets = source.packets
        self._corrupt = source.damaged
        if not self._packets:
            raise Failure(Cause.NO_FRAMES, "the video stream has no frames")
        check = keyframes.check_of(self._context.codec, self._context.extradata)
        self._checked = check is not None
        claims = [packet.is_keyframe for packet in self._packets]
        starts = keyframes.starts(claims, lambda number: bytes(self._packets[number]), check)
        self._truncated = source.recovered or ends_early(data, source.container.format.name, starts, len(self._packets))
        self._line, self._numbers = self._timeline(source, starts)
        if self._line.order is None and check is not None:
            closed = keyframes.check_of(self._context.codec, self._context.extradata, closed=True)
            starts = [number for number in starts if closed is None or closed(bytes(self._packets[number]))]
        self.count = len(self._line.times)
        rank = {number: place for place, number in enumerate(self._numbers)}
        self._rank = rank
        self._use_keyframes([(rank[number], number) for number in starts if number in rank])

    def _timeline(self, source: Source, starts: Sequence[int]) -> tuple[Timeline, Sequence[int]]:
        """Return the timeline of the frames that are shown, and the packet number of each."""
        first = starts[0] if starts and self._checked else 0
        if first:  # what comes before the first keyframe has nothing to be decoded from
            self._corrupt = True
        shown = [number for number in range(first, len(self._packets)) if not self._packets[number].is_discard]
        shown = shown or list(range(len(self._packets)))
        stream = source.stream
        line = timeline(
            [_stamp(self._packets[number]) for number in shown],
            stream.time_base or Fraction(1, 1000),
            reorder=self._context.has_b_frames,
            real_dts=not source.container.format.name.startswith("matroska"),
            rate=stream.guessed_rate,
        )
        return line, shown if line.order is None else [shown[place] for place in line.order]

    def _use_keyframes(self, keyframes_: Sequence[tuple[int, int]]) -> None:
        """Take these for keyframes: (frame number, packet number) each."""
        self._key_frames = [frame for frame, _ in sorted(keyframes_)]
        self._key_packets = [packet for _, packet in sorted(keyframes_)]

    def spread(self, count: int) -> list[int]:
        return spread(self._line.times, self._key_frames, self._line.end, count)

    def take(self, wanted: Sequence[int], asked: int, network: tuple[int, int]) -> Sample:
        """Decode the frames of these numbers; a change of size in mid-stream is fitted to the first frame's."""
        corrupt = self._corrupt
        try:
            frames, size = self._fitted(wanted, network)
        except _FalseKeyframe:
            self._corrupt = corrupt
            self._use_keyframes([])
            frames, size = self._fitted(wanted, network)
        if not frames:
            raise Failure(Cause.NO_FRAMES, "none of the frames can be decoded")
        return Sample(
            tuple(frames),
            asked,
            *size,
            self._line.duration,
            self._truncated,
            self._corrupt or len(frames) < len(wanted),
            self._line.timing,
        )

    def _fitted(self, wanted: Sequence[int], network: tuple[int, int]) -> tuple[list[Frame], tuple[int, int]]:
        frames: list[Frame] = []
        size = (0, 0)
        for time, picture in self._decode(wanted):
            if not frames:
                size = picture.shape[1], picture.shape[0]
            fitting = picture if picture.shape[1::-1] == size else np.asarray(cv2.resize(picture, size), np.uint8)
            frames.append(Frame(Letterbox(*size, *network).apply_fast(fitting), time))
        return frames, size

    def decode_all(self) -> Iterator[tuple[float, Picture]]:
        yield from self._decode(range(self.count))

    def _decode(self, wanted: Sequence[int]) -> Iterator[tuple[float, Picture]]:
        """Yield the wanted frames in order; one that can't be decoded is replaced by the next that can."""
        for run in self._runs(wanted):
            for number, frame in _choose(self._run(run), run.wanted, self._mark_corrupt):
                yield self._line.milliseconds(number), _upright(frame)

    def _mark_corrupt(self) -> None:
        self._corrupt = True

    def _runs(self, wanted: Sequence[int]) -> Iterator[_Run]:
        """Yield the stretches to decode: each from a keyframe to the last frame wanted of it."""
        run: _Run | None = None
        for number in wanted:
            place = bisect_right(self._key_frames, number) - 1
            last = self._numbers[number]
            if self._line.order is None:
                last = min(last + _REORDER, len(self._packets) - 1)
                if place >= 0 and self._key_frames[place] == number:
                    last = self._numbers[number]
            first = min(self._key_packets[place] if place >= 0 else 0, last)
            if run and first <= run.last + 1:
                run = _Run(run.first, max(run.last, last), [*run.wanted, number])
            else:
                if run:
                    yield run
                run = _Run(first, last, [number])
        if run:
            yield run

    def _run(self, run: _Run) -> Iterator[tuple[int, VideoFrame]]:
        """Decode a run; one whose keyframe does not decode begins at the keyframe before."""
        frames = self._frames(run.first, run.last)
        head = next(frames, None)
        if run.first and not self._checked and not self._is_keyframe(head, run.first):
            raise _FalseKeyframe
        if head is None and run.first:
            self._corrupt = True
            before = bisect_right(self._key_packets, run.first - 1) - 1
            yield from self._frames(self._key_packets[before] if before >= 0 else 0, run.last)
        elif head is not None:
            yield head
            yield from frames

    def _is_keyframe(self, head: tuple[int, VideoFrame] | None, packet: int) -> bool:
        """True if the first frame that came out is a keyframe, and the one of the packet that decoding began at."""
        return head is not None and head[1].key_frame and head[0] == self._rank.get(packet)

    def _frames(self, first: int, last: int) -> Iterator[tuple[int, VideoFrame]]:
        """Yield number and picture of what packets `first` … `last` decode to, going on past holes."""
        start = bisect_right(self._numbers, first - 1) if self._line.order is None else 0
        pixels, count = self._limits.pixels, 0
        for number in (*range(first, last + 1), None):
            try:
                for frame in self._context.decode(self._numbered(number)):
                    if frame.is_corrupt:
                        self._corrupt = True
                    if frame.width * frame.height > pixels:
                        raise containers.too_many_pixels(frame.width, frame.height, pixels)
                    place = self._place(frame, start + count)
                    count += 1
                    if place is not None:
                        yield place, frame
            except MemoryError:
                raise MemoryError from None  # FFmpeg's own can't be pickled; the recording is not at fault
            except av.FFmpegError:
                self._corrupt = True
        self._context.flush_buffers()

    def _numbered(self, number: int | None) -> "containers.Packet | None":
        if number is None:
            return None
        packet = self._packets[number]
        packet.pts = packet.dts = number
        return packet

    def _place(self, frame: VideoFrame, counted: int) -> int | None:
        """Return a decoded frame's number, None where it is not shown; `counted`: its number if all before decoded."""
        if self._line.order is None:
            return counted if counted < self.count else None
        return None if frame.pts is None else self._rank.get(frame.pts)


def _stamp(packet: containers.Packet) -> Stamp:
    return Stamp(packet.pts, packet.dts, packet.duration or 0)


def _choose(
    frames: Iterable[tuple[int, VideoFrame]], wanted: Sequence[int], on_missing: Callable[[], None]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames of the wanted numbers; for a missing one the next that comes, or the last before it."""
    waiting = list(wanted)
    spare: tuple[int, VideoFrame] | None = None
    for number, frame in frames:
        due = bisect_right(waiting, number)
        if not due:
            spare = number, frame
            continue
        if due > 1 or waiting[0] != number:
            on_missing()
        del waiting[:due]
        spare = None
        yield number, frame
    if waiting:
        on_missing()
        if spare is not None:
            yield spare


def _upright(frame: VideoFrame) -> Picture:
    picture = colour.rgb(frame)
    turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


@contextmanager
def _open(data: bytes, limits: Limits) -> Iterator[_Video | _Still]:
    with containers.opened(data, limits.pixels, limits.frames) as source:
        if source.container.format.name.endswith("_pipe") and len(source.packets) <= 1:
            yield _Still(data, limits)
        else:
            yield _Video(source, data, limits)
