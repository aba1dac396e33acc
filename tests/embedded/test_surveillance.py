"""Real footage: people walk past a parked van and a parked car."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultml_worker import engines, model
from vaultml_worker.decoders import Decoders
from vaultml_worker.dev import agent
from vaultml_worker.pipeline import DetectionOptions, Detector
from vaultml_worker.records import Box, Track

VAN: Box = (648, 40, 725, 104)
CAR: Box = (724, 49, 766, 98)
"""Marked once by eye on the footage, in pixels."""
VEHICLES = {"car", "truck", "bus"}


@pytest.fixture(scope="module")
def seen(tiny: Path, surveillance: Path) -> Iterator[list[tuple[Track, ...]]]:
    """The tracks of every 8 s recording, N=5, MOVE_DISTANCE=100."""
    loaded = model.load(tiny / "yolov3-tiny.cfg")
    detector = Detector(engines.create("auto", loaded), loaded, DetectionOptions(frames=5, move_distance=100))
    decoders = Decoders(processes=2, seconds=60, memory=2 << 30)
    tracks = []
    for body, _, _ in agent.cut(surveillance, 8):
        sample = decoders.sample(body, 5, detector.network)
        tracks.append(detector.track(sample, detector.detect(sample)))
    yield tracks
    decoders.close()


def overlap(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def at(place: Box, tracks: tuple[Track, ...]) -> list[Track]:
    """The vehicles sighted at a place."""
    return [
        track
        for track in tracks
        if any(s.detection.label in VEHICLES and overlap(s.detection.box, place) >= 0.5 for s in track.sightings)
    ]


def test_someone_moves_in_every_recording(seen: list[tuple[Track, ...]]) -> None:
    assert len(seen) == 10
    for number, tracks in enumerate(seen):
        movers = [track for track in tracks if track.label == "person" and not track.static]
        assert movers, f"recording {number}"


@pytest.mark.parametrize(("name", "place"), [("van", VAN), ("car", CAR)])
def test_parked_vehicles_are_found_and_static(seen: list[tuple[Track, ...]], name: str, place: Box) -> None:
    found = [at(place, tracks) for tracks in seen]
    assert sum(bool(tracks) for tracks in found) >= 8, name
    for number, tracks in enumerate(found):
        assert all(track.static for track in tracks), f"{name} in recording {number}"
        assert len(tracks) <= 1, f"{name} is one object in recording {number}"
