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


class AppliedLimit(Model):
    """One rule that changed the number of workers."""

    rule: Annotated[str, Field(max_length=32)] = Field(description="The rule.")
    before: int = Field(description="The number before it.")
    after: int = Field(description="The number after it.")
    message: Annotated[str, Field(max_length=512)] = Field(description="Why, with its numbers.")


class AutoscalingStatus(Model):
    """What the last decision saw and said; rates and counts are rounded."""

    desired_replicas: int | None = Field(default=None, description="Replicas that the autoscaler wants.")
    needed_replicas: int | None = Field(default=None, description="Replicas needed, before any limit.")
    message: Annotated[str, Field(max_length=1024)] | None = Field(default=None, description="Why, in a sentence.")
    limited_by: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="The rule that keeps the pipeline from what it needs, if one does."
    )
    limits: Annotated[tuple[AppliedLimit, ...], Field(max_length=16)] | None = Field(
        default=None,
        description="Each rule that changed the number, in order.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    trace: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=24)] | None = Field(
        default=None,
        description="The steps of the decision, in order.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    lag: int | None = Field(default=None, description="Recordings that wait, those in work included.")
    oldest_message_age_seconds: int | None = Field(
        default=None, description="Age of the oldest message that waits, in seconds."
    )
    oldest_message_age: Annotated[str, Field(max_length=16)] | None = Field(
        default=None, description="The same, as in 3m."
    )
    arrival_rate: float | None = Field(default=None, description="Recordings that arrive per second.")
    service_rate: float | None = Field(default=None, description="Recordings per second and busy worker.")
    rate: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="The arrival rate, as in 3.1/s."
    )
    startup_seconds: float | None = Field(default=None, description="Seconds that a worker takes to get ready.")
    partitions: int | None = Field(default=None, description="Partitions of the queue.")
    lagging_partitions: int | None = Field(default=None, description="Partitions with a backlog.")
    stuck_partitions: int | None = Field(default=None, description="Partitions that do not move although others do.")
    stuck_lag: int | None = Field(default=None, description="The part of lag in stuck partitions.")
    gpu_limit: int | None = Field(default=None, description="Workers that the GPUs allow, those running included.")
    held_by: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="Which pods hold the GPUs that this pipeline could use."
    )
    current_replicas: int | None = Field(default=None, description="Replicas when it was decided.")
    ready_replicas: int | None = Field(default=None, description="Replicas that were ready then.")
    last_active: int | None = Field(
        default=None, description="When a message last waited or arrived, in epoch seconds; absent while one waits."
    )
    processed: int | None = Field(default=None, description="Recordings done since the operator knows the queue.")
    dead_letters: int | None = Field(default=None, description="Dead letters in the dead-letter topic.")
    retention_seconds: int | None = Field(default=None, description="How long the queue's topic keeps an event.")
    expiring: bool | None = Field(default=None, description="True if the oldest message is close to that.")
    error: Annotated[str, Field(max_length=512)] | None = Field(
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
        description="Ready, Progressing, QueueReachable, VaultReachable, ScalingLimited, EventsExpiring, Monitored, "
        "Paused.",
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
