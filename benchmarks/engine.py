"""Milliseconds a frame of our CPU engine, beside OpenCV's DNN module and the original Darknet."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.footage import Picture, pictures
from benchmarks.measure import Contender, interleave, ratio, table
from benchmarks.networks import prepared
from testbed import darknet as original
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.model import load
from vaultml_worker.records import Model

GOAL = 1.0
SIZE = 416
_ROUNDS = {"yolov3-tiny": (30, 4), "yolov3": (7, 2)}
"""Rounds of ours and OpenCV's, and of Darknet's."""


def run(footage: Path | None) -> str:
    """Measure both networks; gives Markdown."""
    frame = cv2.resize(next(pictures(footage, 1, 1280, 720)), (SIZE, SIZE)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        networks = [prepared(f"{kind}-{SIZE}", Path(folder)) for kind in _ROUNDS]
        rows = [row for cfg, weights in networks for row in _measure(cfg, weights, frame)]
    header = ["network", "threads", "ours, ms", "OpenCV, ms", "Darknet, ms", "ours / OpenCV", "ours / Darknet", "goal"]
    return (
        f"From one uint8 frame of {SIZE} x {SIZE} to decoded boxes, wall time, medians; contenders take turns in one "
        "run. yolov3-tiny has its trained weights, yolov3 random ones. Darknet as Debian builds it computes on one "
        f"thread only. Goal: ours / OpenCV ≤ {GOAL}.\n\n{table(header, rows)}"
    )


def _measure(cfg: Path, weights: Path, frame: Picture) -> Iterator[list[str]]:
    ready = load(cfg, weights)
    rounds, few = _ROUNDS[cfg.stem]
    for threads in (1, 2):
        contenders = {"ours": Contender(_ours(ready, threads, frame), rounds)}
        if hasattr(cv2.dnn, "readNetFromDarknet"):
            contenders["OpenCV"] = Contender(_opencv(cfg, weights, threads, frame), rounds)
        if threads == 1 and original.available() is None:
            contenders["Darknet"] = Contender(_darknet(cfg, weights, frame), few)
        seconds = interleave(contenders, time.perf_counter)
        times = [_milliseconds(seconds.get(name)) for name in ("ours", "OpenCV", "Darknet")]
        ratios = {
            name: ratio(seconds["ours"], seconds[name]) if name in seconds else None for name in ("OpenCV", "Darknet")
        }
        verdict = "-" if ratios["OpenCV"] is None else "met" if ratios["OpenCV"] <= GOAL else "missed"
        shown = ["-" if number is None else f"{number:.2f}" for number in ratios.values()]
        yield [f"{cfg.stem}-{SIZE}", str(threads), *times, *shown, verdict]


def _milliseconds(seconds: list[float] | None) -> str:
    return f"{statistics.median(seconds) * 1000:.0f}" if seconds else "-"


def _ours(ready: Model, threads: int, frame: Picture) -> Callable[[], object]:
    engine = OnnxEngine(ready, threads)
    return lambda: engine.detect(frame[None])


def _opencv(cfg: Path, weights: Path, threads: int, frame: Picture) -> Callable[[], object]:
    network = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    heads = network.getUnconnectedOutLayersNames()
    cv2.setNumThreads(threads)

    def work() -> object:
        network.setInput(cv2.dnn.blobFromImage(frame, 1 / 255))
        return network.forward(heads)

    return work


def _darknet(cfg: Path, weights: Path, frame: Picture) -> Callable[[], object]:
    network = original.Network(cfg, weights)
    return lambda: network.detect(frame, 0.5)
