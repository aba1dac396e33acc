"""A discrete-event model of pipelines: partitions, workers that start, work, drain, and the GPUs they share."""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.simulator.traces import Trace


@dataclass(eq=False)
class Worker:
    """From asked for to gone; it holds a GPU once `since` is set."""

    asked: float
    since: float | None = None
    ready: bool = False
    leaving: bool = False
    partition: int | None = None


@dataclass
class Partition:
    """Arrival times that wait, in order; the first one may be in work."""

    waiting: deque[float] = field(default_factory=deque)
    locked: bool = False
    served: float = -math.inf
    moved: float = 0.0
    end: int = 0


class Pipeline:
    """One group of workers. `wanted` is what its autoscaler asked for."""

    def __init__(self, world: "World", number: int, wanted: int) -> None:
        self.world, self.number, self.wanted = world, number, 0
        self.partitions = [Partition() for _ in range(world.trace.partitions)]
        self.workers: list[Worker] = []
        self.owners: list[Worker | None] = [None] * world.trace.partitions
        self.waits: list[float] = []
        self.startups: list[float] = []
        self.replicas: list[tuple[float, int]] = []
        self.need = 0
        self.scale(wanted)

    @property
    def lag(self) -> int:
        """Recordings that are not done."""
        return sum(len(each.waiting) for each in self.partitions)

    @property
    def end(self) -> int:
        """Recordings that ever came."""
        return sum(each.end for each in self.partitions)

    @property
    def ready(self) -> list[Worker]:
        """Workers that take recordings."""
        return [each for each in self.workers if each.ready and not each.leaving]

    @property
    def busy(self) -> int:
        """Workers that own a partition in which something waits."""
        owners = zip(self.owners, self.partitions, strict=True)
        return len({id(owner) for owner, each in owners if owner is not None and each.waiting})

    def scale(self, wanted: int) -> None:
        """Ask for so many workers; those that go are pending or starting ones first, then idle ones."""
        staying = [each for each in self.workers if not each.leaving]
        if wanted != self.wanted or not self.replicas:
            self.replicas.append((self.world.now, wanted))
        self.wanted = wanted
        self.workers += [Worker(self.world.now) for _ in range(wanted - len(staying))]
        staying.sort(key=lambda each: (each.since is not None, each.ready, each.partition is not None))
        for worker in staying[: max(len(staying) - wanted, 0)]:
            worker.leaving = True
            if worker.partition is None:
                self._gone(worker)
        self.world.place()
        self._rebalance()

    def start(self, worker: Worker) -> None:
        """Give a worker its GPU."""
        worker.since = self.world.now
        self.world.after(self.world.trace.startup, lambda: self._started(worker))

    def arrive(self, partition: int) -> None:
        """One recording comes in."""
        self.partitions[partition].waiting.append(self.world.now)
        self.partitions[partition].end += 1
        owner = self.owners[partition]
        if owner is not None:
            self._work(owner)

    def resume(self) -> None:
        """Go on after an outage."""
        for worker in self.ready:
            self._work(worker)

    def _started(self, worker: Worker) -> None:
        if worker in self.workers and not worker.leaving:
            worker.ready = True
            self.startups.append(self.world.now - worker.asked)
            self._rebalance()

    def _gone(self, worker: Worker) -> None:
        self.workers.remove(worker)
        if worker.since is not None:
            self.world.gpu_seconds += self.world.now - worker.since
        self.world.place()

    def _rebalance(self) -> None:
        ready = self.ready
        self.owners = [ready[number % len(ready)] if ready else None for number in range(len(self.partitions))]
        for worker in ready:
            self._work(worker)

    def _work(self, worker: Worker) -> None:
        """Take the next recording of the partition that was served longest ago."""
        if worker.partition is not None or worker.leaving or self.world.away:
            return
        owned = [
            number
            for number, each in enumerate(self.partitions)
            if self.owners[number] is worker and each.waiting and not each.locked
        ]
        if not owned:
            return
        number = min(owned, key=lambda each: self.partitions[each].served)
        worker.partition, self.partitions[number].locked = number, True
        self.partitions[number].served = self.world.now
        self.world.after(self.world.work(), lambda: self._done(worker, number))

    def _done(self, worker: Worker, number: int) -> None:
        partition, poison = self.partitions[number], self.world.trace.poison
        worker.partition, partition.locked = None, False
        if poison is None or number != poison[0] or self.world.now < poison[1]:
            came = partition.waiting.popleft()
            if came >= self.world.trace.settled:
                self.waits.append(self.world.now - came)
            partition.moved = self.world.now
        if worker.leaving:
            self._gone(worker)
        owner = self.owners[number]
        for each in (worker, owner):
            if each is not None and each in self.workers:
                self._work(each)


class World:
    """Runs a trace. `scaler(pipeline)` scales it and gives the seconds until it wants to look again."""

    def __init__(self, trace: Trace, replicas: int) -> None:
        self.trace, self.now, self.gpu_seconds, self.worked = trace, 0.0, 0.0, 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._rng = random.Random(trace.name)
        self.pipelines: list[Pipeline] = []
        self.lags: list[tuple[float, int]] = []
        for number, arrivals in enumerate(trace.arrivals):
            self.pipelines.append(Pipeline(self, number, replicas))
            for time, partition in arrivals:
                self.after(time, lambda n=number, p=partition: self.pipelines[n].arrive(p))  # type: ignore[misc]
        if trace.outage is not None:
            self.after(trace.outage[1], self._resume)

    def _resume(self) -> None:
        for each in self.pipelines:
            each.resume()

    @property
    def away(self) -> bool:
        """Whether nobody reaches the broker."""
        outage = self.trace.outage
        return outage is not None and outage[0] <= self.now < outage[1]

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen in so many seconds."""
        heapq.heappush(self._events, (self.now + seconds, next(self._number), event))

    def work(self) -> float:
        """Seconds that the next recording takes."""
        seconds = self.trace.seconds * math.exp(self._rng.gauss(0, self.trace.spread) if self.trace.spread else 0)
        self.worked += seconds
        return seconds

    def place(self) -> None:
        """Give free GPUs to workers that have none, to those that asked first."""
        pending = [
            (each.asked, owner, each) for owner in self.pipelines for each in owner.workers if each.since is None
        ]
        used = sum(each.since is not None for owner in self.pipelines for each in owner.workers)
        for _, owner, worker in sorted(pending, key=lambda each: each[0])[: max(self.trace.gpus - used, 0)]:
            owner.start(worker)

    def run(self, scaler: Callable[[Pipeline], float], phases: Sequence[float] = (0.0, 1.7, 3.1)) -> None:
        """Until the trace ends. What still waits then has no wait: traces end quietly, or alike for everybody."""

        def poll(pipeline: Pipeline) -> None:
            self.after(scaler(pipeline), lambda: poll(pipeline))

        def look() -> None:
            self.lags.append((self.now, sum(each.lag for each in self.pipelines)))
            self.after(self.trace.length / 300, look)

        look()
        for pipeline, phase in zip(self.pipelines, phases, strict=False):
            self.after(phase, lambda each=pipeline: poll(each))  # type: ignore[misc]
        while self._events and self._events[0][0] < self.trace.length:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = self.trace.length
        self.gpu_seconds += sum(
            self.now - each.since for owner in self.pipelines for each in owner.workers if each.since is not None
        )
