"""Recordings made to do harm, through the whole worker: it stays, and each gets a cause or a flagged result."""

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil
import pytest
from flask import Flask, Response

from testbed.process import wait_for
from testbed.site import Site, event, site
from testbed.worker import Worker
from tests.recordings import FRAGMENTED, clip
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.dev.vault import VaultServer
from vaultml_worker.failures import Cause

SEED = 20261122
DAMAGED = 200
FUZZED = 500
MEMORY = 3 << 30
"""What the worker and its decoders together may have resident, in bytes."""


def damaged(number: int) -> bytes:
    """A recording cut off, with flipped bits or with a hole; the same for the same number."""
    dice = random.Random(SEED + number)
    whole = clip(
        3,
        movflags=dice.choice(["", FRAGMENTED, "faststart"]),
        keyframe_every=dice.choice([5, 10, 1000]),
        audio=dice.random() < 0.2,
    )
    body = bytearray(whole)
    match number % 3:
        case 0:
            return bytes(body[: dice.randrange(len(body))])
        case 1:
            for _ in range(dice.choice([1, 10, 200])):
                body[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
        case _:
            start = dice.randrange(len(body))
            end = min(len(body), start + dice.choice([100, 2000, 20_000]))
            body[start:end] = bytes(end - start)
    return bytes(body)


def huge_picture() -> bytes:
    """A JPEG of 100 megapixels in a few hundred kilobytes."""
    return cv2.imencode(".jpg", np.zeros((10_000, 10_000), np.uint8))[1].tobytes()


def huge_frame() -> bytes:
    """An H.264 recording of one frame of 100 megapixels in a few hundred kilobytes."""
    out = BytesIO()
    with av.open(out, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 10_016, 10_016, "yuv420p"
        frame = av.VideoFrame(stream.width, stream.height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts, frame.time_base = 0, Fraction(1, 1)
        target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return out.getvalue()


def bomb() -> bytes:
    """Thousands of large black frames in a small file."""
    out = BytesIO()
    with av.open(out, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=25, options={"preset": "ultrafast", "x264-params": "keyint=100000"})
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((3240, 3840), np.uint8), format="yuv420p")
        first: list[av.Packet] = []  # type: ignore[type-arg]
        for number in range(3):
            picture.pts, picture.time_base = number, Fraction(1, 25)
            first += stream.encode(picture)
        first += stream.encode(None)
        skipped = bytes(first[-1])
        for packet in first[:-1]:
            target.mux(packet)
        for number in range(2, 3000):
            packet = av.Packet(skipped)
            packet.stream, packet.pts, packet.dts, packet.time_base = (
                stream,
                number * 512,
                number * 512,
                Fraction(1, 12800),
            )
            target.mux(packet)
    return out.getvalue()


def resident(worker: Worker) -> int:
    """Bytes that the worker and everything it started have in memory."""
    total = 0
    for pid in (worker.pid, *worker.started()):
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@contextmanager
def endless_vault() -> Iterator[str]:
    """A Vault whose recording never ends."""
    app = Flask("endless")
    app.get("/storage/blob")(lambda: Response(iter(lambda: bytes(1 << 16), b"")))
    server = VaultServer(app)
    yield server.url
    server.close()


def fuzzed(number: int, key: str) -> bytes:
    """An event that was cut off, whose bits were flipped, or whose fields are of other types."""
    dice = random.Random(SEED + number)
    body = bytearray(event(key, date=1, events=["monitor"], data={"storage_note": "x" * dice.randrange(50)}))
    match number % 4:
        case 0:
            return bytes(body[: dice.randrange(len(body))])
        case 1:
            for _ in range(dice.randrange(1, 20)):
                body[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
            return bytes(body)
        case 2:
            return dice.randbytes(dice.randrange(2000))
        case _:
            odd: Any = dice.choice([None, True, 1e308, [], {}, [[]], "\ud800", "x" * 5000, -1, {"key": {}}])
            document = json.loads(event(key))
            document[dice.choice(["provider", "source", "payload", "data", "events", "operation"])] = odd
            document["payload"] = dice.choice([document["payload"], {"key": odd}, {"key": key, "metadata": odd}])
            return json.dumps(document).encode()


def outcomes(here: Site, count: int, worker: Worker) -> None:
    """Wait until the worker has settled `count` messages, watching its memory all the while."""

    def settled() -> bool:
        assert resident(worker) < MEMORY
        metrics = worker.metrics()
        return (
            metrics.get('vaultml_recordings_total{outcome="published"}', 0)
            + metrics.get('vaultml_recordings_total{outcome="dead-letter"}', 0)
            >= count
        )

    wait_for(settled, 240, f"{count} outcomes", process=worker.process)


def test_damaged_recordings(tiny: Path, broker: EmbeddedBroker, tmp_path: Path) -> None:
    print(f"seed {SEED}")  # noqa: T201
    with site(broker, tmp_path) as here, Worker(here.variables, tmp_path / "log") as worker:
        bodies = {here.store(f"{number}.mp4", damaged(number)): damaged(number) for number in range(DAMAGED)}
        here.announce(*(event(key) for key in bodies))
        outcomes(here, DAMAGED, worker)
        published = int(worker.metrics()['vaultml_recordings_total{outcome="published"}'])
        found = here.results(published)
        letters = here.messages(f"{here.name}-results.dlq", DAMAGED - published)
        assert worker.terminate() == 0
    dead = {json.loads(letter)["payload"]["key"] for letter in letters}
    assert dead | set(found) == set(bodies)
    assert len(found) > DAMAGED / 3
    for key, result in found.items():
        number = int(Path(key).stem)
        vaultml = result["vaultml"]
        assert vaultml["frames"]["decoded"] >= 1
        if number % 3 == 0:
            assert vaultml["truncated"], key


def test_fuzzed_events(tiny: Path, broker: EmbeddedBroker, tmp_path: Path) -> None:
    print(f"seed {SEED}")  # noqa: T201
    with site(broker, tmp_path) as here, Worker(here.variables, tmp_path / "log") as worker:
        key = here.store("good.mp4", clip(0.2))
        sent = [fuzzed(number, key) for number in range(FUZZED)]
        here.announce(*sent)
        outcomes(here, FUZZED, worker)
        published = int(worker.metrics()['vaultml_recordings_total{outcome="published"}'])
        letters = here.messages(f"{here.name}-results.dlq", FUZZED - published)
        causes = {name: value for name, value in worker.metrics().items() if "dead_letters_total" in name}
        assert worker.terminate() == 0
    assert len(letters) == FUZZED - published
    assert 0 < published < FUZZED / 2
    assert not any("internal" in name for name in causes)


def test_recordings_made_to_do_harm(tiny: Path, broker: EmbeddedBroker, tmp_path: Path) -> None:
    expected = {
        "huge.jpg": (huge_picture(), Cause.TOO_MANY_PIXELS),
        "huge.mp4": (huge_frame(), Cause.TOO_MANY_PIXELS),
        "bomb.mp4": (bomb(), Cause.DECODER_TIMEOUT),
        "empty.mp4": (b"", Cause.EMPTY),
        "large.mp4": (bytes(30_000_000), Cause.TOO_LARGE),
    }
    limits = {"DECODER_SECONDS": "3", "RECORDING_MAX_BYTES": "20000000", "LOG_FORMAT": "json"}
    with (
        site(broker, tmp_path) as here,
        endless_vault() as address,
        Worker({**here.variables, **limits}, tmp_path / "log") as worker,
    ):
        for name, (body, _) in expected.items():
            here.announce(event(here.store(name, body)))
        access = {"storage_uri": address, "storage_access_key": "access", "storage_secret": "secret"}
        here.announce(event("user/endless.mp4", data=access))
        expected["endless.mp4"] = (b"", Cause.TOO_LARGE)
        good = here.store("good.mp4", clip(1))
        here.announce(event(good))
        outcomes(here, len(expected) + 1, worker)
        assert set(here.results(1)) == {good}
        assert worker.metrics()['vaultml_recordings_total{outcome="published"}'] == 1
        assert worker.terminate() == 0
        records = [json.loads(line) for line in worker.log_text().splitlines()]
    causes = {Path(r["key"]).name: r["cause"] for r in records if r.get("outcome") == "dead-letter"}
    assert causes == {name: str(cause) for name, (_, cause) in expected.items()}


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_dies_costs_one_recording_at_most(
    tiny: Path, broker: EmbeddedBroker, tmp_path: Path, how: signal.Signals
) -> None:
    """Decoders are shot while they work; every recording still gets its result, by a second try."""
    with site(broker, tmp_path) as here, Worker({**here.variables, "LOG_FORMAT": "json"}, tmp_path / "log") as worker:
        worker.wait_ready()
        keys = [here.store(f"{number}.mp4", clip(3, keyframe_every=1000)) for number in range(20)]
        here.announce(*(event(key) for key in keys))
        decoders = [pid for pid, parent in worker.started().items() if parent != worker.pid]
        assert decoders
        for pid in decoders:
            os.kill(pid, how)
        outcomes(here, len(keys), worker)
        assert set(here.results(len(keys))) == set(keys)
        assert worker.terminate() == 0
