"""One real Kafka broker (KRaft, a single process) from jars that Maven fetches."""

from testbed.kafka.broker import Broker
from testbed.kafka.distribution import available, jars
from testbed.kafka.strict import OAuthBroker, StrictBroker

__all__ = ["Broker", "OAuthBroker", "StrictBroker", "available", "jars"]
