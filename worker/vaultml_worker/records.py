"""The data that passes between the parts, one way: event → recording → frames → detections → tracks → result."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the recording's own (upright) frame."""

PUBLISHED_MODELS = ("yolov3-tiny", "yolov3")
"""Models that are fetched by their name."""
MODEL_URL = re.compile(r"https?://[^/@?#\s]+/[^@?#\s]+\.(cfg|onnx)")
"""A model elsewhere; without what may be a secret."""


class Timing(StrEnum):
    """Where the times of a recording's frames come from: its container, or the frames' order where that is absurd."""

    CONTAINER = "container"
    FRAME_ORDER = "frame-order"


class InvalidInput(ValueError):  # noqa: N818 - an input, not a program error
    """A model, a setting or a file named by the user is wrong; the text says what to do."""


class EngineError(RuntimeError):
    """An engine can't start, or can't go on: the device's or its software's trouble, not a recording's."""


class State(StrEnum):
    """What a finding means for a worker: all is well, worth knowing, works but badly, does not work."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What `vaultml doctor` found out about one part; `advice` says what to do, where there is something to do."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class VaultAccess:
    """Where a Vault is and how to sign in. Its repr shows no keys."""

    url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """One event as Vault publishes it.

    `document` is the JSON object in its own order; `key` and `source` name the recording in its Vault;
    `access` overrides the worker's own Vault for this recording; `file_size` is in bytes.
    """

    document: Mapping[str, Any] = field(repr=False)
    key: str
    source: str
    camera: str | None = None
    timestamp: float | None = None
    file_size: int | None = None
    access: VaultAccess | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One sampled frame: `pixels` uint8 RGB (height, width, 3) of network size, `timestamp` in ms from the start."""

    pixels: NDArray[np.uint8] = field(repr=False)
    timestamp: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The frames taken from one recording.

    `asked` frames were wanted; `width`, `height` (pixels) are those of the upright recording, `duration` is in ms.
    `truncated`: the file ends too early; `corrupt`: something in it could not be decoded; `timing`: with FRAME_ORDER,
    timestamps are frame numbers over a nominal frame rate.
    """

    frames: tuple[Frame, ...]
    asked: int
    width: int
    height: int
    duration: float
    truncated: bool = False
    corrupt: bool = False
    timing: Timing = Timing.CONTAINER

    def pixels(self) -> NDArray[np.uint8]:
        """Return the frames' pixels as (n, height, width, 3): not copied where they are the rows of one array."""
        whole = self.frames[0].pixels.base
        rows = [frame.pixels for frame in self.frames]
        if whole is not None and whole.shape == (len(rows), *rows[0].shape):
            places = [row.ctypes.data - whole.ctypes.data for row in rows]
            if all(row.base is whole for row in rows) and places == [row.nbytes * n for n, row in enumerate(rows)]:
                return whole
        return np.stack(rows)


@dataclass(frozen=True, slots=True)
class Detection:
    """One labelled box in one frame; `probability` 0..1, `box` in pixels of the recording."""

    label: str
    probability: float
    box: Box


@dataclass(frozen=True, slots=True)
class Sighting:
    """A track seen in the sampled frame number `frame` (from 0)."""

    frame: int
    detection: Detection


@dataclass(frozen=True, slots=True)
class Track:
    """One object through the sampled frames.

    `distance`: pixels between the box centres of its farthest two sightings; `static`: it stayed below MOVE_DISTANCE.
    """

    id: int
    label: str
    distance: float
    static: bool
    sightings: tuple[Sighting, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A network ready for any engine.

    `onnx`: the serialized graph (contract in docs/models.md); `sha256`: digest of what the user gave (weights or ONNX);
    `width`, `height`: network input in pixels; `table`: Darknet's layer table, empty for a foreign ONNX.
    """

    name: str
    sha256: str
    onnx: bytes = field(repr=False)
    width: int
    height: int
    labels: tuple[str, ...] = field(repr=False)
    table: str = field(default="", repr=False)
