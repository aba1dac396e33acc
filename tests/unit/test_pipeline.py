import json
import threading
from collections import deque
from collections.abc import Callable

import jsonschema
import numpy as np
import pytest

from tests.networks import CFG, tiny_weights
from tests.recordings import clip
from vaultml_worker import darknet, engines, model, results, video
from vaultml_worker.pipeline import Detector, EngineFailure, Options, Outcome, Pipeline
from vaultml_worker.queues import Message
from vaultml_worker.records import Cause, Event, PermanentFailure, RetryableFailure, Sample


class ListQueue:
    """A queue in memory that remembers what it was told; sets `stop` when everything is settled."""

    joined = True

    def __init__(self, bodies: list[bytes], stop: threading.Event) -> None:
        self.waiting = deque(Message(body, {"offset": str(i)}) for i, body in enumerate(bodies))
        self.open = len(bodies)
        self.finished: dict[str, bytes | None] = {}
        self.rejected: dict[str, PermanentFailure] = {}
        self.closed = False
        self._stop = stop

    def receive(self, timeout: float) -> Message | None:
        if self.waiting:
            return self.waiting.popleft()
        self.tend(timeout)
        return None

    def tend(self, timeout: float) -> None:
        threading.Event().wait(timeout)

    def finish(self, message: Message, result: bytes | None) -> None:
        self.finished[message.origin["offset"]] = result
        self._settled()

    def reject(self, message: Message, failure: PermanentFailure) -> None:
        self.rejected[message.origin["offset"]] = failure
        self._settled()

    def _settled(self) -> None:
        assert not self.closed
        self.open -= 1
        if not self.open:
            self._stop.set()

    def close(self, timeout: float) -> None:  # noqa: ARG002
        self.closed = True


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
    return Detector(engines.create("auto", loaded), loaded, Options(frames=3, threshold=0.6, move_distance=5))


def event(number: int, **changes: object) -> bytes:
    return json.dumps({"source": "s", "payload": {"key": f"u/{number}.mp4"}, **changes}).encode()


def work(
    bodies: list[bytes], detector: Detector, give: Callable[[Event], bytes], *, in_flight: int = 3
) -> tuple[ListQueue, list[Outcome], list[Exception]]:
    stop = threading.Event()
    queue = ListQueue(bodies, stop)
    outcomes: list[Outcome] = []
    bugs: list[Exception] = []
    Pipeline(
        queue,
        Vaults(give),
        InProcess(),
        detector,
        in_flight=in_flight,
        on_outcome=outcomes.append,
        on_bug=bugs.append,
        on_tick=lambda _in_work: None,
    ).run(stop)
    assert queue.closed
    return queue, outcomes, bugs


def test_each_event_gets_its_result(detector: Detector) -> None:
    queue, outcomes, bugs = work([event(i) for i in range(7)], detector, lambda _event: clip(1))
    assert len(queue.finished) == len(outcomes) == 7
    assert not bugs
    for number, body in queue.finished.items():
        assert body is not None
        result = json.loads(body)
        assert result["payload"]["key"] == f"u/{number}.mp4"
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
                raise PermanentFailure(Cause.NOT_FOUND, "gone")
            case "u/3.mp4":
                raise KeyError("a bug")
        return clip(1)

    queue, _, bugs = work([event(0), event(1), event(2), event(3), b"{", event(5)], detector, give)
    causes = {number: failure.cause for number, failure in queue.rejected.items()}
    assert causes == {
        "1": Cause.NOT_A_VIDEO,
        "2": Cause.NOT_FOUND,
        "3": Cause.INTERNAL,
        "4": Cause.BAD_EVENT,
    }
    assert set(queue.finished) == {"0", "5"}
    assert [type(bug) for bug in bugs] == [KeyError]
    assert "a bug" not in queue.rejected["3"].message


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

    queue, _, _ = work([event(i) for i in range(6)], detector, give, in_flight=3)
    assert len(queue.finished) == 6
    assert most == 3


def test_a_stop_finishes_what_is_in_work_and_takes_no_more(detector: Detector) -> None:
    stop = threading.Event()
    queue = ListQueue([event(i) for i in range(10)], threading.Event())

    def give(_event: Event) -> bytes:
        stop.set()
        return clip(1)

    outcomes: list[Outcome] = []
    Pipeline(
        queue,
        Vaults(give),
        InProcess(),
        detector,
        in_flight=2,
        on_outcome=outcomes.append,
        on_bug=lambda _error: None,
        on_tick=lambda _in_work: None,
    ).run(stop)
    assert 1 <= len(queue.finished) <= 2
    assert len(queue.finished) + len(queue.waiting) == 10


def test_what_was_still_retrying_at_the_stop_is_not_acknowledged(detector: Detector) -> None:
    stop = threading.Event()
    queue = ListQueue([event(0)], threading.Event())

    def give(_event: Event) -> bytes:
        stop.set()
        raise RetryableFailure(Cause.UNAVAILABLE, "Vault is down")

    Pipeline(
        queue,
        Vaults(give),
        InProcess(),
        detector,
        in_flight=1,
        on_outcome=lambda _outcome: None,
        on_bug=lambda _error: None,
        on_tick=lambda _in_work: None,
    ).run(stop)
    assert not queue.finished
    assert not queue.rejected


def test_an_engine_that_fails_ends_the_worker_and_acknowledges_nothing(detector: Detector) -> None:
    class Broken:
        name = "broken"

        def warm_up(self) -> None: ...

        def close(self) -> None: ...

        def detect(self, frames: np.ndarray) -> list[object]:  # noqa: ARG002
            raise RuntimeError("device lost")

    broken = Detector(Broken(), detector.model, detector.options)  # type: ignore[arg-type]
    queues: list[ListQueue] = []
    with pytest.raises(EngineFailure, match="broken failed: device lost"):
        queues.append(work([event(0), event(1)], broken, lambda _event: clip(1))[0])
    assert not queues


def test_a_recording_smaller_than_promised_is_truncated(detector: Detector) -> None:
    size = len(clip(1))
    bodies = [event(0), json.dumps({"source": "s", "payload": {"key": "k", "fileSize": size + 1}}).encode()]
    queue, _, _ = work(bodies, detector, lambda _event: clip(1))
    flags = {number: json.loads(body or b"")["vaultml"]["truncated"] for number, body in queue.finished.items()}
    assert flags == {"0": False, "1": True}
