"""Leadership by Lease, on the official client's elector, with a fence for every write.

Needs `get`, `create` and `update` on `leases` (coordination.k8s.io) in the operator's own namespace.
A Lease alone can't fence: a leader that was stopped (SIGSTOP, a frozen node) believes in its lease when it wakes up.
So `Leadership.check` is to be called before each write: it holds only for `renew_deadline` seconds after the moment
just before the last successful renewal was *sent*, on a clock that runs on meanwhile, and a follower waits for the
longer lease time after it has *seen* that renewal.
What no fence sees is a Lease that someone else deletes or edits: until the next renewal (`retry_seconds`) there can
be two leaders then, which is why scale writes carry the resourceVersion as well.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

_log = logging.getLogger(__name__)
T = TypeVar("T")
Clock = Callable[[], float]


class LeadershipLost(Exception):  # noqa: N818 - a state, which the process answers by ending
    """This process is not, or no longer, the leader: nothing may be written."""


class Leadership:
    """One candidate for the Lease `namespace`/`name`; `identity` must be this process's alone (pod name and uid).

    Seconds: a follower takes the lease `lease_seconds` after the last renewal that it saw; the leader's writes end
    `renew_deadline` after its last renewal; both try every `retry_seconds`; each request may take `request_timeout`.
    Raises ValueError when these don't go together.
    """

    def __init__(
        self,
        api: ApiClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_seconds: int = 15,
        renew_deadline: float = 10.0,
        retry_seconds: float = 2.0,
        request_timeout: float = 2.5,
        clock: Clock = time.monotonic,
    ) -> None:
        if not 0 < request_timeout < renew_deadline:
            raise ValueError("request_timeout must be shorter than renew_deadline")
        self._clock = clock
        self._renew_deadline = renew_deadline
        self._lock = _Lock(api, namespace, name, identity, lease_seconds, request_timeout, clock)
        self._elector = _Elector(self._lock, lease_seconds, renew_deadline, retry_seconds, self.is_held)

    @property
    def identity(self) -> str:
        """What the Lease names as its holder while this process leads."""
        return self._lock.identity

    @property
    def namespace(self) -> str:
        """The Lease's namespace."""
        return self._lock.namespace

    @property
    def name(self) -> str:
        """The Lease's name."""
        return self._lock.name

    @property
    def holder(self) -> str | None:
        """Who held the Lease when it was last read; None: nobody, or not read yet."""
        return self._lock.holder

    def is_held(self) -> bool:
        """Whether this process may write now."""
        return self._clock() < self._lock.renewed + self._renew_deadline

    def check(self) -> None:
        """Raise LeadershipLost unless this process may write now. To be called right before each write."""
        if not self.is_held():
            raise LeadershipLost(f"{self.identity} does not hold the lease {self.namespace}/{self.name}")

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Wait until this process leads, then run `lead`; return when it returns, raise what it raises.

        Raises LeadershipLost, after cancelling `lead` and waiting for it, when the lease can't be renewed. On any
        other end, cancellation included, the lease is renewed until `lead` has ended, and then released, so that the
        next candidate takes it at its next try. To be called once.
        """
        lost = False
        try:
            await self._elector.acquire()
            self._elector.leading = True
            work = asyncio.ensure_future(_run(lead))
            renewal = asyncio.ensure_future(self._elector.renew_loop())
            try:
                await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
                lost = not work.done()
            finally:
                work.cancel()
                # Work that does not end must not keep a process alive that can write nothing any more.
                await asyncio.wait({work}, timeout=self._renew_deadline if lost else None)
                renewal.cancel()
                await asyncio.wait({renewal})
            if lost:
                raise LeadershipLost(f"{self.identity} could not renew the lease {self.namespace}/{self.name}")
            work.result()
        finally:
            self._lock.close_fence()
            if not lost:
                await self._lock.release()


async def _run(lead: Callable[[], Awaitable[None]]) -> None:
    await lead()


class _Lock(LeaseLock):
    """The library's lock, with what it lacks.

    Its calls have no timeout of ours and let network errors pass, which would end the elector; it logs a traceback
    for each lost race; it writes local time as UTC; it can't release; it believes the wall clock.
    """

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        name: str,
        identity: str,
        lease_seconds: int,
        request_timeout: float,
        clock: Clock,
    ) -> None:
        super().__init__(name, namespace, identity, api)
        self._lease_seconds = lease_seconds
        self._request_timeout = request_timeout
        self._clock = clock
        self._complained = ""
        self.renewed = -math.inf
        """When the last renewal that succeeded was sent."""
        self.seen = clock()
        """When the Lease's holder and renewal were first seen as they are now."""
        self._seen_as: object = None
        self.holder: str | None = None

    @property
    def age(self) -> float:
        return self._clock() - self.seen

    def close_fence(self) -> None:
        self.renewed = -math.inf

    async def get(self, name: str, namespace: str) -> Any:
        lease = await self._call("reading", self.api_instance.read_namespaced_lease(name, namespace))
        if isinstance(lease, ApiException):
            return False, lease
        spec = lease.spec
        seen_as = (spec.holder_identity, spec.renew_time) if spec else None
        if seen_as != self._seen_as:
            self._seen_as, self.seen = seen_as, self._clock()
        self.lease_reference = lease
        record = self.election_record(lease)
        self.holder = record.holder_identity
        if self.holder not in (None, self.identity):
            self.close_fence()  # whatever the clock says: someone else writes now
        return True, record

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        body = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        return await self._write("creating", self.api_instance.create_namespaced_lease(namespace, body))

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        lease = self.lease_reference
        if lease is None or not self._may_be_taken(lease.spec):
            return False
        lease.spec = self.update_lease(updated_record, lease.spec)
        return await self._write("renewing", self.api_instance.replace_namespaced_lease(name, namespace, lease))

    def _may_be_taken(self, spec: client.V1LeaseSpec | None) -> bool:
        """Whether nobody holds the Lease any more; the library asks the wall clock, and our lease time, not theirs."""
        if spec is None or spec.holder_identity in (None, "", self.identity):
            return True
        return self.age >= max(self._lease_seconds, spec.lease_duration_seconds or 0)

    def update_lease(
        self,
        leader_election_record: LeaderElectionRecord,  # noqa: ARG002 - times are strings of local time in there
        current_spec: client.V1LeaseSpec | None = None,
    ) -> client.V1LeaseSpec:
        spec = current_spec or client.V1LeaseSpec()
        now = _timestamp()
        if spec.holder_identity != self.identity:
            spec.acquire_time = now
            spec.lease_transitions = (spec.lease_transitions or 0) + (current_spec is not None)
        spec.holder_identity = self.identity
        spec.lease_duration_seconds = self._lease_seconds
        spec.renew_time = now
        return spec

    async def release(self) -> None:
        """Name no holder, if it is still us; best effort, within twice the time of a request."""
        try:
            async with asyncio.timeout(2 * self._request_timeout):
                # Again when a renewal that was cancelled on its way arrives between our reading and our writing.
                for _ in range(3):
                    found, _record = await self.get(self.name, self.namespace)
                    lease = self.lease_reference
                    if not found or lease is None or lease.spec is None or lease.spec.holder_identity != self.identity:
                        return
                    lease.spec.holder_identity = None
                    lease.spec.lease_duration_seconds = 1
                    lease.spec.renew_time = _timestamp()
                    call = self.api_instance.replace_namespaced_lease(self.name, self.namespace, lease)
                    if not isinstance(await self._call("releasing", call), ApiException):
                        self.holder = None
                        return
        except TimeoutError:
            _log.warning("the lease %s/%s was not released: no answer in time", self.namespace, self.name)

    async def _write(self, doing: str, call: Awaitable[client.V1Lease]) -> bool:
        sent = self._clock()  # `call` is a coroutine: nothing has been sent yet
        lease = await self._call(doing, call)
        if isinstance(lease, ApiException):
            return False
        self.lease_reference = lease
        self.holder = self.identity
        self.seen = self._clock()
        self.renewed = sent
        return True

    async def _call(self, doing: str, call: Awaitable[T]) -> T | ApiException:
        """The call's answer, or why there is none, as the elector knows it."""
        try:
            async with asyncio.timeout(self._request_timeout):
                answer = await call
        except ApiException as error:
            failure = error
        except TimeoutError:
            failure = ApiException(status=0, reason="no answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: an answer that is no Lease
            failure = ApiException(status=0, reason=type(error).__name__)
        else:
            self._complained = ""
            return answer
        # 404: the first candidate creates it. 409: another was faster.
        said = f"{doing}: {failure.status} {failure.reason}"
        if failure.status not in (404, 409) and said != self._complained:
            _log.warning("the lease %s/%s, %s", self.namespace, self.name, said)
            self._complained = said
        return failure


class _Elector(LeaderElection):
    """The library's elector: its acquire and renew loops.

    Not its `run`, which leaves the work running when cancelled and keeps the lease when the work has ended.
    """

    def __init__(
        self,
        lock: _Lock,
        lease_seconds: int,
        renew_deadline: float,
        retry_seconds: float,
        is_held: Callable[[], bool],
    ) -> None:
        super().__init__(Config(lock, lease_seconds, renew_deadline, retry_seconds, _nothing, _nothing))
        self._own = lock
        self._is_held = is_held
        self.leading = False

    async def try_acquire_or_renew(self) -> bool:
        # The library remembers by the wall clock when the Lease changed: a clock that steps back would keep a follower
        # from taking over for as long.
        age = self._own.age
        self.observed_time_milliseconds = int((time.time() - age) * 1000)
        done = await super().try_acquire_or_renew()
        # Its renew loop would go on trying for the whole renew deadline, counted from its own first failure.
        if self.leading and not done and not self._is_held():
            raise LeadershipLost
        return done


async def _nothing() -> None:
    """The library asks for callbacks that only its own `run` would call."""


def _timestamp() -> datetime:
    """Now; a MicroTime needs its six digits, which Python leaves out at exactly 0."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond or 1)
