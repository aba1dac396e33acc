"""The Darknet reference tells the truth: the library as we call it says what the real program says."""

import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from testbed import darknet
from testbed.darknet import CFG, PHOTOGRAPHS, Detected, Network

# What `darknet detect` answers with the trained YOLOv3-tiny, by the mask of its second head. The package's cfg says
# 0,1,2; the weights were trained with 1,2,3. The wrong one halves boxes, so that doubles escape the suppression.
KNOWN = {
    ("dog", "0,1,2"): ["bicycle 59", "car 52", "car 62", "dog 56", "truck 55"],
    ("dog", "1,2,3"): ["bicycle 59", "car 62", "dog 56", "truck 55"],
    ("person", "0,1,2"): ["dog 90", "dog 91", "horse 94", "person 86"],
    ("person", "1,2,3"): ["dog 91", "horse 94", "person 86"],
    ("eagle", "0,1,2"): ["bird 77"],
    ("eagle", "1,2,3"): ["bird 77"],
}
THRESHOLD = 0.5


pytestmark = pytest.mark.usefixtures("original")


@pytest.fixture(scope="module")
def weights(tiny: Path) -> Path:
    return tiny / "yolov3-tiny.weights"


@pytest.fixture(scope="module")
def cfgs(tmp_path_factory: pytest.TempPathFactory, original: None) -> dict[str, Path]:
    shipped = CFG / "yolov3-tiny.cfg"
    before, after = shipped.read_text().rsplit("mask = 0,1,2", 1)
    corrected = tmp_path_factory.mktemp("cfg") / "yolov3-tiny.cfg"
    corrected.write_text(f"{before}mask = 1,2,3{after}")
    return {"0,1,2": shipped, "1,2,3": corrected}


@pytest.fixture(scope="module")
def labels(original: None) -> list[str]:
    return (PHOTOGRAPHS / "coco.names").read_text().splitlines()


