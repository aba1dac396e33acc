"""A queue system in memory, registered as any other: one file, and one line (`SYSTEMS[SYSTEM.name] = SYSTEM`)."""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import Field

from vaultml_worker.environment import Environment
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.queues import Ended, Ending, Message, Names, QueueObserver, System
from vaultml_worker.records import Finding, State


class MemorySettings(Environment):
    """Its variables."""

    memory_server: str = Field(description="Name of the server in this process.")


@dataclass
class Server:
    """Queues by name. Results longer than `limit` bytes are refused; while `away`, nothing becomes durable."""

    waiting: dict[str, deque[bytes]] = field(default_factory=dict)
    results: list[bytes] = field(default_factory=list)
    dead: list[tuple[bytes, Failure]] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    limit: int = 1 << 30
    away: bool = False
    gone: threading.Event = field(default_factory=threading.Event)
    """Set once everything that was waiting has its final outcome."""


SERVERS: dict[str, Server] = {}


class MemoryQueue:
    """See Queue."""

    healthy = True
    joined = True

    def __init__(self, names: Names, settings: MemorySettings, observer: QueueObserver) -> None:
        self._server = SERVERS[settings.memory_server]
        self._waiting = self._server.waiting.setdefault(names.source, deque())
        self._observer = observer
        self._given: list[Message] = []
        self._outgoing: list[tuple[Message, bytes | None, Failure | None]] = []
        self._count = 0
        self.closed = False

    def receive(self, timeout: float) -> Message | None:
        self._send()
        if not self._waiting:
            threading.Event().wait(timeout)
            return None
        message = Message(self._waiting.popleft(), {"number": str(self._count)})
        self._count += 1
        self._given.append(message)
        return message

    def tend(self, timeout: float) -> None:
        self._send()
        threading.Event().wait(timeout)

    def publish(self, message: Message, result: bytes | None) -> None:
        assert not self.closed
        self._outgoing.append((message, result, None))

    def dead_letter(self, message: Message, failure: Failure) -> None:
        assert not self.closed
        self._outgoing.append((message, None, failure))

    def close(self, timeout: float) -> None:  # noqa: ARG002
        self._send()
        self.closed = True
        for message in list(self._given):
            self._waiting.append(message.body)
            self._end(message, Ended.GIVEN_BACK)

    def _send(self) -> None:
        while self._outgoing and not self._server.away:
            message, result, failure = self._outgoing.pop(0)
            if result is not None and len(result) > self._server.limit:
                failure = self._too_large(result)
            if failure is not None:
                self._server.dead.append((message.body, failure))
            elif result is not None:
                self._server.results.append(result)
            self._server.acknowledged.append(message.origin["number"])
            self._end(message, Ended.PUBLISHED if failure is None else Ended.DEAD_LETTERED, failure)

    def _too_large(self, result: bytes) -> Failure:
        return Failure(Cause.RESULT_TOO_LARGE, f"the result has {len(result)} bytes")

    def _end(self, message: Message, how: Ended, failure: Failure | None = None) -> None:
        self._given.remove(message)
        self._observer.ended(Ending(message, how, failure))
        if not self._waiting and not self._given:
            self._server.gone.set()


def _check(_names: Names, settings: MemorySettings) -> list[Finding]:
    return [Finding("broker", State.OK, f"server {settings.memory_server}")]


def _follow(
    _target: str, settings: MemorySettings, _stop: threading.Event, _to_the_end: bool
) -> Iterator[bytes | None]:
    yield from SERVERS[settings.memory_server].results


SYSTEM = System(
    "MEMORY", MemorySettings, lambda source, _target: f"{source}-dead", lambda _name: None, MemoryQueue, _check, _follow
)
