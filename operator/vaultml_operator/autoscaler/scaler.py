"""Polls every pipeline's queue, each broker once for all, and keeps the decision on each: joins the pure parts.

Nothing here acts: a decision that differs from what there is puts the pipeline on the work queue, and the reconcile
carries it out.
"""

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from vaultml_operator.api import Autoscaling, AutoscalingStatus
from vaultml_operator.autoscaler import snapshot
from vaultml_operator.autoscaler.decide import decide
from vaultml_operator.autoscaler.gpus import Demand, Pool, noun
from vaultml_operator.autoscaler.lag import Ask, PartitionIncrease, Reader, Reading, ReadingFailed, open_reader
from vaultml_operator.autoscaler.measurements import Measurements
from vaultml_operator.autoscaler.pool import Grant, Grants, arbitrate
from vaultml_operator.autoscaler.records import Decision, History, Observation
from vaultml_operator.probes import Connection

K = TypeVar("K", bound=tuple[str, str])

_THREADS = 32
"""Brokers that are read at the same time: one that is away holds its place until its time-outs."""
_TOGETHER = 0.25
"""A pipeline whose poll is due within this share of its interval joins a round that is under way anyway."""
_NO_CREDENTIALS = "its credentials are missing"
_LATE_S = 300.0
"""How old a snapshot of GPUs that limit nobody may get, about."""
_FRESH_S, _FRESH_POLLS = 20.0, 1.5
"""How old a snapshot gets, about, before small changes of measured numbers are published: seconds, or polls if that is
sooner, since who polls quickly wants to see quickly.
"""
_SHARE_S = 1.0
_SHARE_COST = 20
"""GPUs are shared out at most once a second, and in no more than a twentieth of the time: with a thousand pipelines
it takes a tenth of a second, and each pod that comes or goes asks for it.
"""


@dataclass(frozen=True, kw_only=True)
class ScalingRequest:
    """What is asked of the scaler for one pipeline.

    `connection` None: it can't be read (credentials are missing). `demand` is for `wanted` 0: the scaler fills that in;
    None: no GPU is asked for, or their number is of no interest. `acts`: the decision is carried out.
    `queue_error`: why the check of the queue fails: where it can't be read, that is the reason, too. `vault_error`: why
    the operator's own check of Vault fails; workers may reach it nevertheless.
    `pause_scale_in`, `pause_scale_out`: the number may not go that way.
    """

    policy: Autoscaling
    connection: Connection | None
    ask: Ask
    demand: Demand | None
    acts: bool = True
    queue_error: str = ""
    vault_error: str = ""
    pause_scale_in: bool = False
    pause_scale_out: bool = False


@dataclass(slots=True)
class _State:
    """All that is known of one pipeline."""

    request: ScalingRequest
    replicas: int
    ready: int
    measured: Measurements
    history: History
    due: float = 0.0
    """Monotonic time of the next poll."""
    decision: Decision | None = None
    published: AutoscalingStatus | None = None
    increase: PartitionIncrease | None = None
    late_at: float = field(default_factory=lambda: _spread(_LATE_S))
    """Monotonic time from which on the snapshot is an old one."""
    fresh_until: float = 0.0


class _Line:
    """A connection's reader, for threads: opened by the first read, one read at a time, no read ends in an error."""

    def __init__(self, connection: Connection, opens: Callable[[Connection], Reader]) -> None:
        self._connection = connection
        self._opens = opens
        self._reader: Reader | None = None
        self._one_at_a_time = threading.Lock()

    @property
    def calls(self) -> int:
        return 0 if self._reader is None else self._reader.calls

    def read(self, asked: list[Ask]) -> Mapping[Ask, Reading | ReadingFailed]:
        with self._one_at_a_time:
            try:
                if self._reader is None:
                    self._reader = self._opens(self._connection)
                return self._reader.read(asked)
            except Exception as error:  # settings that the client refuses, or a fault: no other pipeline's trouble
                failed = ReadingFailed(f"the lag can't be read ({type(error).__name__}): see QueueReachable")
                return dict.fromkeys(asked, failed)

    def close(self) -> None:
        with self._one_at_a_time:
            if self._reader is not None:
                self._reader.close()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The last decision on a pipeline, and the status to publish."""

    decision: Decision
    status: AutoscalingStatus
    increase: PartitionIncrease | None
    """What became of raising the queue's partitions; None: nothing was tried."""


