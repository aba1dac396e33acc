"""What every queue offers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from vaultml_worker.records import PermanentFailure

Report = Callable[[str], None]
"""Hears, in one sentence that says what to do, what keeps a queue from working."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message in work. `origin` says where it stood, for people and dead letters; `token` is its queue's own."""

    body: bytes = field(repr=False)
    origin: dict[str, str]
    token: object = field(repr=False, default=None)


class Queue(Protocol):
    """Messages in, results and dead letters out. One thread calls all of it."""

    @property
    def joined(self) -> bool:
        """Whether the queue has been reached and this worker gets messages from it."""
        ...

    def receive(self, timeout: float) -> Message | None:
        """The next message, or None after `timeout` seconds."""
        ...

    def tend(self, timeout: float) -> None:
        """Do what the queue needs while no message is wanted: stay in the group, send, acknowledge."""
        ...

    def finish(self, message: Message, result: bytes | None) -> None:
        """Publish the result (None: publish nothing) and, once that is durable, acknowledge the message."""
        ...

    def reject(self, message: Message, failure: PermanentFailure) -> None:
        """Publish the message as a dead letter and, once that is durable, acknowledge it."""
        ...

    def close(self, timeout: float) -> None:
        """Send and acknowledge what is finished, for at most `timeout` seconds, and leave."""
        ...
