"""What waits in a queue. A new kind of queue is a file here and a line in `open_reader`."""

from vaultml_operator.autoscaler.lag.base import (
    Ask,
    Member,
    Partition,
    PartitionIncrease,
    Reader,
    Reading,
    ReadingFailed,
)
from vaultml_operator.autoscaler.lag.kafka import KafkaReader
from vaultml_operator.probes import Connection


def open_reader(connection: Connection) -> Reader:
    """A reader of the queues behind this connection; the kind of connection decides which."""
    return KafkaReader(connection)


__all__ = ["Ask", "Member", "Partition", "PartitionIncrease", "Reader", "Reading", "ReadingFailed", "open_reader"]
