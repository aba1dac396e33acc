"""The original Darknet as the reference of tests and benchmarks: Debian's package `darknet`.

`libdarknet.so` is called in this process through ctypes; only the printed layer table comes from the real program.
The structs below are those of the package's `darknet.h`. Its large `network` and `layer` structs are never mirrored:
what they hold is read through exported functions (`get_network_image_layer` hands out any layer's output).

Good to know: the library ends the process (`exit(0)`, or an assertion) where other code raises, so files are looked at
before it sees them; it prints its layer table on stderr for every network it loads; it is built without OpenMP, so that
a network computes on the one thread that calls it (ctypes lets Python's other threads go on meanwhile).
"""

import ctypes
import functools
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

CFG = Path("/usr/share/darknet/cfg")
PHOTOGRAPHS = Path("/usr/share/darknet/data")
PROGRAM = Path("/usr/bin/darknet")
LIBRARY = Path("/usr/lib/darknet/libdarknet.so")

_NEEDED = (PROGRAM, LIBRARY, CFG / "yolov3.cfg", CFG / "yolov3-tiny.cfg", PHOTOGRAPHS / "dog.jpg")
_TABLE_HEADER = "layer     filters "
_TABLE_ROW = re.compile(r" *\d+ [a-z]")


class _Image(ctypes.Structure):
    """`image`: planar float pixels; what the library returns is its own until `free_image`."""

    _fields_ = (("w", ctypes.c_int), ("h", ctypes.c_int), ("c", ctypes.c_int), ("data", ctypes.POINTER(ctypes.c_float)))


class _Box(ctypes.Structure):
    """`box`: centre and size."""

    _fields_ = (("x", ctypes.c_float), ("y", ctypes.c_float), ("w", ctypes.c_float), ("h", ctypes.c_float))


class _Detection(ctypes.Structure):
    """`detection`: one box with the probability of every class."""

    _fields_ = (
        ("bbox", _Box),
        ("classes", ctypes.c_int),
        ("prob", ctypes.POINTER(ctypes.c_float)),
        ("mask", ctypes.POINTER(ctypes.c_float)),
        ("objectness", ctypes.c_float),
        ("sort_class", ctypes.c_int),
    )


@dataclass(frozen=True)
class Detected:
    """One label of one box: `box` is (x1, y1, x2, y2) in pixels of the image, not clipped to it."""

    label_index: int
    probability: float
    box: tuple[float, float, float, float]


class Network:
    """One network of the original Darknet, batch size 1; a context manager that frees it.

    Without `weights` it has Darknet's own random ones: enough to time it, but the outputs of a deep network overflow.
    Darknet says nothing about a weights file of the wrong length: what a short one lacks stays random. Each network
    that has run costs its workspace for good (24 MB for YOLOv3-tiny, 100 MB for YOLOv3 at 608), which Darknet forgets
    to free: share one where you can. Two networks may run in two threads, one network may not.
    """

    def __init__(self, cfg: Path, weights: Path | None = None) -> None:
        for path in (cfg, weights):
            if path is not None and not path.is_file():
                raise FileNotFoundError(f"{path} is not there, and Darknet would end the process over it")
        self._library = _library()
        self._layers = _layers(cfg)
        self._handle: int | None = self._library.load_network(
            os.fsencode(cfg), None if weights is None else os.fsencode(weights), 0
        )
        self._library.set_batch_network(self._handle, 1)
        self.width = int(self._library.network_width(self._handle))
        self.height = int(self._library.network_height(self._handle))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the network; every later call on it raises ValueError."""
        if self._handle is not None:
            self._library.free_network(self._handle)
            self._handle = None

    def detect(self, image_rgb: NDArray[np.uint8], threshold: float, nms: float = 0.45) -> list[Detected]:
        """Letterbox an RGB image (height, width, 3), run the network and return what it sees, the surest first.

        As `darknet detect` does it: boxes with objectness above `threshold`, of their labels those with a probability
        (objectness times class) above it, then suppression per class of overlaps above `nms` (IoU; 0 keeps all).
        """
        planar = _planar(image_rgb)
        height, width = image_rgb.shape[:2]
        handle = self._open()
        self._library.network_predict_image(handle, _image(planar))
        count = ctypes.c_int()
        boxes = self._library.get_network_boxes(handle, width, height, threshold, 0.5, None, 0, ctypes.byref(count))
        try:
            if nms and count.value:
                self._library.do_nms_sort(boxes, count.value, boxes[0].classes, nms)
            found = [label for i in range(count.value) for label in _labels(boxes[i])]
        finally:
            self._library.free_detections(boxes, count)
        return sorted(found, key=lambda detected: -detected.probability)

    def predict(self, network_input: NDArray[np.float32]) -> None:
        """Run the network on one input (3, height, width), RGB in 0..1, and keep the result inside: for timing."""
        shape = (3, self.height, self.width)
        if network_input.dtype != np.float32 or network_input.shape != shape:
            raise ValueError(f"the network takes float32 {shape}, not {network_input.dtype} {network_input.shape}")
        self._library.network_predict(self._open(), _floats(np.ascontiguousarray(network_input)))

    def heads(self, network_input: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run the network on one input (3, height, width), RGB in 0..1, and return what its yolo layers put out.

        One array (anchors, 5 + classes, grid height, grid width) for each, in layer order. The five are x, y, w, h,
        objectness; x, y, objectness and classes are AFTER the logistic function, w and h as the convolution left them
        (no exponential, no anchors yet). `layer_output(i - 1)` has yolo layer i's numbers before the logistic.
        """
        self.predict(network_input)
        heads = []
        for index, (kind, options) in enumerate(self._layers):
            if kind == "yolo":
                output = self.layer_output(index)
                heads.append(output.reshape(-1, 5 + int(options["classes"]), *output.shape[1:]))
        return heads

    def layer_output(self, index: int) -> NDArray[np.float32]:
        """Copy what the layer (its number in the layer table) last put out: (channels, height, width)."""
        if not 0 <= index < len(self._layers):
            raise IndexError(f"no layer {index}: the network has {len(self._layers)}")
        return _array(self._library.get_network_image_layer(self._open(), index))

    def _open(self) -> int:
        if self._handle is None:
            raise ValueError("the network is closed")
        return self._handle


