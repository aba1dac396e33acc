"""One real Kafka broker (KRaft, a single process) from jars that Maven fetches."""

from testbed.kafka.broker import Broker
from testbed.kafka.distribution import available, jars

__all__ = ["Broker", "available", "jars"]
