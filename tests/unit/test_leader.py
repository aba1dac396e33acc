import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.leaderelection import leaderelection

from vaultml_operator import leader
from vaultml_operator.leader import Leadership, LeadershipLost

LEASES = "/apis/coordination.k8s.io/v1/namespaces/ours/leases"
# As short as the library allows.
SHORT = {"lease_seconds": 2, "renew_deadline": 1.5, "retry_seconds": 1.0, "request_timeout": 0.4}
WAIT_S = 20

Lease = dict[str, Any]


class LeaseServer:
    """The Lease endpoints of an API server, over real HTTP, with its resourceVersion rules and the faults we name."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.version = 0
        self.hanging = False
        self.hang: Callable[[web.Request], bool] = lambda _request: False
        self.status: int | None = None
        self.writes: list[Lease] = []
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get(LEASES + "/operator", self.read)
        app.router.add_post(LEASES, self.create)
        app.router.add_put(LEASES + "/operator", self.replace)
        return app

    async def read(self, request: web.Request) -> web.Response:
        await self.trouble(request)
        return web.json_response(self.lease) if self.lease else refusal(404)

    async def create(self, request: web.Request) -> web.Response:
        await self.trouble(request)
        if self.lease is not None:
            return refusal(409)
        return self.store(await request.json())

    async def replace(self, request: web.Request) -> web.Response:
        await self.trouble(request)
        body = await request.json()
        if self.lease is None:
            return refusal(404)
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            return refusal(409)
        return self.store(body)

    def store(self, body: Lease) -> web.Response:
        assert body["spec"]["leaseDurationSeconds"] > 0
        self.version += 1
        body["metadata"] |= {"namespace": "ours", "resourceVersion": str(self.version)}
        self.lease = body
        self.writes.append(body["spec"])
        return web.json_response(body)

    async def trouble(self, request: web.Request) -> None:
        if self.hang(request):
            await asyncio.sleep(3600)
        if self.status is not None:
            raise _failure(self.status)

    def edit(self, holder: str) -> None:
        assert self.lease is not None
        self.version += 1
        self.lease["spec"]["holderIdentity"] = holder
        self.lease["metadata"]["resourceVersion"] = str(self.version)

    @property
    def holder(self) -> str | None:
        return self.lease["spec"].get("holderIdentity") if self.lease else None


def _failure(status: int) -> web.HTTPException:
    kind = {500: web.HTTPInternalServerError, 429: web.HTTPTooManyRequests}[status]
    return kind(text="<html>busy</html>") if status == 500 else kind()


def refusal(status: int) -> web.Response:
    return web.json_response({"kind": "Status", "code": status, "message": "no"}, status=status)


@asynccontextmanager
async def serving() -> AsyncIterator[LeaseServer]:
    server = LeaseServer()
    runner = web.AppRunner(server.app(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def candidate(server: LeaseServer, identity: str, **changes: Any) -> AsyncIterator[Leadership]:
    configuration = client.Configuration(host=server.url)
    async with ApiClient(configuration) as api:
        yield Leadership(api, namespace="ours", name="operator", identity=identity, **(SHORT | changes))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def trial(test: Callable[[LeaseServer], Awaitable[None]]) -> None:
    async def run() -> None:
        async with serving() as server:
            await test(server)

    asyncio.run(run())


def test_the_first_candidate_leads_and_the_lease_says_so() -> None:
    async def test(server: LeaseServer) -> None:
        async with candidate(server, "one") as one:
            assert not one.is_held()
            with pytest.raises(LeadershipLost, match="one does not hold the lease ours/operator"):
                one.check()
            task = asyncio.create_task(one.run(for_ever))
            await until(one.is_held)
            one.check()
            assert (server.holder, one.holder) == ("one", "one")
            await until(lambda: len(server.writes) >= 3)
            assert {spec["leaseDurationSeconds"] for spec in server.writes} == {2}
            assert len({spec["acquireTime"] for spec in server.writes}) == 1
            assert len({spec["renewTime"] for spec in server.writes}) == len(server.writes)
            await ended(task)

    trial(test)


def test_times_are_written_in_utc_wherever_the_operator_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:

        async def test(server: LeaseServer) -> None:
            async with candidate(server, "one") as one:
                await one.run(nothing)
            renewed = datetime.fromisoformat(server.writes[0]["renewTime"])
            assert abs((datetime.now(UTC) - renewed).total_seconds()) < 60

        trial(test)
    finally:
        monkeypatch.undo()
        time.tzset()


async def nothing() -> None:
    pass


def test_a_clean_end_releases_the_lease_after_the_work_has_ended() -> None:
    async def test(server: LeaseServer) -> None:
        last_words: list[tuple[str | None, bool]] = []

        async def lead() -> None:
            try:
                await for_ever()
            finally:
                await asyncio.sleep(SHORT["renew_deadline"] + 0.5)  # still renewed while it winds up
                last_words.append((server.holder, one.is_held()))

        async with candidate(server, "one") as one, candidate(server, "two") as two:
            first = asyncio.create_task(one.run(lead))
            await until(one.is_held)
            second = asyncio.create_task(two.run(for_ever))
            await ended(first)
            assert last_words == [("one", True)]
            assert not one.is_held()
            assert server.holder is None
            released = asyncio.get_running_loop().time()
            await until(two.is_held)
            # Its next try, not the end of a lease.
            assert asyncio.get_running_loop().time() - released < SHORT["retry_seconds"] + 0.5
            assert server.lease is not None
            assert server.lease["spec"]["leaseTransitions"] == 1
            await ended(second)

    trial(test)


def test_work_that_returns_or_fails_releases_the_lease() -> None:
    async def test(server: LeaseServer) -> None:
        async def fail() -> None:
            raise RuntimeError("broken")

        async with candidate(server, "one") as one:
            await one.run(nothing)
            assert server.holder is None
        async with candidate(server, "two") as two:
            with pytest.raises(RuntimeError, match="broken"):
                await two.run(fail)
            assert server.holder is None

    trial(test)


def test_a_follower_that_ends_leaves_the_lease_alone() -> None:
    async def test(server: LeaseServer) -> None:
        async with candidate(server, "one") as one, candidate(server, "two") as two:
            first = asyncio.create_task(one.run(for_ever))
            await until(one.is_held)
            second = asyncio.create_task(two.run(for_ever))
            await until(lambda: two.holder == "one")
            await ended(second)
            assert server.holder == "one"
            assert one.is_held()
            await ended(first)

    trial(test)


def test_after_a_crash_the_other_takes_over_when_the_lease_has_run_out_and_never_both_hold_it() -> None:
    async def test(server: LeaseServer) -> None:
        loop = asyncio.get_running_loop()
        # A crash: the first one's requests never arrive any more, and nothing is released.
        crashed = asyncio.Event()
        server.hang = lambda request: crashed.is_set() and request.headers["User-Agent"] == "one"
        async with candidate(server, "one") as one, candidate(server, "two") as two:
            one._lock.api_instance.api_client.set_default_header("User-Agent", "one")
            first = asyncio.create_task(one.run(for_ever))
            await until(one.is_held)
            second = asyncio.create_task(two.run(for_ever))
            await until(lambda: two.holder == "one")
            crashed.set()
            fell = loop.time()
            both = 0
            async with asyncio.timeout(WAIT_S):
                while not two.is_held():
                    both += one.is_held() and two.is_held()
                    await asyncio.sleep(0.005)
            assert both == 0
            assert not one.is_held()
            # From the last renewal that it saw, up to one try earlier than the crash, plus up to one try.
            assert SHORT["lease_seconds"] - 1.2 < loop.time() - fell < SHORT["lease_seconds"] + 1.8
            with pytest.raises(LeadershipLost, match="one could not renew"):
                await first
            assert server.holder == "two"
            await ended(second)

    trial(test)


def test_hanging_renewals_close_the_fence_on_time_and_end_the_work() -> None:
    async def test(server: LeaseServer) -> None:
        loop = asyncio.get_running_loop()
        cancelled = asyncio.Event()

        async def lead() -> None:
            try:
                await for_ever()
            finally:
                cancelled.set()

        sent: list[float] = []

        def note(request: web.Request) -> bool:
            if server.hanging:
                return True
            if request.method in ("POST", "PUT"):
                sent.append(loop.time())
            return False

        server.hang = note
        async with candidate(server, "one") as one:
            task = asyncio.create_task(one.run(lead))
            await until(lambda: len(sent) >= 2)
            server.hanging = True
            await until(lambda: not one.is_held())
            # `sent` is when the request arrived, which is after it was sent.
            assert loop.time() - sent[-1] <= SHORT["renew_deadline"] + 0.1
            with pytest.raises(LeadershipLost):
                await task
            assert cancelled.is_set()
            assert loop.time() - sent[-1] < SHORT["lease_seconds"] + 1
            assert server.holder == "one"

    trial(test)


def test_a_leader_that_was_stopped_does_not_write_when_it_wakes_up() -> None:
    async def test(server: LeaseServer) -> None:
        jump = 0.0
        loop = asyncio.get_running_loop()
        async with candidate(server, "one", clock=lambda: loop.time() + jump) as one:
            task = asyncio.create_task(one.run(for_ever))
            await until(one.is_held)
            jump = 60.0  # SIGSTOP, and SIGCONT a minute later: the monotonic clock ran on
            with pytest.raises(LeadershipLost):
                one.check()
            server.edit("two")  # took it meanwhile
            with pytest.raises(LeadershipLost):
                await task
            assert server.holder == "two"

    trial(test)


def test_a_stopped_leader_whose_lease_nobody_took_goes_on_after_renewing_it() -> None:
    async def test(server: LeaseServer) -> None:
        jump = 0.0
        loop = asyncio.get_running_loop()
        async with candidate(server, "one", clock=lambda: loop.time() + jump) as one:
            task = asyncio.create_task(one.run(for_ever))
            await until(one.is_held)
            jump = 60.0
            assert not one.is_held()
            await until(one.is_held)
            assert not task.done()
            await ended(task)

    trial(test)


def test_a_lease_edited_by_hand_closes_the_fence_at_the_next_renewal() -> None:
    async def test(server: LeaseServer) -> None:
        loop = asyncio.get_running_loop()
        async with candidate(server, "one", lease_seconds=30, renew_deadline=20.0) as one:
            task = asyncio.create_task(one.run(for_ever))
            await until(one.is_held)
            server.edit("somebody")
            edited = loop.time()
            await until(lambda: not one.is_held())
            assert loop.time() - edited < 5
            with pytest.raises(LeadershipLost):
                await task

    trial(test)


def test_the_fence_counts_from_the_sending_of_a_renewal_not_from_its_answer() -> None:
    async def test(server: LeaseServer) -> None:
        loop = asyncio.get_running_loop()
        arrived: list[float] = []

        async def slowly(request: web.Request) -> None:
            if request.method in ("POST", "PUT"):
                arrived.append(loop.time())
                await asyncio.sleep(0.3)

        server.trouble = slowly  # type: ignore[method-assign]
        async with candidate(server, "one", request_timeout=1.0) as one:
            task = asyncio.create_task(one.run(for_ever))
            await until(one.is_held)
            assert one._lock.renewed <= arrived[0]
            await until(lambda: len(server.writes) >= 3)
            assert one._lock.renewed <= arrived[len(server.writes) - 1]
            await ended(task)

    trial(test)


def test_a_wall_clock_that_steps_back_does_not_keep_a_follower_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    step = 0.0
    clock = SimpleNamespace(time=lambda: time.time() + step, monotonic=time.monotonic)
    monkeypatch.setattr(leaderelection, "time", clock)
    monkeypatch.setattr(leader, "time", clock)

    async def test(server: LeaseServer) -> None:
        nonlocal step
        loop = asyncio.get_running_loop()
        async with candidate(server, "gone") as gone:
            await gone.run(nothing)
        server.edit("gone")
        assert server.lease is not None
        server.lease["spec"]["leaseDurationSeconds"] = 2
        async with candidate(server, "one") as one:
            task = asyncio.create_task(one.run(for_ever))
            await until(lambda: one.holder == "gone")
            seen = loop.time()
            step = -3600.0
            await until(one.is_held)
            assert 1.9 < loop.time() - seen < 6
            step = +3600.0
            async with candidate(server, "two") as two:
                other = asyncio.create_task(two.run(for_ever))
                await until(lambda: two.holder == "one")
                step = +7200.0
                before = len(server.writes)
                await until(lambda: len(server.writes) >= before + 3)
                assert one.is_held()
                assert not two.is_held()
                await ended(other)
            await ended(task)

    trial(test)


def test_failures_of_the_api_server_shorter_than_the_deadline_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: LeaseServer) -> None:
        async with candidate(server, "one", lease_seconds=5, renew_deadline=4.0) as one:
            server.status = 500
            task = asyncio.create_task(one.run(for_ever))
            await until(lambda: "reading: 500" in caplog.text)
            server.status = None
            await until(one.is_held)
            server.status = 429
            await until(lambda: "reading: 429" in caplog.text)
            server.status = None
            before = len(server.writes)
            await until(lambda: len(server.writes) > before)
            assert one.is_held()
            assert not task.done()
            await ended(task)

    with caplog.at_level(logging.WARNING, "vaultml_operator"):
        trial(test)
    assert "Traceback" not in caplog.text


def test_a_follower_judges_by_the_lease_time_that_the_holder_wrote() -> None:
    async def test(server: LeaseServer) -> None:
        jump = 0.0
        loop = asyncio.get_running_loop()
        server.lease = json.loads(
            '{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "operator",'
            '"resourceVersion": "7"}, "spec": {"holderIdentity": "old", "leaseDurationSeconds": 30,'
            '"acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z"}}'
        )
        async with candidate(server, "one", clock=lambda: loop.time() + jump) as one:
            task = asyncio.create_task(one.run(for_ever))
            await until(lambda: one.holder == "old")
            seen = one._lock.seen
            jump = 29.0 - (loop.time() - seen)
            assert not one.is_held()
            assert not one._lock._may_be_taken(one._lock.lease_reference.spec if one._lock.lease_reference else None)
            jump = 31.0
            await until(one.is_held)
            assert server.holder == "one"
            await ended(task)

    trial(test)


def test_an_unreachable_api_server_keeps_nobody_from_ending() -> None:
    async def test(server: LeaseServer) -> None:
        server.hang = lambda _request: True
        async with candidate(server, "one") as one:
            task = asyncio.create_task(one.run(for_ever))
            await asyncio.sleep(0)
            async with asyncio.timeout(2):
                await ended(task)

    trial(test)


def test_times_that_do_not_go_together_are_refused() -> None:
    async def test(server: LeaseServer) -> None:
        for wrong in ({"request_timeout": 3.0}, {"lease_seconds": 1}, {"retry_seconds": 1.9}):
            with pytest.raises(ValueError, match=r"must be (shorter|greater)"):
                async with candidate(server, "one", **wrong):
                    raise AssertionError

    trial(test)
