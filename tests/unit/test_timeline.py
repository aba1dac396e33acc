"""Recordings whose times are absurd: different frames of the whole recording all the same, and a flag."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recordings import FRAGMENTED, TRIALS, WHOLE, Coded, coded, muxed, number, without_reorder_depth
from vaultml_worker import video
from vaultml_worker.media.timeline import Stamp, spread, timeline
from vaultml_worker.records import Sample, Timing

EVEN = [5, 15, 25, 35, 45]


def sample(data: bytes, count: int = 5) -> Sample:
    return video.sample(data, count, (128, 96), video.Limits())


def numbers(found: Sample) -> list[int]:
    return [number(frame.pixels) for frame in found.frames]


def near(found: Sequence[int], wanted: Sequence[int], within: int) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) <= within for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("name", "duration"),
    [
        ("13-gap-60s.mp4", 62_000),
        ("13-gap-5h.mkv", 18_002_000),
        ("13-cat.ts", 2000),
        ("14-raw.h264", 2000),
        ("14-raw.265", 2000),
    ],
)
def test_absurd_times_give_frames_of_the_whole_recording_and_a_flag(name: str, duration: float) -> None:
    found = sample((TRIALS / name).read_bytes())
    assert near(numbers(found), EVEN, 5)
    assert found.timing is Timing.FRAME_ORDER
    assert found.duration == duration
    assert [frame.timestamp for frame in found.frames] == [40.0 * value for value in numbers(found)]
    assert not found.corrupt


def retimed(change: Callable[[int], int], container: str = "matroska") -> bytes:
    """A recording of 50 frames, one keyframe, whose frame number n is shown at `change(n)` (in frames of 1/25 s)."""
    pictures, plain = coded(keyframe_every=1000, container="mpegts" if container == "mpegts" else "matroska")
    moved = [replace(each, pts=change(place), dts=change(place)) for place, each in enumerate(pictures)]
    return muxed(moved, plain, container=container, unit=Fraction(1, 25))


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda n: n + (5000 if n >= 40 else 0), id="a gap late"),
        pytest.param(lambda n: n + (5000 if n else 0), id="a gap behind the first frame"),
        pytest.param(lambda n: n + 3000 * (n >= 15) + 4000 * (n >= 30), id="two gaps"),
        pytest.param(lambda n: n + 100_000 * (n == 49), id="the last frame far away"),
    ],
)
def test_gaps_longer_than_the_rest(container: str, change: Callable[[int], int]) -> None:
    found = sample(retimed(change, container))
    assert numbers(found) == EVEN
    assert found.timing is Timing.FRAME_ORDER
    assert found.frames[-1].timestamp == pytest.approx(1800, abs=2)


def test_a_last_frame_that_is_shown_for_hours() -> None:
    pictures, plain = coded(keyframe_every=1000)
    found = sample(muxed([*pictures[:-1], replace(pictures[-1], duration=90_000)], plain))
    assert numbers(found) == EVEN
    assert found.timing is Timing.FRAME_ORDER


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("parts", [2, 3])
def test_clocks_that_start_again(bframes: int, parts: int) -> None:
    pictures, plain = coded(keyframe_every=1000, bframes=bframes, container="mpegts")
    one = muxed(pictures, plain, container="mpegts")
    found = sample(one * parts, 2 * parts)
    assert len(found.frames) == 2 * parts
    assert [number(frame.pixels) for frame in found.frames] == [12, 37] * parts
    assert (found.timing, found.duration) == (Timing.FRAME_ORDER, 2000 * parts)
    assert [round(frame.timestamp) for frame in found.frames] == [
        2000 * part + 40 * value for part in range(parts) for value in (12, 37)
    ]


def fragments(change: Callable[[int, int], int], **options: Any) -> bytes:
    """A fragmented mp4 of 50 frames whose fragment number n begins at `change(n, its time)` (12800 a second)."""
    pictures, plain = coded(**options)
    data = bytearray(muxed(pictures, plain, options={"movflags": FRAGMENTED}))
    place = number_ = 0
    while (place := data.find(b"tfdt", place) + 4) > 3:
        end = place + (12 if data[place] else 8)
        time = change(number_, int.from_bytes(data[place + 4 : end], "big"))
        data[place + 4 : end] = time.to_bytes(end - place - 4, "big")
        number_ += 1
    return bytes(data)


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda n, time: time if n < 2 else time - 10_240, id="set back"),
        pytest.param(lambda n, time: time - 1536 * n * (n > 1), id="slightly back, again and again"),
        pytest.param(lambda _n, _time: 0, id="no clock"),
        pytest.param(lambda _n, time: 30_720 - time, id="from the end"),
        pytest.param(lambda n, time: time + 12_800 * 3600 * (n > 2), id="set forward by an hour"),
    ],
)
def test_fragments_whose_clock_was_set(change: Callable[[int, int], int], bframes: int) -> None:
    data = fragments(change, bframes=bframes)
    found = sample(data)
    assert near(numbers(found), EVEN, 5)
    assert found.timing is Timing.FRAME_ORDER
    assert not found.corrupt
    assert [number(picture) for _, picture in video.pictures(data, video.Limits())] == list(range(50))
    whole = sample(fragments(lambda _, time: time, bframes=bframes))
    assert (whole.timing, whole.duration) == (Timing.CONTAINER, 2000)


@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "h264"), ("libx265", "hevc"), ("mpeg2video", "mpeg2video")]
)
@pytest.mark.parametrize("bframes", [0, 3])
@pytest.mark.parametrize("keyframe_every", [10, 25, 1000])
def test_raw_streams_have_no_times(codec: str, container: str, bframes: int, keyframe_every: int) -> None:
    _, plain = coded(codec=codec, container=container, bframes=bframes, keyframe_every=keyframe_every)
    found = sample(plain)
    assert near(numbers(found), EVEN, 5 if keyframe_every == 10 else 0)
    assert found.duration == 2000
    assert not found.corrupt
    if container != "mpeg2video":
        assert found.timing is Timing.FRAME_ORDER


def test_an_mjpeg_stream_is_a_recording_not_a_picture() -> None:
    _, plain = coded(codec="mjpeg", container="mjpeg", pix_fmt="yuvj420p")
    found = sample(plain)
    assert numbers(found) == EVEN
    assert found.duration == 2000


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_times_that_are_only_odd_are_believed(container: str) -> None:
    """A second without frames, a slow camera, one that changes its rate: sampled by time, not flagged."""
    pause = sample(retimed(lambda n: n + 25 * (n >= 25), container))
    assert near(numbers(pause), [8, 23, 25, 26, 41], 2)
    slow = sample(retimed(lambda n: 250 * n, container))
    assert near(numbers(slow), EVEN, 1)
    changing = sample(retimed(lambda n: n if n < 25 else 25 + 25 * (n - 25), container))
    assert near(numbers(changing), [27, 32, 37, 42, 47], 1)
    assert {each.timing for each in (pause, slow, changing)} == {Timing.CONTAINER}


def test_frames_at_one_moment_are_different_frames() -> None:
    found = sample(retimed(lambda n: 10 if n <= 40 else n), 12)
    assert len(set(numbers(found))) == 12
    assert found.timing is Timing.FRAME_ORDER
    found = sample(retimed(lambda n: 40 if 40 <= n <= 45 else n), 25)
    assert len(set(numbers(found))) == 25
    assert found.timing is Timing.CONTAINER


def test_as_many_frames_as_there_are() -> None:
    """However they lie in time: bursts give all the frames that are asked for."""
    bursts = sample(retimed(lambda n: n % 10 + 100 * (n // 10)), 40)
    assert len(set(numbers(bursts))) == 40
    assert len(sample(retimed(lambda n: n * n), 60).frames) == 50


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_times_of_decoding_are_not_taken_for_times_of_display(container: str, codec: str) -> None:
    """Agents wrote no composition offsets: the pictures of B-frames came in decoding order."""
    pictures, plain = coded(codec=codec, bframes=3, keyframe_every=25)
    data = muxed([replace(each, pts=n, dts=n) for n, each in enumerate(pictures)], plain, container=container)
    assert numbers(sample(data)) == EVEN
    assert [number(picture) for _, picture in video.pictures(data, video.Limits())] == list(range(50))


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
@pytest.mark.parametrize("keyframe_every", [7, 25, 1000])
@pytest.mark.parametrize("of_display", [True, False])
def test_streams_that_do_not_say_how_far_they_reorder(container: str, keyframe_every: int, of_display: bool) -> None:
    """As many cameras' H.264: the depth is known only once frames are decoded."""
    raw = without_reorder_depth(coded(container="h264", bframes=3, keyframe_every=keyframe_every)[1])
    pictures, _ = coded(container="mpegts", bframes=3, keyframe_every=keyframe_every)
    bare = [replace(each, body=without_reorder_depth(each.body)) for each in pictures]
    told = bare if of_display else [replace(each, pts=n, dts=n) for n, each in enumerate(bare)]
    data = muxed(told, raw, container=container)
    found = sample(data)
    assert near(numbers(found), EVEN, 3 if keyframe_every == 7 else 0)
    assert found.timing is Timing.CONTAINER
    assert not found.corrupt
    assert [number(picture) for _, picture in video.pictures(data, video.Limits())] == list(range(50))


