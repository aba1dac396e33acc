"""From a message to its outcome: fetch, sample, detect, track, result; many recordings at a time, nothing lost."""

import queue as queues_
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from vaultml_worker import events, results, tracking, yolo
from vaultml_worker.engines import Engine
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.letterbox import Letterbox
from vaultml_worker.queues import Ending, Message, Queue, QueueObserver
from vaultml_worker.records import Detection, EngineError, Event, Model, Sample, Track

_IDLE_S = 0.1
_CLOSE_S = 20.0


@dataclass(frozen=True, slots=True)
class DetectionOptions:
    """How recordings are processed; the settings of the same names say more."""

    frames: int = 5
    threshold: float = 0.5
    classes: tuple[str, ...] = ()
    move_distance: float = 0.0


@dataclass(slots=True)
class Processed:
    """What the worker made of one message: a result, a permanent failure, or neither when it stopped first.

    `detections` are by sampled frame; `timings` are milliseconds by stage.
    """

    message: Message
    event: Event | None = None
    detections: tuple[tuple[Detection, ...], ...] = ()
    result: Mapping[str, Any] | None = None
    failure: Failure | None = None
    timings: dict[str, float] = field(default_factory=dict)


class Detector:
    """An engine with its model: sampled frames in, detections and tracks out. Thread-safe."""

    def __init__(self, engine: Engine, model: Model, options: DetectionOptions) -> None:
        self.engine = engine
        self.model = model
        self.options = options

    @property
    def network(self) -> tuple[int, int]:
        """Width and height that frames must have, in pixels."""
        return self.model.width, self.model.height

    def detect(self, sample: Sample) -> tuple[tuple[Detection, ...], ...]:
        """Detections of each sampled frame, boxes in pixels of the recording."""
        frames = sample.pixels()
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


class Monitor(Protocol):
    """Receives what a pipeline reports: in the thread that runs it, but for `bug`."""

    def trouble(self, sentence: str) -> None:
        """Report what keeps the queue from working, and what to do, in one sentence."""
        ...

    def ended(self, ending: Ending, processed: Processed | None) -> None:
        """Report the final outcome of a message; `processed` is None if it ended before it was processed."""
        ...

    def bug(self, error: Exception) -> None:
        """Report, from any thread, an exception that nobody foresaw; its message becomes a dead letter."""
        ...

    def tick(self, queue: Queue, in_flight: int) -> None:
        """Called several times a second; `in_flight` messages were received and have no final outcome yet."""
        ...


class Pipeline:
    """Takes messages from a queue, works on up to `in_flight` of them at a time, and gives the queue their results.

    Everything that follows a result hangs on the queue's report of the message's final outcome.
    """

    def __init__(
        self,
        connect: Callable[[QueueObserver], Queue],
        vault: Fetch,
        sampling: Sampling,
        detector: Detector,
        *,
        in_flight: int,
        monitor: Monitor,
    ) -> None:
        self._vault = vault
        self._sampling = sampling
        self._detector = detector
        self._room = in_flight
        self._monitor = monitor
        self._received: dict[Message, Processed | None] = {}
        """Messages without a final outcome, with what was made of them."""
        self._queue = connect(self)

    def trouble(self, sentence: str) -> None:
        """See QueueObserver."""
        self._monitor.trouble(sentence)

    def ended(self, ending: Ending) -> None:
        """See QueueObserver."""
        self._monitor.ended(ending, self._received.pop(ending.message, None))

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then finish what is in work, publish and commit it.

        Raises EngineFailure with nothing acknowledged that isn't finished.
        """
        done: queues_.SimpleQueue[Processed | BaseException] = queues_.SimpleQueue()
        in_work = 0
        with ThreadPoolExecutor(self._room, thread_name_prefix="recording") as threads:
            try:
                while in_work or not stop.is_set():
                    self._monitor.tick(self._queue, len(self._received))
                    if in_work < self._room and not stop.is_set():
                        message = self._queue.receive(0.0 if not done.empty() else _IDLE_S)
                        if message is not None:
                            in_work += 1
                            self._received[message] = None
                            threads.submit(self._work, message, done)
                    else:
                        self._queue.tend(0.0 if not done.empty() else _IDLE_S / 4)
                    while not done.empty():
                        processed = done.get()
                        if isinstance(processed, BaseException):
                            raise processed
                        in_work -= 1
                        self._settle(processed)
            finally:
                stop.set()
                self._queue.close(_CLOSE_S)

    def _work(self, message: Message, done: "queues_.SimpleQueue[Processed | BaseException]") -> None:
        try:
            done.put(self._process(message))
        except BaseException as error:  # handed to the loop, which raises it
            done.put(error)

    def _process(self, message: Message) -> Processed:
        processed = Processed(message)
        try:
            self._detect(processed)
        except Failure as failure:
            # A transient one ends a try only when the worker stops: the message is not acknowledged and comes again.
            processed.failure = failure if failure.cause.permanent else None
        except EngineFailure:
            raise
        except Exception as error:
            processed.failure = Failure(Cause.INTERNAL, f"{type(error).__name__} in the worker: please report it")
            self._monitor.bug(error)
        return processed

    def _detect(self, processed: Processed) -> None:
        timings, detector = processed.timings, self._detector
        processed.event = event = events.parse(processed.message.body)
        with _timed(timings, "fetch"):
            data = self._vault.fetch(event)
        with _timed(timings, "sample"):
            sample = self._sampling.sample(data, detector.options.frames, detector.network)
        if event.file_size is not None and len(data) < event.file_size:
            sample = replace(sample, truncated=True)  # the event promised more bytes than Vault has
        del data
        with _timed(timings, "detect"):
            processed.detections = detections = detector.detect(sample)
        with _timed(timings, "track"):
            tracks = detector.track(sample, detections)
        vaultml = results.vaultml(
            model=detector.model,
            engine=detector.engine.name,
            gpu=detector.engine.gpu,
            sample=sample,
            tracks=tracks,
            timings=timings,
        )
        processed.result = results.vault_format(event, detections, vaultml)

    def _settle(self, processed: Processed) -> None:
        """Hand an end product to the queue, unless the message was given back in the meantime."""
        if processed.message not in self._received:
            return
        self._received[processed.message] = processed
        if processed.failure is not None:
            self._queue.dead_letter(processed.message, processed.failure)
        elif processed.result is not None:
            self._queue.publish(processed.message, results.encode(processed.result))


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = (time.perf_counter() - start) * 1000