class Scaler(Generic[K]):
    """Keeps a decision for each pipeline that it was told of. To be used in one asyncio loop.

    `on_change` hears of each pipeline whose decision or published snapshot has changed.
    """

    def __init__(
        self,
        on_change: Callable[[K], None],
        *,
        pool: Pool | None = None,
        reader: Callable[[Connection], Reader] = open_reader,
        wall: Callable[[], float] = time.time,
        told: Callable[[K, Observation, Decision], None] = lambda _key, _seen, _decision: None,
    ) -> None:
        self.pool = pool
        """Nodes and pods, where they can be seen; None: GPUs are no bound."""
        self._on_change = on_change
        self._open = reader
        self._wall = wall
        self._told = told
        self._states: dict[K, _State] = {}
        self._rounds: dict[Connection, asyncio.Task[None]] = {}
        self._lines: dict[Connection, _Line] = {}
        self._past_calls = 0
        self._wake: dict[Connection, asyncio.Event] = {}
        self._group: asyncio.TaskGroup | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._grants: Grants = {}
        self._demands: dict[K, Demand] = {}
        self._stale = True
        """Whether nodes or pods have changed, or pipelines are gone, since GPUs were shared out."""
        self._unshared: set[K] = set()
        """Those whose demand has changed since then."""
        self._share_again = -math.inf
        """Monotonic time at which they may be shared out again."""

    def watch(self, key: K, request: ScalingRequest, *, replicas: int, ready: int, status: AutoscalingStatus) -> None:
        """Scale this pipeline from now on. `status` is its `.status.autoscaling`, for what a restart left.

        `replicas` and `ready` are the Deployment's, as they are; told anew with every reconcile.
        """
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = _State(
                request=request,
                replicas=replicas,
                ready=ready,
                measured=Measurements(status),
                history=History.from_status(status),
                published=status if status.model_fields_set else None,
            )
        elif state.request != request:
            if state.request.ask != request.ask or state.request.connection != request.connection:
                state.measured.begin_anew()
            state.request, state.due = request, 0.0
        state.replicas, state.ready = replicas, ready
        state.measured.workers(replicas, ready, time.monotonic())
        if state.request.connection is None:
            if state.measured.failed != _NO_CREDENTIALS:
                # Nobody polls it: what is known of it is told now, and is that nothing is.
                state.measured.fail(_NO_CREDENTIALS)
                self._share([(key, state)])
                self._settle(key, state)
        else:
            self._follow(state.request.connection)

    def forget(self, key: K) -> None:
        """Scale this pipeline no longer."""
        if self._states.pop(key, None) is not None:
            self._drop(key)
            self._leave_idle_connections()

    def snapshot(self, key: K) -> Snapshot | None:
        """The last decision on a pipeline; None: there is none yet."""
        state = self._states.get(key)
        if state is None or state.decision is None:
            return None
        return Snapshot(state.decision, state.published or AutoscalingStatus(), state.increase)

    def busy(self, key: K) -> Mapping[str, int] | None:
        """How much waits for each member of the group, by client id; None: the members are not known."""
        state = self._states.get(key)
        reading = None if state is None else state.measured.reading
        if reading is None or reading.members is None:
            return None
        lags = {part.number: part.lag for part in reading.partitions}
        return {each.client: sum(lags.get(number, 0) for number in each.partitions) for each in reading.members}

    def pool_changed(self) -> None:
        """Nodes or pods have changed: it counts from the next poll."""
        self._stale = True

    @property
    def calls(self) -> int:
        """Requests to all queues so far."""
        return self._past_calls + sum(each.calls for each in self._lines.values())

    def leaving(self, key: K) -> frozenset[str]:
        """The uids of the pods that have to be the ones to go, where others wait for just those GPUs."""
        grant = self._grant(key)
        return frozenset() if grant is None else frozenset(grant.leave)

    def _grant(self, key: K) -> Grant | None:
        return None if self.pool is None or key not in self._demands else self._grants.get(key)

    async def run(self) -> None:
        """Poll until cancelled; ends with all connections closed. To be called once."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="lag")
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for connection in {state.request.connection for state in self._states.values()}:
                    if connection is not None:
                        self._follow(connection)
                await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            self._group = None
            await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    # --- polling ------------------------------------------------------------------------------------------------

    def _follow(self, connection: Connection) -> None:
        if self._group is None:
            return
        if connection not in self._rounds:
            self._wake[connection] = asyncio.Event()
            self._rounds[connection] = self._group.create_task(self._poll(connection, self._wake[connection]))
        self._wake[connection].set()

    def _leave_idle_connections(self) -> None:
        used = {state.request.connection for state in self._states.values()}
        for connection in self._rounds.keys() - used:
            self._rounds.pop(connection).cancel()
            self._wake.pop(connection)

    async def _poll(self, connection: Connection, wake: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        line = self._lines[connection] = _Line(connection, self._open)
        try:
            while True:
                wake.clear()
                due = self._due(connection)
                if due:
                    asked = list(dict.fromkeys(self._states[key].request.ask for key in due))
                    answers = await loop.run_in_executor(self._threads, line.read, asked)
                    self._take(connection, due, answers)
                    self._leave_idle_connections()
                if (seconds := self._until_next(connection)) > 0:
                    try:
                        async with asyncio.timeout(seconds):
                            await wake.wait()
                    except TimeoutError:
                        pass
        finally:
            self._past_calls += line.calls
            if self._lines.get(connection) is line:
                del self._lines[connection]
            # In a thread of its own: a read that is under way ends first.
            threading.Thread(target=line.close, name="lag-close", daemon=True).start()

    def _of(self, connection: Connection) -> list[tuple[K, _State]]:
        return [(key, state) for key, state in self._states.items() if state.request.connection == connection]

    def _due(self, connection: Connection) -> list[K]:
        now, mine = time.monotonic(), self._of(connection)
        if not any(state.due <= now for _, state in mine):
            return []
        return [key for key, state in mine if state.due <= now + _TOGETHER * state.request.policy.polling_seconds]

    def _until_next(self, connection: Connection) -> float:
        return min((state.due for _, state in self._of(connection)), default=time.monotonic() + 3600) - time.monotonic()

    def _take(self, connection: Connection, keys: list[K], answers: Mapping[Ask, Reading | ReadingFailed]) -> None:
        here = [
            (key, state)
            for key in keys
            if (state := self._states.get(key)) is not None
            and state.request.connection == connection
            and state.request.ask in answers
        ]
        for _, state in here:
            answer = answers[state.request.ask]
            if isinstance(answer, Reading):
                state.measured.learn(answer)
                state.increase = answer.increase or state.increase
            else:
                state.measured.fail(answer.message)
        self._share(here)
        for key, state in here:
            if key in self._unshared:
                # Its grant is not for what it wants now: it is looked at again when there is one that is.
                state.due = self._share_again
            else:
                self._settle(key, state)

    # --- deciding -----------------------------------------------------------------------------------------------

    def _observe(self, state: _State, *, slots: int | None, holders: str) -> Observation:
        known = state.measured
        return Observation(
            backlog=known.backlog(),
            trouble=known.failed and (state.request.queue_error or known.failed),
            arrival=known.rates.arrival,
            service=known.rates.service,
            replicas=state.replicas,
            ready=state.ready,
            startup_seconds=known.rates.startup_seconds,
            slots=slots,
            holders=holders,
            bound="GPUs" if state.request.demand is None else noun(state.request.demand.resource),
            vault_error="" if known.progresses else state.request.vault_error,
            pause_scale_in=state.request.pause_scale_in,
            pause_scale_out=state.request.pause_scale_out,
        )

    def _share(self, changed: list[tuple[K, _State]]) -> None:
        """Ask for what each would want had it all GPUs to itself, and share them out."""
        if self.pool is None:
            return
        now = self._wall()
        for key, state in changed:
            demand = state.request.demand
            if demand is None:
                self._drop(key)
                continue
            alone = decide(state.request.policy, self._observe(state, slots=None, holders=""), state.history, now)
            wanted = alone.replicas if state.request.acts else state.replicas
            wants = replace(demand, wanted=wanted, current=state.replicas)
            if self._demands.get(key) != wants:
                self._demands[key] = wants
                self._unshared.add(key)
        began = time.monotonic()
        if began >= self._share_again and (self._stale or self._unshared or self._waiting()):
            grants = arbitrate(self.pool, list(self._demands.values()), self._grants, began)
            if fewer := self._unused(grants):
                grants = arbitrate(self.pool, list({**self._demands, **fewer}.values()), self._grants, began)
            self._grants = grants
            self._stale = False
            self._unshared.clear()
            ended = time.monotonic()
            self._share_again = ended + max(_SHARE_S, _SHARE_COST * (ended - began))

    def _unused(self, grants: Grants) -> dict[K, Demand]:
        """The smaller demands of those who can't use all that they would get: few numbers divide their partitions."""
        found = {}
        for key, demand in self._demands.items():
            state, most = self._states[key], grants[key].slots + grants[key].coming
            if state.request.acts and state.request.policy.even_partitions and most < demand.wanted:
                seen = self._observe(state, slots=most, holders="")
                used = decide(state.request.policy, seen, state.history, self._wall()).replicas
                if used < most:
                    found[key] = replace(demand, wanted=used)
        return found

    def _drop(self, key: K) -> None:
        self._unshared.discard(key)
        self._stale |= self._demands.pop(key, None) is not None

    def _waiting(self) -> bool:
        """Whether someone wants more than is granted: grants hold for a while, and pods come and go."""
        return any(
            key not in self._grants or self._grants[key].slots < demand.wanted for key, demand in self._demands.items()
        )

    def _settle(self, key: K, state: _State) -> None:
        grant = self._grant(key)
        slots = None
        if grant is not None:
            # A grant is never more than is wanted: where all of it is granted, what bounds it are the GPUs there are.
            slots = grant.slots if grant.slots < self._demands[key].wanted else max(grant.slots, grant.capacity)
        observation = self._observe(state, slots=slots, holders="" if grant is None else grant.sentence())
        decision = self._decide(state, observation, None if grant is None else grant.slots)
        changed = state.decision is None or decision.replicas != state.decision.replicas
        state.history, state.decision = decision.history, decision
        now = time.monotonic()
        state.due = now + decision.next_poll_seconds
        known = state.measured
        new = snapshot.status(observation, decision, known.rates, known.reading, known.processed)
        if snapshot.differs(state.published, new, fresh=now < state.fresh_until, late=now > state.late_at):
            state.published, changed = new, True
            fresh = min(_FRESH_S, _FRESH_POLLS * state.request.policy.polling_seconds)
            state.fresh_until, state.late_at = _spread(fresh), _spread(_LATE_S)
        self._told(key, observation, decision)
        if changed:
            self._on_change(key)

    def _decide(self, state: _State, observation: Observation, granted: int | None) -> Decision:
        """The decision; by those who act on it never more than was granted.

        A maximum that is near lifts the tolerance, which held when it was asked for GPUs without one.
        """
        policy, now = state.request.policy, self._wall()
        decision = decide(policy, observation, state.history, now)
        for slots in (None, granted):
            if granted is None or not state.request.acts or decision.replicas <= granted:
                break
            decision = decide(policy, replace(observation, slots=slots), state.history, now)
        return decision


def _spread(seconds: float) -> float:
    """A monotonic time in about so many seconds: spread, or a thousand would be published in one moment."""
    return time.monotonic() + random.uniform(0.75, 1.25) * seconds  # noqa: S311 - guards nothing
