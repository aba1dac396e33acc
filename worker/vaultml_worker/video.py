"""Frames out of a recording that lies in memory. Runs inside decoder processes: see decoders.py."""

import io
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vaultml_worker.failures import Cause, Failure
from vaultml_worker.letterbox import Letterbox
from vaultml_worker.records import Frame, Sample

Picture = NDArray[np.uint8]
_Packet: TypeAlias = "av.Packet[VideoStream]"
# Real recordings only: playlists and concatenations could make FFmpeg open other files and addresses.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,h264,hevc,mjpeg,jpeg_pipe,png_pipe"

_STILLS = (b"\xff\xd8\xff", b"\x89PNG")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds against hostile files: pixels in one frame, frames in one recording."""

    pixels: int = 40_000_000
    frames: int = 200_000


def sample(data: bytes, count: int, network: tuple[int, int], limits: Limits) -> Sample:
    """`count` frames spread evenly over the whole recording, letterboxed to `network` (width, height) pixels.

    Frame i is the one nearest to (i + ½)·duration/count; where keyframes are at least as dense as that, the nearest
    keyframe stands in for it, and only keyframes are decoded. Fewer frames come back when the recording has fewer.
    Raises Failure that names what is wrong with the file.
    """
    with _open(data, limits) as source:
        return source.take(source.spread(count), count, network)


def sample_all(data: bytes, first: int, count: int, network: tuple[int, int], limits: Limits) -> tuple[Sample, int]:
    """Frames number `first` … `first + count − 1` in display order, and how many the recording has in all."""
    with _open(data, limits) as source:
        window = source.times[first : first + count]
        return source.take(window, len(window), network), len(source.times)


def pictures(data: bytes, limits: Limits) -> Iterator[tuple[float, Picture]]:
    """Every frame that decodes, in display order: its time in ms and its upright RGB picture (height, width, 3)."""
    with _open(data, limits) as source:
        yield from source.decode_all()


class _Still:
    """A single picture: a JPEG is a recording of one frame."""

    times: Sequence[int] = (0,)

    def __init__(self, data: bytes) -> None:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # honours the EXIF orientation
        if picture is None:
            raise Failure(Cause.NO_FRAMES, "the picture is cut off or damaged")
        self._picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)

    def spread(self, _count: int) -> Sequence[int]:
        return self.times

    def take(self, wanted: Sequence[int], asked: int, network: tuple[int, int]) -> Sample:
        height, width = self._picture.shape[:2]
        frame = Frame(Letterbox(width, height, *network).apply(self._picture), 0.0)
        return Sample((frame,) * len(wanted), asked, width, height, 0.0)

    def decode_all(self) -> Iterator[tuple[float, Picture]]:
        yield 0.0, self._picture


class _Video:
    """A demuxed recording: every packet is known (cheap: nothing is decoded), so each frame's time is known too."""

    def __init__(self, container: InputContainer, stream: VideoStream, data: bytes, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._time_base = stream.time_base or Fraction(1, 1000)
        self._truncated = _ends_early(data)
        self._corrupt = False
        self._packets = self._demux(container)
        shown = [packet for packet in self._packets if not packet.is_discard] or self._packets
        self.times = sorted({_pts(packet) for packet in shown})
        if not self.times:
            raise Failure(Cause.NO_FRAMES, "the video stream has no frames")
        last = max(_pts(packet) + (packet.duration or 0) for packet in shown)
        if last == self.times[-1] and len(self.times) > 1:  # the container tells no durations: take a typical one
            last += round((self.times[-1] - self.times[0]) / (len(self.times) - 1))
        self._end = last
        self._order = {_pts(packet): index for index, packet in reversed(list(enumerate(self._packets)))}
        keys = sorted((_pts(p), i) for i, p in enumerate(self._packets) if p.is_keyframe)
        self._key_times = [time for time, _ in keys]
        self._key_indexes = [index for _, index in keys]

    def spread(self, count: int) -> list[int]:
        return spread(self.times, self._key_times, self._end, count)

    def take(self, wanted: Sequence[int], asked: int, network: tuple[int, int]) -> Sample:
        """The frames at the `wanted` times (pts); a change of size in mid-stream is fitted to the first frame's."""
        frames: list[Frame] = []
        size = (0, 0)
        for time, picture in self._decode(wanted):
            if not frames:
                size = picture.shape[1], picture.shape[0]
            fitting = picture if picture.shape[1::-1] == size else np.asarray(cv2.resize(picture, size), np.uint8)
            frames.append(Frame(Letterbox(*size, *network).apply(fitting), time))
        if not frames:
            raise Failure(Cause.NO_FRAMES, "none of the frames can be decoded")
        return Sample(
            tuple(frames),
            asked,
            *size,
            self._ms(self._end),
            self._truncated,
            self._corrupt or len(frames) < len(wanted),
        )

    def decode_all(self) -> Iterator[tuple[float, Picture]]:
        yield from self._decode(self.times)

    def _ms(self, pts: int) -> float:
        return float((pts - self.times[0]) * self._time_base * 1000)

    def _demux(self, container: InputContainer) -> list[_Packet]:
        packets: list[_Packet] = []
        try:
            for packet in container.demux(self._stream):
                if not packet.size:
                    continue
                if packet.pts is None:
                    packet.pts = len(packets) if packet.dts is None else packet.dts
                packets.append(packet)
                if len(packets) > self._limits.frames:
                    raise Failure(Cause.TOO_LARGE, f"more frames than RECORDING_MAX_FRAMES ({self._limits.frames})")
        except av.FFmpegError:
            self._corrupt = True
        return packets

    def _decode(self, wanted: Sequence[int]) -> Iterator[tuple[float, Picture]]:
        """The wanted frames by time; one that can't be decoded is replaced by the next that can."""
        for first, last, times in self._runs(wanted):
            for frame in _choose(self._frames(first, last), times, self._mark_corrupt):
                yield self._ms(frame.pts or 0), _upright(frame)

    def _mark_corrupt(self) -> None:
        self._corrupt = True

    def _runs(self, wanted: Sequence[int]) -> Iterator[tuple[int, int, list[int]]]:
        """Stretches of packets to decode in one go: each from a keyframe to the last frame wanted of it."""
        run: tuple[int, int, list[int]] | None = None
        for time in wanted:
            place = bisect_right(self._key_times, time) - 1
            first, last = self._key_indexes[place] if place >= 0 else 0, self._order[time]
            first = min(first, last)
            if run and first <= run[1]:
                run = run[0], max(run[1], last), [*run[2], time]
            else:
                if run:
                    yield run
                run = first, last, [time]
        if run:
            yield run

    def _frames(self, first: int, last: int) -> Iterator[VideoFrame]:
        """What packets `first` … `last` decode to, going on past holes."""
        context = self._stream.codec_context
        for packet in (*self._packets[first : last + 1], None):
            try:
                for frame in context.decode(packet):
                    if frame.is_corrupt:
                        self._corrupt = True
                    if frame.width * frame.height > self._limits.pixels:
                        raise _too_many_pixels(frame.width, frame.height, self._limits)
                    yield frame
            except av.FFmpegError:
                self._corrupt = True
        context.flush_buffers()


def spread(times: Sequence[int], keyframes: Sequence[int], end: int, count: int) -> list[int]:
    """Which of the frame `times` (sorted, up to `end`) to look at: the rule of `sample`, in any unit of time."""
    start, spacing = times[0], Fraction(end - times[0], count)
    chosen: list[int] = []
    for i in range(count):
        target = start + (i + Fraction(1, 2)) * spacing
        after = bisect_right(keyframes, target)
        before = keyframes[after - 1] if after else None
        following = keyframes[after] if after < len(keyframes) else None
        frame = _nearest(times, target)
        if before is not None and (end if following is None else following) - before <= spacing:
            key = before if following is None or target - before <= following - target else following
            frame = frame if key in chosen else key
        if frame not in chosen:
            chosen.append(frame)
    return sorted(chosen)


def _nearest(times: Sequence[int], target: Fraction) -> int:
    after = min(bisect_left(times, target), len(times) - 1)
    before = max(0, after - 1)
    return times[before] if target - times[before] <= times[after] - target else times[after]


def _choose(
    frames: Iterable[VideoFrame], wanted: Sequence[int], on_missing: Callable[[], None]
) -> Iterator[VideoFrame]:
    """The frames at the wanted times; for a missing one the next that comes, or the last before it."""
    waiting = list(wanted)
    spare: VideoFrame | None = None
    for frame in frames:
        if frame.pts is None:
            continue
        due = bisect_right(waiting, frame.pts)
        if not due:
            spare = frame
            continue
        if due > 1 or waiting[0] != frame.pts:
            on_missing()
        del waiting[:due]
        spare = None
        yield frame
    if waiting:
        on_missing()
        if spare is not None:
            yield spare


def _upright(frame: VideoFrame) -> Picture:
    picture = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def _pts(packet: _Packet) -> int:
    return packet.pts if packet.pts is not None else 0


@contextmanager
def _open(data: bytes, limits: Limits) -> Iterator[_Video | _Still]:
    if not data:
        raise Failure(Cause.EMPTY, "the recording has no bytes")
    if data.startswith(b"Salted__"):
        raise Failure(Cause.ENCRYPTED, "the recording is encrypted, which this version can't read yet")
    bounds = {"threads": "1"}
    if not data.startswith(_STILLS):  # with the bound, FFmpeg would not even tell the size of a picture
        bounds["max_pixels"] = str(limits.pixels)
    try:
        container = av.open(
            io.BytesIO(data),
            "r",
            options=bounds,
            container_options={**bounds, "format_whitelist": _FORMATS, "protocol_whitelist": ""},
        )
    except (av.FFmpegError, ValueError, OSError):
        raise Failure(Cause.NOT_A_VIDEO, _why_unreadable(data)) from None
    with container:
        if not container.streams.video:
            raise Failure(Cause.NO_VIDEO_STREAM, "the file has no video stream")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context.width * context.height > limits.pixels:
            raise _too_many_pixels(context.width, context.height, limits)
        if container.format.name.endswith("_pipe"):
            yield _Still(data)
            return
        # One thread each: the decoder processes already use all cores, and threads only add frame delay.
        context.thread_count = 1
        context.options = bounds
        yield _Video(container, stream, data, limits)


def _too_many_pixels(width: int, height: int, limits: Limits) -> Failure:
    return Failure(Cause.TOO_MANY_PIXELS, f"frames of {width} x {height} exceed RECORDING_MAX_PIXELS ({limits.pixels})")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The top-level boxes of an mp4: kind, start, and end as its size says (0 = to the end of the file)."""
    place = 0
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if size == 1 and place + 16 <= len(data):
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        end = place + size if size else len(data)
        if end < place + 8:
            return
        yield kind, place, end
        place = end


def _is_mp4(data: bytes) -> bool:
    return data[4:8] in (b"ftyp", b"moov", b"styp", b"moof", b"mdat")


def _ends_early(data: bytes) -> bool:
    """An mp4 whose last box is longer than what is left of the file, or cut in its header."""
    if not _is_mp4(data):
        return False
    end = max((end for _, _, end in _boxes(data)), default=0)
    return end > len(data) or 0 < len(data) - end < 8


def _why_unreadable(data: bytes) -> str:
    if _is_mp4(data) and not any(kind == b"moov" for kind, _, _ in _boxes(data)):
        return "the mp4 has no index (moov): it was cut off before its end"
    return "this is neither a video nor a JPEG, or it is damaged at its beginning"
