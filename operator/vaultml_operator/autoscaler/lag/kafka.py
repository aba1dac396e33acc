"""Kafka's lag: committed offsets, log starts and ends, members and retention, in a few calls for all pipelines.

One round asks for: the topics' partitions (one call), all groups' members (one call), each group's commits (a call
each, all under way at once), log starts and log ends of all partitions (a call each). Commits are read before log ends,
so that a commit beyond the end really is one.
"""

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource

# Also in confluent_kafka.admin, but not for type checkers.
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.cimpl import NewPartitions

from vaultml_operator.autoscaler.lag.base import Ask, Member, Partition, PartitionIncrease, Reading, ReadingFailed
from vaultml_operator.autoscaler.lag.end_offsets import EndOffsetHistory
from vaultml_operator.probes import Connection

T = TypeVar("T")

_PEEK_S = 3.0
_EMBEDDED = "mockCluster"
"""How librdkafka's own mock cluster, the demo's embedded broker, names itself: it can't describe topics or groups."""
_MISSING = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
)
_RETENTION_S = 600.0
"""How long a topic's retention is taken for unchanged."""
_FORGET_S = 7200.0
"""What was not asked for in so long is forgotten: twice the longest polling."""
_STILL = 2
"""After so many rounds without a change a small lag is looked at: is there a message behind it at all?"""
_MARKERS = 8
"""Largest lag that may be nothing but control markers of transactions."""


