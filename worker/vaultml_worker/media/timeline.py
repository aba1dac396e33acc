"""When each frame of a recording is shown.

Normally the container says so. Some recordings have no times (raw H.264), clocks that start again (two recordings in
one MPEG-TS file) or gaps longer than the rest. There the frame's number over a nominal frame rate is its time.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from statistics import median_low

from vaultml_worker.records import Timing

_DEFAULT_PERIOD = Fraction(1, 25)
_PERIODS = Fraction(1, 1000), Fraction(60)
"""Shortest and longest plausible time between two frames, in seconds."""
REORDER = 16
"""By how many frames decoding and display order can differ at most (H.264, HEVC)."""
_RARE = 10
"""A gap is one where at most every tenth step is as long; more of them are a slow frame rate."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """The times of one packet in units of the stream's time base; None: the container has none."""

    pts: int | None
    dts: int | None
    duration: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames in display order.

    `times` and `end` are in units of `unit` seconds; `order` has each frame's packet number (in decoding order), or is
    None where only decoding tells the order; `duration` is what a player shows, in ms.
    """

    times: Sequence[int]
    end: int
    unit: Fraction
    order: Sequence[int] | None
    duration: float
    timing: Timing

    def milliseconds(self, rank: int) -> float:
        """Return the time of frame number `rank` from the start of the recording, in ms."""
        return float((self.times[rank] - self.times[0]) * self.unit * 1000)


def timeline(
    stamps: Sequence[Stamp],
    time_base: Fraction,
    *,
    display_times: bool = True,
    reorder: bool,
    real_dts: bool,
    rate: Fraction | None,
) -> Timeline:
    """Return the timeline of packets with these stamps, given in decoding order (at least one).

    `display_times`: what should be times of display are; `reorder`: decoding and display order may differ; `real_dts`:
    the container itself has decoding times (FFmpeg derives them for others); `rate`: frames per second as the container
    says, if it does.
    """
    pts = [stamp.pts for stamp in stamps if stamp.pts is not None]
    ordered = len(pts) == len(stamps) and display_times
    clock = pts if len(pts) == len(stamps) else [stamp.dts for stamp in stamps if stamp.dts is not None]
    if len(clock) < len(stamps):
        return _by_number(stamps, [], time_base, rate, None)
    starts = _restarts(stamps, clock, reorder=reorder and ordered, real_dts=real_dts or not ordered)
    runs = [sorted(range(*run), key=clock.__getitem__) for run in pairwise([*starts, len(clock)])]
    numbers = [number for run in runs for number in run]
    order = numbers if ordered else None
    steps = [clock[b] - clock[a] for run in runs for a, b in pairwise(run)]
    if len(runs) > 1:
        return _by_number(stamps, steps, time_base, rate, order)
    end = _end(stamps, clock, steps)
    span = float((end - clock[numbers[0]]) * time_base * 1000)
    problem = _implausible([*steps, end - clock[numbers[-1]]], time_base)
    if problem is not None:
        found = _by_number(stamps, steps, time_base, rate, order)
        return found if problem == "rate" else replace(found, duration=max(span, found.duration))
    return Timeline([clock[number] for number in numbers], end, time_base, order, span, Timing.CONTAINER)


def _end(stamps: Sequence[Stamp], clock: Sequence[int], steps: Sequence[int]) -> int:
    """Return when the last frame ends; where the container has no durations, or false ones, after a usual step."""
    end = max(time + stamp.duration for time, stamp in zip(clock, stamps, strict=True))
    if steps and 2 * median_low([stamp.duration for stamp in stamps]) < median_low(steps):
        return max(end, max(clock) + median_low(steps))
    return end


def _restarts(stamps: Sequence[Stamp], clock: Sequence[int], *, reorder: bool, real_dts: bool) -> list[int]:
    """Return the packets at which the clock starts again, the first packet included."""
    starts = [0]
    highest: int | None = None
    for number in range(1, len(clock)):
        earlier = number - 1 - (REORDER if reorder else 0)
        if earlier >= starts[-1]:
            highest = clock[earlier] if highest is None else max(highest, clock[earlier])
        before, here = stamps[number - 1].dts, stamps[number].dts
        backwards = real_dts and before is not None and here is not None and here < before
        if backwards or (highest is not None and clock[number] < highest):
            starts.append(number)
            highest = None
    return starts


def _implausible(steps: Sequence[int], time_base: Fraction) -> str | None:
    """Return "gap" or "rate" when the steps between frames can't be what the camera saw, None when they can."""
    if len(steps) == 1:
        return None
    if median_low(steps) * time_base < _PERIODS[0]:
        return "rate"
    longest = max(steps)
    rest = [step for step in steps if 2 * step <= longest]
    few = (len(steps) - len(rest)) * _RARE <= len(steps)
    return "gap" if few and longest > sum(rest) else None


def _by_number(
    stamps: Sequence[Stamp],
    steps: Sequence[int],
    time_base: Fraction,
    rate: Fraction | None,
    order: Sequence[int] | None,
) -> Timeline:
    """Return the timeline that counts frames: frame i is shown at i periods."""
    candidates = [median_low(steps) * time_base] if steps else []
    candidates += [median_low([stamp.duration for stamp in stamps]) * time_base]
    candidates += [1 / rate] if rate else []
    period = next((each for each in candidates if _PERIODS[0] <= each <= _PERIODS[1]), _DEFAULT_PERIOD)
    count = len(stamps)
    return Timeline(range(count), count, period, order, float(count * period * 1000), Timing.FRAME_ORDER)


def spread(times: Sequence[int], keyframes: Sequence[int], end: int, count: int) -> list[int]:
    """Return the numbers of `count` different frames, in order; of all frames where there are fewer.

    `times` (sorted) and `end` are in any unit of time, `keyframes` are frame numbers. Frame i is the one nearest to
    (i + ½)·duration/count; where keyframes are at least as dense as that, the nearest keyframe.
    """
    if len(times) <= count:
        return list(range(len(times)))
    start, spacing = times[0], Fraction(end - times[0], count)
    targets = [start + (i + Fraction(1, 2)) * spacing for i in range(count)]
    key_times = [times[key] for key in keyframes]
    chosen: set[int] = set()
    missed: list[Fraction] = []
    for target in targets:
        frame = nearest(times, target)
        after = bisect_right(key_times, target)
        if after:
            following = key_times[after] if after < len(key_times) else None
            if (end if following is None else following) - key_times[after - 1] <= spacing:
                closer = following is None or target - key_times[after - 1] <= following - target
                key = keyframes[after - 1 if closer else after]
                frame = frame if key in chosen else key
        if frame in chosen:
            missed.append(target)
        chosen.add(frame)
    for target in missed:
        chosen.add(min((n for n in range(len(times)) if n not in chosen), key=lambda n: abs(times[n] - target)))
    return sorted(chosen)


def nearest(times: Sequence[int], target: Fraction) -> int:
    """Return the number of the frame whose time is nearest to `target`."""
    after = min(bisect_left(times, target), len(times) - 1)
    before = max(0, after - 1)
    return before if target - times[before] <= times[after] - target else after
