"""What an Agent writes into a recording's file name: `<directory>/<file>.mp4`.

`<seconds>_<digits>-<subsecond>_<camera>_<region>_<changes>_<duration>`. Cameras may have any letters, `_` among them:
a name is read from both ends. Agents before v3.4.1 wrote constants into some of the fields, which mean "unknown".
"""

import re
from dataclasses import dataclass

_FRACTION = "6-967003"
_REGIONS = ("0-0-0-0", "200-200-400-400")
_DURATION = "769"
_CHANGES = "24"
"""What older Agents wrote whatever the recording was (the number of changes only beside the fraction)."""

_NUMBER = "[0-9]{1,18}"
_BEGINNING = rf"({_NUMBER})_({_NUMBER}-{_NUMBER})_(.*)_"
_ENDING = r"(?:\.[A-Za-z0-9]{1,5})?"
_NAME = re.compile(
    rf"{_BEGINNING}([0-9]{{1,9}}(?:-[0-9]{{1,9}}){{3}})_(-?{_NUMBER})_((?:{_NUMBER}_?)?){_ENDING}", re.DOTALL
)
# Names of Agents long ago: other words for region and duration.
_OLD_NAME = re.compile(rf"{_BEGINNING}([^_]*)_({_NUMBER})_([^_]*?){_ENDING}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RecordingName:
    """A file name's fields; None: the name does not say.

    `seconds` since the epoch, to which `fraction` adds; `camera` as its user named it; `region` of the motion: x, y,
    width, height in pixels of the stream that motion was looked for in; `changes`: changed pixels, −1 in a continuous
    recording, 100000000 in one that was started by hand; `duration` in ms.
    """

    seconds: int
    fraction: float | None
    camera: str | None
    region: tuple[int, int, int, int] | None
    changes: int | None
    duration: int | None

    @property
    def timestamp(self) -> float:
        """When the recording starts, in seconds since the epoch."""
        return self.seconds + (self.fraction or 0.0)


def parse_name(key: str) -> RecordingName | None:
    """Return the fields of a key's file name, None when it follows another convention."""
    file = key.rpartition("/")[2]
    match = _NAME.fullmatch(file) or _OLD_NAME.fullmatch(file)
    if match is None:
        return None
    seconds, fraction, camera, region, changes, duration = match.groups()
    return RecordingName(
        seconds=int(seconds),
        fraction=None if fraction == _FRACTION else _fraction(fraction),
        camera=camera or None,
        region=_region(region),
        changes=None if (fraction, changes) == (_FRACTION, _CHANGES) else int(changes),
        duration=int(duration) if re.fullmatch(r"[1-9][0-9]*", duration) and duration != _DURATION else None,
    )


def _fraction(text: str) -> float | None:
    """Return seconds: `<digits>-<value>`, where up to three digits are whole milliseconds, up to six microseconds.

    The value is not padded, so it is no decimal fraction: `2-45` is 45 ms.
    """
    digits, value = (int(part) for part in text.split("-"))
    unit = next((unit for unit in (3, 6, 9) if digits <= unit), None)
    return value / 10**unit if unit is not None and value < 10**unit else None


def _region(text: str) -> tuple[int, int, int, int] | None:
    edges = text.split("-")
    if text in _REGIONS or len(edges) != 4 or not all(edge.isascii() and edge.isdecimal() for edge in edges):
        return None
    x, y, width, height = (int(edge) for edge in edges)
    return x, y, width, height