class KafkaReader:
    """One admin connection for all pipelines with these brokers and credentials; see `Reader`."""

    def __init__(self, connection: Connection, timeout: float = 10.0) -> None:
        # librdkafka's log belongs to nobody: what it means is told by the check of the connection (probes/kafka.py).
        self._log = logging.Logger("lag", logging.CRITICAL + 1)  # noqa: LOG001 - not in the process-wide registry
        self._settings = {**connection.settings(), "log_level": 0, "error_cb": lambda _error: None}
        self._timeout = timeout
        self._admin = self._connect()
        self._peeker: Consumer | None = None
        self._asked: dict[Ask, float] = {}
        """When each was last asked for (monotonic seconds)."""
        self._histories: dict[tuple[str, int], EndOffsetHistory] = {}
        self._seen: dict[tuple[Ask, int], _Seen] = {}
        self._retention: dict[str, tuple[float, float | None]] = {}
        self._describes: bool | None = None
        """Whether this is a broker that can describe topics and groups; None: it was not reached yet."""
        self.calls = 0
        # librdkafka splits some of them, one to each broker that leads a part of what is asked for.

    def read(self, asked: Sequence[Ask]) -> Mapping[Ask, Reading | ReadingFailed]:
        """See Reader."""
        if not asked:
            return {}
        self._forget(asked)
        answers: dict[Ask, Reading | ReadingFailed]
        try:
            answers = self._read(asked)
        except (KafkaException, TimeoutError) as error:
            answers = dict.fromkeys(asked, ReadingFailed(f"the lag can't be read: {_said(error)}"))
        if all(isinstance(each, ReadingFailed) for each in answers.values()):
            # A client that has lost a cluster can take minutes to find its coordinators again; a new one is quick.
            self._admin = self._connect()
        return answers

    def _forget(self, asked: Sequence[Ask]) -> None:
        """Forget pipelines that are gone; a round asks only for those that are due."""
        now = time.monotonic()
        self._asked |= dict.fromkeys(asked, now)
        gone = {ask for ask, at in self._asked.items() if now - at > _FORGET_S}
        if gone:
            self._asked = {ask: at for ask, at in self._asked.items() if ask not in gone}
            queues = {ask.queue for ask in self._asked}
            self._seen = {place: seen for place, seen in self._seen.items() if place[0] not in gone}
            self._histories = {place: history for place, history in self._histories.items() if place[0] in queues}
            self._retention = {queue: known for queue, known in self._retention.items() if queue in queues}

    def _connect(self) -> AdminClient:
        return AdminClient(self._settings, logger=self._log)

    def close(self) -> None:
        """See Reader."""
        if self._peeker is not None:
            self._peeker.close()
            self._peeker = None

    def _read(self, asked: Sequence[Ask]) -> dict[Ask, Reading | ReadingFailed]:
        topics = self._topics(
            {each.queue for each in asked} | {each.dead_letters for each in asked if each.dead_letters}
        )
        increases = {each: self._raise_partitions(each, topics) for each in asked}
        there = [each for each in asked if topics.get(each.queue)]
        members = self._members({each.group for each in there})
        commits = self._commits(there, topics, members)
        places = {(topic, number) for topic, count in topics.items() for number in range(count or 0)}
        starts = self._offsets(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        now = time.time()
        self._learn(topics.keys() & {each.queue for each in asked}, ends, now)
        found: dict[Ask, Reading | ReadingFailed] = {}
        for each in asked:
            offsets = commits.get(each)
            wanted = [(each.queue, number) for number in range(topics.get(each.queue) or 0)]
            if not wanted:
                found[each] = ReadingFailed(f"the lag can't be read: Kafka has no topic {each.queue}")
            elif isinstance(offsets, ReadingFailed) or offsets is None:
                found[each] = offsets or ReadingFailed("the lag can't be read: the commits are not known")
            elif not all(place in starts and place in ends for place in wanted):
                found[each] = ReadingFailed(
                    f"the lag can't be read: the topic {each.queue} is not served at the moment"
                )
            else:
                parts = tuple(
                    _partition(number, starts[place], ends[place], offsets.get(number), each.from_start)
                    for number, place in enumerate(wanted)
                )
                letters = [(each.dead_letters, number) for number in range(topics.get(each.dead_letters) or 0)]
                dead = sum(ends[place] - starts[place] for place in letters if place in ends and place in starts)
                known = members.get(each.group)
                mine = _members_of(each.queue, known) if isinstance(known, list) else None
                retention = self._retention_of(each.queue, now)
                found[each] = Reading(now, parts, mine, retention, dead, increases[each])
        self._date(found, now)
        return found

    # --- topics -------------------------------------------------------------------------------------------------

    def _topics(self, names: Iterable[str]) -> dict[str, int]:
        """How many partitions each topic has; those that don't exist are left out."""
        wanted = sorted(names)
        if not self._describes:
            self.calls += 1
            cluster = self._admin.list_topics(timeout=min(5.0, self._timeout))
            self._describes = not str(cluster.cluster_id).startswith(_EMBEDDED)
            return {name: len(cluster.topics[name].partitions) for name in wanted if name in cluster.topics}
        asked = self._call(self._admin.describe_topics, TopicCollection(wanted))
        counts = {name: _result(future, self._timeout) for name, future in asked.items()}
        for found in counts.values():
            if isinstance(found, KafkaException) and found.args[0].code() not in _MISSING:
                raise found
        return {name: len(found.partitions) for name, found in counts.items() if not isinstance(found, Exception)}

    def _raise_partitions(self, ask: Ask, topics: dict[str, int]) -> PartitionIncrease | None:
        """Raise the queue's partitions where asked; None: nothing to do."""
        there = topics.get(ask.queue)
        if ask.partitions is None or not there or there >= ask.partitions:
            return None
        future = self._call(self._admin.create_partitions, [NewPartitions(ask.queue, ask.partitions)])[ask.queue]
        error = _result(future, self._timeout)
        if isinstance(error, Exception):
            return PartitionIncrease(
                done=False,
                message=f"the topic {ask.queue} could not be raised from {there} to {ask.partitions} partitions "
                f"({_said(error)}): allow the Kafka user to alter it, or raise it yourself",
            )
        return PartitionIncrease(
            done=True, message=f"raised the topic {ask.queue} from {there} to {ask.partitions} partitions"
        )

    def _retention_of(self, topic: str, now: float) -> float | None:
        at, seconds = self._retention.get(topic, (-math.inf, None))
        if now - at < _RETENTION_S or not self._describes:
            return seconds
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        entries = _result(self._call(self._admin.describe_configs, [resource])[resource], self._timeout)
        if isinstance(entries, Exception) or "retention.ms" not in entries:
            seconds = None  # not allowed to see it, or a broker that knows no such thing
        else:
            milliseconds = int(entries["retention.ms"].value)
            seconds = None if milliseconds < 0 else milliseconds / 1000
        self._retention[topic] = (now, seconds)
        return seconds

    # --- offsets and members ------------------------------------------------------------------------------------

    def _commits(
        self, asked: Iterable[Ask], topics: Mapping[str, int], members: Mapping[str, list[Any] | KafkaException]
    ) -> dict[Ask, dict[int, int | None] | ReadingFailed]:
        under_way = {}
        found: dict[Ask, dict[int, int | None] | ReadingFailed] = {}
        for each in asked:
            # librdkafka (2.16) takes the whole process down when a broker that isn't the group's coordinator (any more)
            # is asked for commits by an admin client: they are asked for only where the coordinator has just answered.
            if isinstance(trouble := members.get(each.group), KafkaException):
                found[each] = ReadingFailed(f"the group {each.group} can't be described: {_said(trouble)}")
                continue
            places = [TopicPartition(each.queue, number) for number in range(topics[each.queue])]
            request = [ConsumerGroupTopicPartitions(each.group, places)]
            under_way[each] = self._call(self._admin.list_consumer_group_offsets, request)[each.group]
        for each, future in under_way.items():
            answer = _result(future, self._timeout)
            if isinstance(answer, Exception):
                found[each] = ReadingFailed(f"the group {each.group}'s commits can't be read: {_said(answer)}")
                continue
            wrong = next((item.error for item in answer.topic_partitions if item.error is not None), None)
            if wrong is not None and wrong.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                found[each] = ReadingFailed(f"the group {each.group}'s commits can't be read: {wrong.str()}")
                continue
            found[each] = {
                item.partition: item.offset if item.offset >= 0 else None for item in answer.topic_partitions
            }
        return found

    def _members(self, groups: set[str]) -> dict[str, list[Any] | KafkaException]:
        """The members of each group, or why it can't be described; without an entry where nobody can tell."""
        if not groups or not self._describes:
            return {}
        under_way = self._call(self._admin.describe_consumer_groups, sorted(groups))
        answers = {group: _result(future, self._timeout) for group, future in under_way.items()}
        return {
            group: answer if isinstance(answer, KafkaException) else list(answer.members)
            for group, answer in answers.items()
        }

    def _offsets(self, places: Iterable[tuple[str, int]], which: OffsetSpec) -> dict[tuple[str, int], int]:
        wanted = {TopicPartition(topic, number): which for topic, number in sorted(places)}
        if not wanted:
            return {}
        # What a transaction has not committed can't be consumed yet: it does not wait.
        committed = IsolationLevel.READ_COMMITTED
        under_way = self._call(self._admin.list_offsets, wanted, isolation_level=committed)
        found = {(each.topic, each.partition): _result(future, self._timeout) for each, future in under_way.items()}
        return {place: answer.offset for place, answer in found.items() if not isinstance(answer, Exception)}

    def _call(self, call: Any, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return call(*arguments, request_timeout=self._timeout, **options)

    # --- since when ---------------------------------------------------------------------------------------------

    def _learn(self, queues: Iterable[str], ends: Mapping[tuple[str, int], int], now: float) -> None:
        wanted = set(queues)
        for place, end in ends.items():
            if place[0] in wanted:
                self._histories.setdefault(place, EndOffsetHistory()).add(now, end)

    def _date(self, found: dict[Ask, Reading | ReadingFailed], now: float) -> None:
        """Say since when the oldest of each partition has waited, and that nothing does where only markers are left."""
        unknown: dict[tuple[str, int], int] = {}
        for ask, reading in found.items():
            for part in reading.partitions if isinstance(reading, Reading) else ():
                seen = self._seen.setdefault((ask, part.number), _Seen())
                seen.update(part)
                history = self._histories[ask.queue, part.number]
                suspect = part.lag <= _MARKERS and seen.still >= _STILL
                if part.lag and seen.peeked is None and (suspect or history.since(part.committed) is None):
                    unknown[ask.queue, part.number] = min(
                        part.committed, unknown.get((ask.queue, part.number), part.committed)
                    )
        peeked = self._peek(unknown) if unknown else {}
        for ask, reading in found.items():
            if isinstance(reading, Reading):
                dated = tuple(self._dated(ask, part, peeked, now) for part in reading.partitions)
                found[ask] = Reading(
                    reading.time, dated, reading.members, reading.retention, reading.dead, reading.increase
                )

    def _dated(self, ask: Ask, part: Partition, peeked: Mapping[tuple[str, int], "_Peeked"], now: float) -> Partition:
        if not part.lag:
            return part
        seen, place = self._seen[ask, part.number], (ask.queue, part.number)
        if place in peeked and peeked[place].at == part.committed:
            seen.peeked = peeked[place]
        if seen.peeked is not None:
            if seen.peeked.empty:
                return Partition(part.number, part.start, part.end, part.committed, 0)
            oldest: float | None = seen.peeked.time
        else:
            oldest = self._histories[place].since(part.committed)
        return Partition(
            part.number, part.start, part.end, part.committed, part.lag, None if oldest is None else min(oldest, now)
        )

    def _peek(self, places: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], "_Peeked"]:
        """Look at the first message from each offset on; what could not be seen in time is left out."""
        if self._peeker is None:
            own = {"group.id": "vaultml-operator", "enable.auto.commit": False, "enable.partition.eof": True}
            small = {"fetch.message.max.bytes": 65536, "isolation.level": "read_committed"}
            self._peeker = Consumer({**self._settings, **own, **small}, logger=self._log)
        found: dict[tuple[str, int], _Peeked] = {}
        with suppress(KafkaException):
            self._peeker.assign([TopicPartition(topic, number, offset) for (topic, number), offset in places.items()])
            self.calls += 1
            until = time.monotonic() + _PEEK_S
            while len(found) < len(places) and (left := until - time.monotonic()) > 0:
                message = self._peeker.poll(min(left, 0.2))
                if message is None:
                    continue
                place = (str(message.topic()), int(message.partition() or 0))
                error = message.error()
                if error is None:
                    kind, milliseconds = message.timestamp()
                    found.setdefault(place, _Peeked(places[place], False, milliseconds / 1000 if kind else None))
                elif error.code() == KafkaError._PARTITION_EOF:
                    found.setdefault(place, _Peeked(places[place], True, None))
            self._peeker.unassign()
        return found


class _Peeked:
    """What stands at an offset: nothing (control markers, at most), or a message of some time."""

    __slots__ = ("at", "empty", "time")

    def __init__(self, at: int, empty: bool, time: float | None) -> None:
        self.at = at
        self.empty = empty
        self.time = time


class _Seen:
    """How a partition was last seen by a group."""

    __slots__ = ("committed", "end", "peeked", "still")

    def __init__(self) -> None:
        self.committed = self.end = -1
        self.still = 0
        self.peeked: _Peeked | None = None

    def update(self, part: Partition) -> None:
        if (part.committed, part.end) == (self.committed, self.end):
            self.still += 1
            return
        if part.committed != self.committed or (self.peeked is not None and self.peeked.empty):
            self.peeked = None
        self.committed, self.end, self.still = part.committed, part.end, 0


def _partition(number: int, start: int, end: int, committed: int | None, from_start: bool) -> Partition:
    """A partition as its group will find it.

    Without a commit, or with one beyond the end (the topic was made anew), consumers follow the reset policy.
    """
    reset = start if from_start else end
    at = reset if committed is None or committed > end else max(committed, start)
    return Partition(number, start, end, at, max(0, end - at))


def _members_of(queue: str, members: Iterable[Any]) -> tuple[Member, ...]:
    return tuple(
        Member(
            str(each.client_id),
            frozenset(
                item.partition
                for item in (each.assignment.topic_partitions if each.assignment else ())
                if item.topic == queue
            ),
        )
        for each in members
    )


def _result(future: "Future[T]", timeout: float) -> Any:
    """The result, or the error as a value: one partition's error is no other's."""
    try:
        return future.result(timeout + 1)
    except KafkaException as error:
        return error
    except TimeoutError:
        return KafkaException(KafkaError(KafkaError._TIMED_OUT))


def _said(error: BaseException) -> str:
    """In librdkafka's words for its own code; a broker's text is not ours to publish."""
    if isinstance(error, KafkaException) and isinstance(error.args[0], KafkaError):
        return {
            KafkaError._TIMED_OUT: "no answer in time",
            KafkaError._TRANSPORT: "no broker can be reached",
            KafkaError._ALL_BROKERS_DOWN: "no broker can be reached",
        }.get(error.args[0].code(), str(error.args[0].name()))
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
