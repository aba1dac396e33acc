"""One pipeline: observe, apply what differs, tell its status. Safe to run twice, safe to miss."""

import asyncio
import base64
import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog

from vaultml_common.kafka import Login, OAuth
from vaultml_operator import api, credentials, manifests, pods, status
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
from vaultml_operator.scaling import Key, Scaling

_log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 15.0
"""How soon what sends no event is looked at again: a foreign object in the way, an admission policy."""
_MONITOR_S = 60.0
"""How often a pipeline with a PodMonitor is looked at: it isn't watched, as most clusters know no such kind."""
_REFUSALS = {400, 403, 404, 405, 422}


class _Blocked(Exception):  # noqa: N818 - a state, told in the status
    """Something keeps the spec from being carried out."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(reason, message)


class Reconciler:
    """Brings pipelines to what their specs say.

    `image` is the worker's where a spec names none; `told` hears of each status, `gone` of each pipeline that is no
    more, `again` of each that should be looked at because of another. Raises what `Objects` raises: the work queue
    tries again.
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
    ) -> None:
        self._cluster = cluster
        self._probes = probes
        self._scaling = Scaling(scaler, cluster, self._note)
        self._again = again
        self._groups: Groups[Key] = Groups()
        self._image = image
        self._told = told
        self._gone = gone
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
            self._forget(key)
            return None
        seen = await self._act(key, body)
        before = body.get("status") or {}
        current = status.compute(before, seen, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        if current != before:
            await self._cluster.write_status(body, current)
            for note in status.notes(before, current):
                await self._note(body, note.kind, note.reason, note.message)
        self._told(key, current)
        if seen.blocking is not None and seen.blocking.reason != "SecretMissing":
            return _LOOK_AGAIN_S
        return _MONITOR_S if seen.monitored is not None else None

    def _forget(self, key: Key) -> None:
        self._reads.pop(key, None)
        self._accepted.pop(key, None)
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
            problem = Problem("InvalidSpec", f"apply the pipeline anew: {error}")
            self._probes.forget(key)
            self._scaling.rest(key)
            paused = api.is_paused(body)
            return status.Observation(
                generation=generation, spec=None, paused=paused, deployment=live, blocking=problem
            )
        objects = credentials.objects(pipeline.spec)
        self._reads[key] = frozenset(objects)
        found = dict(
            zip(objects, await asyncio.gather(*(self._read(key.namespace, each) for each in objects)), strict=True)
        )
        blocking, sources = None, None
        try:
            sources = credentials.find(pipeline.spec, {each: _keys(there) for each, there in found.items()})
        except Missing as missing:
            blocking = Problem(missing.reason, str(missing))
        queue, vault, connection = self._watch(key, pipeline.spec, sources, found)
        deployment = monitored = None
        # Without its credentials no worker is started, and one that runs is not touched, but for their number.
        wanted = manifests.render(pipeline, sources or Credentials(), _revision(found), self._image)
        template = next(each for each in wanted if each["kind"] == "Deployment")["spec"]["template"]["spec"]
        frozen = pipeline.paused
        try:
            self._claim(key, pipeline)
            _check(template)
            deployment, monitored = await self._children(body, pipeline, wanted, hold=sources is None)
        except _Blocked as blocked:
            blocking = blocked.problem
            frozen |= blocking.reason != "Refused"
            with suppress(_Blocked):
                deployment = await self._own(pipeline, "Deployment", pipeline.name)
            if deployment is not None:  # its pods are others than those that are wanted
                template = deployment["spec"]["template"]["spec"]
                if blocking.reason == "GroupTaken":
                    deployment = await self._leave_group(body, pipeline, deployment)
        blocking = blocking or status.failure(deployment)
        scaling = await self._scaling.watch(
            body, pipeline, connection, template, deployment, frozen=frozen, vault=vault
        )
        there = 0 if deployment is None else deployment["spec"].get("replicas", 1)
        return status.Observation(
            generation=generation,
            spec=pipeline.spec,
            paused=pipeline.paused,
            wanted=there if frozen else self._scaling.number(pipeline, deployment),
            deployment=deployment,
            image=pipeline.spec.worker.image or self._image,
            selector=",".join(f"{name}={value}" for name, value in manifests.selector(pipeline).items()),
            blocking=blocking,
            pods=await self._diagnose(pipeline, deployment),
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
                "GroupTaken",
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
        await self._note(body, "Warning", "Scaled", f"scaled from {number} to 0 workers: the group is another's")
        return await self._own(pipeline, "Deployment", pipeline.name)

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
            if had != _revision_of(live):
                note = "a Secret or ConfigMap changed: the workers are replaced one by one"
                await self._note(body, "Normal", "CredentialsChanged", note)
        return live

    async def _monitor(self, body: Manifest, pipeline: api.Pipeline, manifest: Manifest) -> Problem:
        try:
            await self._ensure(body, pipeline, manifest)
        except ApiError as error:
            if error.status != 404:
                raise
            return Problem("MonitorUnavailable", "the cluster knows no PodMonitor: install the Prometheus operator")
        return Problem("MonitorCreated", "the PodMonitor is there")

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
                raise _Blocked("Starting", f"{kind} {name} is being deleted; it is made anew then")
            return {"kind": kind, **live}
        if any((owner["kind"], owner["name"]) == (api.KIND, pipeline.name) for owner in owners):
            raise _Blocked("Starting", f"{kind} {name} of the deleted pipeline of the same name is still going")
        raise _Blocked(
            "NameTaken",
            f"{kind} {name} exists and is not this pipeline's: it is left alone; delete or rename it, or rename the "
            "pipeline",
        )

    def _matches(self, pipeline: api.Pipeline, wanted: Manifest, live: Manifest) -> bool:
        digest = (live["metadata"].get("annotations") or {}).get(manifests.HASH)
        if digest != wanted["metadata"]["annotations"][manifests.HASH]:
            return False
        accepted = self._accepted.get(Key(pipeline.namespace, pipeline.name)) or {}
        return contains(live, accepted.get(live["metadata"]["uid"], wanted))

    async def _apply(self, body: Manifest, manifest: Manifest, *, live: Manifest | None) -> Manifest:
        """Apply a child that differs from `live`, or that there is none of yet."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        key = Key(body["metadata"]["namespace"], body["metadata"]["name"])
        try:
            applied = await self._cluster.apply(manifest, creating=live is None)
        except ApiError as error:
            if error.status not in _REFUSALS or (kind == "PodMonitor" and error.status == 404):
                raise
            raise _Blocked("Refused", f"the API server refuses the {kind} {name}: {error}") from None
        self._accepted.setdefault(key, {})[applied["metadata"]["uid"]] = project(applied, manifest)
        if live is None:
            await self._note(body, "Normal", "Created", f"created the {kind} {name}")
        elif applied["metadata"].get("generation") != live["metadata"].get("generation"):
            await self._note(body, "Normal", "Updated", f"brought the {kind} {name} to what the spec says")
        return {**applied, "kind": kind}

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
                    await self._note(body, "Normal", "Removed", f"deleted the {kind} {name}: the spec asks for none")

    async def _diagnose(self, pipeline: api.Pipeline, deployment: Manifest | None) -> Problem | None:
        if deployment is None:
            return None
        told = deployment.get("status") or {}
        number = deployment["spec"].get("replicas", 1)
        if all(told.get(name, 0) == number for name in ("replicas", "readyReplicas", "updatedReplicas")):
            return await self._lacking(pipeline) if number == 0 else None
        found = await self._cluster.children("Pod", pipeline.namespace, pipeline.name)
        unplaced = any("nodeName" not in pod["spec"] for pod in found)
        return pods.diagnose(found, pipeline.spec.worker, await self._cluster.nodes() if unplaced else None)

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
        raise _Blocked("InvalidSpec", f"correct spec.worker.podTemplate: it makes the pods' spec wrong: {trouble}")


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
    there = found[source.object] or {}
    if source.object.kind == "ConfigMap" and (text := (there.get("data") or {}).get(source.key)) is not None:
        return str(text)
    encoded = (there.get("data" if source.object.kind == "Secret" else "binaryData") or {}).get(source.key, "")
    return base64.b64decode(encoded).decode(errors="replace")


def _revision(found: Mapping[Object, Manifest | None]) -> str:
    """Changes with every change of an object that the pods read; says nothing of what is in it."""
    states = sorted(
        f"{each} {there['metadata']['uid']} {there['metadata']['resourceVersion']}" if there else f"{each} missing"
        for each, there in found.items()
    )
    return hashlib.sha256("\n".join(states).encode()).hexdigest()[:16]


def _revision_of(deployment: Manifest) -> str | None:
    annotations = deployment["spec"]["template"]["metadata"].get("annotations") or {}
    revision: str | None = annotations.get(manifests.REVISION)
    return revision


def _scaled_by_us(deployment: Manifest) -> bool:
    return any(each.get("manager") == SCALER for each in deployment["metadata"].get("managedFields") or [])
