"""Small recordings made on the spot: every kind that a camera, an Agent or an enemy may send."""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

FRAGMENTED = "frag_keyframe+empty_moov+default_base_moof"


@cache
def clip(
    seconds: float = 4,
    *,
    fps: int = 10,
    keyframe_every: int = 10,
    size: tuple[int, int] = (160, 120),
    codec: str = "libx264",
    movflags: str = "",
    container: str = "mp4",
    start: int = 0,
    audio: bool = False,
    gaps: tuple[int, ...] = (),
    noise: bool = True,
) -> bytes:
    """An encoded clip. Frame number i is a picture whose mean brightness is `brightness(i)`.

    `keyframe_every` is in frames; `start` and `gaps` (frames before which the clock jumps a second) make odd times.
    """
    options = {"movflags": movflags} if movflags else {}
    with NamedTemporaryFile() as out, av.open(out.name, "w", format=container, options=options) as target:
        stream = cast("VideoStream", target.add_stream(codec, rate=fps))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p" if codec != "mjpeg" else "yuvj420p"
        stream.gop_size = keyframe_every
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "x264-params": f"keyint={keyframe_every}:scenecut=0:bframes=2"}
        sound = target.add_stream("aac", rate=8000) if audio else None
        random = np.random.default_rng(0)
        texture = random.integers(0, 30 if noise else 1, (size[1], size[0], 3), dtype=np.uint8)
        clock = start
        for number in range(round(seconds * fps)):
            clock += fps if number in gaps else 0
            picture = np.clip(texture.astype(int) + brightness(number) - (15 if noise else 0), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = clock, Fraction(1, fps)
            clock += 1
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
        if sound is not None:
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            quiet.sample_rate, quiet.pts = 8000, 0
            target.mux(sound.encode(quiet))
            target.mux(sound.encode(None))
        target.close()
        return Path(out.name).read_bytes()


def brightness(number: int) -> int:
    """Mean grey level of frame `number` of a clip: tells frames apart after encoding."""
    return 40 + number * 4 % 180


@cache
def sound_only() -> bytes:
    """An mp4 with audio and no video."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as target:
        stream = target.add_stream("aac", rate=8000)
        for number in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, number * 1024
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return out.getvalue()


def rotated(data: bytes, degrees: int) -> bytes:
    """The same mp4 with a display matrix that turns it clockwise by 90, 180 or 270 degrees."""
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16

    def packed(value: int, scale: int = one) -> bytes:
        return (value * scale).to_bytes(4, "big", signed=True)

    matrix = packed(a) + packed(b) + packed(0) + packed(-b) + packed(a) + packed(0)
    place = data.index(b"tkhd") + 4
    at = place + 4 + 4 * 5 + 8 + 8  # version 0: times, id, reserved, duration; reserved; layer, group, volume
    return data[:at] + matrix + data[at + len(matrix) :]


TRIALS = Path(__file__).parent / "data" / "trials"
"""Files that once failed. In a recording, each frame has its number along the top edge: see `number`."""
WHOLE = [
    path.name
    for path in sorted(TRIALS.iterdir())
    if path.suffix in (".mp4", ".mkv", ".ts", ".h264", ".265") and path.name[:2] != "30"
]
"""The recordings among them that were not cut."""
BLOCK = 12


@dataclass
class Coded:
    """One coded picture: what a muxer is given. `pts` and `dts` count frames."""

    body: bytes
    keyframe: bool
    pts: int | None
    dts: int | None
    duration: int = 1


@cache
def coded(
    count: int = 50,
    *,
    codec: str = "libx264",
    keyframe_every: int = 10,
    bframes: int = 0,
    size: tuple[int, int] = (128, 96),
    pix_fmt: str = "yuv420p",
    options: tuple[tuple[str, str], ...] = (),
    container: str = "matroska",
) -> tuple[tuple[Coded, ...], bytes]:
    """Encode numbered frames at 25 f/s: the coded pictures, and a plain file of them."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as target:
        stream = cast("VideoStream", target.add_stream(codec, rate=25))
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, pix_fmt, keyframe_every
        stream.options = {**_options(codec, keyframe_every, bframes), **dict(options)}
        for value in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_picture(value, size), format="rgb24")
            frame.pts, frame.time_base = value, Fraction(1, 25)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    with av.open(io.BytesIO(out.getvalue()), "r") as source:
        return tuple(_coded(packet) for packet in source.demux(video=0) if packet.size), out.getvalue()


