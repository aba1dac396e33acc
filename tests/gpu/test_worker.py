"""The whole worker with ENGINE=tensorrt, as a process, on the embedded broker."""

from pathlib import Path
from typing import Any

from testbed.gpu import environment
from testbed.process import wait_for
from testbed.site import Site, event, site
from testbed.worker import Worker
from tests.gpu.agreement import TOLERANCES, Tolerance, differences
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.records import Detection

THRESHOLD = 0.5
BUILD_S = 600


def test_it_publishes_what_the_cpu_does(
    broker: EmbeddedBroker, tiny: Path, recordings: list[bytes], tmp_path: Path
) -> None:
    variables = {"ENGINE_CACHE": str(tmp_path / "engines"), **environment.own()}
    results: list[dict[str, dict[str, Any]]] = []
    for engine in ("onnxruntime", "tensorrt"):
        with site(broker, tmp_path / engine) as here:
            found, log = look(here, recordings, {**variables, "ENGINE": engine}, tmp_path / f"{engine}.log")
        assert all(result["vaultml"]["engine"] == engine for result in found.values())
        results.append(found)
    assert "engine built in" in log
    expected, found = results
    assert found.keys() == expected.keys()
    width = next(iter(expected.values()))["vaultml"]["frames"]["width"]
    # Published boxes are whole pixels of the recording, whose own are smaller than the network's.
    fine = TOLERANCES["fp16"]
    tolerance = Tolerance(fine.pixels * max(1.0, width / 416) + 1, fine.probability)
    for key in found:
        ours, theirs = detections(found[key]), detections(expected[key])
        assert len(ours) == len(theirs) == found[key]["vaultml"]["frames"]["decoded"], (
            "there is something in each frame"
        )
        assert not any(differences(*pair, THRESHOLD, tolerance) for pair in zip(ours, theirs, strict=True))


def look(
    here: Site, recordings: list[bytes], variables: dict[str, str], log: Path
) -> tuple[dict[str, dict[str, Any]], str]:
    """What a worker makes of the recordings, by key, and its log."""
    settings = {"DETECTION_THRESHOLD": str(THRESHOLD - TOLERANCES["fp16"].probability), "LOG_FORMAT": "json"}
    with Worker({**here.variables, **settings, **variables}, log) as worker:
        worker.wait_ready(BUILD_S)
        here.announce(*(event(here.store(f"{number}.mp4", body)) for number, body in enumerate(recordings)))
        found = here.results(len(recordings))
        published = 'vaultml_recordings_total{outcome="published"}'  # counted once the broker has acknowledged them
        wait_for(lambda: worker.metrics()[published] == len(recordings), 30, "the metrics", process=worker.process)
        assert worker.terminate() == 0
        return found, worker.log_text()


def detections(result: dict[str, Any]) -> list[list[Detection]]:
    """What was seen, by frame; frames without anything are left out."""
    data = result["data"]
    frames = zip(data["labels"], data["probabilities"], data["boxes"], strict=True)
    return [
        [Detection(label, probability, tuple(box)) for label, probability, box in zip(*frame, strict=True)]
        for frame in frames
    ]
