"""Opening a recording that lies in memory: which formats are read, which stream is shown, and what is refused."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, cast

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from vaultml_worker.failures import Cause, Failure
from vaultml_worker.media import recovery

Packet: TypeAlias = "av.Packet[VideoStream]"

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,h264,hevc,mjpeg,m4v,mpegvideo,obu,ivf,ogg,nut,mxf,"
    "dhav,hxvs,ifv,dv,wtv,vc1,gif,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
"""FFmpeg's demuxers of recordings. Each reads its own file only; playlists and concatenations could open others."""
_PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG|BM|GIF8|RIFF....WEBP|II\*\0|MM\0\*", re.DOTALL)
"""How pictures begin. With a bound on pixels, FFmpeg would not even report the size of one."""

_SPARE = 64 << 20
"""Bytes that can be had where memory is not short."""
_CONVERT = "convert it to mp4 (ffmpeg -i FILE -c:v libx264 FILE.mp4)"
_KNOWN: Mapping[bytes, tuple[str, str]] = {
    b"#EXTM3U": ("an HLS playlist", "upload the recording that it names"),
    b"ffconcat": ("a list of files for FFmpeg", "upload the recordings that it names"),
    b"v=0\r\n": ("a description of a stream (SDP)", "upload the recording itself"),
    b"v=0\n": ("a description of a stream (SDP)", "upload the recording itself"),
    b"DHAV": ("a Dahua recording (.dav) that FFmpeg can't read", "export it as mp4 on the recorder"),
    b"DAHUA": ("a Dahua recording (.dav) that FFmpeg can't read", "export it as mp4 on the recorder"),
    b"IMKH": ("a Hikvision recording that FFmpeg can't read", "export it as mp4 on the recorder"),
    b"HKVI": ("a Hikvision index", "export the recording as mp4 on the recorder"),
    b"PK\3\4": ("a ZIP archive", "upload the recording in it"),
    b"\x1f\x8b": ("a gzip archive", "upload the recording in it"),
    b"Rar!": ("a RAR archive", "upload the recording in it"),
    b"7z\xbc\xaf": ("a 7z archive", "upload the recording in it"),
    b"%PDF": ("a PDF document", "upload the recording itself"),
    b".RMF": ("a RealMedia file", _CONVERT),
    b"FWS": ("a Flash animation", _CONVERT),
    b"CWS": ("a Flash animation", _CONVERT),
    b"YUV4MPEG2": ("raw pictures (YUV4MPEG)", _CONVERT),
    b"<": ("a text in XML or HTML", "upload the recording itself"),
    b"\0\0\0\x0cJXL ": ("a JPEG XL picture", "convert it to JPEG"),
    b"\xff\x0a": ("a JPEG XL picture", "convert it to JPEG"),
    b"\0\0\0\x0cjP  ": ("a JPEG 2000 picture", "convert it to JPEG"),
    b"8BPS": ("a Photoshop picture", "convert it to JPEG"),
}
"""Beginnings of files that are not read: what the file is, and what to do."""
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}


@dataclass(frozen=True, slots=True)
class Source:
    """A demuxed recording: the stream that a player shows and its packets, in decoding order.

    `damaged`: the demuxer met an error, or could not use the index; `recovered`: there is no index.
    """

    container: InputContainer
    stream: VideoStream
    packets: list[Packet]
    damaged: bool
    recovered: bool = False


@contextmanager
def opened(data: bytes, pixels: int, frames: int) -> Iterator[Source]:
    """Demux a recording of at most so many `frames` of at most so many `pixels`.

    Raises Failure: EMPTY, ENCRYPTED, NOT_A_VIDEO, NO_VIDEO_STREAM, TOO_MANY_PIXELS, TOO_LARGE.
    """
    if not data:
        raise Failure(Cause.EMPTY, "the recording has no bytes")
    if data.startswith((b"Salted__", b"U2FsdGVkX1")):  # as bytes, and in base64
        raise Failure(Cause.ENCRYPTED, "the recording is encrypted, which this version can't read yet")
    bounds = {"threads": "1"}
    if not _PICTURE.match(data):
        bounds["max_pixels"] = str(pixels)
    container = _open(data, bounds)
    if container is None and (whole := recovery.whole_part(data)) is not None:
        container = _open(whole, bounds)
    unusable = False
    if container is None and (found := recovery.annex_b(data)) is not None:
        container, unusable = _open(found.stream, bounds, found.format), True
    if container is None:
        raise Failure(Cause.NOT_A_VIDEO, why_unreadable(data))
    with container:
        stream, packets, damaged = _demux(container, frames)
        context = stream.codec_context
        if context.width * context.height > pixels:
            raise too_many_pixels(context.width, context.height, pixels)
        # One thread each: the decoder processes already use all cores, and threads only add frame delay.
        context.thread_count = 1
        context.options = {"threads": "1", "max_pixels": str(pixels)}
        recovered = unusable and recovery.lacks_index(data)
        yield Source(container, stream, packets, damaged or (unusable and not recovered), recovered)


