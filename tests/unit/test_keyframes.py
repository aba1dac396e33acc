"""Containers that lie about keyframes: no frame may depend on it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.recordings import FRAGMENTED, TRIALS, coded, muxed, number
from vaultml_worker import video
from vaultml_worker.media.film import Film
from vaultml_worker.records import Sample


def sample(data: bytes, count: int = 5) -> Sample:
    return video.sample(data, count, (128, 96), video.Limits())


def numbers(found: Sample) -> list[int]:
    return [number(frame.pixels) for frame in found.frames]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("12-hevc-nostss.mp4", [5, 15, 25, 35, 45]),
        ("12-hevc-allkeys.mkv", [5, 15, 25, 35, 45]),
        ("12-mpeg4-nostss.mp4", [5, 15, 25, 35, 45]),
        ("12-h264-intra-refresh.mp4", [12, 37, 62, 87, 112]),
    ],
)
def test_recordings_that_lie_about_keyframes(name: str, wanted: list[int]) -> None:
    found = sample((TRIALS / name).read_bytes())
    assert all(abs(a - b) <= 5 for a, b in zip(numbers(found), wanted, strict=True))
    assert not found.corrupt
    for frame in found.frames:
        assert np.abs(frame.pixels[30:].astype(int) - frame.pixels[60, 60]).mean() < 60, "a picture, not a guess"


LIES: dict[str, Callable[[list[bool]], list[bool]]] = {
    "all": lambda honest: [True] * len(honest),
    "none": lambda honest: [False] * len(honest),
    "only the first": lambda honest: [True, *[False] * (len(honest) - 1)],
    "every third": lambda honest: [place % 3 == 0 for place in range(len(honest))],
    "all but the true ones": lambda honest: [not each for each in honest],
    "one too late": lambda honest: [False, *honest[:-1]],
}
CODECS = [
    *(
        (codec, bframes, container)
        for codec in ("libx264", "libx265", "mpeg4")
        for bframes in (0, 2)
        for container in ("mp4", "matroska", "mpegts")
    ),
    ("mpeg2video", 0, "mpegts"),
    ("libvpx", 0, "webm"),
    ("libvpx-vp9", 0, "webm"),
    ("libx264", 2, "flv"),
    ("mpeg4", 0, "avi"),
    ("flv1", 0, "avi"),
    ("h263", 0, "avi"),
    ("ffv1", 0, "mp4"),
    ("mjpeg", 0, "avi"),
]


@pytest.mark.parametrize(("codec", "bframes", "container"), CODECS)
def test_lies_of_every_kind_change_nothing(codec: str, bframes: int, container: str) -> None:
    keyframe_every = 10 if bframes else 25
    where = container if container in ("mpegts", "avi", "flv", "webm") else "matroska"
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    pictures, plain = coded(
        codec=codec, bframes=bframes, keyframe_every=keyframe_every, container=where, pix_fmt=pix_fmt
    )
    honest = sample(muxed(pictures, plain, container=container))
    assert len(honest.frames) == 5
    assert not honest.corrupt
    assert numbers(honest) == [round(frame.timestamp / 40) for frame in honest.frames]
    for lie, marked in LIES.items():
        marks = marked([each.keyframe for each in pictures])
        told = [replace(each, keyframe=mark) for each, mark in zip(pictures, marks, strict=True)]
        found = sample(muxed(told, plain, container=container))
        assert all(abs(a - b) <= keyframe_every for a, b in zip(numbers(found), numbers(honest), strict=True)), lie
        assert numbers(found) == [round(frame.timestamp / 40) for frame in found.frames], lie
        assert not found.corrupt, lie
        for one, other in zip(found.frames, honest.frames, strict=True):
            if one.timestamp == other.timestamp:
                assert np.array_equal(one.pixels, other.pixels), lie


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_fragments(codec: str, marked: bool) -> None:
    pictures, plain = coded(codec=codec, keyframe_every=25)
    told = [replace(each, keyframe=marked or not place) for place, each in enumerate(pictures)]
    found = sample(muxed(told, plain, options={"movflags": FRAGMENTED}))
    assert numbers(found) == [5, 15, 25, 35, 45]
    assert not found.corrupt


@pytest.mark.parametrize(
    ("codec", "parameters"),
    [
        ("libx264", ("x264-params", "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=2:b-adapt=0")),
        ("libx265", ("x265-params", "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=2:log-level=none")),
        ("libx264", ("x264-params", "intra-refresh=1:keyint=10:bframes=0")),
        ("libx264", ("x264-params", "keyint=1")),
        ("libx264", ("x264-params", "slices=4:aud=1:keyint=10:scenecut=0")),
    ],
)
@pytest.mark.parametrize("marked", [True, False, None])
@pytest.mark.parametrize("container", ["matroska", "mpegts"])
def test_open_groups_gradual_refresh_slices(
    codec: str, parameters: tuple[str, str], marked: bool | None, container: str
) -> None:
    pictures, plain = coded(codec=codec, options=(parameters,), container=container)
    told = [each if marked is None else replace(each, keyframe=marked) for each in pictures]
    found = sample(muxed(told, plain, container=container))
    assert all(abs(a - b) <= 10 for a, b in zip(numbers(found), [5, 15, 25, 35, 45], strict=True))
    assert numbers(found) == [round(frame.timestamp / 40) for frame in found.frames]
    assert not found.corrupt
    whole = [number(picture) for _, picture in video.pictures(muxed(told, plain, container=container), video.Limits())]
    assert whole == list(range(50))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_a_recording_that_starts_between_keyframes_has_no_grey_frames(codec: str) -> None:
    """What comes before the first keyframe can't be decoded: it is left out, and flagged."""
    pictures, plain = coded(codec=codec, keyframe_every=25)
    for marked in (True, False):
        late = [replace(each, keyframe=marked or each.keyframe) for each in pictures[6:]]
        found = sample(muxed(late, plain, container="matroska"))
        assert numbers(found) == [27, 32, 37, 42, 47]
        assert found.corrupt


def test_only_keyframes_are_decoded_where_they_are_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, plain = coded(250, keyframe_every=25)
    decoded: list[int] = []
    original = Film._numbered

    def counted(self: Film, place: int | None) -> object:
        decoded.append(0 if place is None else 1)
        return original(self, place)

    monkeypatch.setattr(Film, "_numbered", counted)
    assert len(sample(muxed(pictures, plain)).frames) == 5
    assert sum(decoded) == 5
