"""Pure: what a pipeline's spec means to the autoscaler."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vaultml_common.kafka import dead_letter_topic
from vaultml_operator import api
from vaultml_operator.autoscaler.gpus import demand_of
from vaultml_operator.autoscaler.lag import Ask
from vaultml_operator.autoscaler.scaler import ScalingRequest
from vaultml_operator.probes import Connection, Outcome


def scaling_request(
    pipeline: api.Pipeline,
    connection: Connection | None,
    template: Mapping[str, Any],
    *,
    frozen: bool,
    queue: Outcome | None = None,
    vault: Outcome | None = None,
) -> ScalingRequest:
    """What is asked of the scaler; `template` is the spec of the worker pods, patches and all.

    `frozen`: decisions are not carried out, nor anything else: the pipeline keeps the GPUs that it has, and no more.
    `queue` and `vault` are the last checks of these.
    """
    spec = pipeline.spec
    demand = None
    if spec.autoscaling.gpu_capacity == "Observed":
        demand = demand_of(
            template,
            key=(pipeline.namespace, pipeline.name),
            wanted=0,
            current=0,
            resource=spec.worker.gpu.resource,
            priority=spec.autoscaling.priority,
            weight=spec.autoscaling.weight,
            minimum=spec.autoscaling.min_replicas,
        )
    asked = replace(ask(spec), partitions=None) if frozen else ask(spec)
    acts = spec.autoscaling.mode == "Auto" and not frozen
    return ScalingRequest(
        policy=spec.autoscaling,
        connection=connection,
        ask=asked,
        demand=demand,
        acts=acts,
        queue_error=_error(queue),
        vault_error=_error(vault),
        pause_scale_in=pipeline.pause_scale_in,
        pause_scale_out=pipeline.pause_scale_out,
    )


def _error(outcome: Outcome | None) -> str:
    return outcome.message if outcome is not None and not outcome.ok else ""


def ask(spec: api.Spec) -> Ask:
    """What is to be known of the queue."""
    kafka = spec.queue.kafka
    return Ask(
        queue=spec.queue.name,
        group=kafka.group if kafka is not None else "",
        dead_letters=dead_letter_topic(spec.queue.name, spec.queue.target),
        from_start=kafka is None or kafka.offset_reset == "earliest",
        partitions=kafka.ensure_partitions if kafka is not None else None,
    )
