"""What is measured of one pipeline from reading to reading: rates, what is stuck, how long workers take to start."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vaultml_operator.autoscaler import rates
from vaultml_operator.autoscaler.lag import Partition, Reading
from vaultml_operator.autoscaler.rates import Rates, Sample
from vaultml_operator.autoscaler.records import Backlog

STUCK_S = 120.0
"""A partition that did not move for so long, or for five recordings, while others did, is stuck."""
_STUCK_RECORDINGS = 5


@dataclass(frozen=True, slots=True)
class _Moved:
    """When a partition's commit last moved."""

    committed: int
    at: float


class Measured:
    """`status` is the pipeline's `.status.autoscaling`: what an earlier operator measured."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self.rates = Rates.from_status(status)
        self.processed = int(status.get("processed") or 0)
        """Recordings done since the pipeline is known."""
        self.reading: Reading | None = None
        """The last look at the queue, if it succeeded."""
        self.failed = "it was not looked at yet"
        """Why there is no reading."""
        self._sample: Sample | None = None
        self._moved: dict[int, _Moved] = {}
        self._replicas = self._ready = 0
        self._asked_at: float | None = None

    def fail(self, why: str) -> None:
        """The queue could not be read."""
        self.reading, self.failed, self._sample = None, why, None

    def begin_anew(self) -> None:
        """It is another queue from now on."""
        self.fail("it was not looked at yet")
        self._moved.clear()

    def workers(self, replicas: int, ready: int, now: float) -> None:
        """See how long new ones take: so many are asked for, so many are ready at `now` (monotonic seconds)."""
        if replicas > self._replicas:
            self._asked_at = now if ready < replicas else None
        elif self._asked_at is not None and ready > self._ready:
            self.rates = rates.started(self.rates, now - self._asked_at)
            if ready >= replicas:
                self._asked_at = None
        self._replicas, self._ready = replicas, ready

    def learn(self, reading: Reading) -> None:
        """Take a reading."""
        parts = reading.partitions
        for part in parts:
            before = self._moved.get(part.number)
            if before is None or before.committed != part.committed or not part.lag:
                self._moved[part.number] = _Moved(part.committed, reading.time)
        sample = Sample(
            time=reading.time,
            end=sum(part.end for part in parts),
            committed=sum(part.committed for part in parts),
            lag=reading.lag,
            busy=min(self._ready, sum(part.lag > 0 for part in parts)),
            ready=self._ready,
            partitions=len(parts),
        )
        if self._sample is not None:
            self.processed += max(0, sample.committed - self._sample.committed)
        self.rates = rates.update(self.rates, self._sample, sample)
        self._sample, self.reading, self.failed = sample, reading, ""

    def backlog(self) -> Backlog | None:
        """What waits; None: it can't be read."""
        if (reading := self.reading) is None:
            return None
        stuck = self._stuck(reading)
        oldest = [part.oldest for part in reading.partitions if part.number not in stuck and part.oldest is not None]
        return Backlog(
            lag=reading.lag,
            oldest_seconds=max(0.0, reading.time - min(oldest)) if oldest else None,
            parallelism=len(reading.partitions),
            lagging=sum(part.lag > 0 for part in reading.partitions),
            stuck=sum(part.lag for part in reading.partitions if part.number in stuck),
            stuck_partitions=len(stuck),
            end=sum(part.end for part in reading.partitions),
        )

    def _stuck(self, reading: Reading) -> set[int]:
        """Partitions that stand still although workers run and others move: a slow recording, or a poisonous one."""
        service = self.rates.service
        limit = max(STUCK_S, _STUCK_RECORDINGS / service if service else 0.0)

        def age(part: Partition) -> float:
            return reading.time - self._moved[part.number].at

        if not self._ready or not any(age(part) <= limit / 2 for part in reading.partitions):
            return set()
        return {part.number for part in reading.partitions if part.lag and age(part) > limit}
