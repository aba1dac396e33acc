"""The whole worker beside its parts: a device, decoding, the CPU engine; and beside a loop as its peers are built."""

import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import psutil
import requests
from confluent_kafka import Producer

from benchmarks.device import Device
from benchmarks.footage import Picture
from benchmarks.measure import table
from benchmarks.networks import prepared
from benchmarks.sampling import COUNT, HEIGHT, SECONDS, WIDTH, clips
from testbed.process import LOOPBACK, free_port
from testbed.service import Service
from testbed.site import ACCOUNT, Site, event, site
from vaultml_common.vault import ACCESS_KEY, FILE_NAME, PROVIDER, SECRET_KEY
from vaultml_worker import model, video, yolo
from vaultml_worker.dev import footage as footage_
from vaultml_worker.dev.broker import EmbeddedBroker
from vaultml_worker.engines.onnx import OnnxEngine
from vaultml_worker.letterbox import Letterbox
from vaultml_worker.queues.kafka import reader
from vaultml_worker.records import Detection, InvalidInput, Model

GOALS = {"device": 0.97, "decoding": 0.97, "parts": 0.95, "peer": 3.0}
PARENT_GOAL = 4.0
"""CPU milliseconds of the parent process for one recording."""
NETWORK = "yolov3-tiny-416"
_ROUNDS = 4
_ROUND_S = float(os.environ.get("SECONDS", "4"))
_WARM_UP = 8
_START_S, _RESULT_S = 120, 120
_IN_FLIGHT = 4
_ALL = sorted(os.sched_getaffinity(0))
"""The cores that this process may use as it starts."""
_VARIABLES = {
    "NUMBER_OF_PREDICTIONS": str(COUNT),
    "ENGINE": "onnxruntime",
    "RECORDINGS_IN_FLIGHT": str(_IN_FLIGHT),
}


def run(footage: Path | None) -> str:
    """Measure everything; gives Markdown. Raises InvalidInput when model or footage can't be had."""
    source = footage or footage_.find(None)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch, EmbeddedBroker() as broker:
        folder = Path(scratch)
        cfg, weights = prepared(NETWORK, folder)
        (clip,) = clips(source, [("H.264", 2)])
        bench = _Bench(broker, folder, clip, cfg, weights)
        rows = [bench.device(), *bench.decoding(), bench.parts(), bench.peer()]
    header = ["the worker", "recordings/s", "beside", "recordings/s", "ratio", "goal"]
    return (
        f"Recordings of {SECONDS} s of {WIDTH} x {HEIGHT}, H.264, {len(clip) / 1e6:.1f} MB, a keyframe every 2 s "
        f"({source.name}); {COUNT} frames of each; {NETWORK}. Embedded broker, file-backed Vault and the reader of the "
        "results run on the same cores. Rounds take turns; the ratio is the median of the rounds'. A simulated device "
        "takes a given number of frames a second; with it one core only decodes, and the other one does the rest. "
        "Bare decoding: `video.sample` in a plain process for each core. Sum of the parts: decoding with all cores, "
        "then the CPU engine with all cores. The peer's loop: download, decode everything with OpenCV, infer frame by "
        f"frame, send, one recording after the other. "
        f"Load average before, from other work: {load:.1f}.\n\n{table(header, rows)}"
    )


@dataclass(frozen=True)
class _Rates:
    """Recordings a second of the worker and of what stands beside it, by round."""

    ours: list[float]
    theirs: list[float]

    def row(self, name: str, beside: str, goal: float) -> list[str]:
        ratio = statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))
        rates = [f"{statistics.median(rates):.1f}" for rates in (self.ours, self.theirs)]
        verdict = f"≥ {goal:g}, {'met' if ratio >= goal else 'missed'}"
        return [name, rates[0], beside, rates[1], f"{ratio:.2f}", verdict]


