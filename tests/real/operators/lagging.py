"""A queue whose lag a test sets as it likes, and a node with as many GPUs as it needs, in name only."""

import uuid
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from testbed.kafka import Broker
from testbed.kubernetes import Cluster, gpus
from testbed.kubernetes.node import Node
from testbed.operator import Pipelines
from testbed.process import wait_for

QUIET = {"log_level": 0}
POLL_S = 1


class Queue:
    """A topic and a group on it."""

    def __init__(self, broker: Broker, partitions: int = 8, **config: str) -> None:
        self.name = f"lag-{uuid.uuid4().hex[:8]}"
        self.group = f"group-{self.name}"
        self.broker = broker
        self.partitions = partitions
        self._sent = 0
        broker.create_topic(self.name, partitions, **config)
        self.admin = AdminClient({**QUIET, "bootstrap.servers": broker.plaintext})

    def pour(self, count: int, partitions: Iterable[int] | None = None, timestamp: int = 0) -> None:
        """Add so many events, to each of the partitions in turn."""
        producer = Producer({**QUIET, "bootstrap.servers": self.broker.plaintext})
        places = list(partitions if partitions is not None else range(self.partitions))
        for _ in range(count):
            producer.produce(self.name, b"{}", partition=places[self._sent % len(places)], timestamp=timestamp)
            self._sent += 1
        assert producer.flush(30) == 0

    def commit(self, *partitions: int, left: int = 0, beyond: int = 0) -> None:
        """Have all but `left` events of these partitions (none: of all) be done; or `beyond` more than there are.

        All at once: a poll that saw a part of it would take it for work, and know how fast a worker is.
        """
        consumer = self.member("committer", subscribe=False)
        try:
            places = []
            for number in partitions or range(self.partitions):
                low, high = consumer.get_watermark_offsets(TopicPartition(self.name, number), timeout=30)
                offset = high + beyond if beyond else max(low, high - left)
                places.append(TopicPartition(self.name, number, offset))
            consumer.commit(offsets=places, asynchronous=False)
        finally:
            consumer.close()

    def member(self, client: str, *, subscribe: bool = True) -> Consumer:
        """A member of the group, which a test polls and closes itself."""
        consumer = Consumer(
            {
                **QUIET,
                "bootstrap.servers": self.broker.plaintext,
                "group.id": self.group,
                "client.id": client,
                # Whoever joins or is lost is heard of at once, not after 3 and 45 seconds.
                "heartbeat.interval.ms": 500,
                "session.timeout.ms": 6_000,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        if subscribe:
            consumer.subscribe([self.name])
        return consumer


class Farm:
    """GPU nodes of a test's own: only what asks for them lands there."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.name = f"farm-{uuid.uuid4().hex[:6]}"
        self.nodes: list[Node] = []

    def add(self, count: int) -> Node:
        """One more node with so many GPUs."""
        offered = gpus.whole(count)
        offered["labels"] |= {"farm": self.name}
        taint = {"key": self.name, "effect": "NoSchedule"}
        node = self._cluster.node(f"{self.name}-{len(self.nodes)}", hollow=True, **offered, taints=[taint])
        self.nodes.append(node)
        return node

    @property
    def worker(self) -> dict[str, Any]:
        """What `spec.worker` needs to land here."""
        return {
            "nodeSelector": {"farm": self.name},
            "tolerations": [{"key": self.name, "operator": "Exists"}],
            "terminationGracePeriodSeconds": 5,
        }

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


def body(queue: Queue, farm: Farm | None = None, name: str = "p", **autoscaling: Any) -> dict[str, Any]:
    """A pipeline that is scaled on the queue's lag, looked at each second."""
    kafka: dict[str, Any] = {"brokers": [queue.broker.plaintext], "group": queue.group}
    given = {"pollingSeconds": POLL_S, "lagPerReplica": 10, "scaleIn": {"stabilizationSeconds": 0}, **autoscaling}
    spec: dict[str, Any] = {"queue": {"name": queue.name, "kafka": kafka}, "autoscaling": given}
    if farm is not None:
        spec["worker"] = farm.worker
    return {
        "apiVersion": "ml.kerberos.io/v1alpha1",
        "kind": "VaultMLPipeline",
        "metadata": {"name": name},
        "spec": spec,
    }


def workers(pipelines: Pipelines, name: str = "p") -> int:
    """How many workers the Deployment asks for; -1 while there is none."""
    found = pipelines.get("deployment", name)
    return -1 if found is None else int(found["spec"]["replicas"])


def scaling(pipelines: Pipelines, name: str = "p") -> dict[str, Any]:
    """`.status.autoscaling`."""
    found = pipelines.get("vmlp", name) or {}
    said: dict[str, Any] = (found.get("status") or {}).get("autoscaling") or {}
    return said


def wait_workers(pipelines: Pipelines, count: int, name: str = "p", timeout: float = 30) -> None:
    """Return once the Deployment asks for so many."""
    try:
        wait_for(lambda: workers(pipelines, name) == count, timeout, f"{count} workers")
    except TimeoutError as error:
        raise AssertionError(f"{error}; there are {workers(pipelines, name)}: {scaling(pipelines, name)}") from None


def wait_scaling(pipelines: Pipelines, name: str = "p", timeout: float = 30, **fields: Any) -> dict[str, Any]:
    """Return `.status.autoscaling` once it says so."""

    def there() -> dict[str, Any] | None:
        said = scaling(pipelines, name)
        return said if all(said.get(key) == value for key, value in fields.items()) else None

    try:
        return wait_for(there, timeout, f"a status of {fields}")
    except TimeoutError as error:
        raise AssertionError(f"{error}; it is {scaling(pipelines, name)}") from None


def polls(pipelines: Pipelines, operator: Any, count: int = 5, name: str = "p") -> None:
    """Return after the queue was looked at so many times more."""
    key = f'vaultml_pipeline_polls_total{{namespace="{pipelines.namespace}",pipeline="{name}"}}'
    before = operator.metrics().get(key, 0)
    wait_for(lambda: operator.metrics().get(key, 0) >= before + count, 60, f"{count} polls")
