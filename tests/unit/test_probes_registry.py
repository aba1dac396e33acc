import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise

import pytest

from vaultml_operator.probes import Access, Connection, Outcome, Pace, Probes, Topics
from vaultml_operator.probes.kafka import Answer

HERE = Connection(("here:9092",))
THERE = Connection(("there:9092",))
QUICK = Pace(good=0.3, bad=0.1, worst=0.2, again=0.1, gap=0.01)
LONG = Pace(good=1000, bad=1000, worst=1000, again=0.05, gap=0.01)
DOWN = Answer(Outcome("BrokerUnreachable", "down"))
REFUSED = Answer(Outcome("AuthenticationFailed", "no"))


class Cluster:
    """Answers looks as it is told; counts them, and how many go on at the same time."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.asked: list[tuple[Connection, frozenset[str]]] = []
        self.working = self.most = 0
        self.seconds = 0.0
        self._lock = threading.Lock()

    def look(self, connection: Connection, topics: frozenset[str], _timeout: float, stop: threading.Event) -> Answer:
        with self._lock:
            self.asked.append((connection, topics))
            self.working += 1
            self.most = max(self.most, self.working)
        stop.wait(self.seconds)
        with self._lock:
            self.working -= 1
        return self.answer


def topics(*names: str, connection: Connection = HERE) -> Topics:
    return Topics(connection, frozenset(names))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def next_look(cluster: Cluster) -> None:
    asked = len(cluster.asked)
    await until(lambda: len(cluster.asked) > asked)


def trial(test: Callable[[Cluster, Probes[str], list[str]], Awaitable[None]], pace: Pace = QUICK) -> None:
    async def run() -> None:
        cluster, changes = Cluster(), list[str]()
        probes = Probes[str](changes.append, pace=pace, look=cluster.look)
        task = asyncio.create_task(probes.run())
        try:
            await test(cluster, probes, changes)
            assert not task.done()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kafka-probe")]


def test_what_something_else_found_broken_is_looked_at_at_once() -> None:
    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        check = topics("queue")
        probes.watch("a", [check])
        await until(lambda: probes.result(check) is not None)
        cluster.answer, changes[:] = DOWN, []
        probes.hurry("a")
        probes.hurry("nobody")
        await until(lambda: changes == ["a"])
        outcome = probes.result(check)
        assert outcome is not None
        assert outcome.reason == "BrokerUnreachable"

    trial(test, LONG)


def test_an_outcome_is_unknown_first_then_told_to_its_owner() -> None:
    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        check = topics("queue")
        assert probes.result(check) is None
        probes.watch("a", [check])
        assert probes.result(check) is None
        await until(lambda: changes == ["a"])
        assert probes.result(check) == Outcome("Reachable", "Kafka answers, and has the topics")
        assert cluster.asked == [(HERE, frozenset({"queue"}))]

    trial(test, LONG)


def test_a_thousand_pipelines_on_one_broker_cost_one_look_a_period() -> None:
    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        for number in range(1000):
            probes.watch(f"p{number}", [topics("queue", f"results{number}")])
        await until(lambda: len(changes) == 1000)
        assert len(cluster.asked) <= 2
        asked = len(cluster.asked)
        await until(lambda: len(cluster.asked) >= asked + 3)
        assert len(cluster.asked[-1][1]) == 1001
        assert set(Counter(changes).values()) == {1}

    trial(test)


def test_only_the_owner_of_a_missing_topic_hears_of_it() -> None:
    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        probes.watch("a", [topics("one")])
        probes.watch("b", [topics("two", "three")])
        await until(lambda: sorted(changes) == ["a", "b"])
        cluster.answer = Answer(missing=frozenset({"two"}))
        await until(lambda: changes[2:] == ["b"])
        outcome = probes.result(topics("two", "three"))
        assert outcome is not None
        assert outcome.reason == "TopicMissing"
        assert outcome.topics == {"two"}
        assert "topic two" in outcome.message
        good = probes.result(topics("one"))
        assert good is not None
        assert good.ok
        cluster.answer = Answer()
        await until(lambda: changes[2:] == ["b", "b"])

    trial(test)


def test_a_new_topic_on_a_known_connection_is_looked_for_at_once() -> None:
    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        probes.watch("a", [topics("one")])
        await until(lambda: changes == ["a"])
        probes.watch("b", [topics("two")])
        assert probes.result(topics("two")) is None
        await until(lambda: changes == ["a", "b"])
        assert cluster.asked[-1][1] == {"one", "two"}

    trial(test, LONG)


def test_a_blip_is_not_told_but_an_outage_and_its_end_are() -> None:
    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        probes.watch("a", [topics("one")])
        await until(lambda: len(changes) == 1)
        for _ in range(3):  # one failure each: never two in a row
            cluster.answer = DOWN
            await next_look(cluster)
            cluster.answer = Answer()
            await next_look(cluster)
        assert len(changes) == 1
        cluster.answer = DOWN
        await until(lambda: probes.result(topics("one")) == DOWN.trouble)
        assert len(changes) == 2
        cluster.answer = Answer()
        await until(lambda: len(changes) == 3)

    trial(test, Pace(good=0.2, bad=0.1, worst=0.2, again=0.2, gap=0.01))


def test_a_refused_login_is_told_at_once_and_so_is_what_fails_from_the_start() -> None:
    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        probes.watch("a", [topics("one")])
        await until(lambda: len(changes) == 1)
        cluster.answer = REFUSED
        asked = len(cluster.asked)
        probes.watch("a", [topics("one"), topics("two")])  # a topic that hasn't been looked for yet
        await until(lambda: len(changes) == 2)
        assert len(cluster.asked) == asked + 1
        assert probes.result(topics("one")) == REFUSED.trouble
        cluster.answer = DOWN
        probes.watch("b", [topics("one", connection=THERE)])
        await until(lambda: changes[2:] == ["b"])
        assert probes.result(topics("one", connection=THERE)) == DOWN.trouble

    trial(test, LONG)


def test_what_is_bad_is_looked_at_more_often_at_first() -> None:
    times: list[float] = []

    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        cluster.answer = REFUSED
        probes.watch("a", [topics("one")])
        while len(times) < 5:
            await next_look(cluster)
            times.append(time.monotonic())

    trial(test, Pace(good=1000, bad=0.1, worst=0.4, gap=0.01))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    for gap, wanted in zip(gaps, (0.1, 0.2, 0.4, 0.4), strict=True):
        assert wanted * 0.85 < gap < wanted * 1.1 + 0.15


def test_what_nobody_needs_is_not_looked_at() -> None:
    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        probes.watch("a", [topics("one"), topics("two", connection=THERE)])
        probes.watch("b", [topics("one")])
        await until(lambda: len(changes) >= 3)
        probes.forget("a")
        probes.forget("a")
        assert probes.result(topics("two", connection=THERE)) is None
        asked = len(cluster.asked)
        await until(lambda: len(cluster.asked) >= asked + 3)
        assert {connection for connection, _ in cluster.asked[asked + 1 :]} == {HERE}
        probes.watch("b", [])
        assert probes.result(topics("one")) is None

    trial(test)


def test_a_forgotten_look_ends_early_and_slow_brokers_leave_room_for_others() -> None:
    async def test(cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        cluster.seconds, cluster.answer = 0.15, DOWN
        for number in range(12):
            probes.watch(f"slow{number}", [topics("t", connection=Connection((f"{number}:1",)))])
        await until(lambda: len(changes) == 12)
        assert cluster.most <= 4
        cluster.most = 0
        asked = len(cluster.asked)
        await until(lambda: len(cluster.asked) >= asked + 8)
        assert cluster.most <= 2 + 1  # one of the first round may have been under way
        cluster.seconds = 1000
        started = time.monotonic()
        for number in range(12):
            probes.forget(f"slow{number}")
        await until(lambda: cluster.working == 0)
        assert time.monotonic() - started < 5

    trial(test)


def test_a_look_that_raises_is_an_outcome_not_the_end() -> None:
    def look(_connection: Connection, _topics: frozenset[str], _timeout: float, _stop: threading.Event) -> Answer:
        raise RuntimeError("PLANTED")

    async def run() -> None:
        changes: list[str] = []
        probes = Probes[str](changes.append, pace=LONG, look=look)
        probes.watch("a", [topics("one")])  # before run
        task = asyncio.create_task(probes.run())
        await until(lambda: changes)
        outcome = probes.result(topics("one"))
        assert outcome is not None
        assert outcome.reason == "BrokerUnreachable"
        assert "PLANTED" not in outcome.message
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_vaults_are_watched_as_well() -> None:
    async def test(_cluster: Cluster, probes: Probes[str], changes: list[str]) -> None:
        access = Access("http://127.0.0.1:1/api", "key", "secret")
        for owner in "ab":
            probes.watch(owner, [access, topics("one")])
        await until(lambda: len(changes) == 4)
        outcome = probes.result(access)
        assert outcome is not None
        assert outcome.reason == "VaultUnreachable"

    trial(test, LONG)
