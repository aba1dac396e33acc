"""Annotated copies: of odd recordings, with right colours, and boxes that claim no more than was seen."""

import io
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from tests.networks import CFG, tiny_weights
from tests.recordings import TRIALS, coded, muxed, number
from vaultml_worker import annotate, darknet, detect, engines, model, video
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.media.colour import Picture
from vaultml_worker.pipeline import DetectionOptions, Detector
from vaultml_worker.records import InvalidInput, Sample

LIMITS = video.Limits()


def result(times: list[float], tracks: list[dict[str, Any]] | None = None, duration: float = 2000) -> dict[str, Any]:
    frames = {"asked": len(times), "decoded": len(times), "timestamps": times, "width": 128, "height": 96}
    return {"frames": frames, "duration": duration, "tracks": tracks or []}


def track(boxes: dict[int, tuple[int, int, int, int]], *, static: bool = False) -> dict[str, Any]:
    sightings = [{"frame": frame, "box": list(box), "probability": 0.9} for frame, box in boxes.items()]
    return {"id": 1, "label": "x", "distance": 1.0, "static": static, "boxes": sightings}


def annotated(data: bytes, vaultml: dict[str, Any], folder: Path) -> list[Picture]:
    target = folder / "out.mp4"
    annotate.video_file(data, vaultml, str(target), LIMITS)
    with av.open(str(target)) as source:
        stamps = [packet.pts for packet in source.demux(video=0) if packet.size and packet.pts is not None]
    assert len(set(stamps)) == len(stamps)
    return [picture for _, picture in video.pictures(target.read_bytes(), LIMITS)]


@pytest.mark.parametrize(
    "name", ["25-half-ms.mp4", "13-gap-60s.mp4", "13-gap-5h.mkv", "13-cat.ts", "14-raw.h264", "12-hevc-nostss.mp4"]
)
def test_odd_recordings_have_annotated_copies_of_all_their_frames(name: str, tmp_path: Path) -> None:
    whole = annotated((TRIALS / name).read_bytes(), result([0.0]), tmp_path)
    assert [number(picture) for picture in whole] == list(range(50))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda n: n // 2 * 2, id="pairs at one moment"),
        pytest.param(lambda n: 0 if n < 40 else n, id="most at one moment"),
        pytest.param(lambda n: n if n < 25 else n - 20, id="backwards"),
        pytest.param(lambda n: n // 25 + n * 1000, id="slow"),
    ],
)
@pytest.mark.parametrize("unit", [Fraction(1, 25), Fraction(1, 10_000)])
def test_times_that_no_muxer_would_take(change: Callable[[int], int], unit: Fraction, tmp_path: Path) -> None:
    pictures, plain = coded(keyframe_every=1000, container="mpegts")
    moved = [replace(each, pts=change(n), dts=change(n)) for n, each in enumerate(pictures)]
    try:
        data = muxed(moved, plain, container="matroska", unit=unit)
    except av.FFmpegError:
        data = muxed(moved[:25], plain, container="mpegts", unit=unit) + muxed(moved[25:], plain, container="mpegts")
    whole = annotated(data, result([0.0]), tmp_path)
    assert sorted(number(picture) for picture in whole) == list(range(50))


