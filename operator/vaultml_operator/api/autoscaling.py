"""How many workers run."""

from typing import Literal

from pydantic import Field

from vaultml_operator.api.base import Model, Rule


class ScaleOut(Model):
    """How fast workers may be added."""

    stabilization_seconds: int = Field(
        default=0, ge=0, le=3600, description="The lowest need of so many seconds counts: short peaks add no workers."
    )
    max_step: int | None = Field(default=None, ge=1, le=1000, description="Most workers added per period.")
    max_percent: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Most workers added per period, in percent; the larger of both counts.",
    )
    period_seconds: int = Field(default=60, ge=1, le=3600, description="What maxStep and maxPercent are counted over.")


class ScaleIn(Model):
    """How fast workers may be taken away."""

    stabilization_seconds: int | None = Field(
        default=None,
        ge=0,
        le=3600,
        description="The highest need of so many seconds counts. Absent: as long as a worker takes to start, at least "
        "pollingSeconds; 300 s for a step so small that it may be chance.",
    )
    max_step: int | None = Field(default=None, ge=1, le=1000, description="Most workers taken away per period.")
    max_percent: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Most workers taken away per period, in percent; the larger of both counts.",
    )
    period_seconds: int = Field(default=60, ge=1, le=3600, description="What maxStep and maxPercent are counted over.")


class Fallback(Model):
    """What is wanted while the queue can't be read."""

    failures: int = Field(
        default=3, ge=1, le=1000, description="After so many failed readings in a row; until then the number stays."
    )
    behavior: Literal["Static", "Current", "CurrentIfHigher", "CurrentIfLower"] = Field(
        default="Current",
        description="Static: replicas. Current: what there is. CurrentIfHigher: the more of both. CurrentIfLower: the "
        "fewer of both.",
    )
    replicas: int = Field(default=1, ge=0, le=1000, description="The number for all but Current.")


class Autoscaling(Model):
    """How many workers run, from what waits in the queue and the GPUs there are."""

    rules = (
        Rule(
            "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas must not exceed maxReplicas: lower the one or raise the other",
        ),
        Rule(
            "!has(self.idleReplicas) || self.idleReplicas <= self.minReplicas",
            "idleReplicas must not exceed minReplicas: it is for when nothing waits",
        ),
        Rule(
            "!has(self.fallback) || !has(self.maxReplicas) || self.fallback.replicas <= self.maxReplicas",
            "fallback.replicas must not exceed maxReplicas: lower the one or raise the other",
        ),
        Rule(
            "self.gpuCapacity == 'Observed' || has(self.maxReplicas)",
            "gpuCapacity Unlimited needs maxReplicas: nothing else would bound the number of workers",
        ),
    )
    mode: Literal["Auto", "Advisory", "Manual"] = Field(
        default="Auto",
        description="Auto: the operator sets the number of workers. Advisory: it says what it would do, and "
        "spec.replicas counts. Manual: spec.replicas counts, whoever sets it (kubectl scale, an HPA).",
    )
    min_replicas: int = Field(
        default=1, ge=0, le=1000, description="Fewest workers; 0 lets a pipeline with nothing to do go without."
    )
    max_replicas: int | None = Field(
        default=None, ge=1, le=1000, description="Most workers. Absent: what partitions and GPUs allow."
    )
    idle_replicas: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Workers once nothing has waited for cooldownSeconds. Absent: minReplicas.",
    )
    drain_seconds: int | None = Field(
        default=60,
        ge=1,
        le=86_400,
        description="Nothing should wait longer than this (60 if left out). It counts once it is known how fast a "
        "worker is.",
    )
    lag_per_replica: int = Field(
        default=10, ge=1, le=1_000_000, description="Waiting recordings per worker, until it is known how fast one is."
    )
    seconds_per_recording: float | None = Field(
        default=None, gt=0, le=86_400, description="A first guess of how long a worker takes, until it is measured."
    )
    activation_lag: int = Field(
        default=0, ge=0, le=1_000_000, description="Up to so many waiting recordings wake no worker."
    )
    polling_seconds: int = Field(
        default=15,
        ge=1,
        le=3600,
        description="How often the queue is looked at; each 5 s, if that is more often, while nothing waits.",
    )
    cooldown_seconds: int = Field(
        default=300, ge=0, le=86_400, description="How long the last worker stays when nothing waits any more."
    )
    tolerance: float = Field(
        default=0.1, ge=0, le=1, description="A need that is so close to the workers there are changes nothing."
    )
    scale_out: ScaleOut = Field(default=ScaleOut(), description="How fast workers may be added.")
    scale_in: ScaleIn = Field(default=ScaleIn(), description="How fast workers may be taken away.")
    fallback: Fallback | None = Field(
        default=None, description="What is wanted while the queue can't be read. Absent: the number stays."
    )
    even_partitions: bool = Field(
        default=False, description="Only numbers that divide the partitions, so that each worker has as many."
    )
    limit_to_lagging_partitions: bool = Field(
        default=False, description="No more workers than partitions in which something waits."
    )
    allow_idle_consumers: bool = Field(
        default=False, description="More workers than partitions may run; those beyond have nothing to do."
    )
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Of pipelines that want the same GPUs those of higher priority are served first.",
    )
    weight: float = Field(
        default=1, gt=0, le=100, description="Share of scarce GPUs among pipelines of the same priority."
    )
    gpu_capacity: Literal["Observed", "Unlimited"] = Field(
        default="Observed",
        description="Observed: no more workers than the GPUs on the nodes allow. Unlimited: where a cluster autoscaler "
        "adds nodes for pending pods.",
    )
