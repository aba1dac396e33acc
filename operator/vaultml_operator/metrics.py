"""What the operator tells Prometheus."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vaultml_operator.cluster import Measured


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
        self._requests = Counter(
            f"{prefix}_api_requests",
            "Requests to the Kubernetes API by verb and HTTP status (0: no answer); watches are kopf's own.",
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
            )
        }

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

    def gone(self, namespace: str, pipeline: str) -> None:
        """A pipeline is no more."""
        for gauge in self._gauges.values():
            # A pipeline that was never told has no samples; removing them is no error.
            gauge.remove_by_labels({"namespace": namespace, "pipeline": pipeline})
