"""One pipeline: read its inputs, apply what differs, observe, write its status. Safe to run twice, safe to miss."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from vaultml_common.kafka import Login, OAuth
from vaultml_operator import api, credentials, manifests, pods, status
from vaultml_operator.api.worker import PodTemplate
from vaultml_operator.autoscaler import podspec
from vaultml_operator.autoscaler.scaler import Scaler
from vaultml_operator.cluster import SCALER, ApiError
from vaultml_operator.credentials import Credentials, Missing, Object, Source
from vaultml_operator.drift import contains, project
from vaultml_operator.groups import Groups
from vaultml_operator.manifests import Manifest
from vaultml_operator.objects import Objects
from vaultml_operator.pods import Problem
from vaultml_operator.probes import Access, Check, Connection, Outcome, Probes, Topics
from vaultml_operator.reasons import EventReason, Reason
from vaultml_operator.scaling import Key, Scaling

_log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 15.0
"""How soon what sends no event is looked at again: a foreign object in the way, an admission policy."""
_MONITOR_S = 60.0
"""How often a pipeline with a PodMonitor is looked at: it isn't watched, as most clusters know no such kind."""
_REFUSALS = {400, 403, 404, 405, 422}
_SERVER_ERRORS = 3
"""How often in a row the API server may fail to apply a child before the status says so."""
_RECENT = timedelta(minutes=5)
"""How long a failed pod, or an Event about one, says why workers are missing; both stay for hours."""
_ASKED_PODS = 3
"""Of so many pods the volumes are checked in one reconcile: one of them is enough to say what is wrong."""
_MOUNT_EVENTS = ("FailedMount", "FailedAttachVolume")

DryRun = Callable[[Manifest], Awaitable[None]]
"""Applies without storing; raises ApiError where that fails."""
PodWarnings = Callable[[Manifest, Collection[str], str], Awaitable[list[str]]]
"""Gives the notes of a pod's Warning Events of some reasons since a time (RFC 3339), the latest last."""


_WRONG_TEMPLATE = "correct spec.worker.podTemplate: the pod template that it makes is invalid"


class _Blocked(Exception):  # noqa: N818 - a state that the status reports
    """Something keeps the spec from being carried out."""

    def __init__(self, reason: Reason, message: str, *, scales: bool = False) -> None:
        """`scales`: the Deployment that exists is still scaled."""
        super().__init__(message)
        self.problem = Problem(reason, message)
        self.scales = scales