def available() -> str | None:
    """Return None when the original Darknet can be used here, else one sentence that names what to install."""
    for path in _NEEDED:
        if not path.exists():
            return f"The original Darknet is not installed ({path} is missing): apt-get install darknet"
    try:
        _library()
    except OSError as error:
        return f"The original Darknet cannot be loaded ({error}): apt-get install --reinstall darknet"
    return None


def layer_table(cfg: Path) -> str:
    """Return the layer table of a cfg, from its header to its last row, exactly as the real program prints it.

    Raises RuntimeError with the program's own words when it prints none.
    """
    # `ops` (count operations) is the command that builds a network and needs no weights.
    done = subprocess.run([PROGRAM, "ops", cfg], capture_output=True, text=True, timeout=120, check=False)
    lines = done.stderr.splitlines(keepends=True)
    rows = [number for number, line in enumerate(lines) if _TABLE_ROW.match(line)]
    start = next((number for number, line in enumerate(lines) if line.startswith(_TABLE_HEADER)), None)
    if start is None or not rows or done.returncode != 0:
        raise RuntimeError(f"darknet ops {cfg} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return "".join(lines[start : rows[-1] + 1])


def resize_letterbox(image_rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.float32]:
    """Fit an RGB image (height, width, 3) on grey 0.5 as Darknet does: float32 (3, height, width), RGB in 0..1."""
    planar = _planar(image_rgb)
    boxed = _library().letterbox_image(_image(planar), width, height)
    try:
        return _array(boxed)
    finally:
        _library().free_image(boxed)


@functools.cache
def _library() -> ctypes.CDLL:
    """Load the library once and declare what is used of it, as `darknet.h` does."""
    library = ctypes.CDLL(str(LIBRARY))
    # Built with fast math, it makes this thread round subnormal numbers to zero when it is loaded: back to FE_DFL_ENV.
    ctypes.CDLL(None).fesetenv(ctypes.c_void_p(-1))
    c_int, c_float, network = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    floats, detections = ctypes.POINTER(c_float), ctypes.POINTER(_Detection)

    def declare(function: Callable[..., Any], returns: Any, *takes: Any) -> None:
        function.restype, function.argtypes = returns, takes  # type: ignore[attr-defined]

    declare(library.load_network, network, ctypes.c_char_p, ctypes.c_char_p, c_int)
    declare(library.free_network, None, network)
    declare(library.set_batch_network, None, network, c_int)
    declare(library.network_width, c_int, network)
    declare(library.network_height, c_int, network)
    declare(library.network_predict, floats, network, floats)
    declare(library.network_predict_image, floats, network, _Image)
    declare(library.get_network_image_layer, _Image, network, c_int)
    declare(
        library.get_network_boxes,
        detections,
        *(network, c_int, c_int, c_float, c_float, ctypes.POINTER(c_int), c_int, ctypes.POINTER(c_int)),
    )
    declare(library.do_nms_sort, None, detections, c_int, c_int, c_float)
    declare(library.free_detections, None, detections, c_int)
    declare(library.letterbox_image, _Image, _Image, c_int, c_int)
    declare(library.free_image, None, _Image)
    return library


def _layers(cfg: Path) -> list[tuple[str, dict[str, str]]]:
    """Read the layers of a cfg: kind and options of each, the `[net]` section left out."""
    sections: list[tuple[str, dict[str, str]]] = []
    for line in cfg.read_text().splitlines():
        text = "".join(line.split())
        if text.startswith("["):
            sections.append((text.strip("[]"), {}))
        elif text and text[0] not in "#;":
            key, _, value = text.partition("=")
            sections[-1][1][key] = value
    return sections[1:]


def _labels(detection: Any) -> list[Detected]:
    centre = detection.bbox
    left, top = centre.x - centre.w / 2, centre.y - centre.h / 2
    box = (left, top, left + centre.w, top + centre.h)
    probabilities = detection.prob[: detection.classes]
    return [Detected(label, probability, box) for label, probability in enumerate(probabilities) if probability > 0]


def _planar(image_rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3:
        raise ValueError(f"an image is uint8 (height, width, 3), not {image_rgb.dtype} {image_rgb.shape}")
    return np.ascontiguousarray(image_rgb.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)


def _image(planar: NDArray[np.float32]) -> _Image:
    """Describe an array to the library: no copy, so the caller keeps the array for as long as the image is used."""
    channels, height, width = planar.shape
    return _Image(width, height, channels, _floats(planar))


def _array(image: Any) -> NDArray[np.float32]:
    return np.ctypeslib.as_array(image.data, (image.c, image.h, image.w)).copy()


def _floats(array: NDArray[np.float32]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
