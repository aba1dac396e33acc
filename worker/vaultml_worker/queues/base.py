"""What every queue system offers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Event
from typing import Any, Protocol

from vaultml_worker.environment import Environment
from vaultml_worker.failures import Failure
from vaultml_worker.records import Finding


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message in work. `origin` says where it stood, for people and dead letters; `token` is its queue's own."""

    body: bytes = field(repr=False)
    origin: dict[str, str]
    token: object = field(repr=False, default=None)


class Ended(StrEnum):
    """How a message ended."""

    PUBLISHED = "published"
    """Its result is durable (or there is nothing to publish)."""
    DEAD_LETTERED = "dead-letter"
    """Its dead letter is durable."""
    GIVEN_BACK = "given-back"
    """It was not acknowledged: this worker, or another, gets it again."""
    SKIPPED = "skipped"
    """It has no body; it is acknowledged, and nothing is published."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The final outcome of a message. `failure` is set for a dead letter only, and says what it was made for."""

    message: Message
    how: Ended
    failure: Failure | None = None


class QueueObserver(Protocol):
    """Receives what a queue reports, in the thread that calls the queue."""

    def trouble(self, sentence: str) -> None:
        """Report what keeps the queue from working, and what to do, in one sentence."""
        ...

    def ended(self, ending: Ending) -> None:
        """Report the final outcome of a message: exactly once for each that `receive` gave, once it is durable.

        A message that was skipped was not given by `receive`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the worker's queues: where events come from, results go (empty: nowhere), and dead letters go."""

    source: str
    target: str
    dead_letters: str


class Queue(Protocol):
    """Messages in, results and dead letters out. One thread calls all of it."""

    @property
    def joined(self) -> bool:
        """True if the queue has been reached and this worker gets messages from it."""
        ...

    @property
    def healthy(self) -> bool:
        """False if its client failed for good, and so did the one that replaced it: the process is to be restarted."""
        ...

    def receive(self, timeout: float) -> Message | None:
        """Return the next message, or None after `timeout` seconds."""
        ...

    def tend(self, timeout: float) -> None:
        """Do what the queue needs while no message is wanted: stay in the group, send, acknowledge."""
        ...

    def publish(self, message: Message, result: bytes | None) -> None:
        """Publish the result (None: publish nothing) and, once that is durable, acknowledge the message."""
        ...

    def dead_letter(self, message: Message, failure: Failure) -> None:
        """Publish the message as a dead letter and, once that is durable, acknowledge it."""
        ...

    def close(self, timeout: float) -> None:
        """Send and acknowledge what is finished, for at most `timeout` seconds, give back the rest, and leave."""
        ...


@dataclass(frozen=True, slots=True)
class System:
    """A queue system: everything that is particular to it, behind one name (a value of QUEUE_SYSTEM).

    `settings` are its variables; `dead_letters` gives the default name of the dead-letter queue for a source and a
    target; `wrong_name` says what is wrong with a queue's name. `connect` connects in the background, and raises
    InvalidInput when its client refuses the settings. `check` finds out whether a worker could work, within seconds,
    takes no message and changes nothing. `follow` yields every result in the target from its beginning, None while
    there is none, until the event is set or, with `to_the_end`, the end as of now.
    """

    name: str
    settings: type[Environment]
    dead_letters: Callable[[str, str], str]
    wrong_name: Callable[[str], str | None]
    connect: Callable[[Names, Any, QueueObserver], Queue]
    check: Callable[[Names, Any], list[Finding]]
    follow: Callable[[str, Any, Event, bool], Iterator[bytes | None]]
    unused_by_readers: Mapping[str, str] = field(default_factory=dict)
    """Required settings that `follow` has no use for, with a stand-in for each."""
