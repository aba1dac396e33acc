"""Which files are read, which stream of them, and what is said of the others."""

import io
import struct
import zipfile
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from tests.recordings import TRIALS, coded, muxed, number, numbered_picture, sound_only
from vaultml_worker import video
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.media import containers
from vaultml_worker.records import Sample

FILM = [0, 10, 20, 30, 40]


def sample(data: bytes, count: int = 5) -> Sample:
    return video.sample(data, count, (128, 96), video.Limits())


def numbers(found: Sample) -> list[int]:
    return [number(frame.pixels) for frame in found.frames]


@pytest.mark.parametrize("name", ["35-cover-first.mkv", "35-covr-udta-before-trak.mp4"])
def test_the_film_is_taken_not_its_cover(name: str) -> None:
    found = sample((TRIALS / name).read_bytes())
    assert numbers(found) == FILM
    assert (found.width, found.height) == (128, 96)


@pytest.mark.parametrize("container", ["matroska", "mp4", "avi", "nut"])
@pytest.mark.parametrize("cover", [(64, 48), (1280, 960)])
def test_a_still_beside_the_film_is_not_taken(container: str, cover: tuple[int, int]) -> None:
    pictures, plain = coded(container="avi" if container == "avi" else "matroska")
    data = muxed(pictures, plain, container=container, cover=cover)
    with av.open(io.BytesIO(data), "r") as source:
        assert len(source.streams.video) == 2
    found = sample(data)
    assert numbers(found) == FILM
    assert (found.width, found.height) == (128, 96)


def two_films(container: str, marked: int | None, first: tuple[int, int] = (128, 96)) -> bytes:
    """A small film numbered from 0 and one four times as large numbered from 100; `marked`: which is the default."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as target:
        streams = []
        for place, size in enumerate((first, (256, 192))):
            stream = target.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            if marked is not None:
                stream.disposition = Disposition.default if place == marked else Disposition(0)
            streams.append(stream)
        for value in range(20):
            for place, stream in enumerate(streams):
                picture = numbered_picture(value + 100 * place, (stream.width, stream.height))
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = value, Fraction(1, 25)
                target.mux(stream.encode(frame))
        for stream in streams:
            target.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("container", ["mpegts", "matroska", "nut"])
def test_of_two_films_the_larger_is_taken(container: str) -> None:
    found = sample(two_films(container, None))
    assert (found.width, found.height) == (256, 192)
    assert numbers(found)[0] >= 100


@pytest.mark.parametrize("marked", [0, 1])
def test_of_two_films_the_one_marked_as_default_is_taken(marked: int) -> None:
    found = sample(two_films("matroska", marked))
    assert found.width == (128, 256)[marked]
    assert numbers(found)[0] // 100 == marked


def test_an_audio_file_with_a_cover_has_no_video() -> None:
    out = io.BytesIO()
    with av.open(io.BytesIO(sound_only()), "r") as source, av.open(out, "w", format="mp4") as target:
        cover = target.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        stream = target.add_stream_from_template(source.streams.audio[0])
        frame = av.VideoFrame.from_ndarray(np.full((48, 64), 60, np.uint8), format="gray").reformat(format="yuvj420p")
        frame.pts = 0
        target.mux(cover.encode(frame))
        target.mux(cover.encode(None))
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with pytest.raises(Failure) as caught:
        sample(out.getvalue())
    assert caught.value.cause is Cause.NO_VIDEO_STREAM


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
def test_pictures_are_recordings_of_one_frame(extension: str) -> None:
    picture = cv2.cvtColor(numbered_picture(77), cv2.COLOR_RGB2BGR)
    data = cv2.imencode(extension, picture)[1].tobytes()
    found = sample(data)
    assert numbers(found) == [77]
    assert (found.width, found.height, found.duration) == (128, 96, 0)
    with pytest.raises(Failure) as caught:
        video.sample(data, 5, (128, 96), video.Limits(pixels=1000))
    assert caught.value.cause is Cause.TOO_MANY_PIXELS
    with pytest.raises(Failure) as caught:
        sample(data[: len(data) // 3])
    assert caught.value.cause in (Cause.NO_FRAMES, Cause.NOT_A_VIDEO)


@pytest.mark.parametrize(
    ("container", "codec", "pix_fmt"),
    [
        ("gif", "gif", "rgb8"),
        ("ivf", "libvpx", "yuv420p"),
        ("asf", "wmv2", "yuv420p"),
        ("mxf", "mpeg2video", "yuv420p"),
        ("mpeg", "mpeg2video", "yuv420p"),
        ("ogg", "libvpx", "yuv420p"),
        ("3gp", "mpeg4", "yuv420p"),
        ("mov", "mjpeg", "yuvj420p"),
        ("flv", "libx264", "yuv420p"),
        ("m4v", "mpeg4", "yuv420p"),
        ("wtv", "mpeg2video", "yuv420p"),
        ("nut", "ffv1", "yuv420p"),
        ("obu", "libsvtav1", "yuv420p"),
    ],
)
def test_formats(container: str, codec: str, pix_fmt: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    _, plain = coded(codec=codec, container=container, pix_fmt=pix_fmt, keyframe_every=1000)
    found = sample(plain)
    assert all(abs(a - b) <= 1 for a, b in zip(numbers(found), [5, 15, 25, 35, 45], strict=True))
    assert not found.corrupt


def dahua(codec: str, number_of_codec: int) -> bytes:
    """A .dav as Dahua's recorders write it: each picture in a chunk with size, time and codec in front."""
    out = []
    for place, each in enumerate(coded(codec=codec, container="mpegts")[0]):
        extra = struct.pack("<BBBB", 0x81, 0, number_of_codec, 25) + struct.pack("<B3xHH", 0x82, 128, 96)
        size = 24 + len(extra) + len(each.body) + 8
        seconds = 10 + place // 25
        date = 26 << 26 | 11 << 22 | 28 << 17 | 7 << 12 | seconds
        kind = 0xFD if each.keyframe else 0xFC
        head = struct.pack("<BBBBIIIHBB", kind, 0, 0, 0, place, size, date, 40 * place, len(extra), 0)
        out.append(b"DHAV" + head + extra + each.body + b"dhav" + struct.pack("<I", size))
    return b"".join(out)


