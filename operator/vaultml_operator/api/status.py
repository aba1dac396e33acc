"""What the operator says of a pipeline."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from vaultml_operator.api.base import Model, map_list


class Condition(Model):
    """One aspect of the pipeline's state, as metav1.Condition."""

    type: Annotated[str, Field(max_length=64)] = Field(description="The aspect.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int = Field(description="Generation of the spec that this is about.")
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] = Field(
        description="When status last changed."
    )
    reason: Annotated[str, Field(max_length=64)] = Field(description="Why, in one word of docs/reasons.md.")
    message: Annotated[str, Field(max_length=2048)] = Field(description="Why, in a sentence, and what to do.")


class Clamped(Model):
    """One rule that changed the number of workers."""

    rule: Annotated[str, Field(max_length=32)] = Field(description="The rule.")
    before: int = Field(description="The number before it.")
    after: int = Field(description="The number after it.")
    message: Annotated[str, Field(max_length=512)] = Field(description="Why, with its numbers.")


class AutoscalingStatus(Model):
    """What the last decision saw and said; rates and counts are rounded."""

    desired: int | None = Field(default=None, description="Workers that are wanted.")
    needed: int | None = Field(default=None, description="Workers needed, before any limit.")
    message: Annotated[str, Field(max_length=1024)] | None = Field(default=None, description="Why, in a sentence.")
    clamp: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="The rule that limits the number, if one does."
    )
    clamps: Annotated[tuple[Clamped, ...], Field(max_length=16)] | None = Field(
        default=None,
        description="Every rule that changed the number, in their order.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    account: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=24)] | None = Field(
        default=None,
        description="What each rule said, in their order.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    lag: int | None = Field(default=None, description="Recordings that wait, those in work included.")
    oldest_seconds: int | None = Field(default=None, description="How long the oldest of them has waited.")
    oldest: Annotated[str, Field(max_length=16)] | None = Field(default=None, description="The same, as people say it.")
    arrival_per_second: float | None = Field(default=None, description="Recordings that come per second.")
    service_per_second: float | None = Field(default=None, description="Recordings per second and busy worker.")
    rate: Annotated[str, Field(max_length=32)] | None = Field(default=None, description="What comes, as in 3.1/s.")
    startup_seconds: float | None = Field(default=None, description="How long a worker takes to get ready.")
    partitions: int | None = Field(default=None, description="Partitions of the queue.")
    lagging_partitions: int | None = Field(default=None, description="Partitions in which something waits.")
    stuck_partitions: int | None = Field(default=None, description="Partitions that do not move although others do.")
    stuck: int | None = Field(default=None, description="The part of lag in stuck partitions.")
    slots: int | None = Field(default=None, description="Workers that the GPUs allow, those running included.")
    holders: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="Who has the GPUs that this pipeline could use."
    )
    current: int | None = Field(default=None, description="Workers asked for when it was decided.")
    ready: int | None = Field(default=None, description="Workers that were ready then.")
    last_active: int | None = Field(
        default=None, description="When something last waited or came, in epoch seconds; absent while something waits."
    )
    processed: int | None = Field(default=None, description="Recordings done since the operator knows the queue.")
    dead: int | None = Field(default=None, description="Dead letters in the dead-letter topic.")
    retention_seconds: int | None = Field(default=None, description="How long the queue's topic keeps an event.")
    expiring: bool | None = Field(default=None, description="Whether the oldest recording is close to that.")
    trouble: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="Why the queue can't be read."
    )

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Return `.status.autoscaling` of a resource; a field that makes no sense (of another version) is left out."""
        given = (body.get("status") or {}).get("autoscaling")
        given = given if isinstance(given, Mapping) else {}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            wrong = {each["loc"][0] for each in error.errors()}
            return cls.model_validate({name: value for name, value in given.items() if name not in wrong})

    def write(self) -> dict[str, Any]:
        """Return it as the API server takes it; what is not known is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Status(Model):
    """What the pipeline is."""

    observed_generation: int | None = Field(default=None, description="Generation of the spec that was last acted on.")
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field(
        default=(),
        description="Ready, Progressing, QueueReachable, VaultReachable, Paused.",
        json_schema_extra=map_list("type"),
    )
    replicas: int | None = Field(default=None, description="Worker pods that exist.")
    ready_replicas: int | None = Field(default=None, description="Worker pods that are ready.")
    workers: str | None = Field(default=None, description="Ready and wanted workers, as in 1/2.")
    gpu: str | None = Field(default=None, description="The GPU of each worker, as in nvidia.com/gpu:1.")
    image: str | None = Field(default=None, description="Image of the workers.")
    selector: str | None = Field(default=None, description="Label selector of the worker pods, for autoscalers.")
    autoscaling: AutoscalingStatus | None = Field(
        default=None, description="What the last decision about the number of workers saw and said."
    )