class _Bench:
    def __init__(self, broker: EmbeddedBroker, folder: Path, clip: bytes, cfg: Path, weights: Path) -> None:
        self._broker = broker
        self._folder = folder
        self._clip = clip
        self._model = model.load(cfg, weights)
        self._variables = {**_VARIABLES, "MODEL": str(cfg), "MODEL_WEIGHTS": str(weights)}
        with _Decoding(clip, self._model, 1) as decoding:
            self._decoded = decoding.rate(20)
        """Recordings a second that one process decodes, roughly."""

    def device(self) -> list[str]:
        """A device that is half as fast as decoding."""
        rate = self._decoded * COUNT / 2
        bare = Device(self._model, rate)
        frames = np.zeros((COUNT, self._model.height, self._model.width, 3), np.uint8)

        def theirs(count: int) -> float:
            with ThreadPoolExecutor(3) as callers, _timed(count) as timed:
                list(callers.map(lambda _: bare.detect(frames), range(count)))
            return timed()

        with self._worker(rate, 1) as worker:
            rates = self._rounds(worker, theirs, rate / COUNT)
        return rates.row(f"device of {rate:.0f} frames/s", "the device alone", GOALS["device"])

    def decoding(self) -> Iterator[list[str]]:
        """A device that is ten times as fast as decoding; and the parent process's own work meanwhile."""
        with self._worker(self._decoded * COUNT * 10, 1) as worker, _Decoding(self._clip, self._model, 1) as decoding:
            rates = self._rounds(worker, decoding.rate, self._decoded)
            spent = worker.milliseconds()
        yield rates.row("decoding on one core, a device ten times as fast", "bare decoding", GOALS["decoding"])
        verdict = f"≤ {PARENT_GOAL:g} ms, {'met' if spent <= PARENT_GOAL else 'missed'}"
        yield ["its parent process", "", "CPU for each recording", "", f"{spent:.1f} ms", verdict]

    def parts(self) -> list[str]:
        """The CPU engine."""
        cores = len(_ALL)
        engine = OnnxEngine(self._model)
        frames = np.random.default_rng(0).integers(0, 256, (COUNT, self._model.height, self._model.width, 3), np.uint8)
        with self._worker(None, cores) as worker, _Decoding(self._clip, self._model, cores) as decoding:

            def theirs(count: int) -> float:
                decoded = decoding.rate(count)
                with _timed(count) as timed:
                    for _ in range(count):
                        engine.detect(frames)
                return 1 / (1 / decoded + 1 / timed())

            rates = self._rounds(worker, theirs, theirs(4))
        return rates.row(f"CPU engine, {cores} cores", "the sum of its parts", GOALS["parts"])

    def peer(self) -> list[str]:
        """The CPU engine, beside a loop that does one thing after the other."""
        cores = len(_ALL)
        with self._worker(None, cores) as worker, _Peer(worker.site, worker.key, self._model) as peer:
            rates = self._rounds(worker, lambda count: peer.rate(max(2, count // 4)), 2.0)
        return rates.row(f"CPU engine, {cores} cores", "a peer's loop", GOALS["peer"])

    @contextlib.contextmanager
    def _worker(self, device: float | None, decoders: int) -> "Iterator[_Worker]":
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        with site(self._broker, folder) as here:
            simulated = {} if device is None else {"DEVICE_FRAMES": str(device)}
            variables = {**here.variables, **self._variables, **simulated, "DECODING_CORES": str(decoders)}
            with _Worker(here, variables, here.store("clip.mp4", self._clip), folder / "log") as worker:
                worker.decode_on(decoders)
                worker.rate(_WARM_UP)
                yield worker

    def _rounds(self, worker: "_Worker", theirs: Callable[[int], float], expected: float) -> _Rates:
        """Let both work on as many recordings as take about a round's time, in turns; first once unseen."""
        count = max(10, round(expected * _ROUND_S))
        theirs(max(2, count // 4))
        worker.start()
        ours: list[float] = []
        others: list[float] = []
        for number in range(_ROUNDS):
            for mine in (True, False) if number % 2 else (False, True):
                (ours if mine else others).append(worker.rate(count) if mine else theirs(count))
        return _Rates(ours, others)


class _Worker(Service):
    """A worker process that waits for recordings, and says how fast it was with them."""

    def __init__(self, here: Site, variables: dict[str, str], key: str, log: Path) -> None:
        port = free_port()
        served = {"HTTP_HOST": LOOPBACK, "HTTP_PORT": str(port), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        super().__init__(
            "worker", [sys.executable, "-m", "benchmarks.device", "worker"], {**served, **variables}, log, port
        )
        self.site, self.key = here, key
        self._stop = threading.Event()
        self._results = reader.follow(
            # The embedded broker answers when the wait is over: with the default, results would come twice a second.
            {"bootstrap.servers": here.broker.address, "fetch.wait.max.ms": 10},
            here.variables["QUEUE_TARGET"],
            self._stop,
        )
        self._cpu, self._done = 0.0, 0
        self.wait_ready(_START_S)

    def rate(self, count: int) -> float:
        """Recordings a second, over `count` results in the middle.

        As many as are in work at a time come before and behind: the worker is as full at the end as at the beginning.
        """
        announced, before = count + 2 * _IN_FLIGHT, self._spent()
        self.site.announce(*[event(self.key)] * announced)
        seen: list[float] = []
        deadline = time.perf_counter() + _RESULT_S
        for body in self._results:
            now = time.perf_counter()
            if body is not None:
                assert json.loads(body)["vaultml"]["frames"]["decoded"] == COUNT
                seen.append(now)
            if len(seen) == announced:
                break
            if now > deadline or self.returncode is not None:
                raise InvalidInput(
                    f"the worker published {len(seen)} of {announced} results; {self.log_text()[-2000:]}"
                )
        self._cpu += self._spent() - before
        self._done += announced
        return count / (seen[_IN_FLIGHT + count - 1] - seen[_IN_FLIGHT - 1])

    def decode_on(self, cores: int) -> None:
        """Keep all decoder processes on so many cores, and everything else on the others, where there are any.

        There is one decoder more than cores, so that none of the cores waits.
        """
        decoding, rest = _cores(cores)
        for child in psutil.Process(self.pid).children(recursive=True):
            _run_on(child.pid, decoding)
        _run_on(self.pid, rest)
        _run_on(os.getpid(), rest)

    def start(self) -> None:
        """Count the parent's CPU time from here."""
        self._cpu, self._done = 0.0, 0

    def milliseconds(self) -> float:
        """CPU time that the parent process has taken for each recording."""
        return self._cpu / self._done * 1000

    def _spent(self) -> float:
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system


class _Decoding:
    """Plain processes that decode."""

    def __init__(self, clip: bytes, loaded: Model, processes: int) -> None:
        self._processes = processes
        self._pool = ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("forkserver"),
            _use,
            (clip, (loaded.width, loaded.height), _cores(processes)[0]),
        )

    def __enter__(self) -> Self:
        list(self._pool.map(_decode, [1] * self._processes))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def rate(self, count: int) -> float:
        """Recordings a second."""
        each = max(1, count // self._processes)
        with _timed(each * self._processes) as timed:
            list(self._pool.map(_decode, [each] * self._processes))
        return timed()


_used: tuple[bytes, tuple[int, int]]


def _use(clip: bytes, network: tuple[int, int], cores: list[int]) -> None:
    global _used
    _used = clip, network
    os.sched_setaffinity(0, cores)
    cv2.setNumThreads(1)


def _decode(count: int) -> None:
    clip, network = _used
    for _ in range(count):
        assert len(video.sample(clip, COUNT, network, video.Limits()).frames) == COUNT


def _cores(decoding: int) -> tuple[list[int], list[int]]:
    """So many cores for decoding, and those for the rest: the others, or all where none is left."""
    return _ALL[:decoding], _ALL[decoding:] or _ALL


def _run_on(pid: int, cores: list[int]) -> None:
    """Move all threads of a process to these cores."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


class _Peer:
    """Download, decode everything with OpenCV, infer frame by frame, send."""

    def __init__(self, here: Site, key: str, loaded: Model) -> None:
        self._site, self._key, self._model = here, key, loaded
        self._engine = OnnxEngine(loaded)
        self._producer = Producer({"bootstrap.servers": here.broker.address, "log_level": 2})
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers.update({ACCESS_KEY: ACCOUNT.access_key, SECRET_KEY: ACCOUNT.secret_key})
        self._session.headers.update({PROVIDER: ACCOUNT.provider, FILE_NAME: key})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def rate(self, count: int) -> float:
        """Recordings a second."""
        with _timed(count) as timed:
            for _ in range(count):
                self._one()
        return timed()

    def _one(self) -> None:
        answer = self._session.get(f"{self._site.vault.url}/api/storage/blob", timeout=30)
        answer.raise_for_status()
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(answer.content)
            file.flush()
            found = [self._infer(picture) for picture in _evenly(_opencv(file.name), COUNT)]
        document = [[[one.label, one.probability, one.box] for one in frame] for frame in found]
        self._producer.produce(f"{self._site.name}-peer", json.dumps({"data": document}))
        self._producer.flush()

    def _infer(self, picture: Picture) -> Sequence[Detection]:
        letterbox = Letterbox(picture.shape[1], picture.shape[0], self._model.width, self._model.height)
        frame = letterbox.apply_fast(np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8))
        (candidates,) = self._engine.detect(frame[None])
        return yolo.detections(candidates, labels=self._model.labels, letterbox=letterbox, threshold=0.5)


def _opencv(path: str) -> list[Picture]:
    capture = cv2.VideoCapture(path)
    pictures: list[Picture] = []
    while True:
        there, picture = capture.read()
        if not there:
            return pictures
        pictures.append(np.asarray(picture, np.uint8))


def _evenly(pictures: Sequence[Picture], count: int) -> list[Picture]:
    return [pictures[(2 * part + 1) * len(pictures) // (2 * count)] for part in range(count)]


@contextlib.contextmanager
def _timed(count: int) -> Iterator[Callable[[], float]]:
    """Give a function that says, after the block, how many of `count` things a second were done in it."""
    start, end = time.perf_counter(), [0.0]
    yield lambda: count / (end[0] - start)
    end[0] = time.perf_counter()
