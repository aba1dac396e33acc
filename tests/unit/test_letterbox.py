import cv2
import numpy as np
import pytest

from vaultml_worker.letterbox import Letterbox


def test_a_wide_picture_lies_between_grey_bars() -> None:
    picture = np.full((360, 640, 3), 255, np.uint8)
    out = Letterbox(640, 360, 416, 416).apply(picture)
    assert out.shape == (416, 416, 3)
    assert (out[:91] == 128).all()
    assert (out[91:325] == 255).all()
    assert (out[325:] == 128).all()


def test_corners_are_aligned() -> None:
    picture = np.zeros((2, 4, 3), np.uint8)
    picture[:, :, 0] = [0, 30, 60, 90]
    out = Letterbox(4, 2, 7, 7).apply(picture)
    row = out[3, :, 0]
    assert row.tolist() == [0, 15, 30, 45, 60, 75, 90]


def smooth(width: int, height: int) -> np.ndarray:
    """A picture as lenses make them: no pixel differs much from its neighbours."""
    coarse = np.random.default_rng(2).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize("network", [(416, 416), (608, 608), (320, 224), (32, 32)])
@pytest.mark.parametrize(
    "size", [(1280, 720), (640, 480), (720, 1280), (333, 77), (64, 64), (416, 416), (1, 1), (1, 50)]
)
def test_the_fast_way_gives_nearly_the_same(size: tuple[int, int], network: tuple[int, int]) -> None:
    letterbox, picture = Letterbox(*size, *network), smooth(*size)
    difference = np.abs(letterbox.apply(picture).astype(int) - letterbox.apply_fast(picture))
    assert difference.max() <= 3
    assert difference.mean() <= 0.3


@pytest.mark.parametrize("size", [(32_766, 2), (32_767, 2), (2, 40_000), (400_000, 1)])
def test_any_length_of_a_side_is_taken(size: tuple[int, int]) -> None:
    fitted = Letterbox(*size, 416, 416).apply_fast(np.full((size[1], size[0], 3), 7, np.uint8))
    assert fitted.shape == (416, 416, 3)
    assert (fitted == 7).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (333, 77), (50, 999), (416, 416), (3840, 2160)])
def test_boxes_come_back_where_they_were(size: tuple[int, int]) -> None:
    width, height = size
    letterbox = Letterbox(width, height, 416, 416)
    inner_width, inner_height = letterbox.inner
    left, top = (416 - inner_width) / 2, (416 - inner_height) / 2
    whole = np.array([[left, top, left + inner_width, top + inner_height]], np.float32)
    assert letterbox.restore(whole)[0] == pytest.approx((0, 0, width, height), abs=0.01)
    outside = np.array([[-50, -50, 500, 500]], np.float32)
    assert letterbox.restore(outside)[0] == (0, 0, width, height)
    assert letterbox.apply(np.zeros((height, width, 3), np.uint8)).shape == (416, 416, 3)