def _open(data: bytes, bounds: Mapping[str, str], name: str | None = None) -> InputContainer | None:
    limits = {**bounds, "format_whitelist": FORMATS, "protocol_whitelist": ""}
    try:
        # FFmpeg decodes a keyframe only to learn the pixel format, which nobody asks for here: a tenth of all work.
        options = {**bounds, "skip_frame": "all"}
        container = av.open(io.BytesIO(data), "r", format=name, options=options, container_options=limits)
        if all(_size_is_known(stream) for stream in container.streams.video):
            return container
        container.close()
        return av.open(io.BytesIO(data), "r", format=name, options=dict(bounds), container_options=limits)
    except MemoryError:
        check_memory()
        return None
    except (av.FFmpegError, ValueError, OSError):
        return None


def _size_is_known(stream: VideoStream) -> bool:
    context = stream.codec_context
    return context is None or context.width * context.height > 0


def _demux(container: InputContainer, frames: int) -> tuple[VideoStream, list[Packet], bool]:
    """Return the stream that a player shows and its packets; True when the demuxer met an error."""
    candidates = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not candidates:
        raise Failure(Cause.NO_VIDEO_STREAM, "the file has no video stream")
    decodable = [stream for stream in candidates if stream.codec_context is not None]
    if not decodable:
        raise Failure(Cause.NOT_A_VIDEO, f"the video is coded in a way that FFmpeg can't decode: {_CONVERT}")
    packets: dict[int, list[Packet]] = {stream.index: [] for stream in decodable}
    count, damaged = 0, False
    try:
        for packet in container.demux(*decodable):
            if not packet.size:
                continue
            packets[packet.stream_index].append(cast("Packet", packet))
            count += 1
            if count > frames * len(decodable):
                break
    except MemoryError:
        check_memory()
        damaged = True
    except av.FFmpegError:
        damaged = True
    except IndexError:
        pass  # PyAV at the end of a file in which a stream began late, as in MPEG-TS: all packets are there
    best = max(decodable, key=lambda stream: _preference(stream, len(packets[stream.index])))
    if len(packets[best.index]) > frames or count > frames * len(decodable):
        raise Failure(Cause.TOO_LARGE, f"more frames than RECORDING_MAX_FRAMES ({frames})")
    return best, packets[best.index], damaged


def _preference(stream: VideoStream, packets: int) -> tuple[bool, bool, int, int]:
    """Films before stills, then the stream that the file marks as default, then the largest, then the longest."""
    default = bool(stream.disposition & Disposition.default)
    return packets > 1, default, stream.codec_context.width * stream.codec_context.height, packets


def decoder(model: VideoCodecContext, pixels: int, **options: str) -> VideoCodecContext:
    """Return a new decoder of the same stream, with options of FFmpeg."""
    made = av.CodecContext.create(model.codec.name, "r")
    made.extradata = model.extradata
    made.thread_count = 1
    made.options = {"threads": "1", "max_pixels": str(pixels), **options}
    return cast("VideoCodecContext", made)


def check_memory() -> None:
    """Raise MemoryError if memory is short; FFmpeg reports the same for a size that only a damaged file names."""
    try:
        bytearray(_SPARE)
    except MemoryError:
        raise MemoryError from None  # FFmpeg's own can't be pickled


def too_many_pixels(width: int, height: int, pixels: int) -> Failure:
    """Return the failure of a recording whose frames are larger than allowed."""
    return Failure(Cause.TOO_MANY_PIXELS, f"frames of {width} x {height} exceed RECORDING_MAX_PIXELS ({pixels})")


def why_unreadable(data: bytes) -> str:
    """Return what a file that FFmpeg can't open is, and what to do, in one sentence."""
    head = data.removeprefix(b"\xef\xbb\xbf")[:4096].lstrip()
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        return f"this is a picture in {_BRANDS[data[8:12]]}: convert it to JPEG"
    if recovery.lacks_index(data):
        return (
            "the mp4 has no index (moov): it was cut off before its end, and its pictures can't be decoded without, "
            "as no parameter sets (SPS, PPS) are among them; give the recorder time to finish when it is stopped"
        )
    for beginning, (what, advice) in _KNOWN.items():
        if data.startswith(beginning) or head.startswith(beginning):
            return f"this is {what}: {advice}"
    return f"this is neither a video nor a JPEG, or it is damaged at its beginning; if a player shows it, {_CONVERT}"
