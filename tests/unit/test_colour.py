"""Colours: whatever a recording's tags say, it is shown as a common player would show it."""

import io
from fractions import Fraction
from typing import cast

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from tests.recordings import TRIALS, coded, number
from vaultml_worker import video
from vaultml_worker.media.colour import Picture

SD, HD = (320, 240), (1280, 720)
BARS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (180, 180, 40), (90, 90, 90), (30, 160, 160)]


def bars(size: tuple[int, int]) -> Picture:
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    width = size[0] // len(BARS)
    for place, colour in enumerate(BARS):
        picture[:, place * width : (place + 1) * width] = colour
    return picture


def recording(
    size: tuple[int, int], matrix: Colorspace, full: bool, tags: str, codec: str = "libx264", pix_fmt: str = "yuv420p"
) -> bytes:
    """Three frames of colour bars converted with `matrix`; `tags` are those of FFmpeg's h264_metadata filter."""
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as target:
        stream = cast("VideoStream", target.add_stream(codec, rate=25, options={"crf": "4", "preset": "ultrafast"}))
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if codec == "libx265":
            stream.options |= {"x265-params": "log-level=none"}
        packets = []
        for pts in range(3):
            source = av.VideoFrame.from_ndarray(bars(size), format="rgb24")
            source.color_range = ColorRange.JPEG
            frame = source.reformat(
                format=pix_fmt, dst_colorspace=matrix, dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG
            )
            frame.pts, frame.time_base, frame.colorspace, frame.color_range = pts, Fraction(1, 25), 2, 0
            packets += stream.encode(frame)
        for packet in [*packets, *stream.encode(None)]:
            target.mux(packet)
    return retagged(out.getvalue(), "h264_metadata", tags) if tags else out.getvalue()


def retagged(data: bytes, name: str, tags: str) -> bytes:
    out = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(out, "w", format="mpegts") as target:
        stream = source.streams.video[0]
        made = target.add_stream_from_template(stream)
        change = BitStreamFilterContext(f"{name}={tags}", stream)
        for packet in [*source.demux(stream), None]:
            if packet is not None and not packet.size:
                continue
            for done in change.filter(packet):
                done.stream = made
                target.mux(done)
    return out.getvalue()


def first(data: bytes) -> Picture:
    return next(video.pictures(data, video.Limits()))[1]


def off(picture: Picture) -> float:
    """The largest mean difference of a bar from its colour."""
    height, width = picture.shape[0], picture.shape[1] // len(BARS)
    found = [picture[height // 2, place * width + width // 2].astype(int) for place in range(len(BARS))]
    return max(float(np.abs(colour - np.array(wanted)).max()) for colour, wanted in zip(found, BARS, strict=True))


@pytest.mark.parametrize("name", ["15-h264-matrix-8.mp4", "15-h264-matrix-14.mp4", "15-hevc-matrix-14.mp4"])
def test_a_matrix_that_ffmpeg_does_not_convert(name: str) -> None:
    found = video.sample((TRIALS / name).read_bytes(), 5, (128, 96), video.Limits())
    assert [number(frame.pixels) for frame in found.frames] == [0, 10, 20, 30, 40]
    assert not found.corrupt


@pytest.mark.parametrize(
    ("size", "matrix", "full", "tags"),
    [
        (SD, Colorspace.ITU601, False, ""),
        (HD, Colorspace.ITU709, False, ""),
        (SD, Colorspace.ITU709, False, "matrix_coefficients=1"),
        (HD, Colorspace.ITU601, False, "matrix_coefficients=5"),
        (HD, Colorspace.ITU601, False, "matrix_coefficients=6"),
        (SD, Colorspace.SMPTE240M, False, "matrix_coefficients=7"),
        (SD, Colorspace.BT2020, False, "matrix_coefficients=9"),
        (SD, Colorspace.FCC, False, "matrix_coefficients=4"),
        (SD, Colorspace.ITU601, True, "matrix_coefficients=5:video_full_range_flag=1"),
        (HD, Colorspace.ITU709, True, "matrix_coefficients=1:video_full_range_flag=1"),
        (HD, Colorspace.ITU709, True, "video_full_range_flag=1"),
        (SD, Colorspace.ITU601, False, "matrix_coefficients=8"),
        (HD, Colorspace.ITU709, False, "matrix_coefficients=14"),
    ],
)
def test_colours_are_those_that_were_recorded(size: tuple[int, int], matrix: Colorspace, full: bool, tags: str) -> None:
    data = recording(size, matrix, full, tags)
    found = first(data)
    assert off(found) < 10
    upright = video.sample(data, 1, size, video.Limits()).frames[0]
    assert off(np.asarray(upright.pixels)) < 10


@pytest.mark.parametrize("field", ["matrix_coefficients", "colour_primaries", "transfer_characteristics"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_no_tag_fails(field: str, codec: str) -> None:
    plain = recording(SD, Colorspace.ITU601, False, "", codec)
    for value in (*range(20), 22, 100, 255):
        name = "hevc_metadata" if codec == "libx265" else "h264_metadata"
        found = first(retagged(plain, name, f"{field}={value}"))
        assert found.shape == (240, 320, 3)
        if field != "matrix_coefficients":
            assert off(found) < 10, value


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("libx264", "yuv444p"),
        ("libx264", "yuv422p10le"),
        ("libx264", "yuvj420p"),
        ("libx264", "gray"),
        ("libx264rgb", "rgb24"),
        ("ffv1", "gbrp16le"),
        ("ffv1", "bgra"),
        ("ffv1", "gray16le"),
        ("ffv1", "yuva420p"),
        ("mjpeg", "yuvj422p"),
    ],
)
def test_pixel_formats(codec: str, pix_fmt: str) -> None:
    _, plain = coded(3, codec=codec, pix_fmt=pix_fmt)
    found = video.sample(plain, 3, (128, 96), video.Limits())
    assert [number(frame.pixels) for frame in found.frames] == [0, 1, 2]
    assert np.abs(found.frames[0].pixels[50:].astype(int) - 90).mean() < 12
