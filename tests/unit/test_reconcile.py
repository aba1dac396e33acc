"""The reconciler between its parts, on the store of the local mode; tests/real has it on a real API server."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from vaultml_operator import api
from vaultml_operator.autoscaler import podspec
from vaultml_operator.autoscaler.scaler import Scaler
from vaultml_operator.local.store import Store
from vaultml_operator.manifests import Manifest
from vaultml_operator.probes import Probes
from vaultml_operator.reconcile import Reconciler
from vaultml_operator.scaling import Key

PAUSED = {"ml.kerberos.io/paused": "true"}


class Scene:
    """A store, its reconciler, and what it wants looked at again."""

    def __init__(self) -> None:
        self.store = Store()
        self.again: list[Key] = []
        self.scaler: Scaler[Key] = Scaler(lambda _key: None)
        probes: Probes[Key] = Probes(lambda _key: None)
        self.reconciler = Reconciler(self.store, probes, self.scaler, image="i", again=self.again.append)

    def apply(self, name: str, group: str = "g", annotations: Mapping[str, str] | None = None, **worker: Any) -> None:
        """Put a pipeline there, and reconcile it with all whom it concerns."""
        queue = {"system": "KAFKA", "name": "q", "kafka": {"brokers": ["a.b:1"], "group": group}}
        spec = api.Spec.model_validate({"queue": queue, "worker": worker}).model_dump(mode="json", by_alias=True)
        metadata = {"name": name, "namespace": "k", "annotations": dict(annotations or {})}
        body = {"apiVersion": api.API_VERSION, "kind": api.KIND, "metadata": metadata, "spec": _without_nulls(spec)}
        if (there := self.store.find(api.KIND, "k", name)) is not None:
            body = {**there, "metadata": {**there["metadata"], **metadata}, "spec": body["spec"]}
        self.store.put(body)
        self.again.append(Key("k", name))
        while self.again:
            asyncio.run(self.reconciler.reconcile(self.again.pop(0)))

    def deployment(self, name: str) -> Manifest:
        found = self.store.find("Deployment", "k", name)
        assert found is not None
        return found

    def ready(self, name: str) -> tuple[str, str]:
        """Reason and message of the condition Ready."""
        found = self.store.find(api.KIND, "k", name)
        assert found is not None
        condition = next(each for each in found["status"]["conditions"] if each["type"] == "Ready")
        return condition["reason"], condition["message"]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return value


@pytest.mark.parametrize("first", ["a", "b"])
def test_of_two_on_a_group_the_elder_has_it_whoever_is_seen_first(first: str) -> None:
    """Made in the same second, the first by name is the elder."""
    scene = Scene()
    scene.apply(first)
    scene.apply("b" if first == "a" else "a")
    assert scene.ready("b")[0] == "GroupTaken"
    assert scene.deployment("a")["spec"]["replicas"] == 1
    other = scene.store.find("Deployment", "k", "b")
    assert other is None or other["spec"]["replicas"] == 0


def test_workers_of_another_group_are_found_behind_a_sidecar() -> None:
    scene = Scene()
    scene.apply("b")
    deployment = scene.deployment("b")
    deployment["spec"]["template"]["spec"]["containers"].insert(0, {"name": "injected"})
    scene.store.put(deployment)
    scene.apply("a")
    assert scene.ready("b")[0] == "GroupTaken"
    assert scene.deployment("b")["spec"]["replicas"] == 0


def test_who_is_refused_a_new_group_goes_on_with_the_old_one() -> None:
    scene = Scene()
    scene.apply("a")
    scene.apply("b", "other")
    scene.apply("b", "g")
    assert scene.ready("b")[0] == "GroupTaken"
    assert scene.deployment("b")["spec"]["replicas"] == 1


PATCHES: list[tuple[Any, str]] = [
    ({"nodeSelector": ["a"]}, "nodeSelector"),
    ({"tolerations": "gpu"}, "tolerations"),
    ({"tolerations": ["gpu"]}, "tolerations.0"),
    ({"affinity": ["x"]}, "affinity"),
    ({"containers": [{"name": "worker", "resources": {"limits": {"nvidia.com/gpu": "abc"}}}]}, "nvidia.com/gpu"),
    (
        {
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": "a"}]}]
                    }
                }
            }
        },
        "operator",
    ),
]


@pytest.mark.parametrize(("patch", "where"), PATCHES)
@pytest.mark.parametrize("annotations", [{}, PAUSED])
def test_a_patch_of_a_wrong_shape_is_told_and_leaves_the_workers(
    patch: Any, where: str, annotations: Mapping[str, str]
) -> None:
    scene = Scene()
    scene.apply("a")
    before = scene.deployment("a")
    scene.apply("a", annotations=annotations, podTemplate={"spec": patch})
    reason, message = scene.ready("a")
    assert reason == "InvalidSpec"
    assert "spec.worker.podTemplate" in message
    assert where in message
    assert scene.deployment("a")["spec"] == before["spec"]


def test_what_a_patch_may_say_of_gpus_and_places_is_accepted() -> None:
    good = {
        "containers": [{"name": "worker", "resources": {"limits": {"nvidia.com/gpu": 1, "cpu": "500m"}}}],
        "initContainers": None,
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists", "tolerationSeconds": 30}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": None}, "podAffinity": {}},
        "overhead": {"memory": "1Gi"},
    }
    assert podspec.wrong(good) is None


def test_a_paused_pipeline_is_told_as_it_is() -> None:
    scene = Scene()
    scene.apply("a")
    deployment = scene.deployment("a")
    told = {"replicas": 4, "readyReplicas": 4, "updatedReplicas": 4}
    progressing = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
    state = {**told, "observedGeneration": 9, "conditions": [progressing]}
    scene.store.put({**deployment, "spec": {**deployment["spec"], "replicas": 4}, "status": state})
    scene.apply("a", annotations=PAUSED)
    found = scene.store.find(api.KIND, "k", "a")
    assert found is not None
    assert found["status"]["workers"] == "4/4"
    assert scene.ready("a")[0] not in ("Starting", "Stopping")
