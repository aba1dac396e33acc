"""Small recordings made on the spot: every kind that a camera, an Agent or an enemy may send."""

import io
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

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
