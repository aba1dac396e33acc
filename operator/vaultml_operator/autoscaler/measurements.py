"""What is measured of one pipeline from reading to reading: rates, what is stuck, how long workers take to start."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from vaultml_operator.api import AutoscalingStatus
from vaultml_operator.autoscaler import rates
from vaultml_operator.autoscaler.lag import Member, Partition, Reading
from vaultml_operator.autoscaler.rates import Rates, Sample
from vaultml_operator.autoscaler.records import Backlog

STUCK_S = 120.0
"""A partition that did not move for so long, or for five recordings, while others did, and is not waiting its turn."""
_STUCK_RECORDINGS = 5
_LATELY_S = 60.0


@dataclass(frozen=True, slots=True)
class _Still:
    """A partition since its commit last moved.

    `at`: when that was; `since`: from when on it counts as standing still, later where it only waited its turn.
    `service`: the rate known when it moved, since standing still must not excuse itself.
    """

    committed: int
    at: float
    since: float
    service: float | None

    @property
    def limit(self) -> float:
        """How long it may stand still, in seconds."""
        return max(STUCK_S, _STUCK_RECORDINGS / self.service if self.service else 0.0)


class Measurements:
    """`status` is the pipeline's `.status.autoscaling`: what an earlier operator measured."""

    def __init__(self, status: AutoscalingStatus) -> None:
        self.rates = Rates.from_status(status)
        self.processed = status.processed or 0
        """Recordings done since the pipeline is known."""
        self.reading: Reading | None = None
        """The last look at the queue, if it succeeded."""
        self.failed = "it was not looked at yet"
        """Why there is no reading."""
        self._finished_at = -math.inf
        """When a recording was last seen to be finished, by the readings' clock."""
        self._sample: Sample | None = None
        self._still: dict[int, _Still] = {}
        self._stuck: set[int] = set()
        self._replicas = self._ready = 0
        self._asked_at: float | None = None

    def fail(self, why: str) -> None:
        """The queue could not be read."""
        self.reading, self.failed, self._sample = None, why, None

    def begin_anew(self) -> None:
        """It is another queue from now on."""
        self.fail("it was not looked at yet")
        self._still.clear()
        self._stuck.clear()

    def workers(self, replicas: int, ready: int, now: float) -> None:
        """See how long new ones take: so many are asked for, so many are ready at `now` (monotonic seconds)."""
        if replicas > self._replicas:
            self._asked_at = now
        elif replicas == self._replicas and ready > self._ready and self._asked_at is not None:
            self.rates = rates.started(self.rates, now - self._asked_at)
        if replicas < self._replicas or ready >= replicas:
            # Whoever becomes ready after this was not asked for then.
            self._asked_at = None
        self._replicas, self._ready = replicas, ready

    def learn(self, reading: Reading) -> None:
        """Take a reading."""
        parts = reading.partitions
        if self.reading is not None:
            if done := _done(self.reading, reading):
                self._finished_at = reading.time
            self.processed += done
        self._find_stuck(reading)
        moving = [part for part in parts if part.lag and part.number not in self._stuck]
        sample = Sample(
            time=reading.time,
            end=sum(part.end for part in parts),
            done=self.processed,
            lag=sum(part.lag for part in moving),
            busy=min(self._ready, len(moving)),
            ready=self._ready,
            partitions=len(parts),
        )
        self.rates = rates.update(self.rates, self._sample, sample)
        self._sample, self.reading, self.failed = sample, reading, ""

    @property
    def progresses(self) -> bool:
        """Whether recordings were finished lately: within a minute, or the time of five."""
        lately = max(_LATELY_S, _STUCK_RECORDINGS / self.rates.service if self.rates.service else 0.0)
        return self.reading is not None and self.reading.time - self._finished_at <= lately

    def backlog(self) -> Backlog | None:
        """What waits; None: it can't be read."""
        if (reading := self.reading) is None:
            return None
        stuck = self._stuck
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

    def _find_stuck(self, reading: Reading) -> None:
        """Find partitions that stand still although workers run and others move: slow recordings, or poisonous ones.

        Where nobody works, or nothing at all moves, that is no partition's fault, and no reason to lift a judgement.
        """
        now = reading.time
        last = {} if self.reading is None else {each.number: each for each in self.reading.partitions}
        worked = [last[each.number] for each in reading.partitions if _grown(last.get(each.number), each)]
        for part in reading.partitions:
            before = self._still.get(part.number)
            if before is None or before.committed != part.committed or not part.lag or before.since > now:
                # Also where the clock was set back.
                self._still[part.number] = _Still(part.committed, now, now, self.rates.service)
                self._stuck.discard(part.number)
            elif not last or _waits_its_turn(part.number, before.at, worked, reading.members):
                self._still[part.number] = replace(before, since=now)
        still = {part: self._still[part.number] for part in reading.partitions}
        if self._ready and any(now - each.since <= each.limit / 2 for each in still.values()):
            self._stuck |= {part.number for part, each in still.items() if part.lag and now - each.since > each.limit}


def _grown(before: Partition | None, after: Partition) -> bool:
    return before is not None and after.committed > before.committed


def _waits_its_turn(number: int, at: float, worked: Iterable[Partition], members: tuple[Member, ...] | None) -> bool:
    """Whether its worker was busy with what had come to its other partitions before this one stood still, at `at`.

    What came later is no excuse: workers take the older first, so that this one was passed over. Where nobody knows
    whose partition it is, all of them count as its worker's.
    """
    owned = next((each.partitions for each in members or () if number in each.partitions), None)
    return any(
        part.oldest is not None and part.oldest <= at for part in worked if owned is None or part.number in owned
    )


def _done(before: Reading, after: Reading) -> int:
    """Recordings done in between: commits that grew, but not over what retention has deleted meanwhile."""
    committed = {part.number: part.committed for part in before.partitions}
    return sum(
        max(0, part.committed - max(committed[part.number], part.start))
        for part in after.partitions
        if part.number in committed
    )
