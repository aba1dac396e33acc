"""What the operator tells Prometheus."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vaultml_operator.autoscaler.records import Decision, Observation
from vaultml_operator.cluster import Measured

_SCALING = (
    ("desired_replicas", "Workers that the autoscaler asks for."),
    ("needed_replicas", "Workers that are needed, before any limit."),
    ("lag", "Recordings that wait, those in work included."),
    ("lag_known", "1 while the queue can be read."),
    ("stuck_lag", "The part of the lag that sits in partitions that do not move although others do."),
    ("oldest_message_age_seconds", "Age of the oldest message that waits."),
    ("partitions", "Partitions of the queue."),
    ("lagging_partitions", "Partitions in which something waits."),
    ("arrival_rate", "Recordings that arrive per second."),
    ("service_rate", "Recordings per second and busy worker."),
    ("startup_seconds", "How long a worker takes to get ready."),
    ("gpu_limit", "Workers that the GPUs allow, those running included."),
)


class Metrics:
    """All metrics, in a registry of their own; docs/metrics.md names them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "vaultml_operator"
        self._reconciles = Counter(
            f"{prefix}_reconciles", "Reconciles by outcome.", ["outcome"], registry=self.registry
        )
        self._seconds = Histogram(f"{prefix}_reconcile_seconds", "Seconds per reconcile.", registry=self.registry)
        self.depth = Gauge(f"{prefix}_queue_depth", "Pipelines that wait for a reconcile.", registry=self.registry)
        self.oldest = Gauge(
            f"{prefix}_queue_oldest_seconds", "Age of the oldest unfinished reconcile.", registry=self.registry
        )
        self.leading = Gauge(f"{prefix}_leading", "1 while this replica leads.", registry=self.registry)
        self.queue_calls = Gauge(
            f"{prefix}_queue_calls", "Requests to the pipelines' queues so far.", registry=self.registry
        )
        self._requests = Counter(
            f"{prefix}_api_requests",
            "Requests to the Kubernetes API by verb and HTTP status (0: no answer), without kopf's watches.",
            ["verb", "code"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            f"{prefix}_api_request_seconds", "Seconds per request.", ["verb"], registry=self.registry
        )
        labels = ["namespace", "pipeline"]
        self._gauges = {
            name: Gauge(f"vaultml_pipeline_{name}", text, labels, registry=self.registry)
            for name, text in (
                ("ready", "1 while the condition Ready is True."),
                ("replicas", "Worker pods that exist."),
                ("ready_replicas", "Worker pods that are ready."),
                ("wanted_replicas", "Worker pods that are wanted."),
                *_SCALING,
            )
        }
        self._limited = Gauge(
            "vaultml_pipeline_limited",
            "1 for each rule that changed the number of workers in the last decision.",
            [*labels, "rule"],
            registry=self.registry,
        )
        self._polls = Counter(
            "vaultml_pipeline_polls",
            "Decisions about the number of workers, one for each look at the queue.",
            labels,
            registry=self.registry,
        )
        # What has samples: looking for them among those of a thousand pipelines takes long.
        self._limits: dict[tuple[str, str], set[str]] = {}
        self._known: dict[tuple[str, str], set[str]] = {}

    def reconciled(self, outcome: str, seconds: float) -> None:
        """One reconcile ended."""
        self._reconciles.labels(outcome).inc()
        self._seconds.observe(seconds)

    def requested(self, request: Measured) -> None:
        """One request to the Kubernetes API ended."""
        self._requests.labels(request.verb, str(request.status)).inc()
        self._request_seconds.labels(request.verb).observe(request.seconds)

    def told(self, namespace: str, pipeline: str, status: Mapping[str, Any]) -> None:
        """A pipeline's status was computed."""
        ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status["conditions"])
        values = {
            "ready": int(ready),
            "replicas": status["replicas"],
            "ready_replicas": status["readyReplicas"],
            "wanted_replicas": int(str(status.get("workers", "/0")).rpartition("/")[2]),
        }
        for name, value in values.items():
            self._gauges[name].labels(namespace, pipeline).set(value)

    def decided(self, key: tuple[str, str], seen: Observation, decision: Decision) -> None:
        """A decision about the number of workers: what it saw and what it said. What is not known has no sample."""
        backlog = seen.backlog
        values = {
            "desired_replicas": decision.replicas,
            "needed_replicas": decision.needed,
            "lag": None if backlog is None else backlog.lag,
            "lag_known": int(backlog is not None),
            "stuck_lag": None if backlog is None else backlog.stuck,
            "oldest_message_age_seconds": None if backlog is None else backlog.oldest_seconds or 0.0,
            "partitions": None if backlog is None else backlog.parallelism,
            "lagging_partitions": None if backlog is None else backlog.lagging,
            "arrival_rate": seen.arrival,
            "service_rate": seen.service,
            "startup_seconds": seen.startup_seconds,
            "gpu_limit": seen.slots,
        }
        known = {name: value for name, value in values.items() if value is not None}
        for name in self._known.get(key, set()) - known.keys():
            self._gauges[name].remove(*key)
        for name, value in known.items():
            self._gauges[name].labels(*key).set(value)
        self._known[key] = {*known}
        self._polls.labels(*key).inc()
        bit = {each.name for each in decision.limits}
        for rule in self._limits.get(key, set()) - bit:
            self._limited.remove(*key, rule)
        for rule in bit:
            self._limited.labels(*key, rule).set(1)
        self._limits[key] = {*bit}

    def gone(self, namespace: str, pipeline: str) -> None:
        """A pipeline is no more."""
        self._limits.pop((namespace, pipeline), None)
        self._known.pop((namespace, pipeline), None)
        for gauge in (*self._gauges.values(), self._limited, self._polls):
            # A pipeline that was never told has no samples; removing them is no error.
            gauge.remove_by_labels({"namespace": namespace, "pipeline": pipeline})