@pytest.mark.parametrize(("codec", "number_of_codec"), [("libx264", 8), ("libx265", 12)])
@pytest.mark.parametrize("beginning", [b"", b"DAHUA" + bytes(0x400 - 5)])
def test_dahua(codec: str, number_of_codec: int, beginning: bytes) -> None:
    found = sample(beginning + dahua(codec, number_of_codec))
    assert numbers(found) == FILM
    assert found.duration == 2000
    assert not found.corrupt


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("recording.mp4", coded()[1])
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((TRIALS / "31-dahua.dav").read_bytes(), "a Dahua recording"),
        (b"IMKH" + bytes(500), "a Hikvision recording"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "an HLS playlist"),
        (b"\xef\xbb\xbf#EXTM3U\nfile:///etc/passwd\n", "an HLS playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "a list of files"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n", "SDP"),
        (b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>", "XML"),
        (zipped(), "a ZIP archive: upload the recording in it"),
        (b"\x1f\x8b\x08" + bytes(100), "a gzip archive"),
        (b"%PDF-1.7\n" + bytes(100), "a PDF document"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100), "a picture in HEIC: convert it to JPEG"),
        (b"hello, world" * 50, "convert it to mp4"),
    ],
)
def test_what_is_refused_is_named_with_what_to_do(data: bytes, says: str) -> None:
    with pytest.raises(Failure, match=r"^[^\n]+$") as caught:
        sample(data)
    assert caught.value.cause is Cause.NOT_A_VIDEO
    assert says in caught.value.message


def test_no_format_is_read_that_could_open_other_files() -> None:
    """Playlists, concatenations, numbered pictures and descriptions of streams name other files and addresses."""
    openers = {"concat", "hls", "applehttp", "dash", "image2", "sdp", "rtsp", "rtp", "imf", "lavfi", "tty", "webm_dash"}
    assert not openers & set(containers.FORMATS.split(","))
    known = {part for name in av.formats_available for part in name.split(",")}
    assert set(containers.FORMATS.split(",")) <= known


def test_a_stream_that_begins_late_ends_nothing() -> None:
    """PyAV looks it up when all packets are read, and does not find it."""
    data = (TRIALS.parent / "recordings" / "late-stream.ts").read_bytes()
    with pytest.raises(IndexError), av.open(io.BytesIO(data), "r") as source:
        list(source.demux(source.streams.video[0]))
    assert sample(data).frames
