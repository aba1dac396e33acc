"""Queues: where events come from and results go. A new system is a package here and a line in `SYSTEMS`."""

from vaultml_worker.queues import kafka
from vaultml_worker.queues.base import (
    Ended,
    Ending,
    Message,
    Names,
    Queue,
    QueueObserver,
    System,
)

SYSTEMS: dict[str, System] = {system.name: system for system in (kafka.SYSTEM,)}
"""The queue systems by the value of QUEUE_SYSTEM."""

__all__ = ["SYSTEMS", "Ended", "Ending", "Message", "Names", "Queue", "QueueObserver", "System"]
