"""Acting on the autoscaler's decisions: how many workers a pipeline gets, who goes first, and what people are told."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from vaultml_operator import api, manifests
from vaultml_operator.autoscaler.lag import PartitionIncrease
from vaultml_operator.autoscaler.scaler import Scaler
from vaultml_operator.manifests import Manifest
from vaultml_operator.objects import Objects
from vaultml_operator.probes import Connection, Outcome
from vaultml_operator.reasons import EventReason
from vaultml_operator.scaling_request import scaling_request

Note = Callable[[Manifest, str, str, str], Awaitable[None]]
"""Posts an Event about a pipeline: its body, Normal or Warning, reason, sentence."""

_HEARD_S = 0.5
"""How long to wait between a changed deletion cost and fewer workers: who chooses them hears of the cost by a watch."""


class Key(NamedTuple):
    """A pipeline."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Scaling:
    """The number of workers of each pipeline; one for all of a reconciler's."""

    def __init__(self, scaler: Scaler[Key], objects: Objects, note: Note) -> None:
        self._scaler = scaler
        self._objects = objects
        self._note = note
        self._ways: dict[Key, int] = {}
        """The direction, 1 or -1, in which the autoscaler last went."""
        self._asked: dict[Key, int] = {}
        """spec.replicas as it was last seen."""
        self._increases: dict[Key, PartitionIncrease] = {}

    def forget(self, key: Key) -> None:
        """The pipeline is no more."""
        self.rest(key)
        for memory in (self._ways, self._asked, self._increases):
            memory.pop(key, None)

    def rest(self, key: Key) -> None:
        """Look at the pipeline's queue no longer."""
        self._scaler.forget(key)

    async def watch(
        self,
        body: Manifest,
        pipeline: api.Pipeline,
        connection: Connection | None,
        template: Mapping[str, Any],
        deployment: Manifest | None,
        *,
        frozen: bool,
        queue: Outcome | None = None,
        vault: Outcome | None = None,
    ) -> api.AutoscalingStatus | None:
        """Have the queue looked at; gives what is to be published of it, None while nothing is.

        `template` is the spec of the worker pods; `frozen`: their number stays as it is; `queue` and
        `vault` are the last checks of these.
        """
        key, published = _key(pipeline), api.AutoscalingStatus.read(body)
        if pipeline.spec.suspend or deployment is None:
            self.rest(key)
            return published if published.model_fields_set else None
        self._scaler.watch(
            key,
            scaling_request(pipeline, connection, template, frozen=frozen, queue=queue, vault=vault),
            replicas=deployment["spec"].get("replicas", 1),
            ready=(deployment.get("status") or {}).get("readyReplicas", 0),
            status=published,
        )
        if (snapshot := self._scaler.snapshot(key)) is None:
            return published if published.model_fields_set else None
        await self._tell_partitions(body, key, snapshot.increase)
        return snapshot.status

    def number(self, pipeline: api.Pipeline, live: Manifest | None) -> int:
        """How many workers should run."""
        spec = pipeline.spec
        if spec.suspend:
            return 0
        if spec.autoscaling.mode != "Auto":
            return spec.replicas
        if (snapshot := self._scaler.snapshot(_key(pipeline))) is not None:
            return snapshot.decision.replicas
        # Not looked at yet: what there is stays, however the operator came to start.
        return int(live["spec"].get("replicas", 1)) if live is not None else spec.autoscaling.min_replicas

    def has_no_gpu(self, pipeline: api.Pipeline) -> bool:
        """Whether workers are needed, and GPUs allow none."""
        snapshot = self._scaler.snapshot(_key(pipeline))
        return snapshot is not None and (snapshot.status.limited_by, snapshot.status.gpu_limit) == ("gpus", 0)

    async def mark_idlest(self, pipeline: api.Pipeline) -> None:
        """Give each worker a deletion cost, so that those with nothing to do go first."""
        key = _key(pipeline)
        busy, leaving = self._scaler.busy(key), self._scaler.leaving(key)
        if busy is None and not leaving:
            return
        changed = False
        for pod in await self._objects.children("Pod", key.namespace, key.name):
            metadata = pod["metadata"]
            # One that is no member of the group has nothing; one that has a partition, but nothing in it, next to it.
            # In powers of two, so that it doesn't change with every recording.
            cost = 1 + busy[metadata["name"]].bit_length() if busy and metadata["name"] in busy else 0
            cost = -1 if metadata["uid"] in leaving else cost
            if (metadata.get("annotations") or {}).get(manifests.DELETION_COST, "0") != str(cost):
                await self._objects.annotate_pod(pod, {manifests.DELETION_COST: str(cost)})
                changed = True
        if changed:
            await asyncio.sleep(_HEARD_S)

    async def tell_scaled(self, body: Manifest, pipeline: api.Pipeline, was: int, number: int) -> None:
        """Each change by a person is an Event; the autoscaler's are when it begins to go the other way."""
        if pipeline.spec.autoscaling.mode != "Auto" or pipeline.spec.suspend:
            await self._note(body, "Normal", EventReason.SCALED, f"scaled from {was} to {number} workers")
            return
        key, way = _key(pipeline), 1 if number > was else -1
        snapshot = self._scaler.snapshot(key)
        if self._ways.get(key) != way and snapshot is not None:
            self._ways[key] = way
            reason = EventReason.SCALED_OUT if way > 0 else EventReason.SCALED_IN
            await self._note(body, "Normal", reason, f"from {was} to {number} workers: {snapshot.decision.reason}")

    async def tell_ignored(self, body: Manifest, pipeline: api.Pipeline) -> None:
        """Whoever sets spec.replicas in Auto waits for something that won't come."""
        key, asked = _key(pipeline), pipeline.spec.replicas
        before = self._asked.get(key, asked)
        self._asked[key] = asked
        if before != asked and pipeline.spec.autoscaling.mode == "Auto":
            note = "spec.replicas is ignored in Auto mode: set .spec.autoscaling.mode to Manual, or minReplicas"
            await self._note(body, "Warning", EventReason.REPLICAS_IGNORED, note)

    async def _tell_partitions(self, body: Manifest, key: Key, increase: PartitionIncrease | None) -> None:
        if increase is None or increase == self._increases.get(key):
            return
        self._increases[key] = increase
        if increase.done:
            await self._note(body, "Normal", EventReason.PARTITIONS_RAISED, increase.message)
        else:
            await self._note(body, "Warning", EventReason.PARTITIONS_NOT_RAISED, increase.message)


def _key(pipeline: api.Pipeline) -> Key:
    return Key(pipeline.namespace, pipeline.name)
