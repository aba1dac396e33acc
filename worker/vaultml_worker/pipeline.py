"""From a message to its outcome: fetch, sample, detect, track, result; many recordings at a time, nothing lost."""

import queue as queues_
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from vaultml_worker import events, results, tracking, yolo
from vaultml_worker.engines import Engine
from vaultml_worker.letterbox import Letterbox
from vaultml_worker.queues import Message, Queue
from vaultml_worker.records import (
    Cause,
    Detection,
    EngineError,
    Event,
    Model,
    PermanentFailure,
    RetryableFailure,
    Sample,
    Track,
)

_IDLE_S = 0.1
_CLOSE_S = 20.0


@dataclass(frozen=True, slots=True)
class Options:
    """How recordings are looked at; the settings of the same names say more."""

    frames: int = 5
    threshold: float = 0.5
    classes: tuple[str, ...] = ()
    move_distance: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen in one recording, by sampled frame and by object."""

    sample: Sample
    detections: tuple[tuple[Detection, ...], ...]
    tracks: tuple[Track, ...]


@dataclass(slots=True)
class Outcome:
    """What became of one message: a result, a failure, or neither when the worker stopped first.

    `timings` are milliseconds by stage.
    """

    message: Message
    event: Event | None = None
    seen: Seen | None = None
    result: Mapping[str, Any] | None = None
    failure: PermanentFailure | None = None
    timings: dict[str, float] = field(default_factory=dict)


class Detector:
    """An engine with its model: sampled frames in, detections and tracks out. Thread-safe."""

    def __init__(self, engine: Engine, model: Model, options: Options) -> None:
        self.engine = engine
        self.model = model
        self.options = options

    @property
    def network(self) -> tuple[int, int]:
        """Width and height that frames must have, in pixels."""
        return self.model.width, self.model.height

    def detect(self, sample: Sample) -> tuple[tuple[Detection, ...], ...]:
        """Detections of each sampled frame, boxes in pixels of the recording."""
        frames = np.stack([frame.pixels for frame in sample.frames])
        try:
            candidates = self.engine.detect(frames)
        except Exception as error:
            raise EngineFailure(f"{self.engine.name} failed: {error}") from error
        letterbox = Letterbox(sample.width, sample.height, *self.network)
        return tuple(
            yolo.detections(
                item,
                labels=self.model.labels,
                letterbox=letterbox,
                threshold=self.options.threshold,
                wanted=self.options.classes,
            )
            for item in candidates
        )

    def track(self, sample: Sample, detections: tuple[tuple[Detection, ...], ...]) -> tuple[Track, ...]:
        """The objects behind the detections."""
        times = [frame.timestamp for frame in sample.frames]
        return tracking.track(detections, times, move_distance=self.options.move_distance)


class EngineFailure(EngineError):  # noqa: N818 - its message names the engine
    """The engine failed on frames that any engine can take: the machine's trouble, not a recording's."""


class Fetch(Protocol):
    """Where recordings come from."""

    def fetch(self, event: Event) -> bytes:
        """The whole recording."""
        ...


class Sampling(Protocol):
    """What takes frames out of a recording."""

    def sample(self, data: bytes, count: int, network: tuple[int, int]) -> Sample:
        """See `video.sample`."""
        ...


class Pipeline:
    """Takes messages from a queue, works on up to `in_flight` of them at a time, and gives the queue their outcomes.

    `on_outcome` hears of each, `on_bug` of exceptions that nobody foresaw (their messages become dead letters);
    `on_tick` is called several times a second from the loop.
    """

    def __init__(
        self,
        queue: Queue,
        vault: Fetch,
        sampling: Sampling,
        detector: Detector,
        *,
        in_flight: int,
        on_outcome: Callable[[Outcome], None],
        on_bug: Callable[[Exception], None],
        on_tick: Callable[[int], None],
    ) -> None:
        self._queue = queue
        self._vault = vault
        self._sampling = sampling
        self._detector = detector
        self._room = in_flight
        self._on_outcome = on_outcome
        self._on_bug = on_bug
        self._on_tick = on_tick

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then finish what is in work, publish and commit it.

        Raises EngineFailure with nothing acknowledged that isn't finished.
        """
        done: queues_.SimpleQueue[Outcome | BaseException] = queues_.SimpleQueue()
        in_work = 0
        with ThreadPoolExecutor(self._room, thread_name_prefix="recording") as threads:
            try:
                while in_work or not stop.is_set():
                    self._on_tick(in_work)
                    if in_work < self._room and not stop.is_set():
                        message = self._queue.receive(0.0 if not done.empty() else _IDLE_S)
                        if message is not None:
                            in_work += 1
                            threads.submit(self._work, message, done)
                    else:
                        self._queue.tend(0.0 if not done.empty() else _IDLE_S / 4)
                    while not done.empty():
                        outcome = done.get()
                        if isinstance(outcome, BaseException):
                            raise outcome
                        in_work -= 1
                        self._settle(outcome)
            finally:
                stop.set()
                self._queue.close(_CLOSE_S)

    def _work(self, message: Message, done: "queues_.SimpleQueue[Outcome | BaseException]") -> None:
        try:
            done.put(self._process(message))
        except BaseException as error:  # handed to the loop, which raises it
            done.put(error)

    def _process(self, message: Message) -> Outcome:
        outcome = Outcome(message)
        timings = outcome.timings
        try:
            outcome.event = event = events.parse(message.body)
            with _timed(timings, "fetch"):
                data = self._vault.fetch(event)
            with _timed(timings, "sample"):
                sample = self._sampling.sample(data, self._detector.options.frames, self._detector.network)
            if event.file_size is not None and len(data) < event.file_size:
                sample = _truncated(sample)
            del data
            with _timed(timings, "detect"):
                detections = self._detector.detect(sample)
            with _timed(timings, "track"):
                tracks = self._detector.track(sample, detections)
            outcome.seen = Seen(sample, detections, tracks)
            vaultml = results.vaultml(
                model=self._detector.model,
                engine=self._detector.engine.name,
                gpu=self._detector.engine.gpu,
                sample=sample,
                tracks=tracks,
                timings=timings,
            )
            outcome.result = results.vault_format(event, detections, vaultml)
        except PermanentFailure as failure:
            outcome.failure = failure
        except RetryableFailure:
            pass  # the worker stops: the message is not acknowledged and comes again
        except EngineFailure:
            raise
        except Exception as error:
            outcome.failure = PermanentFailure(
                Cause.INTERNAL, f"{type(error).__name__} in the worker: please report it"
            )
            self._on_bug(error)
        return outcome

    def _settle(self, outcome: Outcome) -> None:
        if outcome.failure is not None:
            self._queue.reject(outcome.message, outcome.failure)
        elif outcome.result is not None:
            self._queue.finish(outcome.message, results.encode(outcome.result))
        else:
            return
        self._on_outcome(outcome)


def _truncated(sample: Sample) -> Sample:
    """The event promised more bytes than Vault has."""
    return replace(sample, truncated=True)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = (time.perf_counter() - start) * 1000
