"""The frames of a demuxed recording, by number in display order, decoded as far as they are wanted.

Packets are known by their number in decoding order. While decoding, that number is a packet's timestamp: so frames are
told apart whatever times the container has. What decoding shows to be wrong about the container is corrected once.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from typing import cast

import av
from av.video.frame import VideoFrame

from vaultml_worker.failures import Cause, Failure
from vaultml_worker.media import colour, containers, keyframes
from vaultml_worker.media.colour import Picture
from vaultml_worker.media.timeline import REORDER, Stamp, Timeline, spread, timeline
from vaultml_worker.media.truncation import ends_early


class Contradiction(Exception):  # noqa: N818 - a finding, not an error
    """What came out of the decoder is not what the container says."""


class FalseKeyframe(Contradiction):
    """Decoding began at a packet that is no keyframe."""


class DecodingTimes(Contradiction):
    """Frames come in another order than their times: those are times of decoding, not of display."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Packets `first` … `last` to decode in one go, and the numbers of the frames wanted of them."""

    first: int
    last: int
    wanted: list[int]


class Film:
    """A recording of moving pictures; `corrupt` becomes True when something in it can't be decoded.

    `line` has the frames' times, `truncated` tells that the file ends too early.
    """

    def __init__(self, source: containers.Source, data: bytes, pixels: int) -> None:
        self._pixels = pixels
        self._stream = source.stream
        self._context = source.stream.codec_context
        self._packets = source.packets
        self.corrupt = source.damaged
        if not self._packets:
            raise Failure(Cause.NO_FRAMES, "the video stream has no frames")
        check = keyframes.check_of(self._context.codec, self._context.extradata)
        self._checked = check is not None
        claims = [packet.is_keyframe for packet in self._packets]
        self._starts = keyframes.starts(claims, self._body, check)
        name = source.container.format.name
        self.truncated = source.recovered or ends_early(data, name, self._starts, len(self._packets))
        self._stamps = [Stamp(packet.pts, packet.dts, packet.duration or 0) for packet in self._packets]
        self._restore()
        self._real_dts = not name.startswith("matroska")
        self._arrange(display_times=not (self._context.has_b_frames and _grow(self._stamps)))

    @property
    def count(self) -> int:
        """How many frames there are."""
        return len(self.line.times)

    def spread(self, count: int) -> list[int]:
        """Return the numbers of `count` frames spread over the recording; see `timeline.spread`."""
        return spread(self.line.times, self._key_frames, self.line.end, count)

    def decode(self, wanted: Sequence[int]) -> Iterator[tuple[float, Picture]]:
        """Yield time (ms) and upright picture of the frames of these numbers, which are in order.

        One that can't be decoded is replaced by the next that can. Raises Contradiction: call `correct`, begin again.
        """
        last = -1
        for run in self._runs(wanted):
            for number, frame in _choose(self._run(run), run.wanted, self._mark_corrupt):
                if number > last:  # in a damaged recording, one may have stood in for another already
                    last = number
                    yield self.line.milliseconds(number), colour.upright(frame)

    def decode_all(self) -> Iterator[tuple[float, Picture]]:
        """Yield time (ms) and upright picture of all frames."""
        try:
            for _ in islice(self._frames(0, len(self._packets) - 1), 2 * REORDER):
                pass
        except Contradiction as found:
            self.correct(found)
        yield from self.decode(range(self.count))

    def correct(self, found: Contradiction) -> None:
        """Believe the decoder, not the container."""
        if isinstance(found, FalseKeyframe):
            self._starts = []
        self._arrange(display_times=self.line.order is not None and not isinstance(found, DecodingTimes))

    def _restore(self) -> None:
        """Make packets whole that FFmpeg marks to be discarded because the times of their mp4 fragment go backwards.

        Those that an edit list leaves out are in order, and stay marked.
        """
        last: int | None = None
        for number, (packet, stamp) in enumerate(zip(self._packets, self._stamps, strict=True)):
            if packet.is_discard and last is not None and stamp.dts is not None and stamp.dts <= last:
                self._packets[number] = cast("containers.Packet", av.Packet(bytes(packet)))
            elif stamp.dts is not None:
                last = stamp.dts if last is None else max(last, stamp.dts)

    def _arrange(self, *, display_times: bool) -> None:
        """Put the frames in order and find the keyframes among them."""
        starts = self._starts
        first = starts[0] if starts and self._checked else 0
        if first:  # what comes before the first keyframe has nothing to be decoded from
            self.corrupt = True
        shown = [number for number in range(first, len(self._packets)) if not self._packets[number].is_discard]
        shown = shown or list(range(len(self._packets)))
        self.line: Timeline = timeline(
            [self._stamps[number] for number in shown],
            self._stream.time_base or Fraction(1, 1000),
            display_times=display_times,
            reorder=self._context.codec.reorder,
            real_dts=self._real_dts,
            rate=self._stream.guessed_rate,
        )
        self._numbers = shown if self.line.order is None else [shown[place] for place in self.line.order]
        self._rank = {number: place for place, number in enumerate(self._numbers)}
        if self.line.order is None and self._context.codec.canonical_name == "h264":
            # Frames are counted: the decoder must wait for each, however far the stream reorders without saying so.
            self._context = containers.decoder(self._context, self._pixels, strict="strict")
        if self.line.order is None and self._checked:
            closed = keyframes.check_of(self._context.codec, self._context.extradata, closed=True)
            starts = [number for number in starts if closed is None or closed(self._body(number))]
        keys = sorted((self._rank[number], number) for number in starts if number in self._rank)
        self._key_frames = [frame for frame, _ in keys]
        self._key_packets = [packet for _, packet in keys]

    def _body(self, number: int) -> bytes:
        return bytes(self._packets[number])

    def _mark_corrupt(self) -> None:
        self.corrupt = True

    def _runs(self, wanted: Sequence[int]) -> Iterator[_Run]:
        """Yield the stretches to decode: each from a keyframe to the last frame wanted of it."""
        run: _Run | None = None
        for number in wanted:
            first, last = self._stretch(number)
            if run and first <= run.last + 1:
                run = _Run(run.first, max(run.last, last), [*run.wanted, number])
            else:
                if run:
                    yield run
                run = _Run(first, last, [number])
        if run:
            yield run

    def _stretch(self, number: int) -> tuple[int, int]:
        """Return the first and last packet to decode for a frame."""
        place = bisect_right(self._key_frames, number) - 1
        last = self._numbers[number]
        if self.line.order is None and (place < 0 or self._key_frames[place] != number):
            last = min(last + REORDER, len(self._packets) - 1)
        return min(self._key_packets[place] if place >= 0 else 0, last), last

    def _run(self, run: _Run) -> Iterator[tuple[int, VideoFrame]]:
        """Decode a run; one whose keyframe does not decode begins at the keyframe before."""
        frames = self._frames(run.first, run.last)
        head = next(frames, None)
        if run.first and not self._checked and not self._is_keyframe(head, run.first):
            raise FalseKeyframe
        if head is None and run.first:
            self.corrupt = True
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
        self._context.flush_buffers()
        counted = bisect_right(self._numbers, first - 1) - 1
        before = -1
        for frame in self._pictures(first, last):
            counted += 1
            place = self._place(frame, counted)
            if place is None:
                continue
            if place < before and not self.corrupt:
                raise DecodingTimes
            before = place
            yield place, frame

    def _pictures(self, first: int, last: int) -> Iterator[VideoFrame]:
        for number in (*range(first, last + 1), None):
            try:
                for frame in self._context.decode(self._numbered(number)):
                    if frame.is_corrupt:
                        self.corrupt = True
                    if frame.width * frame.height > self._pixels:
                        raise containers.too_many_pixels(frame.width, frame.height, self._pixels)
                    yield frame
            except MemoryError:
                containers.check_memory()
                self.corrupt = True
            except av.FFmpegError:
                self.corrupt = True

    def _numbered(self, number: int | None) -> "containers.Packet | None":
        if number is None:
            return None
        packet = self._packets[number]
        packet.pts = packet.dts = number
        return packet

    def _place(self, frame: VideoFrame, counted: int) -> int | None:
        """Return a decoded frame's number, None where it is not shown; `counted`: its number if all before decoded."""
        if self.line.order is None:
            return counted if counted < self.count else None
        return None if frame.pts is None else self._rank.get(frame.pts)


def _grow(stamps: Sequence[Stamp]) -> bool:
    """True if display times grow from packet to packet, as none do where decoding and display order differ."""
    times = [stamp.pts for stamp in stamps if stamp.pts is not None]
    return all(a < b for a, b in pairwise(times))


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
