import cv2
import numpy as np
import pytest

from tests.recordings import FRAGMENTED, brightness, clip, rotated, sound_only
from vaultml_worker import video
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.records import Sample

LIMITS = video.Limits()
NETWORK = (96, 96)


def sample(data: bytes, count: int = 5, limits: video.Limits = LIMITS) -> Sample:
    return video.sample(data, count, NETWORK, limits)


def times(result: Sample) -> list[float]:
    return [round(frame.timestamp, 3) for frame in result.frames]


def test_frames_lie_evenly_and_are_what_they_say() -> None:
    result = sample(clip(4, keyframe_every=1000))
    assert times(result) == [400, 1200, 2000, 2800, 3600]
    assert (result.width, result.height, result.duration) == (160, 120, 4000)
    for frame in result.frames:
        inner = frame.pixels[20:76, 10:86].mean()
        assert inner == pytest.approx(brightness(round(frame.timestamp / 100)), abs=4)


def test_dense_keyframes_stand_in_for_exact_times() -> None:
    result = sample(clip(10, keyframe_every=10))
    assert times(result) == [1000, 3000, 5000, 7000, 9000]
    result = sample(clip(10, keyframe_every=20))
    targets = [1000, 3000, 5000, 7000, 9000]
    assert all(time % 2000 == 0 for time in times(result))
    assert all(abs(time - target) <= 2000 for time, target in zip(times(result), targets, strict=True))
    for frame in result.frames:
        assert frame.pixels[20:76, 10:86].mean() == pytest.approx(brightness(round(frame.timestamp / 100)), abs=4)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "mjpeg"])
def test_codecs(codec: str) -> None:
    result = sample(clip(2, codec=codec, container="matroska" if codec == "mjpeg" else "mp4"), 2)
    assert len(result.frames) == 2
    assert not result.corrupt


def test_a_fragmented_recording_that_starts_late() -> None:
    result = sample(clip(4, movflags=FRAGMENTED, start=1000, keyframe_every=1000))
    assert times(result) == [400, 1200, 2000, 2800, 3600]


def test_variable_rate_goes_by_time_not_by_number() -> None:
    result = sample(clip(4, gaps=(20,), keyframe_every=1000), 5)  # 2 s of frames, a hole of 1 s, 2 s of frames
    assert result.duration == 5000
    for time, target in zip(times(result), [500, 1500, 2500, 3500, 4500], strict=True):
        assert abs(time - target) <= 500


def test_a_short_recording_gives_each_frame_once() -> None:
    result = sample(clip(0.3))
    assert times(result) == [0, 100, 200]
    assert result.asked == 5


def test_sound_beside_the_video_does_not_matter() -> None:
    assert len(sample(clip(1, audio=True)).frames) == 5


@pytest.mark.parametrize(("degrees", "dark"), [(90, "top"), (180, "right"), (270, "bottom")])
def test_rotation_is_honoured(degrees: int, dark: str) -> None:
    """A clip whose left half is dark: turned clockwise by 90 degrees, the dark half is on top."""
    picture = np.full((120, 160, 3), 200, np.uint8)
    picture[:, :80] = 20
    result = sample(rotated(_still_clip(picture), degrees), 1)
    assert (result.width, result.height) == ((120, 160) if degrees % 180 else (160, 120))
    inner = result.frames[0].pixels[12:84, 12:84]
    sides = {"top": inner[:36], "bottom": inner[36:], "left": inner[:, :36], "right": inner[:, 36:]}
    assert min(sides, key=lambda side: float(sides[side].mean())) == dark


def _still_clip(picture: np.ndarray) -> bytes:
    from fractions import Fraction
    from io import BytesIO

    import av

    out = BytesIO()
    with av.open(out, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return out.getvalue()


def test_a_jpeg_is_one_frame() -> None:
    picture = np.full((50, 100, 3), (10, 120, 240), np.uint8)
    encoded = cv2.imencode(".jpg", picture)[1].tobytes()
    result = sample(encoded)
    assert (result.width, result.height, len(result.frames), result.duration) == (100, 50, 1, 0)
    assert result.frames[0].pixels[48, 48].tolist() == pytest.approx([240, 120, 10], abs=4)  # RGB
    with pytest.raises(Failure) as caught:
        sample(encoded[:-60])
    assert caught.value.cause is Cause.NO_FRAMES


@pytest.mark.parametrize("percent", [15, 40, 60, 95])
@pytest.mark.parametrize("keyframe_every", [5, 10, 1000])
def test_a_cut_fragmented_recording_still_gives_frames(percent: int, keyframe_every: int) -> None:
    whole = clip(4, movflags=FRAGMENTED, keyframe_every=keyframe_every)
    result = sample(whole[: len(whole) * percent // 100])
    assert result.frames
    assert result.truncated


def test_a_cut_plain_mp4_says_that_its_index_is_missing() -> None:
    whole = clip(4)
    with pytest.raises(Failure, match="moov") as caught:
        sample(whole[: len(whole) // 2])
    assert caught.value.cause is Cause.NOT_A_VIDEO


def test_a_plain_mp4_with_its_index_in_front_is_cut_short() -> None:
    whole = clip(4, movflags="faststart")
    result = sample(whole[: len(whole) * 6 // 10])
    assert result.truncated
    assert result.frames


def test_a_hole_in_the_middle_is_passed() -> None:
    whole = bytearray(clip(4, movflags=FRAGMENTED, keyframe_every=5))
    middle = len(whole) // 2
    whole[middle : middle + 12_000] = bytes(12_000)
    result = sample(bytes(whole))
    assert result.corrupt
    assert len(result.frames) >= 3
    assert result.frames[-1].timestamp > 2500


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", Cause.EMPTY),
        (b"Salted__" + bytes(100), Cause.ENCRYPTED),
        (b"U2FsdGVkX1" + b"A" * 100, Cause.ENCRYPTED),
        (b"hello, world" * 50, Cause.NOT_A_VIDEO),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", Cause.NOT_A_VIDEO),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", Cause.NOT_A_VIDEO),
        (sound_only(), Cause.NO_VIDEO_STREAM),
    ],
)
def test_what_is_no_recording_is_refused_by_name(data: bytes, cause: Cause) -> None:
    with pytest.raises(Failure) as caught:
        sample(data)
    assert caught.value.cause is cause


def test_too_many_pixels_or_frames() -> None:
    with pytest.raises(Failure, match="160 x 120") as caught:
        sample(clip(1), limits=video.Limits(pixels=10_000))
    assert caught.value.cause is Cause.TOO_MANY_PIXELS
    with pytest.raises(Failure, match="RECORDING_MAX_FRAMES") as caught:
        sample(clip(4), limits=video.Limits(frames=39))
    assert caught.value.cause is Cause.TOO_LARGE
    assert len(sample(clip(4), limits=video.Limits(frames=40)).frames) == 5


def test_a_chunk_of_all_frames_and_all_frames_in_order() -> None:
    data = clip(2, keyframe_every=7)
    chunk, total = video.sample_all(data, 8, 5, NETWORK, LIMITS)
    assert total == 20
    assert times(chunk) == [800, 900, 1000, 1100, 1200]
    whole = list(video.pictures(data, LIMITS))
    assert [round(time) for time, _ in whole] == [100 * i for i in range(20)]
    assert whole[0][1].shape == (120, 160, 3)
