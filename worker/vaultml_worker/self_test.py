"""Decoding a clip of our own, as a recording is decoded: limits that are too small show before they cost one."""

import io
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from vaultml_worker.decoders import Decoders
from vaultml_worker.failures import Failure

LIMITS = "DECODER_BYTES, DECODER_SECONDS"
_SIZES = ((1920, 1080), (320, 240))


def decode(decoders: Decoders, max_pixels: int) -> Failure | None:
    """Decode two frames in a child process: of Full HD, where frames may have that many pixels.

    Returns the failure, which our own limits have caused, or None.
    """
    width, height = next(size for size in _SIZES if size[0] * size[1] <= max_pixels or size == _SIZES[-1])
    try:
        decoders.sample(_clip(width, height), 2, (32, 32))
    except Failure as failure:
        return failure
    return None


def _clip(width: int, height: int) -> bytes:
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    body = io.BytesIO()
    with av.open(body, "w", format="mp4") as target:
        stream = cast("VideoStream", target.add_stream(codec, rate=4))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast"} if codec == "libx264" else {}
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 128, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 4)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return body.getvalue()
