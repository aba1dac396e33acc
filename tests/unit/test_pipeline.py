import json
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import jsonschema
import numpy as np
import pytest

from tests.memory_queue import SERVERS, SYSTEM, MemorySettings, Server
from tests.networks import CFG, tiny_weights
from tests.recordings import clip
from vaultml_worker import darknet, engines, model, results, video
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.pipeline import DetectionOptions, Detector, EngineFailure, Pipeline, Processed
from vaultml_worker.queues import Ended, Ending, Names, Queue
from vaultml_worker.records import Event, Sample


class InProcess:
    """Sampling without child processes."""

    def sample(self, data: bytes, count: int, network: tuple[int, int]) -> Sample:
        return video.sample(data, count, network, video.Limits())


class Vaults:
    """Where recordings come from in these tests: a function of the event."""

    def __init__(self, give: Callable[[Event], bytes]) -> None:
        self.fetch = give


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    folder = tmp_path_factory.mktemp("network")
    (folder / "small.cfg").write_text(CFG)
    (folder / "small.names").write_text("a\nb\nc\n")
    tiny_weights(darknet.read_cfg(folder / "small.cfg"), folder / "small.weights", seed=7)
    loaded = model.load(folder / "small.cfg")
    return Detector(engines.create("auto", loaded), loaded, DetectionOptions(frames=3, threshold=0.6, move_distance=5))


def event(number: int, **changes: object) -> bytes:
    return json.dumps({"source": "s", "payload": {"key": f"u/{number}.mp4"}, **changes}).encode()


@dataclass
class Recorded:
    """A monitor that keeps what it was told, and stops the pipeline once everything has its final outcome."""

    stop: threading.Event
    server: Server
    endings: list[Ending] = field(default_factory=list)
    processed: list[Processed | None] = field(default_factory=list)
    bugs: list[Exception] = field(default_factory=list)
    in_flight: set[int] = field(default_factory=set)

    def trouble(self, sentence: str) -> None: ...

    def ended(self, ending: Ending, processed: Processed | None) -> None:
        self.endings.append(ending)
        self.processed.append(processed)

    def bug(self, error: Exception) -> None:
        self.bugs.append(error)

    def tick(self, queue: Queue, in_flight: int) -> None:  # noqa: ARG002
        self.in_flight.add(in_flight)
        if self.server.gone.is_set():
            self.stop.set()

    def outcomes(self, how: Ended) -> list[str]:
        return sorted(ending.message.origin["number"] for ending in self.endings if ending.how is how)

    def causes(self) -> dict[str, Cause]:
        return {each.message.origin["number"]: each.failure.cause for each in self.endings if each.failure is not None}


def work(
    bodies: list[bytes],
    detector: Detector,
    give: Callable[[Event], bytes],
    *,
    in_flight: int = 3,
    server: Server | None = None,
    stop: threading.Event | None = None,
) -> tuple[Server, Recorded]:
    server = server or Server()
    server.waiting["in"] = deque(bodies)
    SERVERS["pipeline"] = server
    stop = stop or threading.Event()
    monitor = Recorded(stop, server)
    names = Names("in", "out", "dead")
    Pipeline(
        lambda observer: SYSTEM.connect(names, MemorySettings(memory_server="pipeline"), observer),
        Vaults(give),
        InProcess(),
        detector,
        in_flight=in_flight,
        monitor=monitor,
    ).run(stop)
    return server, monitor


def test_each_event_gets_its_result(detector: Detector) -> None:
    server, monitor = work([event(i) for i in range(7)], detector, lambda _event: clip(1))
    results_ = [json.loads(body) for body in server.results]
    assert {result["payload"]["key"] for result in results_} == {f"u/{number}.mp4" for number in range(7)}
    assert monitor.outcomes(Ended.PUBLISHED) == [str(number) for number in range(7)]
    assert not monitor.bugs
    for result in results_:
        jsonschema.validate(result["vaultml"], results.schema())
        assert result["vaultml"]["frames"]["asked"] == 3
        assert set(result["vaultml"]["timings"]) == {"fetch", "sample", "detect", "track"}
        assert sum(len(frame) for frame in result["data"]["labels"]) > 0


def test_a_poison_message_is_set_aside_and_the_rest_goes_on(detector: Detector) -> None:
    def give(what: Event) -> bytes:
        match what.key:
            case "u/1.mp4":
                return b"not a video"
            case "u/2.mp4":
                raise Failure(Cause.NOT_FOUND, "gone")
            case "u/3.mp4":
                raise KeyError("a bug")
        return clip(1)

    server, monitor = work([event(0), event(1), event(2), event(3), b"{", event(5)], detector, give)
    assert monitor.causes() == {
        "1": Cause.NOT_A_VIDEO,
        "2": Cause.NOT_FOUND,
        "3": Cause.INTERNAL,
        "4": Cause.BAD_EVENT,
    }
    assert monitor.outcomes(Ended.PUBLISHED) == ["0", "5"]
    assert monitor.outcomes(Ended.DEAD_LETTERED) == ["1", "2", "3", "4"]
    assert [type(bug) for bug in monitor.bugs] == [KeyError]
    assert not any("a bug" in failure.message for _, failure in server.dead)


