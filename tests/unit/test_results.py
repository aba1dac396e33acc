import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from vaultml_worker import events, results
from vaultml_worker.engines import Gpu
from vaultml_worker.records import Detection, Frame, Model, Sample
from vaultml_worker.tracking import track

PAIR = Path(__file__).parents[1] / "data" / "hub-ml-pair.json"
MODEL = Model("yolov3", "0" * 64, b"", 416, 416, ("car",))


def seen() -> tuple[tuple[Detection, ...], ...]:
    """hub-ml's detections: two cars in one of three frames."""
    boxes = ((542.2, 307.8, 594.6, 336.1), (568.4, 286.9, 605.3, 304.0))
    probabilities = (float(np.float32(0.930047333240509)), float(np.float32(0.8236896991729736)))
    cars = tuple(Detection("car", p, box) for p, box in zip(probabilities, boxes, strict=True))
    return (), cars, ()


def vaultml(detections: tuple[tuple[Detection, ...], ...], gpu: Gpu | None = None) -> dict[str, Any]:
    frames = tuple(Frame(np.zeros((1, 1, 3), np.uint8), 1000.0 * i) for i in range(len(detections)))
    sample = Sample(frames, 5, 1280, 720, 5000.0, truncated=True)
    tracks = track(detections, [frame.timestamp for frame in frames], move_distance=10)
    return results.vaultml(
        model=MODEL, engine="some-engine", gpu=gpu, sample=sample, tracks=tracks, timings={"fetch": 1.23}
    )


def test_the_result_is_hub_mls_byte_for_byte_up_to_our_object() -> None:
    raw = PAIR.read_text()
    sent = raw[raw.index('"event": ') + 9 : raw.index(',\n "result"')]
    answered = raw[raw.index('"result": ') + 10 : raw.rindex("\n}")]
    event = events.parse(sent.encode())
    mine = results.encode(results.vault_format(event, seen(), vaultml(seen())))
    assert mine.decode().startswith(answered[:-1] + ', "vaultml": {')


def test_nothing_found_gives_three_empty_lists() -> None:
    assert results.data([(), ()]) == {"probabilities": [], "labels": [], "boxes": []}


def test_hub_data_is_kept_without_its_credentials() -> None:
    document = json.loads(PAIR.read_text())["event"] | {
        "operation": "classify",
        "data": {"storage_uri": "http://v", "storage_access_key": "aaaaaa", "storage_secret": "bbbbbb", "job": 7},
    }
    event = events.parse(json.dumps(document).encode())
    result = results.vault_format(event, seen(), {})
    assert list(result["data"]) == ["job", "probabilities", "labels", "boxes"]
    assert result["operation"] == "classification"
    assert list(result)[-2:] == ["operation", "vaultml"]


def test_our_object_fits_its_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(results.schema())
    document = vaultml(seen())
    jsonschema.validate(document, results.schema())
    assert document["objects"] == {"total": 2, "moving": 0, "by_label": {"car": 2}}
    assert document["frames"]["timestamps"] == [0, 1000, 2000]
    assert document["tracks"][0]["boxes"] == [{"frame": 1, "box": [542, 308, 595, 336], "probability": 0.93}]
    broken = document | {"truncated": "yes"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, results.schema())


@pytest.mark.parametrize("driver", ["580.95.05", ""])
def test_it_names_the_gpu_as_far_as_it_is_known(driver: str) -> None:
    document = vaultml(seen(), Gpu("NVIDIA L4", "GPU-0011", 24 << 30, driver, (8, 9), "tensorrt 11.4"))
    jsonschema.validate(document, results.schema())
    known = {"name": "NVIDIA L4", "uuid": "GPU-0011", "memory": 24 << 30, "runtime": "tensorrt 11.4"}
    assert document["gpu"] == known | ({"driver": driver} if driver else {})
    assert "gpu" not in vaultml(seen())


def test_a_result_is_strict_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        results.encode({"x": float("nan")})
