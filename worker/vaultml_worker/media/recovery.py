"""Pictures out of an mp4 whose index (moov) is missing, as its writer was stopped before it wrote it, or is damaged.

H.264 and H.265 samples are NAL units with their length in front. Where the parameter sets are among them, as in the
recordings of many cameras, the units alone make a raw stream that decodes; only the times are lost.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_START_CODE = b"\0\0\0\1"
_LENGTH = 4
"""Bytes of the length before a NAL unit: four in every muxer of today."""
_PARTS = (b"ftyp", b"moov", b"styp", b"moof", b"mdat", b"free", b"skip", b"wide", b"sidx", b"uuid")
_PARAMETERS = {
    "h264": re.compile(rb"\0\0[\0-\3].[\x27\x47\x67][BMXdnzv\x80\xf4,SV]", re.DOTALL),
    "hevc": re.compile(rb"\0\0[\0-\3].[\x40\x42]\x01[\0-\x1f]", re.DOTALL),
}
"""A sequence parameter set (H.265: or video parameter set) behind its length."""
_UNRELATED = 1 << 20
"""So many bytes in a row without a unit, and the rest is not looked at."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A raw stream in Annex B form, and the name of FFmpeg's demuxer for it."""

    stream: bytes
    format: str


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each top-level box of an mp4, the end as its size says (0: the end of the file)."""
    place = 0
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if size == 1 and place + 16 <= len(data):
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        end = place + size if size else len(data)
        if end < place + 8:
            return
        yield kind, place, end
        place = end


def is_mp4(data: bytes) -> bool:
    """True if the file begins with a box of an mp4."""
    return data[4:8] in _PARTS


def lacks_index(data: bytes) -> bool:
    """True if this is an mp4 without a whole index (moov)."""
    return is_mp4(data) and not any(kind == b"moov" and end <= len(data) for kind, _, end in boxes(data))


def whole_part(data: bytes) -> bytes | None:
    """Return an mp4 without its last box where that is cut: FFmpeg opens none that ends in the header of a fragment."""
    last = None
    for _, start, end in boxes(data):
        last = start if end > len(data) else end
    return data[:last] if last and last < len(data) and is_mp4(data) and not lacks_index(data) else None


def annex_b(data: bytes) -> Recovered | None:
    """Return the pictures of an mp4 without its index, None where the parameters to decode them are not among them."""
    if not is_mp4(data):
        return None
    for name, fits in (("hevc", _is_hevc), ("h264", _is_h264)):
        units: list[bytes] = []
        for start, end in _media(data):
            if not units:
                found = _first_parameters(data, start, end, name, fits)
                start = end if found is None else found
            units += _units(data, start, end, fits)
        if units:
            return Recovered(b"".join(_START_CODE + unit for unit in units), name)
    return None


def _media(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of each stretch of media data."""
    for kind, start, end in boxes(data):
        if kind == b"mdat":
            header = 16 if data[start : start + 4] == b"\0\0\0\1" else 8
            yield start + header, min(end, len(data))


def _first_parameters(data: bytes, start: int, end: int, name: str, fits: Callable[[bytes, int], bool]) -> int | None:
    """Return where the length of the first parameter set stands that another unit follows."""
    for match in _PARAMETERS[name].finditer(data, start, end):
        following = match.start() + _LENGTH + int.from_bytes(match[0][:_LENGTH], "big")
        if _unit_end(data, following, end, fits) is not None:
            return match.start()
    return None


def _units(data: bytes, start: int, end: int, fits: Callable[[bytes, int], bool]) -> Iterator[bytes]:
    """Yield the NAL units; what lies between (sound) is passed over byte by byte."""
    place, last = start, start
    while place + _LENGTH + 2 < end and place - last < _UNRELATED:
        after = _unit_end(data, place, end, fits)
        if after is not None and (after + _LENGTH + 2 >= end or _unit_end(data, after, end, fits) is not None):
            yield data[place + _LENGTH : after]
            place = last = after
        else:
            # The last unit before a stretch of sound, or of the file: whole if anything follows, else cut off.
            if after is not None and place == last:
                yield data[place + _LENGTH : after]
                last = place = after
                continue
            place += 1


def _unit_end(data: bytes, place: int, end: int, fits: Callable[[bytes, int], bool]) -> int | None:
    """Return where the NAL unit whose length stands at `place` ends, None where there can't be one."""
    length = int.from_bytes(data[place : place + _LENGTH], "big")
    first = place + _LENGTH
    return first + length if 2 <= length <= end - first and fits(data, first) else None


def _is_h264(data: bytes, place: int) -> bool:
    kind, importance = data[place] & 0x1F, data[place] >> 5
    return kind in _H264_REFERENCE[importance] if importance < len(_H264_REFERENCE) else False


def _is_hevc(data: bytes, place: int) -> bool:
    return not data[place] & 0x81 and 1 <= data[place + 1] <= 7 and data[place] >> 1 in _HEVC_KINDS


_H264_REFERENCE = ((1, 6, 9, 10, 11, 12), (1, 5, 7, 8), (1, 5, 7, 8), (1, 5, 7, 8))
"""Kinds of units by nal_ref_idc: what others refer to has it, and messages don't."""
_HEVC_KINDS = frozenset((*range(10), *range(16, 22), *range(32, 41)))