class Reconciler:
    """Brings pipelines to what their specs say.

    `image` is the worker's where a spec names none; `told` is given each status, `gone` each pipeline that is no more,
    `again` each that should be reconciled because of another. `dry_run` and `pod_warnings` ask an API server; without
    one there are None. `digest_key` is the key of the digests of credentials: random until it is set to the one that
    all replicas share. Raises what `Objects` raises: the work queue retries.
    """

    def __init__(
        self,
        cluster: Objects,
        probes: Probes[Key],
        scaler: Scaler[Key],
        *,
        image: str,
        again: Callable[[Key], None] = lambda _key: None,
        told: Callable[[Key, Mapping[str, Any]], None] = lambda _key, _status: None,
        gone: Callable[[Key], None] = lambda _key: None,
        dry_run: DryRun | None = None,
        pod_warnings: PodWarnings | None = None,
    ) -> None:
        self.digest_key = secrets.token_bytes(32)
        self._cluster = cluster
        self._probes = probes
        self._scaling = Scaling(scaler, cluster, self._note)
        self._again = again
        self._groups: Groups[Key] = Groups()
        self._image = image
        self._told = told
        self._gone = gone
        self._dry_run = dry_run
        self._pod_warnings = pod_warnings
        self._server_errors: dict[Key, int] = {}
        self._reads: dict[Key, frozenset[Object]] = {}
        self._accepted: dict[Key, dict[str, Manifest]] = {}
        """By child's uid: what we asked of it in the API server's own words (0.5 CPUs come back as 500m)."""

    def readers(self, namespace: str, changed: Object) -> list[Key]:
        """The pipelines that read this Secret or ConfigMap."""
        return [key for key, read in self._reads.items() if key.namespace == namespace and changed in read]

    async def reconcile(self, key: Key) -> float | None:
        """Look at the pipeline and do what is to be done. Seconds until it should be looked at again, if so."""
        body = await self._cluster.get(api.KIND, key.namespace, key.name)
        if body is None or "deletionTimestamp" in body["metadata"]:
            self.forget(key)
            return None
        seen = await self._act(key, body)
        before = body.get("status") or {}
        current = status.compute(before, seen, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        if current != before:
            await self._cluster.write_status(body, current)
            for note in status.notes(before, current):
                await self._note(body, note.kind, note.reason, note.message)
        self._told(key, current)
        if seen.mounting or any(each is not None and each.reason.retried for each in (seen.blocking, seen.pods)):
            return _LOOK_AGAIN_S
        return _MONITOR_S if seen.monitored is not None else None

    def forget(self, key: Key) -> None:
        """Drop all that is known of a pipeline: it is deleted, or can't be watched any more."""
        for memory in (self._reads, self._accepted, self._server_errors):
            memory.pop(key, None)
        self._probes.forget(key)
        self._scaling.forget(key)
        for other in self._groups.release(key):
            self._again(other)
        self._gone(key)

    async def _act(self, key: Key, body: Manifest) -> status.Observation:
        generation = body["metadata"]["generation"]
        try:
            pipeline = api.Pipeline.from_body(body)
        except api.InvalidResource as error:
            live = await self._cluster.get("Deployment", key.namespace, key.name)
            problem = Problem(Reason.INVALID_SPEC, f"correct the pipeline: {error}")
            self._probes.forget(key)
            self._scaling.rest(key)
            paused = api.is_paused(body)
            return status.Observation(
                generation=generation, spec=None, paused=paused, deployment=live, blocking=problem
            )
        blocking: Problem | None = None
        sources: Credentials | None = None
        found: dict[Object, Manifest | None] = {}
        try:
            objects = credentials.objects(pipeline.spec)
            self._reads[key] = frozenset(objects)
            read = await asyncio.gather(*(self._read(key.namespace, each) for each in objects))
            found = dict(zip(objects, read, strict=True))
            sources = credentials.find(pipeline.spec, {each: _keys(there) for each, there in found.items()})
        except Missing as missing:
            blocking = Problem(missing.reason, str(missing))
        queue, vault, connection = self._watch(key, pipeline.spec, sources, found)
        deployment = monitored = None
        # Without its credentials no worker is started, and one that runs is not touched, but for their number.
        wanted = self._render(pipeline, sources, found)
        template = next(each for each in wanted if each["kind"] == "Deployment")["spec"]["template"]["spec"]
        frozen = pipeline.paused
        try:
            self._claim(key, pipeline)
            _check(template)
            deployment, monitored = await self._children(body, pipeline, wanted, hold=sources is None)
        except _Blocked as blocked:
            blocking = blocked.problem
            frozen |= not blocked.scales
            with suppress(_Blocked):
                deployment = await self._own(pipeline, "Deployment", pipeline.name)
            if deployment is not None:  # its pods are others than those that are wanted
                template = deployment["spec"]["template"]["spec"]
                if blocking.reason is Reason.GROUP_TAKEN:
                    deployment = await self._leave_group(body, pipeline, deployment)
        scaling = await self._scaling.watch(
            body, pipeline, connection, template, deployment, frozen=frozen, queue=queue, vault=vault
        )
        if scaling is not None and scaling.error is not None and queue is not None and queue.ok:
            self._probes.hurry(key)
        there = 0 if deployment is None else deployment["spec"].get("replicas", 1)
        unready, mounting = await self._diagnose(pipeline, deployment)
        return status.Observation(
            generation=generation,
            spec=pipeline.spec,
            paused=pipeline.paused,
            wanted=there if frozen else self._scaling.number(pipeline, deployment),
            deployment=deployment,
            image=pipeline.spec.worker.image or self._image,
            selector=",".join(f"{name}={value}" for name, value in manifests.selector(pipeline).items()),
            blocking=blocking,
            pods=unready,
            mounting=mounting,
            queue=queue,
            vault=vault,
            monitored=monitored,
            scaling=scaling,
        )

    def _claim(self, key: Key, pipeline: api.Pipeline) -> None:
        """Take the group, unless an older pipeline has it."""
        if (kafka := pipeline.spec.queue.kafka) is None:
            return
        # A name without a dot is another service in each namespace.
        brokers = (each if "." in each or "[" in each else f"{key.namespace}/{each}" for each in kafka.brokers)
        older, concerned = self._groups.claim(key, pipeline.created, brokers, kafka.group)
        for other in concerned - {key}:
            self._again(other)
        if older is not None:
            raise _Blocked(
                Reason.GROUP_TAKEN,
                f"the pipeline {older} consumes with the group {kafka.group} on the same brokers: give "
                "queue.kafka.group another name, or delete one of the two",
            )

    async def _leave_group(self, body: Manifest, pipeline: api.Pipeline, live: Manifest) -> Manifest | None:
        """Stop own workers that were started with the group before it was known to be another's."""
        kafka, number = pipeline.spec.queue.kafka, live["spec"].get("replicas", 1)
        containers = live["spec"]["template"]["spec"]["containers"]  # others may stand before the worker's
        env = [(each["name"], each.get("value")) for container in containers for each in container.get("env") or ()]
        if pipeline.paused or number == 0 or kafka is None or ("KAFKA_GROUP", kafka.group) not in env:
            return live
        await self._cluster.scale(live, 0)
        note = f"scaled from {number} to 0 workers: an older pipeline consumes with the group {kafka.group}"
        await self._note(body, "Warning", EventReason.SCALED, note)
        return await self._own(pipeline, "Deployment", pipeline.name)

    def _render(
        self, pipeline: api.Pipeline, sources: Credentials | None, found: Mapping[Object, Manifest | None]
    ) -> list[Manifest]:
        """Return the objects that the pipeline should have; without credentials none of them is applied as it is."""
        known = sources or Credentials()
        uses = credentials.used(pipeline.spec, known)
        revision = credentials.revision(self.digest_key, pipeline.uid, uses, found)
        return manifests.render(pipeline, known, revision, self._image)

    async def _read(self, namespace: str, wanted: Object) -> Manifest | None:
        return await self._cluster.get(wanted.kind, namespace, wanted.name)

    def _watch(
        self, key: Key, spec: api.Spec, sources: Credentials | None, found: Mapping[Object, Manifest | None]
    ) -> tuple[Outcome | None, Outcome | None, Connection | None]:
        """Have queue and Vault checked from now on; the outcomes so far, and how the queue is reached."""
        if sources is None:
            self._probes.forget(key)
            return None, None, None
        connection: Connection | None = None
        queue: Check | None = None
        vault: Check | None = None
        if (kafka := spec.queue.kafka) is not None:
            connection = Connection(
                brokers=kafka.brokers,
                security=kafka.security,
                login=_login(kafka, sources, found),
                ca=_value(sources.ca, found),
                certificate=_value(sources.certificate, found),
                key=_value(sources.key, found),
            )
            queue = Topics(connection, frozenset({spec.queue.name, spec.queue.target} - {""}))
        if spec.vault is not None:
            access, secret = _value(sources.vault_access_key, found), _value(sources.vault_secret_key, found)
            vault = Access(spec.vault.api_url, access, secret, _value(sources.vault_ca, found))
        self._probes.watch(key, [check for check in (queue, vault) if check is not None])
        outcomes = (self._probes.result(each) if each is not None else None for each in (queue, vault))
        return *outcomes, connection  # type: ignore[return-value] # two outcomes

    async def _children(
        self, body: Manifest, pipeline: api.Pipeline, wanted: list[Manifest], *, hold: bool
    ) -> tuple[Manifest | None, Problem | None]:
        """Bring the children to what is wanted. The Deployment as it is then, and how the PodMonitor fares."""
        if pipeline.paused:
            return await self._own(pipeline, "Deployment", pipeline.name), None
        if (body.get("status") or {}).get("observedGeneration") != pipeline.generation:
            await self._prune(body, pipeline)
        await self._scaling.tell_ignored(body, pipeline)
        deployment, monitored = None, None
        for manifest in wanted:
            match manifest["kind"]:
                case "Deployment":
                    deployment = await self._deployment(body, pipeline, manifest, hold=hold)
                case "PodMonitor":
                    monitored = await self._monitor(body, pipeline, manifest)
                case _:
                    await self._ensure(body, pipeline, manifest)
        return deployment, monitored

    async def _deployment(
        self, body: Manifest, pipeline: api.Pipeline, manifest: Manifest, *, hold: bool
    ) -> Manifest | None:
        live = await self._own(pipeline, "Deployment", pipeline.name)
        number = self._scaling.number(pipeline, live)
        if live is None:
            if hold:
                return None
            # Only the creating apply says how many: left out, it would begin with one.
            first = {**manifest, "spec": {**manifest["spec"], "replicas": number}}
            live = await self._apply(body, first, live=None)
            await self._cluster.scale(live, number)
            return live
        if live["spec"].get("replicas") != number or not _scaled_by_us(live):
            # Before the apply: dropping a field that nobody else owns would reset it.
            was = live["spec"].get("replicas")
            if number < was:
                await self._scaling.mark_idlest(pipeline)
            await self._cluster.scale(live, number)
            if was != number:
                await self._scaling.tell_scaled(body, pipeline, was, number)
            live = await self._own(pipeline, "Deployment", pipeline.name) or live
        if not hold and not self._matches(pipeline, manifest, live):
            had = _revision_of(live)
            live = await self._apply(body, manifest, live=live)
            if changed := credentials.changed(had, _revision_of(live) or ""):
                note = f"{' and '.join(changed)} changed: the workers are replaced one by one"
                await self._note(body, "Normal", EventReason.CREDENTIALS_CHANGED, note)
        return live

    async def _monitor(self, body: Manifest, pipeline: api.Pipeline, manifest: Manifest) -> Problem:
        try:
            await self._ensure(body, pipeline, manifest)
        except ApiError as error:
            if error.status != 404:
                raise
            message = "the cluster has no kind PodMonitor: install the Prometheus operator"
            return Problem(Reason.MONITOR_UNAVAILABLE, message)
        return Problem(Reason.MONITOR_CREATED, "the PodMonitor exists")

    async def _ensure(self, body: Manifest, pipeline: api.Pipeline, manifest: Manifest) -> None:
        live = await self._own(pipeline, manifest["kind"], manifest["metadata"]["name"])
        if live is None or not self._matches(pipeline, manifest, live):
            await self._apply(body, manifest, live=live)

    async def _own(self, pipeline: api.Pipeline, kind: str, name: str) -> Manifest | None:
        """The child as it is; raises _Blocked when the name is taken by an object that is not ours."""
        live = await self._cluster.get(kind, pipeline.namespace, name)
        if live is None:
            return None
        owners = live["metadata"].get("ownerReferences") or []
        if any(owner["uid"] == pipeline.uid for owner in owners):
            if "deletionTimestamp" in live["metadata"]:
                raise _Blocked(Reason.STARTING, f"{kind} {name} is being deleted; it is created again after that")
            return {"kind": kind, **live}
        if any((owner["kind"], owner["name"]) == (api.KIND, pipeline.name) for owner in owners):
            raise _Blocked(
                Reason.STARTING, f"{kind} {name} of a deleted pipeline of the same name is still being deleted"
            )
        raise _Blocked(
            Reason.NAME_TAKEN,
            f"{kind} {name} exists and is not this pipeline's: it is left alone; delete or rename it, or rename the "
            "pipeline",
        )

    def _matches(self, pipeline: api.Pipeline, wanted: Manifest, live: Manifest) -> bool:
        digest = (live["metadata"].get("annotations") or {}).get(manifests.HASH)
        if digest != wanted["metadata"]["annotations"][manifests.HASH]:
            return False
        key = Key(pipeline.namespace, pipeline.name)
        accepted = self._accepted.get(key) or {}
        if not contains(live, accepted.get(live["metadata"]["uid"], wanted)):
            return False
        if wanted["kind"] == "Deployment":
            self._server_errors.pop(key, None)
        return True

    async def _apply(self, body: Manifest, manifest: Manifest, *, live: Manifest | None) -> Manifest:
        """Apply a child that differs from `live`, or that there is none of yet."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        key = Key(body["metadata"]["namespace"], body["metadata"]["name"])
        try:
            applied = await self._cluster.apply(manifest, creating=live is None)
        except ApiError as error:
            if kind == "PodMonitor" and error.status == 404:
                raise
            if (problem := await self._refusal(body, manifest, error)) is None:
                raise
            raise _Blocked(*problem, scales=True) from None
        self._server_errors.pop(key, None)
        self._accepted.setdefault(key, {})[applied["metadata"]["uid"]] = project(applied, manifest)
        if live is None:
            await self._note(body, "Normal", EventReason.CREATED, f"created the {kind} {name}")
        elif applied["metadata"].get("generation") != live["metadata"].get("generation"):
            await self._note(body, "Normal", EventReason.UPDATED, f"updated {kind} {name} to match the spec")
        return {**applied, "kind": kind}

    async def _refusal(self, body: Manifest, manifest: Manifest, error: ApiError) -> Problem | None:
        """Return what the status should say of an apply that failed; None: nothing yet, the apply is retried."""
        what = f"the {manifest['kind']} {manifest['metadata']['name']}"
        if await self._is_invalid(body, manifest, error):
            return Problem(Reason.INVALID_SPEC, f"{_WRONG_TEMPLATE}: {error}")
        if error.status in _REFUSALS:
            invalid = error.fields and error.status == 422
            return Problem(
                Reason.INVALID_SPEC if invalid else Reason.REFUSED, f"the API server refuses {what}: {error}"
            )
        if error.status < 500:
            return None
        # One error is a blip; one that stays must not leave an old status there as if nothing were wrong.
        key = Key(body["metadata"]["namespace"], body["metadata"]["name"])
        self._server_errors[key] = self._server_errors.get(key, 0) + 1
        if self._server_errors[key] < _SERVER_ERRORS:
            return None
        return Problem(Reason.REFUSED, f"the API server can't apply {what}: {error}")

    async def _is_invalid(self, body: Manifest, manifest: Manifest, error: ApiError) -> bool:
        """Return True if `worker.podTemplate` is what makes the Deployment impossible to apply.

        Server-side apply answers 500 to a field that its schema doesn't have, as it does to a fault of its own. So the
        same Deployment without the patch is tried, and then once more with it, both without storing anything.
        """
        pipeline = api.Pipeline.from_body(body)
        if manifest["kind"] != "Deployment" or not pipeline.spec.worker.pod_template.spec:
            return False
        if error.status == 400:
            return True
        if error.status != 500 or self._dry_run is None:
            return False
        worker = pipeline.spec.worker.model_copy(update={"pod_template": PodTemplate()})
        plain = pipeline.model_copy(update={"spec": pipeline.spec.model_copy(update={"worker": worker})})
        unpatched = manifests.render(plain, Credentials(), "", self._image)
        try:
            await self._dry_run(next(each for each in unpatched if each["kind"] == "Deployment"))
        except ApiError:
            return False
        try:
            await self._dry_run(manifest)
        except ApiError as again:
            return again.status == error.status
        return False

    async def _prune(self, body: Manifest, pipeline: api.Pipeline) -> None:
        """Delete children that an earlier spec asked for."""
        wanted = {
            ("ServiceAccount", pipeline.spec.worker.service_account.name or pipeline.name)
            if pipeline.spec.worker.service_account.create
            else None,
            ("PodMonitor", pipeline.name) if pipeline.spec.monitoring.pod_monitor else None,
        }
        for kind in ("ServiceAccount", "PodMonitor"):
            for live in await self._cluster.children(kind, pipeline.namespace, pipeline.name):
                name = live["metadata"]["name"]
                owned = any(each["uid"] == pipeline.uid for each in live["metadata"].get("ownerReferences") or [])
                if owned and (kind, name) not in wanted:
                    await self._cluster.delete({**live, "kind": kind})
                    note = f"deleted the {kind} {name}: the spec asks for none"
                    await self._note(body, "Normal", EventReason.REMOVED, note)

    async def _diagnose(self, pipeline: api.Pipeline, deployment: Manifest | None) -> tuple[Problem | None, bool]:
        """Return what keeps workers from being ready, and whether one still waits for its volumes or image."""
        if deployment is None:
            return None, False
        counts = deployment.get("status") or {}
        number = deployment["spec"].get("replicas", 1)
        if all(counts.get(name, 0) == number for name in ("replicas", "readyReplicas", "updatedReplicas")):
            return await self._lacking(pipeline) if number == 0 else None, False
        refused = status.failure(deployment)
        if refused is not None and counts.get("readyReplicas", 0) == counts.get("replicas", 0):
            return refused, False
        found = await self._cluster.children("Pod", pipeline.namespace, pipeline.name)
        unplaced = any("nodeName" not in pod["spec"] for pod in found)
        mounting = [pod for pod in found if pods.awaits_volumes(pod)]
        nodes = await self._cluster.nodes() if unplaced else None
        since = (datetime.now(UTC) - _RECENT).strftime("%Y-%m-%dT%H:%M:%SZ")
        asked = sorted(mounting, key=lambda pod: str(pod["metadata"]["name"]))[:_ASKED_PODS]
        mounts = {pod["metadata"]["uid"]: why for pod in asked if (why := await self._unmountable(pod, since))}
        return pods.diagnose(found, pipeline.spec.worker, nodes, mounts, since) or refused, bool(mounting)

    async def _unmountable(self, pod: Manifest, since: str) -> str | None:
        """Return why a volume of the pod can't be mounted: the kubelet's Event, else what its volumes lack."""
        missing = None
        for volume in pods.volumes(pod):
            there = await self._read(pod["metadata"]["namespace"], volume.object)
            keys = _keys(there)
            if keys is None:
                missing = missing or f"volume {volume.name} needs the {volume.object}, which does not exist: create it"
            elif lacking := sorted(volume.keys - keys):
                missing = missing or f"volume {volume.name} needs the key {lacking[0]}, which {volume.object} lacks"
        events = [] if self._pod_warnings is None else await self._pod_warnings(pod, _MOUNT_EVENTS, since)
        return events[-1] if events else missing

    async def _lacking(self, pipeline: api.Pipeline) -> Problem | None:
        """That none is started because no node has the GPU: else it would look like having nothing to do."""
        if not self._scaling.has_no_gpu(pipeline):
            return None
        nodes = await self._cluster.nodes()
        return None if nodes is None else pods.lacks_gpu(pipeline.spec.worker, nodes)

    async def _note(self, body: Manifest, kind: str, reason: str, message: str) -> None:
        """Post an Event; that it can't be posted is no reason to stop."""
        metadata = body["metadata"]
        _log.info("event", pipeline=f"{metadata['namespace']}/{metadata['name']}", reason=reason, note=message)
        try:
            await self._cluster.post_event(body, kind, reason, "Reconcile", message)
        except ApiError as error:
            _log.warning("event not posted", reason=reason, error=str(error))


def _check(template: Mapping[str, Any]) -> None:
    """What an API server would refuse in one way or another, and counting GPUs can't take."""
    if (trouble := podspec.wrong(template)) is not None:
        raise _Blocked(Reason.INVALID_SPEC, f"{_WRONG_TEMPLATE}: {trouble}")


def _keys(there: Manifest | None) -> frozenset[str] | None:
    if there is None:
        return None
    return frozenset({**(there.get("data") or {}), **(there.get("binaryData") or {})})


def _login(kafka: api.Kafka, sources: Credentials, found: Mapping[Object, Manifest | None]) -> Login:
    """Return how the pipeline's workers log in to Kafka."""
    oauth = None
    if kafka.oauth is not None:
        ca = _value(sources.oauth_ca, found)
        oauth = OAuth(
            kafka.oauth.token_url,
            _value(sources.oauth_client_id, found),
            _value(sources.oauth_client_secret, found),
            kafka.oauth.scope,
            kafka.oauth.extensions,
            ("pem", ca) if ca else None,
        )
    username, password = _value(sources.username, found), _value(sources.password, found)
    return Login(kafka.mechanism, username, password, oauth, kafka.aws_region or "")


def _value(source: str | Source | None, found: Mapping[Object, Manifest | None]) -> str:
    if not isinstance(source, Source):
        return source or ""
    return (credentials.value(found[source.object], source) or b"").decode(errors="replace")


def _revision_of(deployment: Manifest) -> str | None:
    annotations = deployment["spec"]["template"]["metadata"].get("annotations") or {}
    revision: str | None = annotations.get(manifests.REVISION)
    return revision


def _scaled_by_us(deployment: Manifest) -> bool:
    return any(each.get("manager") == SCALER for each in deployment["metadata"].get("managedFields") or [])