def every(data: bytes, chunk: int) -> list[int]:
    found: list[int] = []
    first, total = 0, 1
    while first < total:
        part, total = video.sample_all(data, first, chunk, (128, 96), video.Limits())
        found += numbers(part)
        first += chunk
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_all_frames_chunk_by_chunk_are_all_frames_at_once(name: str) -> None:
    data = (TRIALS / name).read_bytes()
    assert every(data, 8) == [number(picture) for _, picture in video.pictures(data, video.Limits())]
    assert every(data, 8) == list(range(125 if "intra-refresh" in name else 50))


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libx264", "h264"), ("libx265", "hevc"), ("mpeg2video", "mpeg2video"), ("libx264", "avi"), ("libx265", "mp4")],
)
@pytest.mark.parametrize("keyframe_every", [7, 25, 1000])
def test_all_frames_where_display_order_differs(codec: str, container: str, keyframe_every: int) -> None:
    _, plain = coded(codec=codec, container=container, bframes=3, keyframe_every=keyframe_every)
    assert every(plain, 8) == list(range(50))


def stamps(*times: int | None) -> list[Stamp]:
    return [Stamp(time, time, 1) for time in times]


def test_nonsense_never_raises() -> None:
    for times in ([0], [None], [None, 5], [5, None, 7], [2**62, -(2**62), 0], [0, 0, 0], [-(10**18), 10**18]):
        line = timeline(stamps(*times), Fraction(1, 90_000), reorder=True, real_dts=True, rate=Fraction(0))
        assert len(line.times) == len(times)
        assert sorted(line.order or range(len(times))) == list(range(len(times)))
        assert line.duration >= line.milliseconds(len(times) - 1) >= 0


