"""Queues: where events come from and results go. A new one is a file here and a line in `connect`."""

from vaultml_worker.queues.base import Message, Queue, Report
from vaultml_worker.queues.kafka import KafkaQueue
from vaultml_worker.settings import Settings


def connect(settings: Settings, report: Report) -> Queue:
    """The queue that the settings name; it connects in the background and tells `report` what keeps it from it.

    Raises InvalidInput when its client refuses the settings.
    """
    return KafkaQueue(settings, report)


__all__ = ["Message", "Queue", "Report", "connect"]
