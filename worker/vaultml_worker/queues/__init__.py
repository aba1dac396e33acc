"""Queues: where events come from and results go. A new one is a file here and a line in `connect` and `check`."""

from vaultml_worker.queues import kafka_check
from vaultml_worker.queues.base import Message, Queue, Report
from vaultml_worker.queues.kafka import KafkaQueue
from vaultml_worker.records import Finding
from vaultml_worker.settings import Settings


def connect(settings: Settings, report: Report) -> Queue:
    """The queue that the settings name; it connects in the background and tells `report` what keeps it from it.

    Raises InvalidInput when its client refuses the settings.
    """
    return KafkaQueue(settings, report)


def check(settings: Settings) -> list[Finding]:
    """Whether a worker could do its work on that queue; takes seconds, takes no message and changes nothing."""
    return kafka_check.check(settings)


__all__ = ["Message", "Queue", "Report", "check", "connect"]