def _coded(packet: "av.Packet[VideoStream]") -> Coded:
    pts, dts = (
        None if time is None or packet.time_base is None else round(time * packet.time_base * 25)
        for time in (packet.pts, packet.dts)
    )
    return Coded(bytes(packet), packet.is_keyframe, dts if pts is None else pts, dts)


def _options(codec: str, keyframe_every: int, bframes: int) -> dict[str, str]:
    same = f"keyint={keyframe_every}:min-keyint={keyframe_every}:scenecut=0:bframes={bframes}"
    if codec == "libx264":
        return {"preset": "ultrafast", "x264-params": f"{same}:b-adapt=0"}
    if codec == "libx265":
        return {"preset": "ultrafast", "x265-params": f"{same}:b-adapt=0:log-level=none"}
    if codec == "mpeg4" and bframes:
        return {"bf": str(bframes)}
    return {}


def numbered_picture(value: int, size: tuple[int, int] = (128, 96)) -> NDArray[np.uint8]:
    """A grey picture with a number in it: eight blocks along the top edge, bit 0 on the left."""
    picture = np.full((size[1], size[0], 3), 90, np.uint8)
    width = size[0] * BLOCK // 128
    for bit in range(8):
        picture[:width, bit * width : (bit + 1) * width] = 235 if value >> bit & 1 else 16
    return picture


def number(picture: NDArray[np.uint8]) -> int:
    """The number in a frame of a numbered recording, 128 x 96 pixels in size."""
    blocks = (picture[3:9, bit * BLOCK + 3 : bit * BLOCK + 9].mean() for bit in range(8))
    return sum(int(block > 125) << bit for bit, block in enumerate(blocks))


def muxed(
    pictures: Iterable[Coded],
    plain: bytes,
    *,
    container: str = "mp4",
    options: dict[str, str] | None = None,
    cover: tuple[int, int] | None = None,
    unit: Fraction = Fraction(1, 25),
) -> bytes:
    """A file of coded pictures out of the `plain` one; with a `cover`, a picture of that size is the first stream."""
    with (
        NamedTemporaryFile() as out,
        av.open(out.name, "w", format=container, options=options or {}) as target,
        av.open(io.BytesIO(plain), "r") as origin,
    ):
        if cover is not None:
            still = target.add_stream("mjpeg", rate=25)
            still.width, still.height, still.pix_fmt = *cover, "yuvj420p"
        stream = target.add_stream_from_template(origin.streams.video[0])
        stream.time_base = unit
        if cover is not None:
            grey = av.VideoFrame.from_ndarray(np.full((cover[1], cover[0]), 60, np.uint8), format="gray")
            grey = grey.reformat(format="yuvj420p")
            grey.pts, grey.time_base = 0, Fraction(1, 25)
            target.mux(still.encode(grey))
            target.mux(still.encode(None))
        for each in pictures:
            packet = av.Packet(each.body)
            packet.stream, packet.time_base = stream, unit
            packet.pts, packet.dts, packet.duration = each.pts, each.dts, each.duration
            packet.is_keyframe = each.keyframe
            target.mux(packet)
        target.close()
        return Path(out.name).read_bytes()


class Bits:
    """Reads and copies the bits of a NAL unit's payload, most significant first."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data.replace(b"\0\0\3", b"\0\0"))
        self.place = 0

    def take(self, count: int) -> int:
        self.place += count
        return int(self._bits[self.place - count : self.place], 2)

    def golomb(self) -> int:
        zeros = self._bits.index("1", self.place) - self.place
        self.place += zeros
        return self.take(zeros + 1) - 1

    def until_here(self, ending: str) -> bytes:
        bits = self._bits[: self.place] + ending
        bits += "0" * (-len(bits) % 8)
        return bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits), 8))


def without_reorder_depth(stream: bytes) -> bytes:
    """An Annex B stream of H.264, main profile, whose parameter sets say nothing of reordering, as many cameras'."""
    parts = re.split(rb"(\x00\x00\x00?\x01)", stream)
    return b"".join(_plain_sps(part) if part[:1] == b"\x67" else part for part in parts)


def _plain_sps(unit: bytes) -> bytes:
    bits = Bits(unit)
    bits.take(32)  # kind, profile, constraints, level
    bits.golomb()
    bits.golomb()
    assert unit[1] == 77
    if bits.golomb() == 0:
        bits.golomb()
    bits.golomb()
    bits.take(1)
    bits.golomb()
    bits.golomb()
    assert bits.take(1), "frames only"
    bits.take(1)
    assert not bits.take(1), "no cropping"
    return bits.until_here("01")  # no VUI, and the trailing bit
