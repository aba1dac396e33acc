"""Which packets decoding can start at, read from the coded pictures themselves.

Containers lie: an mp4 without a sync sample table calls every sample a keyframe, some muxers mark all or none.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from av.codec import Codec

Check = Callable[[bytes], bool]
"""True if decoding can start at this packet, and gives its picture whole."""

_START_CODE = b"\0\0\1"


def starts(claims: Sequence[bool], packet: Callable[[int], bytes], check: Check | None) -> list[int]:
    """Return the numbers of the packets to start decoding at.

    `claims` has what the container says of each packet, `packet` gives a packet's bytes. Claims are believed where they
    are checked and true, or where they can't be checked (`check` is None); else every packet is looked into.
    """
    claimed = [number for number, claim in enumerate(claims) if claim]
    if check is None:
        return claimed
    if 1 < len(claimed) < len(claims) and not claimed[0] and all(check(packet(number)) for number in claimed):
        return claimed
    return [number for number in range(len(claims)) if check(packet(number))]


def check_of(codec: Codec, extradata: bytes | None, *, closed: bool = False) -> Check | None:
    """Return the check for packets of a codec, None where there is none; `extradata` tells how NAL units are framed.

    `closed`: the packet must also be the first of a closed group of pictures, so that no picture behind it in decoding
    order is displayed before it.
    """
    if codec.intra_only:
        return lambda _: True
    extra = extradata or b""
    framed = extra[:1] == b"\1"
    match codec.canonical_name:
        case "h264":
            return partial(_h264, length=(extra[4] & 3) + 1 if framed and len(extra) > 4 else 0, closed=closed)
        case "hevc":
            return partial(_hevc, length=(extra[21] & 3) + 1 if framed and len(extra) > 21 else 0, closed=closed)
        case "mpeg4":
            return (lambda _: False) if closed else _mpeg4
        case "mpeg1video" | "mpeg2video":
            return (lambda _: False) if closed else _mpeg2
        case "vp8":
            return lambda body: bool(body) and not body[0] & 1
        case "vp9":
            return _vp9
        case "av1":
            return _av1
    return None


def nal_units(body: bytes, length: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each NAL unit: with a length of so many bytes before it, or (0) after start codes."""
    place = 0
    if length:
        while place + length < len(body):
            start = place + length
            place = start + int.from_bytes(body[place:start], "big")
            yield start, min(place, len(body))
        return
    start = body.find(_START_CODE) + 3
    while start > 2:
        following = body.find(_START_CODE, start)
        yield start, following if following >= 0 else len(body)
        start = following + 3


def _h264(body: bytes, length: int, *, closed: bool) -> bool:
    recovery = False
    for start, end in nal_units(body, length):
        kind = body[start] & 0x1F if start < end else 0
        if kind == 6:
            recovery = recovery or _recovers_at_once(body[start + 1 : min(end, start + 4096)])
        elif 1 <= kind <= 5:
            return kind == 5 or (recovery and not closed)
    return False


def _recovers_at_once(sei: bytes) -> bool:
    """True if a supplemental message says that pictures are right from this one on (recovery point, 0 frames)."""
    place = 0
    while place + 2 < len(sei):
        kind, place = _sei_number(sei, place)
        size, place = _sei_number(sei, place)
        if kind == 6:
            return place < len(sei) and bool(sei[place] & 0x80)  # recovery_frame_cnt, ue(v): 1 is 0
        place += size
    return False


def _sei_number(sei: bytes, place: int) -> tuple[int, int]:
    value = 0
    while place < len(sei) and sei[place] == 0xFF:
        value, place = value + 255, place + 1
    return value + (sei[place] if place < len(sei) else 0), place + 1


def _hevc(body: bytes, length: int, *, closed: bool) -> bool:
    for start, end in nal_units(body, length):
        kind = (body[start] >> 1) & 0x3F if start < end else 63
        if kind < 32:
            return 18 <= kind <= 20 if closed else 16 <= kind <= 23
    return False


def _mpeg4(body: bytes) -> bool:
    place = body.find(b"\0\0\1\xb6")
    return 0 <= place < len(body) - 4 and not body[place + 4] >> 6


def _mpeg2(body: bytes) -> bool:
    place = body.find(b"\0\0\1\0")
    return 0 <= place < len(body) - 5 and (body[place + 5] >> 3) & 7 == 1


def _vp9(body: bytes) -> bool:
    if not body or body[0] >> 6 != 2:
        return False
    profile = (body[0] >> 5 & 1) | (body[0] >> 3 & 2)
    rest = body[0] << (1 if profile == 3 else 0)  # profile 3 has a reserved bit
    return not rest & 0b1000 and not rest & 0b0100


def _av1(body: bytes) -> bool:
    """A temporal unit with a sequence header (OBU type 1) before its frame."""
    place = 0
    while place < len(body):
        header, place = body[place], place + 1
        kind = (header >> 3) & 15
        if kind in (1, 3, 6):
            return kind == 1
        place += header >> 2 & 1
        size = shift = 0
        while header & 2 and place < len(body):
            size |= (body[place] & 0x7F) << shift
            shift, place = shift + 7, place + 1
            if not body[place - 1] & 0x80:
                break
        if not header & 2:
            return False
        place += size
    return False
