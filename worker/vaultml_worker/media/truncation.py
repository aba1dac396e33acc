"""Whether a file ends before its container says that it should."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from vaultml_worker.media.recovery import boxes, is_mp4

_TS_PACKET = 188
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_EBML_CLUSTER = b"\x1f\x43\xb6\x75"
_GROUPS = 3
"""So many groups of pictures of one length make a recording whose last group should have that length, too."""


def ends_early(data: bytes, format_name: str, keyframes: Sequence[int], packets: int) -> bool:
    """True if the file is cut: `format_name` is FFmpeg's, `keyframes` are numbers out of `packets` packets."""
    if is_mp4(data):
        found = list(boxes(data))
        end = max((end for _, _, end in found), default=0)
        return end > len(data) or 0 < len(data) - end < 8 or any(end > len(data) for end in _indexed(data, found))
    if format_name.startswith("matroska"):
        return _matroska(data)
    if format_name == "avi":
        return any(end > len(data) for end in _riff(data))
    if format_name == "flv":
        return _flv(data)
    if format_name == "mpegts":
        return _mpegts(data) or _short_group(keyframes, packets)
    return False


def _indexed(data: bytes, found: Sequence[tuple[bytes, int, int]]) -> Iterator[int]:
    """Yield where the last fragment of each segment index (sidx) of an mp4 ends."""
    for kind, start, end in found:
        if kind == b"sidx" and start + 32 <= end <= len(data):
            wide = 8 if data[start + 8] else 4  # bytes of a time and of the offset
            place = start + 20 + wide
            offset = int.from_bytes(data[place : place + wide], "big")
            place += wide + 2
            count = int.from_bytes(data[place : place + 2], "big")
            sizes = (data[entry : entry + 4] for entry in range(place + 2, place + 2 + 12 * count, 12))
            yield end + offset + sum(int.from_bytes(size, "big") & 0x7FFFFFFF for size in sizes)


def _matroska(data: bytes) -> bool:
    """A segment, or where that has no size, its last cluster or block, is longer than the file."""
    place = data.find(_EBML_SEGMENT)
    if place < 0:
        return False
    size, inner = _ebml_size(data, place + 4)
    if size is not None:
        return inner + size > len(data)
    while inner < len(data):
        kind, after = _ebml_id(data, inner)
        size, body = _ebml_size(data, after)
        if size is None:
            if kind != _EBML_CLUSTER:
                return False
            inner = body  # of unknown size: its children follow
        elif body + size > len(data):
            return True
        else:
            inner = body + size
    return inner > len(data)


def _ebml_id(data: bytes, place: int) -> tuple[bytes, int]:
    length = 9 - data[place].bit_length() if data[place] else 1
    return data[place : place + length], place + length


def _ebml_size(data: bytes, place: int) -> tuple[int | None, int]:
    """Return an element's size (None: unknown) and where its body begins."""
    if place >= len(data) or not data[place]:
        return 0, place + 1
    length = 9 - data[place].bit_length()
    value = int.from_bytes(data[place : place + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), place + length


def _riff(data: bytes) -> Iterator[int]:
    """Yield the end of each RIFF chunk, as its size says."""
    place = 0
    while data[place : place + 4] == b"RIFF":
        place += 8 + int.from_bytes(data[place + 4 : place + 8], "little")
        yield place


def _flv(data: bytes) -> bool:
    """The last tag is cut: every tag is followed by its size."""
    place = int.from_bytes(data[5:9], "big") + 4
    while place + 11 <= len(data):
        place += 11 + int.from_bytes(data[place + 1 : place + 4], "big") + 4
    return place != len(data)


def _mpegts(data: bytes) -> bool:
    """The last packet is cut. Packets are of 188 bytes, or 192 or 204 with what recorders add."""
    for size, offset in ((_TS_PACKET, 0), (192, 4), (204, 0)):
        if all(data[place : place + 1] == b"G" for place in range(offset, min(len(data), 8 * size), size)):
            return len(data) % size != 0
    return False


def _short_group(keyframes: Sequence[int], packets: int) -> bool:
    """MPEG-TS has no end mark: a last group of pictures shorter than all before it, of one length, tells of a cut."""
    lengths = {b - a for a, b in pairwise(keyframes)}
    return len(keyframes) > _GROUPS and len(lengths) == 1 and packets - keyframes[-1] < lengths.pop()
