"""Our operator, as it is installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.autoscaling.scene import NAME, SPACE, Scene, pipeline
from testbed.kubernetes import Cluster
from testbed.kubernetes.control_plane import Flags
from testbed.operator import Operator, Pipelines, grant
from vaultml_operator import crd

LAG_PER_REPLICA, DRAIN_SECONDS = 5, 20


class Ours:
    """One operator and one pipeline."""

    label = "ours"

    @property
    def flags(self) -> Flags:
        """Nothing."""
        return {}

    @contextmanager
    def scaling(self, scene: Scene) -> Iterator[None]:
        """Scale the workers, from none, until the block ends."""
        cluster, trace = scene.cluster, scene.trace
        cluster.apply(crd.definition())
        grant(cluster)
        with Operator(cluster, cluster.logs / "operator.log") as operator:
            operator.wait_ready().wait_leads()
            autoscaling = {
                "minReplicas": 0,
                "lagPerReplica": LAG_PER_REPLICA,
                "drainSeconds": DRAIN_SECONDS,
                "pollingSeconds": round(trace.polling or 0),
                "cooldownSeconds": round(trace.cooldown),
            }
            pipelines = Pipelines(cluster, SPACE)
            pipelines.apply(pipeline(scene, **autoscaling))
            pipelines.wait(NAME, "ScaledToZero")
            yield

    @staticmethod
    def note(cluster: Cluster) -> str:
        """What the status says."""
        found = Pipelines(cluster, SPACE).get("vmlp", NAME) or {}
        said = (found.get("status") or {}).get("autoscaling") or {}
        return f"{said.get('readyReplicas')} ready: {said.get('message')}"
