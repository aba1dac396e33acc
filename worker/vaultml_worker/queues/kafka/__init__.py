"""Kafka: everything that is particular to it."""

from vaultml_common.kafka import dead_letter_topic, wrong_topic
from vaultml_worker.queues.base import System
from vaultml_worker.queues.kafka.check import check
from vaultml_worker.queues.kafka.queue import KafkaQueue
from vaultml_worker.queues.kafka.reader import follow_results
from vaultml_worker.queues.kafka.settings import KafkaSettings

SYSTEM = System(
    "KAFKA",
    KafkaSettings,
    dead_letter_topic,
    wrong_topic,
    KafkaQueue,
    check,
    follow_results,
    unused_by_readers={"kafka_group": "unused"},
)
