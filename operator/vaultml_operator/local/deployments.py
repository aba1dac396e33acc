"""What a cluster's controllers do with a Deployment: as many pods as it asks for, replaced one by one on a change."""

import asyncio
import copy
import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vaultml_operator.local.documents import SLOT
from vaultml_operator.local.kubelet import Kubelet
from vaultml_operator.local.store import Store
from vaultml_operator.manifests import DELETION_COST, Manifest

_HASH = "pod-template-hash"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What counts of a pod: the template that it was made from, and whether it works; `born` orders them by age."""

    name: str
    revision: str
    placed: bool
    running: bool
    ready: bool
    cost: int
    born: int


def plan(pods: Sequence[Seen], wanted: int, revision: str) -> tuple[int, list[str]]:
    """How many pods to make and which to end, none of which is ending: maxSurge 0, maxUnavailable 1.

    Those that don't work go first, then those that cost least, as in Kubernetes.
    """
    surplus = len(pods) - wanted
    if surplus > 0:
        return 0, [pod.name for pod in sorted(pods, key=_rank)[:surplus]]
    old = sorted((pod for pod in pods if pod.revision != revision), key=_rank)
    least = max(0, wanted - 1)
    new_unready = sum(pod.revision == revision and not pod.ready for pod in pods)
    room = len(pods) - least - new_unready
    broken = [pod.name for pod in old if not pod.ready][: max(0, room)]
    spare = sum(pod.ready for pod in pods) - least
    good = [pod.name for pod in old if pod.ready][: max(0, min(spare, room - len(broken)))]
    return wanted - len(pods), broken + good


def _rank(pod: Seen) -> tuple[bool, bool, bool, int, int]:
    # What is younger has less to lose.
    return pod.placed, pod.running, pod.ready, pod.cost, -pod.born


def revision_of(template: Manifest) -> str:
    """A digest of what workers are made from; the part of the machine that one takes is no reason to replace it."""
    bare = copy.deepcopy(template)
    for container in bare["spec"]["containers"]:
        ((container.get("resources") or {}).get("limits") or {}).pop(SLOT, None)
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()[:10]


class Deployments:
    """Keeps the pods of all Deployments as they are asked for, until cancelled."""

    def __init__(self, store: Store, kubelet: Kubelet) -> None:
        self._store = store
        self._kubelet = kubelet
        self._changed = asyncio.Event()
        self._rng = random.Random()  # noqa: S311 - names, not secrets
        self._born = 0
        self._progress: dict[str, tuple[tuple[int, ...], float]] = {}
        """By the Deployment's uid: how far it was, and since when."""
        self._reached: dict[str, int] = {}
        """By the same: the number of pods with which all was last as wanted."""
        store.listen(self._heard)

    def _heard(self, kind: str, manifest: Manifest, gone: bool) -> None:
        if kind in ("Deployment", "Pod"):
            self._changed.set()
        observed = (manifest.get("status") or {}).get("observedGeneration")
        if kind == "Deployment" and not gone and observed != manifest["metadata"]["generation"]:
            # At once: whoever changed it is about to tell how things are.
            self.look()

    async def run(self) -> None:
        """Look at every change; in between, at the clock."""
        while True:
            self._changed.clear()
            self.look()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def look(self) -> None:
        """Make and end pods, and tell how far each Deployment is."""
        deployments = {each["metadata"]["uid"]: each for each in self._store.listed("Deployment")}
        pods: dict[str, list[Manifest]] = {uid: [] for uid in deployments}
        for pod in self._store.listed("Pod"):
            owner = pod["metadata"]["ownerReferences"][0]["uid"]
            if owner not in deployments:
                self._kubelet.stop(pod)
            elif "deletionTimestamp" not in pod["metadata"]:
                pods[owner].append(pod)
        for uid in self._progress.keys() - deployments.keys():
            del self._progress[uid]
            self._reached.pop(uid, None)
        for uid, deployment in deployments.items():
            self._bring(deployment, pods[uid])

    def _bring(self, deployment: Manifest, pods: list[Manifest]) -> None:
        template = deployment["spec"]["template"]
        revision, wanted = revision_of(template), int(deployment["spec"].get("replicas", 1))
        by_name = {pod["metadata"]["name"]: pod for pod in pods}
        make, end = plan([_seen(pod) for pod in pods], wanted, revision)
        for name in end:
            self._kubelet.stop(by_name.pop(name))
        for pod in by_name.values():
            self._share(pod, template, revision)
        for _ in range(make):
            made = self._make(deployment, template, revision)
            by_name[made["metadata"]["name"]] = made
            self._kubelet.admit(made)
        self._tell(deployment, [_seen(pod) for pod in by_name.values()], wanted, revision)

    def _share(self, pod: Manifest, template: Manifest, revision: str) -> None:
        """Where only the share of the machine has changed, the pod goes on with the new one."""
        containers = template["spec"]["containers"]
        if pod["metadata"]["labels"][_HASH] == revision and pod["spec"]["containers"] != containers:
            self._kubelet.resize(self._store.put({**pod, "spec": {**pod["spec"], "containers": containers}}))

    def _make(self, deployment: Manifest, template: Manifest, revision: str) -> Manifest:
        metadata = deployment["metadata"]
        self._born += 1
        suffix = "".join(self._rng.choices(_LETTERS, k=5))
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"]}
        return self._store.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{metadata['name']}-{revision}-{suffix}",
                    "namespace": metadata["namespace"],
                    "labels": {**template["metadata"]["labels"], _HASH: revision},
                    "annotations": {**(template["metadata"].get("annotations") or {}), _BORN: str(self._born)},
                    "ownerReferences": [{**owner, "controller": True}],
                },
                "spec": copy.deepcopy(template["spec"]),
                "status": {"phase": "Pending"},
            }
        )

    def _tell(self, deployment: Manifest, pods: list[Seen], wanted: int, revision: str) -> None:
        updated = sum(pod.revision == revision for pod in pods)
        ready = sum(pod.ready for pod in pods)
        done = updated == ready == len(pods) == wanted
        metadata = deployment["metadata"]
        far = (metadata["generation"], len(pods), updated, ready)
        before = self._progress.get(metadata["uid"])
        if before is None or before[0] != far:
            before = self._progress[metadata["uid"]] = (far, time.monotonic())
        late = time.monotonic() - before[1] > deployment["spec"].get("progressDeadlineSeconds", 600)
        progressing: dict[str, Any] = {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}
        said = {each["type"]: each for each in (deployment.get("status") or {}).get("conditions") or []}
        settled = said.get("Progressing", {}).get("reason") == "NewReplicaSetAvailable" and updated == len(pods)
        if done:
            self._reached[metadata["uid"]] = wanted
        # More were asked for: they start, and none of those that there were has failed.
        settled = settled and wanted <= self._reached.get(metadata["uid"], 0)
        if done or settled:
            progressing["reason"] = "NewReplicaSetAvailable"
        elif late:
            message = f"no progress for {time.monotonic() - before[1]:.0f} seconds"
            progressing |= {"status": "False", "reason": "ProgressDeadlineExceeded", "message": message}
            if said.get("Progressing", {}).get("reason") == "ProgressDeadlineExceeded":
                progressing = said["Progressing"]
        status = {
            "observedGeneration": metadata["generation"],
            "replicas": len(pods),
            "updatedReplicas": updated,
            "readyReplicas": ready,
            "availableReplicas": ready,
            "conditions": [progressing],
        }
        self._store.put({**deployment, "status": status})


_BORN = "vaultml.local/born"


def _seen(pod: Manifest) -> Seen:
    metadata, status = pod["metadata"], pod.get("status") or {}
    annotations = metadata.get("annotations") or {}
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())
    return Seen(
        name=metadata["name"],
        revision=metadata["labels"][_HASH],
        placed="nodeName" in pod["spec"],
        running=status.get("phase") == "Running",
        ready=ready,
        cost=int(annotations.get(DELETION_COST, "0")),
        born=int(annotations[_BORN]),
    )
