"""The result: the event again, enriched with what was seen."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from vaultml_worker import events
from vaultml_worker.engines import Gpu
from vaultml_worker.records import Detection, Event, Model, Sample, Track

DATA = ("probabilities", "labels", "boxes")
"""What a result holds under `data`, beside what the event had there."""


def schema() -> dict[str, Any]:
    """The JSON Schema of the `vaultml` object, as it ships with the package."""
    loaded: dict[str, Any] = json.loads(files(__package__).joinpath("schemas/result.json").read_text())
    return loaded


def data(detections: Sequence[Sequence[Detection]]) -> dict[str, list[Any]]:
    """hub-ml's `data`: probabilities, labels and integer boxes; outer list = frame, frames without objects left out."""
    seen = [frame for frame in detections if frame]
    return {
        "probabilities": [[item.probability for item in frame] for frame in seen],
        "labels": [[item.label for item in frame] for frame in seen],
        "boxes": [[[round(edge) for edge in item.box] for item in frame] for frame in seen],
    }


def vaultml(
    *,
    model: Model,
    engine: str,
    gpu: Gpu | None,
    sample: Sample,
    tracks: Sequence[Track],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Our own part of every result, described by `schema()`. `timings` are milliseconds by stage."""
    return {
        "model": {"name": model.name, "sha256": model.sha256},
        "engine": engine,
        **({"gpu": _gpu(gpu)} if gpu is not None else {}),
        "frames": {
            "asked": sample.asked,
            "decoded": len(sample.frames),
            "timestamps": [round(frame.timestamp, 3) for frame in sample.frames],
            "width": sample.width,
            "height": sample.height,
        },
        "duration": round(sample.duration, 3),
        "timing": str(sample.timing),
        "truncated": sample.truncated,
        "corrupt": sample.corrupt,
        "tracks": [_track(track) for track in tracks],
        "objects": {
            "total": len(tracks),
            "moving": sum(not track.static for track in tracks),
            "by_label": dict(sorted(Counter(track.label for track in tracks).items())),
        },
        "timings": {stage: round(value, 1) for stage, value in timings.items()},
    }


def vault_format(event: Event, detections: Sequence[Sequence[Detection]], vaultml: Mapping[str, Any]) -> dict[str, Any]:
    """The result in hub-ml's `vault` format.

    Key order as hub-ml writes it: the event's first key, `data`, the rest, `operation` last; `vaultml` is appended.
    Unknown fields come back unchanged, credentials and signed URLs don't come back at all.
    """
    document: dict[str, Any] = events.scrub(event.document)
    before = document.pop("data", None)
    for replaced in ("operation", "vaultml"):
        document.pop(replaced, None)
    first, *rest = document.items()
    return {
        first[0]: first[1],
        "data": {**(before if isinstance(before, dict) else {}), **data(detections)},
        **dict(rest),
        "operation": "classification",
        "vaultml": dict(vaultml),
    }


def encode(result: Mapping[str, Any]) -> bytes:
    """One line of JSON as hub-ml spells it (ASCII, a space after each comma and colon)."""
    return json.dumps(result, allow_nan=False).encode()


def _gpu(gpu: Gpu) -> dict[str, Any]:
    known = {"name": gpu.name, "uuid": gpu.uuid, "memory": gpu.memory, "driver": gpu.driver, "runtime": gpu.runtime}
    return {name: value for name, value in known.items() if value}


def _track(track: Track) -> dict[str, Any]:
    return {
        "id": track.id,
        "label": track.label,
        "distance": round(track.distance, 1),
        "static": track.static,
        "boxes": [
            {
                "frame": sighting.frame,
                "box": [round(edge) for edge in sighting.detection.box],
                "probability": round(sighting.detection.probability, 4),
            }
            for sighting in track.sightings
        ],
    }
