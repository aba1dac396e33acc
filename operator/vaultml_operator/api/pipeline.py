"""The resource as stored: its spec, and what is needed of its metadata."""

from typing import Any

from pydantic import Field, ValidationError

from vaultml_operator.api.autoscaling import Autoscaling
from vaultml_operator.api.base import PAUSE_SCALE_IN, PAUSE_SCALE_OUT, PAUSED, Model, Rule
from vaultml_operator.api.model import Detection, NeuralNetwork
from vaultml_operator.api.queue import Queue, Vault
from vaultml_operator.api.worker import Monitoring, Worker


class Spec(Model):
    """What a pipeline should be."""

    rules = (
        Rule(
            "!has(self.queue.kafka) || self.queue.kafka.offsetReset != 'latest' || self.autoscaling.mode != 'Auto' || "
            "(self.autoscaling.minReplicas > 0 && (!has(self.autoscaling.idleReplicas) || "
            "self.autoscaling.idleReplicas > 0))",
            "offsetReset latest needs a worker at all times, for what came before the first does not count as waiting: "
            "set it to earliest, or minReplicas (and idleReplicas) to 1 or more",
        ),
    )
    queue: Queue = Field(description="Where events come from and results go to.")
    vault: Vault | None = Field(
        default=None, description="Kerberos Vault. Absent: each event brings its own address and keys."
    )
    model: NeuralNetwork = Field(default=NeuralNetwork(), description="The network that looks at the frames.")
    detection: Detection = Field(default=Detection(), description="What is looked at and reported.")
    replicas: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="How many workers run in the modes Manual and Advisory; kubectl scale sets it, too.",
    )
    autoscaling: Autoscaling = Field(
        default=Autoscaling(), description="How many workers run, from what waits in the queue and the GPUs there are."
    )
    suspend: bool = Field(default=False, description="true: no workers; replicas is kept for later.")
    worker: Worker = Field(default=Worker(), description="The worker pods.")
    monitoring: Monitoring = Field(default=Monitoring(), description="Prometheus.")


def is_set(body: dict[str, Any], annotation: str) -> bool:
    """Whether the resource, as the API server gives it, carries this annotation with "true"."""
    return (body["metadata"].get("annotations") or {}).get(annotation) == "true"


def is_paused(body: dict[str, Any]) -> bool:
    """Whether the resource, as the API server gives it, carries the annotation that pauses it."""
    return is_set(body, PAUSED)


class InvalidResource(Exception):  # noqa: N818 - named as the worker's InvalidInput
    """A stored resource that this operator can't read; the message says which fields and why."""


class Pipeline(Model):
    """A VaultMLPipeline as stored, with what the operator needs of its metadata."""

    name: str
    namespace: str
    uid: str
    generation: int
    paused: bool
    pause_scale_in: bool = False
    pause_scale_out: bool = False
    created: str = ""
    spec: Spec

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> "Pipeline":
        """Read a resource as the API server gives it. Raises InvalidResource for one that an older CRD let in."""
        metadata = body["metadata"]
        try:
            spec = Spec.model_validate(body.get("spec") or {})
        except ValidationError as error:
            wrong = "; ".join(
                f"spec.{'.'.join(str(part) for part in item['loc'])}: {item['msg'][:1].lower()}{item['msg'][1:]}"
                for item in error.errors(include_url=False, include_input=False)
            )
            raise InvalidResource(wrong) from None
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata["generation"],
            paused=is_paused(body),
            pause_scale_in=is_set(body, PAUSE_SCALE_IN),
            pause_scale_out=is_set(body, PAUSE_SCALE_OUT),
            created=metadata.get("creationTimestamp") or "",
            spec=spec,
        )


ROOT_RULES = (
    Rule(
        "self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "a pipeline's name has at most 52 characters: small letters, digits and hyphens, no dots",
    ),
)
