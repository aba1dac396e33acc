"""What a reading of a queue is, whatever the queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ask:
    """What one pipeline wants to know: what waits in `queue` for `group`, and how many lie in `dead_letters`.

    `from_start`: where a group without commits begins. `partitions`: have the queue be raised to so many, None: no.
    """

    queue: str
    group: str
    dead_letters: str = ""
    from_start: bool = True
    partitions: int | None = None


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: what waits in it, and since when (epoch seconds; None: nothing does, or not known).

    `committed` and `end` are offsets: their growth is what was done and what came. `start` is the oldest there is.
    """

    number: int
    start: int
    end: int
    committed: int
    lag: int
    oldest: float | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the group: the client id that it gave itself (a worker gives its pod's name), its partitions."""

    client: str
    partitions: frozenset[int]


@dataclass(frozen=True, slots=True)
class PartitionIncrease:
    """What became of raising a topic's partitions, in a sentence."""

    done: bool
    message: str


@dataclass(frozen=True, slots=True)
class Reading:
    """All partitions of a queue at `time` (epoch seconds).

    `members` None: not known. `retention` in seconds, None: without end, or not known. `dead`: letters in the
    dead-letter topic. `increase`: of partitions, if one was tried.
    """

    time: float
    partitions: tuple[Partition, ...]
    members: tuple[Member, ...] | None = None
    retention: float | None = None
    dead: int = 0
    increase: PartitionIncrease | None = None

    @property
    def lag(self) -> int:
        """What waits, in all partitions."""
        return sum(each.lag for each in self.partitions)


@dataclass(frozen=True, slots=True)
class ReadingFailed:
    """No reading: one sentence that says why, without secrets."""

    message: str


class Reader(Protocol):
    """Reads queues; blocks; used by one thread at a time."""

    calls: int
    """Requests so far."""

    def read(self, asked: Sequence[Ask]) -> Mapping[Ask, Reading | ReadingFailed]:
        """One answer for each that was asked for."""
        ...

    def close(self) -> None:
        """Give the connections back."""
        ...
