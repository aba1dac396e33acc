"""Colours as a common player shows them.

FFmpeg's scaler refuses matrices that it can't convert, and takes an untagged recording for BT.601 whatever its size.
Players take BT.709 for untagged HD, and do the same with a matrix that they don't know.
"""

import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""RGB, (height, width, 3)."""

_BT709, _UNSPECIFIED, _BT601 = 1, 2, 6
_MATRICES = frozenset({_BT709, 4, 5, _BT601, 7, 9})
"""Matrix coefficients (ITU-T H.273) that FFmpeg's scaler converts."""
_HD = 1280, 720
_RGB = ("rgb", "bgr", "gbr", "argb", "abgr", "pal8", "gray", "mono", "0rgb", "0bgr", "x2")


def rgb(frame: VideoFrame) -> Picture:
    """Return the picture of a decoded frame, whatever its tags say."""
    if frame.colorspace not in _MATRICES:
        hd = frame.width >= _HD[0] or frame.height >= _HD[1]
        untouched = frame.format.name.startswith(_RGB)
        frame.colorspace = _UNSPECIFIED if untouched else _BT709 if hd else _BT601
    if frame.color_range not in (ColorRange.MPEG, ColorRange.JPEG):
        frame.color_range = ColorRange.UNSPECIFIED
    return np.asarray(frame.reformat(format="rgb24", threads=1).to_ndarray(), np.uint8)


def upright(frame: VideoFrame) -> Picture:
    """Return the picture of a decoded frame, turned as the recording says."""
    picture = rgb(frame)
    turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def encodable(picture: Picture, reformatter: VideoReformatter) -> VideoFrame:
    """Return the RGB picture (even sides) as a 4:2:0 frame in BT.709, limited range, and tagged so."""
    source = VideoFrame.from_ndarray(picture, format="rgb24")
    source.color_range = ColorRange.JPEG
    frame = reformatter.reformat(
        source,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )
    frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return frame


def tag_bt709(context: VideoCodecContext) -> None:
    """Tag what an encoder writes as what `encodable` makes."""
    context.colorspace, context.color_range = _BT709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