def test_several_recordings_are_in_work_at_once_but_not_more(detector: Detector) -> None:
    barrier = threading.Barrier(3, timeout=20)
    busy, most = 0, 0
    lock = threading.Lock()

    def give(_event: Event) -> bytes:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        barrier.wait()  # passes only when three fetch at the same time
        with lock:
            busy -= 1
        return clip(1)

    server, _ = work([event(i) for i in range(6)], detector, give, in_flight=3)
    assert len(server.results) == 6
    assert most == 3


def test_a_stop_finishes_what_is_in_work_and_takes_no_more(detector: Detector) -> None:
    stop = threading.Event()

    def give(_event: Event) -> bytes:
        stop.set()
        return clip(1)

    server, _ = work([event(i) for i in range(10)], detector, give, in_flight=2, stop=stop)
    assert 1 <= len(server.results) <= 2
    assert len(server.results) + len(server.waiting["in"]) == 10


def test_what_was_still_retrying_at_the_stop_is_given_back(detector: Detector) -> None:
    stop = threading.Event()

    def give(_event: Event) -> bytes:
        stop.set()
        raise Failure(Cause.UNAVAILABLE, "Vault is down")

    server, monitor = work([event(0)], detector, give, in_flight=1, stop=stop)
    assert not server.results
    assert not server.dead
    assert monitor.outcomes(Ended.GIVEN_BACK) == ["0"]


def test_a_result_counts_only_once_it_is_durable(detector: Detector) -> None:
    """While the queue can't publish, results are in flight: nothing that follows a result happens."""
    server = Server(away=True)
    seen: list[int] = []
    stop = threading.Event()

    class Late(Recorded):
        def tick(self, queue: Queue, in_flight: int) -> None:
            super().tick(queue, in_flight)
            if done == {"u/0.mp4", "u/1.mp4"} and in_flight == 2:
                seen.append(len(self.endings))
                server.away = False

    done: set[str] = set()

    def give(what: Event) -> bytes:
        done.add(what.key)
        return clip(1)

    server.waiting["in"] = deque([event(0), event(1)])
    SERVERS["pipeline"] = server
    monitor = Late(stop, server)
    Pipeline(
        lambda observer: SYSTEM.connect(Names("in", "out", "dead"), MemorySettings(memory_server="pipeline"), observer),
        Vaults(give),
        InProcess(),
        detector,
        in_flight=3,
        monitor=monitor,
    ).run(stop)
    assert seen[0] == 0
    assert monitor.outcomes(Ended.PUBLISHED) == ["0", "1"]


def test_a_result_that_is_too_large_is_a_dead_letter_and_nothing_else(detector: Detector) -> None:
    server, monitor = work([event(0), event(1)], detector, lambda _event: clip(1), server=Server(limit=10))
    assert monitor.causes() == {"0": Cause.RESULT_TOO_LARGE, "1": Cause.RESULT_TOO_LARGE}
    assert monitor.outcomes(Ended.PUBLISHED) == []
    assert not server.results
    assert all(processed is not None and processed.result is not None for processed in monitor.processed)


@pytest.mark.parametrize("seed", range(3))
def test_every_message_has_exactly_one_final_outcome(detector: Detector, seed: int) -> None:
    chance = random.Random(seed)
    causes = [None, Cause.NOT_FOUND, Cause.REFUSED, Cause.UNAVAILABLE]
    fates = {f"u/{number}.mp4": chance.choice(causes) for number in range(40)}
    stop = threading.Event()
    left = 30

    def give(what: Event) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            stop.set()
        if (cause := fates[what.key]) is not None:
            raise Failure(cause, "so it is")
        return clip(1)

    server, monitor = work([event(number) for number in range(40)], detector, give, stop=stop)
    numbers = [ending.message.origin["number"] for ending in monitor.endings]
    assert len(set(numbers)) == len(numbers)
    ended = len(server.results) + len(server.dead)
    assert ended + len(server.waiting["in"]) == 40
    assert all(failure.cause.permanent for _, failure in server.dead)


def test_an_engine_that_fails_ends_the_worker_and_acknowledges_nothing(detector: Detector) -> None:
    class Broken:
        name = "broken"

        def warm_up(self) -> None: ...

        def close(self) -> None: ...

        def detect(self, frames: np.ndarray) -> list[object]:  # noqa: ARG002
            raise RuntimeError("device lost")

    broken = Detector(Broken(), detector.model, detector.options)  # type: ignore[arg-type]
    server = Server()
    with pytest.raises(EngineFailure, match="broken failed: device lost"):
        work([event(0), event(1)], broken, lambda _event: clip(1), server=server)
    assert not server.acknowledged


def test_a_recording_smaller_than_promised_is_truncated(detector: Detector) -> None:
    size = len(clip(1))
    bodies = [event(0), json.dumps({"source": "s", "payload": {"key": "k", "fileSize": size + 1}}).encode()]
    server, _ = work(bodies, detector, lambda _event: clip(1))
    found = [json.loads(body) for body in server.results]
    assert {each["payload"]["key"]: each["vaultml"]["truncated"] for each in found} == {"u/0.mp4": False, "k": True}
