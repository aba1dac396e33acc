"""Keeps the outcomes of what pipelines need fresh, in the background, each thing looked at once for all of them."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vaultml_operator.probes import kafka, vault
from vaultml_operator.probes.kafka import Answer, Connection
from vaultml_operator.probes.outcome import Outcome
from vaultml_operator.probes.vault import Access

K = TypeVar("K", bound=Hashable)

_KAFKA_THREADS = 4
_VAULT_CALLS = 16
_SLOW = 0.5
"""Share of the places that targets which did not answer last time may take: they hold a place until their time-out."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Check that these topics can be reached by this connection."""

    connection: Connection
    topics: frozenset[str]


Check = Topics | Access
"""What a pipeline needs: topics of a Kafka, or a Vault."""
_Target = Connection | Access
"""What one look is taken at, for all checks on it."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look, in seconds."""

    good: float = 60.0
    bad: float = 5.0
    """After the first bad outcome; doubled with each more, up to `worst`."""
    worst: float = 30.0
    again: float = 3.0
    """After a first failure that may pass, which is kept back until it is seen twice."""
    gap: float = 1.0
    """Least time between two looks at the same target: what is asked for meanwhile shares the next."""


@dataclass(slots=True)
class _Watched(Generic[K]):
    """A target and those who need it."""

    owners: dict[K, set[Check]] = field(default_factory=dict)
    answer: Answer | None = None
    topics: frozenset[str] = frozenset()
    """The topics that `answer` is about."""
    failures: int = 0
    """Looks in a row that found something wrong."""
    unanswered: int = 0
    """Looks in a row that found something wrong that may pass."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    task: "asyncio.Task[None] | None" = None

    def outcome(self, check: Check) -> Outcome | None:
        if self.answer is None:
            return None
        if not isinstance(check, Topics):
            return self.answer.outcome(())
        if self.answer.trouble is None and not check.topics <= self.topics:
            return None  # not looked for yet
        return self.answer.outcome(check.topics)


class Probes(Generic[K]):
    """Runs checks in the background and calls `on_change(owner)` when the outcome of one of its checks changes.

    A Kafka is asked once for all topics of all owners with the same connection, a Vault once for all with the same
    keys. A failure that may pass replaces a good outcome only when seen twice in a row; one that a server meant
    (refused credentials, a missing topic) does at once.
    Not thread-safe: to be used in the loop that runs `run`. `on_change` must not block nor raise.
    """

    def __init__(
        self,
        on_change: Callable[[K], None],
        *,
        pace: Pace | None = None,
        kafka_timeout: float = 10.0,
        vault_timeout: float = 5.0,
        look: Callable[[Connection, frozenset[str], float, threading.Event], Answer] = kafka.look,
    ) -> None:
        self._on_change = on_change
        self._pace = pace or Pace()
        self._kafka_timeout = kafka_timeout
        self._vault_timeout = vault_timeout
        self._look = look
        self._rng = random.Random()  # noqa: S311 - spreads load, guards nothing
        self._targets: dict[_Target, _Watched[K]] = {}
        self._needs: dict[K, dict[_Target, set[Check]]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._pool: ThreadPoolExecutor | None = None
        # All places, and those that targets may take which did not answer last time.
        self._kafka = asyncio.Semaphore(_KAFKA_THREADS), asyncio.Semaphore(int(_KAFKA_THREADS * _SLOW))
        self._vault = asyncio.Semaphore(_VAULT_CALLS), asyncio.Semaphore(int(_VAULT_CALLS * _SLOW))

    def watch(self, owner: K, checks: Iterable[Check]) -> None:
        """Keep these checks' outcomes fresh for `owner`, and those of its earlier ones no longer; before `run`, too."""
        needs: dict[_Target, set[Check]] = {}
        for check in checks:
            needs.setdefault(check.connection if isinstance(check, Topics) else check, set()).add(check)
        before = self._needs.get(owner, {})
        if needs == before:
            return
        self._needs[owner] = needs
        for target in before.keys() - needs.keys():
            self._leave(target, owner)
        for target, wanted in needs.items():
            watched = self._targets.setdefault(target, _Watched())
            watched.owners[owner] = wanted
            if any(watched.outcome(check) is None for check in wanted):
                watched.wanted.set()
            self._start(target, watched)

    def forget(self, owner: K) -> None:
        """Watch nothing for `owner` any more."""
        for target in self._needs.pop(owner, {}):
            self._leave(target, owner)

    def hurry(self, owner: K) -> None:
        """Look at what `owner` needs now: something else has found it not to work."""
        for target in self._needs.get(owner, {}):
            self._targets[target].wanted.set()

    def result(self, check: Check) -> Outcome | None:
        """The outcome as it was last seen; None: not known yet, or not watched."""
        watched = self._targets.get(check.connection if isinstance(check, Topics) else check)
        return None if watched is None else watched.outcome(check)

    async def run(self) -> None:
        """Look until cancelled; ends with all clients closed and threads gone. To be called once."""
        self._pool = ThreadPoolExecutor(_KAFKA_THREADS, thread_name_prefix="kafka-probe")
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for target, watched in self._targets.items():
                    self._start(target, watched)
                await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            self._group = None
            for watched in self._targets.values():
                watched.stop.set()
            # In a thread, as it waits for the looks that are under way; those see `stop` within moments.
            await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    def _start(self, target: _Target, watched: _Watched[K]) -> None:
        if self._group is not None and watched.task is None:
            watched.task = self._group.create_task(self._follow(target, watched))

    def _leave(self, target: _Target, owner: K) -> None:
        watched = self._targets[target]
        watched.owners.pop(owner, None)
        if not watched.owners:
            del self._targets[target]
            watched.stop.set()
            if watched.task is not None:
                watched.task.cancel()

    async def _follow(self, target: _Target, watched: _Watched[K]) -> None:
        while True:
            async with self._place(target, slow=watched.unanswered > 0):
                watched.wanted.clear()
                topics = frozenset[str]().union(
                    *(c.topics for needs in watched.owners.values() for c in needs if isinstance(c, Topics))
                )
                answer = await self._ask(target, topics, watched.stop)
            if self._is_blip(watched, answer):
                await asyncio.sleep(self._pace.again)
                continue
            delay = self._take(watched, answer, topics)
            await asyncio.sleep(min(delay, self._pace.gap))
            try:
                async with asyncio.timeout(delay - self._pace.gap):
                    await watched.wanted.wait()
            except TimeoutError:
                pass

    @asynccontextmanager
    async def _place(self, target: _Target, *, slow: bool) -> AsyncIterator[None]:
        every, few = self._kafka if isinstance(target, Connection) else self._vault
        async with AsyncExitStack() as stack:
            if slow:
                await stack.enter_async_context(few)
            await stack.enter_async_context(every)
            yield

    async def _ask(self, target: _Target, topics: frozenset[str], stop: threading.Event) -> Answer:
        try:
            if isinstance(target, Access):
                return Answer(await vault.check(target, self._vault_timeout))
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._look, target, topics, self._kafka_timeout, stop)
        except Exception as error:  # one strange target must not end the looks at all others
            said = f"it could not be looked at ({type(error).__name__}); this is a fault of the operator"
            return Answer(Outcome("VaultUnreachable" if isinstance(target, Access) else "BrokerUnreachable", said))

    def _is_blip(self, watched: _Watched[K], answer: Answer) -> bool:
        """Whether to keep an answer back until it is seen once more."""
        may_pass = answer.trouble is not None and answer.trouble.may_pass
        watched.unanswered = watched.unanswered + 1 if may_pass else 0
        reached = watched.answer is not None and (watched.answer.trouble is None or watched.answer.trouble.ok)
        return watched.unanswered == 1 and reached

    def _take(self, watched: _Watched[K], answer: Answer, topics: frozenset[str]) -> float:
        """Make an answer known; return after how many seconds to look again."""
        pace = self._pace
        good = answer.outcome(topics).ok
        watched.failures = 0 if good else watched.failures + 1
        changes = {(owner, check): watched.outcome(check) for owner, needs in watched.owners.items() for check in needs}
        watched.answer, watched.topics = answer, topics
        for owner in {o: None for (o, check), old in changes.items() if watched.outcome(check) != old}:
            self._on_change(owner)
        delay = pace.good if good else min(pace.worst, pace.bad * 2 ** min(watched.failures - 1, 16))
        return delay * self._rng.uniform(0.9, 1.1)