def photograph(name: str) -> NDArray[np.uint8]:
    pixels = cv2.imread(str(PHOTOGRAPHS / f"{name}.jpg"))
    assert pixels is not None
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def told_by_program(cfg: Path, weights: Path, image: NDArray[np.uint8], folder: Path) -> list[str]:
    # A PNG, so that the program sees the very array the library gets, whoever decodes.
    cv2.imwrite(str(folder / "image.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    options = ["-thresh", str(THRESHOLD), "-out", "drawn"]
    command: list[str | Path] = [darknet.PROGRAM, "detect", cfg, weights, folder / "image.png", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return sorted(f"{label} {percent}" for label, percent in re.findall(r"^(.+): (\d+)%$", done.stdout, re.MULTILINE))


@pytest.mark.parametrize(("name", "mask"), KNOWN)
def test_library_and_program_report_the_known_percentages(
    name: str, mask: str, cfgs: dict[str, Path], weights: Path, labels: list[str], tmp_path: Path
) -> None:
    image = photograph(name)
    with Network(cfgs[mask], weights) as network:
        found = network.detect(image, THRESHOLD)
    assert sorted(f"{labels[one.label_index]} {one.probability:.0%}".rstrip("%") for one in found) == KNOWN[name, mask]
    assert told_by_program(cfgs[mask], weights, image, tmp_path) == KNOWN[name, mask]


def test_detections_come_surest_first_and_one_box_may_have_two_labels(
    cfgs: dict[str, Path], weights: Path, labels: list[str]
) -> None:
    with Network(cfgs["0,1,2"], weights) as network:
        found = network.detect(photograph("dog"), THRESHOLD)
    assert [labels[one.label_index] for one in found] == ["car", "bicycle", "dog", "truck", "car"]
    assert found[3].box == found[4].box == pytest.approx((533.3, 94.7, 621.5, 157.4), abs=0.1)


def test_heads_decode_to_what_the_library_detects(cfgs: dict[str, Path], weights: Path) -> None:
    image = photograph("dog")
    with Network(cfgs["1,2,3"], weights) as network:
        heads = network.heads(darknet.resize_letterbox(image, network.width, network.height))
        detected = network.detect(image, 0.3, nms=0)
    anchors = [[(81, 82), (135, 169), (344, 319)], [(23, 27), (37, 58), (81, 82)]]
    assert [head.shape for head in heads] == [(3, 85, 13, 13), (3, 85, 26, 26)]
    by_head = [decode(head, sizes, 0.3) for head, sizes in zip(heads, anchors, strict=True)]
    assert all(by_head)
    decoded = sorted(chain(*by_head), key=lambda one: -one.probability)
    assert [one.label_index for one in decoded] == [one.label_index for one in detected]
    assert np.allclose([one.probability for one in decoded], [one.probability for one in detected], atol=1e-6)
    assert np.allclose([one.box for one in decoded], [one.box for one in detected], atol=1e-2)


def decode(head: NDArray[np.float32], anchors: list[tuple[int, int]], threshold: float) -> list[Detected]:
    """Decode as the YOLOv3 paper has it, a 768 by 576 picture that a letterbox of 416 shrinks to 416 by 312."""
    found = []
    stride, scale, bar = 416 / head.shape[2], 768 / 416, (416 - 312) / 2
    for anchor, row, column in zip(*np.nonzero(head[:, 4] > threshold), strict=True):
        x, y, w, h, objectness, *classes = (float(number) for number in head[anchor, :, row, column])
        centre_x, centre_y = (column + x) * stride * scale, ((row + y) * stride - bar) * scale
        half_w, half_h = np.exp(w) * anchors[anchor][0] * scale / 2, np.exp(h) * anchors[anchor][1] * scale / 2
        box = (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h)
        found += [
            Detected(label, objectness * likely, box)
            for label, likely in enumerate(classes)
            if objectness * likely > threshold
        ]
    return found


def test_heads_are_logistic_but_for_width_and_height(cfgs: dict[str, Path], weights: Path) -> None:
    with Network(cfgs["1,2,3"], weights) as network:
        heads = network.heads(darknet.resize_letterbox(photograph("dog"), 416, 416))
        before = [
            network.layer_output(index - 1).reshape(head.shape) for index, head in zip((16, 23), heads, strict=True)
        ]
    for raw, head in zip(before, heads, strict=True):
        expected = 1 / (1 + np.exp(-raw))
        expected[:, 2:4] = raw[:, 2:4]
        assert np.allclose(head, expected, atol=1e-6)


def test_predict_repeats_itself(cfgs: dict[str, Path], weights: Path) -> None:
    first_input = darknet.resize_letterbox(photograph("dog"), 416, 416)
    with Network(cfgs["1,2,3"], weights) as network:
        first = network.heads(first_input)
        network.predict(darknet.resize_letterbox(photograph("eagle"), 416, 416))
        assert not np.array_equal(network.layer_output(23).reshape(first[1].shape), first[1])
        network.predict(first_input)
        assert np.array_equal(network.layer_output(23).reshape(first[1].shape), first[1])


@pytest.mark.parametrize(
    ("cfg", "first", "last"),
    [
        (
            "yolov3-tiny.cfg",
            "    0 conv     16  3 x 3 / 1   416 x 416 x   3   ->   416 x 416 x  16  0.150 BFLOPs",
            "   23 yolo",
        ),
        (
            "yolov3.cfg",
            "    0 conv     32  3 x 3 / 1   608 x 608 x   3   ->   608 x 608 x  32  0.639 BFLOPs",
            "  106 yolo",
        ),
    ],
)
def test_layer_table_is_the_header_and_one_row_for_each_layer(cfg: str, first: str, last: str) -> None:
    table = darknet.layer_table(CFG / cfg)
    assert table.endswith("\n")
    header, *rows = table.splitlines()
    assert header == "layer     filters    size              input                output"
    assert (rows[0], rows[-1]) == (first, last)
    assert [int(row[:5]) for row in rows] == list(range(len(rows)))


def test_layer_table_of_no_cfg_raises_in_the_words_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Couldn't open file"):
        darknet.layer_table(tmp_path / "absent.cfg")


@pytest.mark.parametrize(
    ("width", "height", "inside"),
    [(200, 100, (slice(104, 312), slice(None))), (100, 200, (slice(None), slice(104, 312)))],
)
def test_letterbox_is_grey_outside_the_image(width: int, height: int, inside: tuple[slice, slice]) -> None:
    boxed = darknet.resize_letterbox(np.full((height, width, 3), 255, np.uint8), 416, 416)
    expected = np.full((3, 416, 416), 0.5, np.float32)
    expected[(slice(None), *inside)] = 1
    assert boxed.dtype == np.float32
    assert np.allclose(boxed, expected, atol=1e-6)


def test_letterbox_of_an_image_that_fits_only_changes_its_form() -> None:
    image = np.random.default_rng(1).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    boxed = darknet.resize_letterbox(image, 64, 32)
    assert np.array_equal(boxed, image.transpose(2, 0, 1).astype(np.float32) / 255)


def test_what_would_end_the_process_or_read_foreign_memory_raises(cfgs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.cfg"):
        Network(tmp_path / "absent.cfg")
    with pytest.raises(FileNotFoundError, match=r"absent\.weights"):
        Network(cfgs["1,2,3"], tmp_path / "absent.weights")
    with pytest.raises(ValueError, match="an image is uint8"):
        darknet.resize_letterbox(np.zeros((3, 10, 10), np.uint8), 416, 416)
    with Network(cfgs["1,2,3"]) as network:
        with pytest.raises(ValueError, match=r"takes float32 \(3, 416, 416\)"):
            network.predict(np.zeros((3, 10, 10), np.float32))
        with pytest.raises(IndexError, match="no layer 24"):
            network.layer_output(24)
    with pytest.raises(ValueError, match="closed"):
        network.predict(np.zeros((3, 416, 416), np.float32))


def test_a_missing_package_is_one_sentence_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(darknet, "_NEEDED", (Path("/nowhere/libdarknet.so"),))
    assert darknet.available() == (
        "The original Darknet is not installed (/nowhere/libdarknet.so is missing): apt-get install darknet"
    )


def test_loading_it_leaves_arithmetic_as_it_was(tiny: Path, cfgs: dict[str, Path]) -> None:
    with Network(cfgs["1,2,3"], tiny / "yolov3-tiny.weights"):
        assert sys.float_info.min / 2 > 0
