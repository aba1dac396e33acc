"""`vaultml detect`: files in, annotated files and JSON out, no queue and no Vault."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vaultml_worker import annotate, results
from vaultml_worker.decoders import Decoders
from vaultml_worker.failures import Failure
from vaultml_worker.pipeline import Detector
from vaultml_worker.records import Detection, Frame, InvalidInput, Sample
from vaultml_worker.video import Limits

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_CHUNK = 32

Progress = Callable[[float], None]
"""Called with the part done, 0..1."""


def outputs(files: Sequence[Path], out: Path) -> dict[Path, tuple[Path, Path]]:
    """For each file its JSON and its annotated file. Raises InvalidInput when two inputs would write the same."""
    stems = Counter(path.stem for path in files)
    if twice := [stem for stem, count in stems.items() if count > 1]:
        raise InvalidInput(f"two inputs are called {twice[0]}: their outputs would overwrite each other; rename one")
    targets = {}
    for path in files:
        suffix = ".jpg" if path.suffix.lower() in _PICTURES else ".mp4"
        targets[path] = (out / f"{path.stem}.json", out / f"{path.stem}{suffix}")
        if any(target.exists() and path.exists() and target.samefile(path) for target in targets[path]):
            raise InvalidInput(f"{path}: its annotated copy would overwrite it; choose another --out")
    return targets


def run(
    path: Path,
    targets: tuple[Path, Path],
    detector: Detector,
    decoders: Decoders,
    *,
    every_frame: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Look at one file and write its two outputs; gives the `vaultml` object.

    Raises Failure or InvalidInput with one line that says what is wrong. Where only drawing fails,
    the JSON is written all the same.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"can't be read: {error.strerror}") from None
    start = time.perf_counter()
    if every_frame:
        sample, detections = _all_frames(data, detector, decoders, progress)
    else:
        sample = decoders.sample(data, detector.options.frames, detector.network)
        progress(0.3)
        detections = detector.detect(sample)
        progress(0.6)
    milliseconds = (time.perf_counter() - start) * 1000
    vaultml = results.vaultml(
        model=detector.model,
        engine=detector.engine.name,
        gpu=detector.engine.gpu,
        sample=sample,
        tracks=detector.track(sample, detections),
        timings={"detect": milliseconds},
    )
    document, media = targets
    _write(document, _write_json(detections, vaultml))
    try:
        _write(media, _write_media(data, vaultml, decoders))
    except Exception as error:  # whatever goes wrong in drawing: the result is there, and so are the other files
        said = error.message if isinstance(error, Failure) else _first_line(error)
        raise InvalidInput(f"{document.name} is written, but {media.name} can't be drawn: {said}") from None
    progress(1.0)
    return vaultml


def _write(target: Path, write: Callable[[Path], None]) -> None:
    """Write a file whole or not at all."""
    scratch = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        write(scratch)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    said = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def _write_json(detections: Sequence[Sequence[Detection]], vaultml: dict[str, Any]) -> Callable[[Path], None]:
    document = {"data": results.data(detections), "vaultml": vaultml}
    return lambda path: _nothing(path.write_text(json.dumps(document, indent=2) + "\n"))


def _nothing(_written: int) -> None:
    """A write's byte count is of no interest."""


def _write_media(data: bytes, vaultml: dict[str, Any], decoders: Decoders) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        draw = annotate.picture_file if path.suffix == ".jpg" else annotate.video_file
        decoders.run(draw, data, vaultml, str(path), Limits())

    return write


def _all_frames(
    data: bytes, detector: Detector, decoders: Decoders, progress: Progress
) -> tuple[Sample, tuple[tuple[Detection, ...], ...]]:
    """Every frame, a chunk at a time, so that memory stays small."""
    empty = np.empty((0, 0, 3), np.uint8)
    frames: list[Frame] = []
    detections: list[tuple[Detection, ...]] = []
    whole: Sample | None = None
    first, total = 0, 1
    while first < total:
        try:
            chunk, total = decoders.sample_all(data, first, _CHUNK, detector.network)
        except Failure:
            if whole is None:
                raise
            whole = replace(whole, corrupt=True)  # a hole of a whole chunk: what was seen before it still counts
            break
        detections += detector.detect(chunk)
        frames += [Frame(empty, frame.timestamp) for frame in chunk.frames]
        corrupt = chunk.corrupt or (whole is not None and whole.corrupt)
        whole = replace(whole or chunk, corrupt=corrupt)
        first += _CHUNK
        progress(0.7 * min(1.0, first / total))
    assert whole is not None
    return replace(whole, frames=tuple(frames), asked=total), tuple(detections)
