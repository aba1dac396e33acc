"""Recordings that end too early: flagged in every container; and what is left of an mp4 without its index."""

import random

import pytest

from tests.recordings import FRAGMENTED, TRIALS, WHOLE, clip, coded, muxed, number
from vaultml_worker import video
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.media import containers, recovery
from vaultml_worker.records import Sample, Timing

OPTIONS = {"fragmented": ("mp4", {"movflags": FRAGMENTED}), "faststart": ("mp4", {"movflags": "faststart"})}
CONTAINERS = ["fragmented", "faststart", "matroska", "live matroska", "avi", "flv", "mpegts"]


def sample(data: bytes, count: int = 5) -> Sample:
    return video.sample(data, count, (128, 96), video.Limits())


def numbers(found: Sample) -> list[int]:
    return [number(frame.pixels) for frame in found.frames]


def recording(kind: str) -> bytes:
    if kind == "live matroska":
        pictures, plain = coded(100)
        return muxed(pictures, plain, container="matroska", options={"live": "1", "cluster_time_limit": "400"})
    name, options = OPTIONS.get(kind, (kind, {}))
    pictures, plain = coded(100, container="avi" if name == "avi" else "matroska")
    return muxed(pictures, plain, container=name, options=options)


@pytest.mark.parametrize("name", ["30-cut.mkv", "30-cut.ts"])
def test_recordings_that_were_cut(name: str) -> None:
    found = sample((TRIALS / name).read_bytes())
    assert found.truncated
    assert len(found.frames) == 5


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_whole_recording_is_not_flagged_and_a_cut_one_is(kind: str) -> None:
    whole = recording(kind)
    found = sample(whole)
    assert not found.truncated
    assert not found.corrupt
    dice = random.Random(12)
    for _ in range(8):
        cut = whole[: dice.randrange(len(whole) // 2, len(whole) - 20)]
        if kind == "mpegts" and len(cut) % 188 == 0:
            cut = cut[:-1]
        found = sample(cut)
        assert found.truncated
        assert found.frames


def test_a_recording_may_be_cut_anywhere_behind_its_first_fragment() -> None:
    whole = recording("fragmented")
    ends = [end for kind, _, end in recovery.boxes(whole) if kind in (b"moof", b"mdat")]
    for end in range(ends[1] + 1, len(whole) - 20, 37):
        found = sample(whole[: end + (end in ends)])  # where nothing is cut in two, nothing tells
        assert found.truncated, end
        assert found.frames


@pytest.mark.parametrize("movflags", [f"{FRAGMENTED}+global_sidx", f"{FRAGMENTED}+dash"])
def test_a_segment_index_tells_of_a_cut_between_fragments(movflags: str) -> None:
    pictures, plain = coded(100)
    whole = muxed(pictures, plain, options={"movflags": movflags})
    boxes = list(recovery.boxes(whole))
    assert b"sidx" in [kind for kind, _, _ in boxes]
    assert not sample(whole).truncated
    last = [start for kind, start, _ in boxes if kind == b"moof"][-1]
    if "global" in movflags:
        assert sample(whole[:last]).truncated
    found = sample(whole[: last - 30])
    assert found.truncated
    assert found.frames


@pytest.mark.parametrize("name", WHOLE)
def test_no_whole_recording_of_the_trials_is_flagged(name: str) -> None:
    assert not sample((TRIALS / name).read_bytes()).truncated


@pytest.mark.parametrize("frames", [30, 33, 37, 40])
def test_mpegts_ends_with_a_whole_group_of_pictures_where_all_before_have_one_length(frames: int) -> None:
    pictures, plain = coded(100, container="mpegts")
    assert sample(muxed(pictures[:frames], plain, container="mpegts")).truncated is (frames % 10 != 0 and frames > 30)


def without_index(data: bytes) -> bytes:
    """What a recorder leaves that was killed before it wrote the index: free space where ftyp and moov belong."""
    boxes = list(recovery.boxes(data))
    kept = b"".join(data[start:end] for kind, start, end in boxes if kind in (b"moof", b"mdat"))
    return (1000).to_bytes(4, "big") + b"free" + bytes(992) + kept


def in_band(codec: str, movflags: str, *, bframes: int = 0) -> bytes:
    """An mp4 whose parameter sets stand in the samples, too."""
    name = "x265-params" if codec == "libx265" else "x264-params"
    same = f"repeat-headers=1:keyint=10:min-keyint=10:scenecut=0:bframes={bframes}:b-adapt=0"
    pictures, plain = coded(codec=codec, options=((name, same),), bframes=bframes)
    return muxed(pictures, plain, options={"movflags": movflags} if movflags else None)


def test_an_agent_that_was_killed() -> None:
    """Its recording has no parameter sets in the samples: nothing can be recovered, and the message says why."""
    with pytest.raises(Failure, match="no index") as caught:
        sample((TRIALS / "30-killed-agent.mp4").read_bytes())
    assert caught.value.cause is Cause.NOT_A_VIDEO
    assert "SPS, PPS" in caught.value.message


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("movflags", ["", FRAGMENTED])
@pytest.mark.parametrize("bframes", [0, 2])
def test_pictures_are_recovered_without_the_index(codec: str, movflags: str, bframes: int) -> None:
    found = sample(without_index(in_band(codec, movflags, bframes=bframes)))
    assert all(abs(a - b) <= 5 for a, b in zip(numbers(found), [5, 15, 25, 35, 45], strict=True))
    assert (found.duration, found.timing, found.truncated) == (2000, Timing.FRAME_ORDER, True)
    assert not found.corrupt


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("percent", [40, 70, 95])
def test_pictures_are_recovered_from_a_plain_mp4_that_was_cut(codec: str, percent: int) -> None:
    whole = in_band(codec, "")
    found = sample(whole[: len(whole) * percent // 100])
    assert found.truncated
    assert len(found.frames) == 5
    assert numbers(found) == sorted(set(numbers(found)))


def test_sound_between_the_pictures_is_passed_over() -> None:
    whole = without_index(in_band("libx264", FRAGMENTED))
    dice = random.Random(3)
    parts = []
    for kind, start, end in recovery.boxes(whole):
        body = whole[start:end]
        if kind == b"mdat":
            sound = dice.randbytes(700)
            body = (len(body) + len(sound)).to_bytes(4, "big") + body[4:] + sound
        parts.append(body)
    found = sample(b"".join(parts))
    assert len(found.frames) == 5
    assert all(abs(a - b) <= 5 for a, b in zip(numbers(found), [5, 15, 25, 35, 45], strict=True))


@pytest.mark.parametrize(("codec", "box"), [("libx264", b"avcC"), ("libx265", b"hvcC")])
def test_parameters_in_the_samples_stand_in_for_those_of_the_index(codec: str, box: bytes) -> None:
    """As in recordings of Agents that wrote none, or an empty set, into the index."""
    whole = in_band(codec, FRAGMENTED)
    place = whole.index(box)
    size = int.from_bytes(whole[place - 4 : place], "big")
    missing = sample(whole[:place] + b"free" + whole[place + 4 :])
    assert len(missing.frames) == 5
    assert (missing.corrupt, missing.truncated, missing.timing) == (True, False, Timing.FRAME_ORDER)
    kept = whole[place + 4 : place + 9] + b"\xe0\0" if codec == "libx264" else whole[place + 4 : place + 26] + b"\0"
    empty = sample(whole[: place + 4] + kept.ljust(size - 8, b"\0") + whole[place - 4 + size :])
    assert numbers(empty) == numbers(sample(whole))
    assert not empty.corrupt


@pytest.mark.parametrize("seed", range(5))
def test_noise_in_place_of_pictures_ends_soon(seed: int) -> None:
    noise = random.Random(seed).randbytes(3_000_000)
    with pytest.raises(Failure) as caught:
        sample(b"\0\0\0\x10free" + bytes(8) + (len(noise) + 8).to_bytes(4, "big") + b"mdat" + noise)
    assert caught.value.cause in (Cause.NOT_A_VIDEO, Cause.NO_FRAMES)


def absurd_size() -> bytes:
    """An IVF whose frame number 20 is said to have four gigabytes."""
    data = bytearray(coded(codec="libvpx", container="ivf")[1])
    place = 32
    for _ in range(20):
        place += 12 + int.from_bytes(data[place : place + 4], "little")
    data[place : place + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    return bytes(data)


def test_a_size_that_only_a_damaged_file_names_is_damage() -> None:
    found = sample(absurd_size())
    assert numbers(found)[-1] < 20
    assert len(found.frames) == 5
    assert found.corrupt


def test_memory_that_is_really_short_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_SPARE", 1 << 62)
    with pytest.raises(MemoryError) as caught:
        sample(absurd_size())
    assert type(caught.value) is MemoryError, "FFmpeg's own can't leave the process"


@pytest.mark.parametrize("container", ["matroska", "avi", "flv", "mpegts"])
def test_damage_anywhere_is_a_named_failure_or_a_result(container: str) -> None:
    whole = clip(2, container=container)
    dice = random.Random(7)
    for number_ in range(60):
        body = bytearray(whole)
        if number_ % 2:
            for _ in range(dice.choice([1, 10, 200])):
                body[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
        else:
            start = dice.randrange(len(body))
            body[start : start + dice.choice([1, 100, 5000])] = b""
        try:
            times = [frame.timestamp for frame in sample(bytes(body)).frames]
            assert times == sorted(set(times))
        except Failure as failure:
            assert "\n" not in failure.message
