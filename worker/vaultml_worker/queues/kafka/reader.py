"""Reading a result topic as a bystander: no group, no commits, committed results only."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from vaultml_worker.queues.kafka.settings import KafkaSettings
from vaultml_worker.records import InvalidInput


def follow_results(
    topic: str, settings: KafkaSettings, stop: threading.Event, to_the_end: bool
) -> Iterator[bytes | None]:
    """See System."""
    return follow(settings.client(), topic, stop, to_the_end=to_the_end)


def follow(
    client: Mapping[str, Any], topic: str, stop: threading.Event, *, to_the_end: bool = False
) -> Iterator[bytes | None]:
    """Every message of the topic from its beginning, None while there is none; until `stop`, or the end as of now.

    Raises InvalidInput when the topic can't be read.
    """
    try:
        consumer = Consumer(
            {**client, "group.id": "vaultml-results", "enable.auto.commit": False, "isolation.level": "read_committed"}
        )
    except KafkaException as error:
        raise InvalidInput(f"topic {topic} can't be read: {error.args[0].str()}") from None
    try:
        places = _beginnings(consumer, topic)
        consumer.assign(places)
        ends = {item.partition: _end(consumer, item) for item in places} if to_the_end else {}
        while not stop.is_set():
            if to_the_end and all(_reached(consumer, topic, number, end) for number, end in ends.items()):
                return
            record = consumer.poll(0.2)
            if record is not None and record.error() is None:
                yield record.value() or b""
            else:
                yield None
    except KafkaException as error:
        raise InvalidInput(f"topic {topic} can't be read: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _beginnings(consumer: Consumer, topic: str) -> list[TopicPartition]:
    found = consumer.list_topics(topic, timeout=10).topics[topic]
    if found.error is not None:
        raise InvalidInput(f"topic {topic} can't be read: {found.error.str()}")
    offsets = (consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10) for number in found.partitions)
    return [
        TopicPartition(topic, number, low_high[0])
        for number, low_high in zip(found.partitions, offsets, strict=True)
        if low_high is not None
    ]


def _end(consumer: Consumer, place: TopicPartition) -> int:
    offsets = consumer.get_watermark_offsets(place, timeout=10)
    return offsets[1] if offsets and offsets[1] > place.offset else 0


def _reached(consumer: Consumer, topic: str, partition: int, end: int) -> bool:
    return end == 0 or consumer.position([TopicPartition(topic, partition)])[0].offset >= end
