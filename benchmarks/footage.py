"""Moving pictures to measure with: a real recording, or a texture that moves like one."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def pictures(footage: Path | None, count: int, width: int, height: int) -> Iterator[Picture]:
    """Give `count` RGB pictures (height, width, 3) of the file `footage`, over again if it is short; None: made up."""
    source = _moving_texture(width, height) if footage is None else _decoded(footage, width, height)
    return itertools.islice(source, count)


def _decoded(footage: Path, width: int, height: int) -> Iterator[Picture]:
    while True:
        with av.open(str(footage)) as container:
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24", width=width, height=height), np.uint8)


def _moving_texture(width: int, height: int) -> Iterator[Picture]:
    """A camera that pans over a texture, four things that cross the picture, and sensor noise."""
    random = np.random.default_rng(1)
    room = 512
    size = (width + room, height + room)
    ground = np.zeros((size[1], size[0], 3))
    for scale in (4, 16, 64):
        coarse = random.uniform(0, 255 / 3, (size[1] // scale, size[0] // scale, 3))
        ground += cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    things = random.uniform(0, 255, (4, 3))
    for number in itertools.count():
        left, top = (round(room / 2 * (1 + np.sin(number / period))) for period in (120, 170))
        picture = ground[top : top + height, left : left + width].copy()
        for index, colour in enumerate(things):
            x, y = (number * (3 + index)) % (width - 80), height * (index + 1) // 6
            picture[y : y + 120, x : x + 60] = picture[y : y + 120, x : x + 60] / 4 + colour * 0.75
        picture += 2 * random.standard_normal(picture.shape, np.float32)
        yield np.clip(picture, 0, 255).astype(np.uint8)