@given(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=60),
    st.integers(0, 2**62),
    st.booleans(),
    st.booleans(),
)
def test_any_times_make_a_timeline(times: list[int | None], duration: int, reorder: bool, real_dts: bool) -> None:
    line = timeline(
        [Stamp(time, time, duration) for time in times],
        Fraction(1, 1000),
        reorder=reorder,
        real_dts=real_dts,
        rate=None,
    )
    assert list(line.times) == sorted(line.times)
    assert len(spread(line.times, [0], line.end, 5)) == min(5, len(times))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 12), st.data())
def test_the_choice_of_frames_keeps_its_promise(gaps: Sequence[int], count: int, data: st.DataObject) -> None:
    """Each target has a frame within one keyframe interval of it; N different frames in order, or all there are."""
    times = [sum(gaps[:i]) for i in range(len(gaps))]
    end = sum(gaps)
    keys = sorted(data.draw(st.sets(st.sampled_from(range(len(times))))) | {0})
    chosen = spread(times, keys, end, count)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(len(times)))
    assert len(chosen) == min(count, len(times))
    key_times = [times[key] for key in keys]
    widest = max(b - a for a, b in zip(key_times, [*key_times[1:], end], strict=True))
    coarsest = max(gaps)
    for i in range(count):
        target = (i + 0.5) * end / count
        assert min(abs(times[frame] - target) for frame in chosen) <= max(widest, coarsest)


def test_coded_pictures_are_what_they_say() -> None:
    """The helper itself: without it every test above could pass by accident."""
    pictures, plain = coded()
    assert isinstance(pictures[0], Coded)
    assert [number(picture) for _, picture in video.pictures(plain, video.Limits())] == list(range(50))