def test_an_annotated_copy_has_the_colours_of_its_recording(tmp_path: Path) -> None:
    """Untagged HD is BT.709 to a player, untagged SD BT.601; the copy is tagged, and looks the same."""
    for size in ((1280, 720), (320, 240)):
        picture = np.zeros((size[1], size[0], 3), np.uint8)
        for place, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (180, 180, 40), (90, 90, 90)]):
            picture[:, place * size[0] // 5 : (place + 1) * size[0] // 5] = colour
        out = io.BytesIO()
        with av.open(out, "w", format="mp4") as target:
            stream = target.add_stream("libx264", rate=25, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for pts in range(3):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = pts, Fraction(1, 25)
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
        before = next(video.pictures(out.getvalue(), LIMITS))[1]
        after = annotated(out.getvalue(), result([0.0], duration=120), tmp_path)[0]
        assert np.abs(before.astype(int) - after)[:, 8:-8].mean() < 2
        with av.open(str(tmp_path / "out.mp4")) as copy:
            context = copy.streams.video[0].codec_context
            tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert tags == (1, 1, 1, 1)


BOX = (40, 40, 80, 80)


def strength(picture: Picture) -> float:
    """How much of the box's own colour its upper edge has: 1 is solid."""
    edge = picture[39:42, 60:76].reshape(-1, 3).astype(float)
    colour, grey = np.array(annotate._MOVING[0], float), np.array([90.0, 90, 90])
    return float(np.median(((edge - grey) @ (colour - grey)) / ((colour - grey) @ (colour - grey))))


def test_a_box_is_solid_where_it_was_seen_and_fades_in_between(tmp_path: Path) -> None:
    _, plain = coded()
    item = track({1: BOX, 3: BOX})
    whole = annotated(plain, result([200.0, 600.0, 1000.0, 1400.0, 1800.0], [item]), tmp_path)
    solid = [strength(whole[frame]) for frame in (15, 35)]
    assert min(solid) > 0.65  # 4:2:0 blurs the colour of thin lines
    fading = [strength(whole[frame]) for frame in (15, 18, 21, 25)]
    assert fading == sorted(fading, reverse=True)
    assert 0.05 < strength(whole[25]) < 0.4
    growing = [strength(whole[frame]) for frame in (25, 29, 32, 35)]
    assert growing == sorted(growing)
    before = [strength(whole[frame]) for frame in (5, 11, 13, 15)]
    assert before == sorted(before)
    assert abs(before[0]) < 0.05


def test_a_picture_shows_a_sampled_frame_and_only_what_was_seen_in_it(tmp_path: Path) -> None:
    _, plain = coded()
    times = [200.0, 600.0, 1000.0, 1400.0, 1800.0]
    vaultml = result(times, [track({1: BOX, 3: BOX})])
    for frame, drawn in ((1, True), (2, False), (3, True)):
        target = tmp_path / f"{frame}.png"
        annotate.picture_file(plain, vaultml, str(target), LIMITS, frame)
        shown = np.asarray(cv2.cvtColor(np.asarray(cv2.imread(str(target))), cv2.COLOR_BGR2RGB), np.uint8)
        assert number(shown) == round(times[frame] / 40)
        assert (strength(shown) > 0.8) is drawn


def test_the_frame_with_most_objects_is_shown() -> None:
    times = [200.0, 600.0, 1000.0, 1400.0, 1800.0]
    assert annotate.richest_frame(result(times)) == 2
    assert annotate.richest_frame(result(times, [track({0: BOX, 4: BOX})])) in (0, 4)
    parked = track(dict.fromkeys(range(5), BOX), static=True)
    assert annotate.richest_frame(result(times, [parked, track({3: BOX})])) == 3


class Decoders:
    """Decoding in this process; drawing fails in a way of its own."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def sample(self, data: bytes, count: int, network: tuple[int, int]) -> Sample:
        return video.sample(data, count, network, LIMITS)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._error is not None:
            Path(args[2]).write_bytes(b"half a file")
            raise self._error
        return function(*args)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    folder = tmp_path_factory.mktemp("network")
    (folder / "small.cfg").write_text(CFG)
    (folder / "small.names").write_text("a\nb\nc\n")
    tiny_weights(darknet.read_cfg(folder / "small.cfg"), folder / "small.weights", seed=7)
    loaded = model.load(folder / "small.cfg")
    return Detector(engines.create("auto", loaded), loaded, DetectionOptions(frames=3, threshold=0.6, move_distance=5))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Failure(Cause.DECODER_CRASHED, "decoding ended its process, twice"), "ended its process"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_drawing_that_fails_costs_the_drawing(
    detector: Detector, error: Exception, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "25-half-ms.mp4"
    path.write_bytes((TRIALS / path.name).read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    targets = detect.outputs([path], out)[path]

    def run(decoders: Any) -> dict[str, Any]:
        return detect.run(path, targets, detector, decoders, every_frame=False, progress=lambda _: None)

    with pytest.raises(InvalidInput) as caught:
        run(Decoders(error))
    said = str(caught.value)
    assert says in said
    assert "25-half-ms.json is written" in said
    assert "\n" not in said
    assert [each.name for each in out.iterdir()] == ["25-half-ms.json"]
    assert run(Decoders(None))["frames"]["decoded"] == 3
    assert sorted(each.name for each in out.iterdir()) == ["25-half-ms.json", "25-half-ms.mp4"]
