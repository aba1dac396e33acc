"""The reconciler between its parts, on the store of the local mode; tests/real has it on a real API server."""

import asyncio
import base64
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest

from vaultml_operator import api
from vaultml_operator.autoscaler import podspec
from vaultml_operator.autoscaler.scaler import Scaler
from vaultml_operator.cluster import ApiError
from vaultml_operator.local.store import Store
from vaultml_operator.manifests import Manifest
from vaultml_operator.probes import Probes
from vaultml_operator.reconcile import Reconciler
from vaultml_operator.scaling import Key

PAUSED = {"ml.kerberos.io/paused": "true"}


class Server(Store):
    """The store, as an API server answers that can't apply some Deployments: `refuse` gives the error, if any."""

    refuse: Callable[[Manifest], ApiError | None] = staticmethod(lambda _: None)
    tried = 0

    async def apply(self, manifest: Manifest, *, creating: bool = False) -> Manifest:
        if manifest["kind"] == "Deployment":
            self.tried += 1
            if (error := self.refuse(manifest)) is not None:
                raise error
        return await super().apply(manifest, creating=creating)

    async def dry_run(self, manifest: Manifest) -> None:
        if (error := self.refuse(manifest)) is not None:
            raise error


class Scene:
    """A store, its reconciler, and what it wants looked at again."""

    def __init__(self, store: "Server | None" = None) -> None:
        self.store = store or Server()
        self.again: list[Key] = []
        self.events: dict[str, list[str]] = {}
        """Of each pod: the notes of its Warning Events."""
        self.start()

    def start(self) -> None:
        """Start the operator, or start it again."""
        self.scaler: Scaler[Key] = Scaler(lambda _key: None)
        probes: Probes[Key] = Probes(lambda _key: None)
        self.reconciler = Reconciler(
            self.store,
            probes,
            self.scaler,
            image="i",
            again=self.again.append,
            dry_run=self.store.dry_run,
            pod_warnings=self._warnings,
        )
        self.reconciler.digest_key = b"k" * 32

    async def _warnings(self, pod: Manifest, reasons: Collection[str], _since: str) -> list[str]:
        assert "FailedMount" in reasons
        return self.events.get(pod["metadata"]["name"], [])

    def reconcile(self, name: str) -> float | None:
        """Reconcile once; gives after how many seconds again."""
        return asyncio.run(self.reconciler.reconcile(Key("k", name)))

    def secret(self, name: str, **data: str) -> None:
        """Create a Secret, or replace it by one of another uid."""
        if (live := self.store.find("Secret", "k", name)) is not None:
            self.store.remove(live)
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        self.store.put({"kind": "Secret", "metadata": {"name": name, "namespace": "k"}, "data": encoded})

    def notes(self, reason: str) -> list[str]:
        """The notes of all Events of a reason."""
        return [each.note for each in self.store.events if each.reason == reason]

    def apply(self, name: str, group: str = "g", annotations: Mapping[str, str] | None = None, **worker: Any) -> None:
        """Put a pipeline there, and reconcile it with all whom it concerns."""
        kafka = worker.pop("kafka", {})
        queue = {"system": "KAFKA", "name": "q", "kafka": {"brokers": ["a.b:1"], "group": group, **kafka}}
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


LOGIN = {"security": "SASL_PLAINTEXT", "credentialsSecretRef": {"name": "login"}}


def template(scene: Scene) -> Any:
    return scene.deployment("a")["spec"]["template"]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_secret_whose_values_in_use_stay_rolls_nothing(restarted: bool) -> None:
    scene = Scene()
    scene.secret("login", username="u", password="p")
    scene.apply("a", kafka=LOGIN)
    before = template(scene)
    for data in ({}, {"note": "1"}, {"note": "2"}):
        scene.secret("login", username="u", password="p", **data)
        if restarted:
            scene.start()
        scene.reconcile("a")
        assert template(scene) == before
    assert scene.notes("CredentialsChanged") == scene.notes("Updated") == []


def test_a_changed_value_rolls_the_workers_and_the_event_names_its_object() -> None:
    scene = Scene()
    scene.secret("login", username="u", password="p")
    scene.secret("other", a="1")
    env = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "other", "key": "a"}}}]
    scene.apply("a", kafka=LOGIN, env=env)
    before = template(scene)
    scene.secret("login", username="u", password="changed")
    scene.reconcile("a")
    assert template(scene) != before
    assert template(scene)["spec"] == before["spec"]
    assert "changed" not in str(template(scene))
    scene.secret("login", username="u", password="p")
    scene.secret("other", a="2")
    scene.reconcile("a")
    assert scene.notes("CredentialsChanged") == [
        "Secret login changed: the workers are replaced one by one",
        "Secret login and Secret other changed: the workers are replaced one by one",
    ]


def test_an_edited_spec_is_no_changed_credential() -> None:
    scene = Scene()
    scene.secret("login", username="u", password="p")
    scene.apply("a")
    scene.apply("a", kafka=LOGIN)
    assert scene.notes("CredentialsChanged") == []
    assert scene.notes("Updated") == ["updated Deployment a to match the spec"]


@pytest.mark.parametrize("data", [None, {"username": "u"}])
def test_a_missing_object_and_a_missing_key_are_treated_alike(data: dict[str, str] | None) -> None:
    scene = Scene()
    scene.secret("login", username="u", password="p")
    scene.apply("a", kafka=LOGIN)
    before = template(scene)
    if data is None:
        live = scene.store.find("Secret", "k", "login")
        assert live is not None
        scene.store.remove(live)
    else:
        scene.secret("login", **data)
    assert scene.reconcile("a") is None, "the watch reports when it is there"
    assert scene.ready("a")[0] == ("SecretMissing" if data is None else "SecretKeyMissing")
    assert template(scene) == before
    scene.secret("login", username="u", password="p")
    scene.reconcile("a")
    assert scene.ready("a")[0] not in ("SecretMissing", "SecretKeyMissing")


UNKNOWN = ".spec.template.spec.hostNetwerk: field not declared in schema"


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(("status", "fields"), [(500, ()), (400, ()), (422, ("spec.template.spec.hostNetwerk",))])
def test_a_field_that_does_not_exist_is_an_invalid_spec_at_once(
    running: bool, status: int, fields: tuple[str, ...]
) -> None:
    scene = Scene()
    if running:
        scene.apply("a")
        before = template(scene)
    error = ApiError(status, "x", UNKNOWN, fields=fields)
    scene.store.refuse = lambda found: error if "hostNetwerk" in found["spec"]["template"]["spec"] else None
    scene.apply("a", podTemplate={"spec": {"hostNetwerk": True}})
    reason, message = scene.ready("a")
    assert reason == "InvalidSpec"
    assert UNKNOWN in message
    assert len(scene.notes("InvalidSpec")) == 1
    body = scene.store.find(api.KIND, "k", "a")
    assert body is not None
    assert body["status"]["observedGeneration"] == body["metadata"]["generation"]
    if running:
        assert template(scene) == before
    scene.apply("a")
    assert scene.ready("a")[0] != "InvalidSpec"


def test_a_server_error_that_stays_is_said_and_one_that_passes_is_not() -> None:
    scene = Scene()
    webhook = ApiError(500, "InternalError", "failed calling webhook")
    scene.store.refuse = lambda _: webhook
    for _ in range(2):
        with pytest.raises(ApiError):
            scene.apply("a", podTemplate={"spec": {"hostNetwork": True}})
    scene.store.refuse = lambda _: None
    scene.apply("a")
    assert scene.notes("Refused") == []
    scene.store.refuse = lambda _: webhook
    for _ in range(2):
        with pytest.raises(ApiError):
            scene.apply("a", podTemplate={"spec": {"hostNetwork": True}})
    scene.apply("a", podTemplate={"spec": {"hostNetwork": True}})
    assert scene.ready("a") == ("Refused", "the API server can't apply the Deployment a: failed calling webhook")
    assert scene.reconcile("a") is not None


def test_an_admission_policy_is_no_invalid_spec() -> None:
    scene = Scene()
    scene.store.refuse = lambda _: ApiError(422, "Invalid", "ValidatingAdmissionPolicy 'x' denied request")
    scene.apply("a")
    assert scene.ready("a")[0] == "Refused"


def starting(scene: Scene, volumes: list[dict[str, Any]]) -> None:
    """The Deployment's pod is on its node, and no container of it has been created."""
    metadata = {"name": "a-1", "namespace": "k", "labels": {"ml.kerberos.io/pipeline": "a"}}
    waiting = {"name": "worker", "ready": False, "state": {"waiting": {"reason": "ContainerCreating"}}}
    status = {"phase": "Pending", "containerStatuses": [waiting]}
    spec = {"nodeName": "n", "volumes": volumes}
    scene.store.put({"kind": "Pod", "metadata": metadata, "spec": spec, "status": status})


def test_a_volume_whose_object_or_key_is_missing_is_named_also_without_events() -> None:
    scene = Scene()
    scene.apply("a")
    starting(scene, [{"name": "labels", "configMap": {"name": "c", "items": [{"key": "k", "path": "k"}]}}])
    assert scene.reconcile("a") is not None, "no watch reports it"
    assert scene.ready("a")[0] == "VolumeMountFailed"
    assert "volume labels needs the ConfigMap c, which does not exist" in scene.ready("a")[1]
    scene.store.put({"kind": "ConfigMap", "metadata": {"name": "c", "namespace": "k"}, "data": {}})
    scene.reconcile("a")
    assert "volume labels needs the key k, which ConfigMap c lacks" in scene.ready("a")[1]
    scene.store.put({"kind": "ConfigMap", "metadata": {"name": "c", "namespace": "k"}, "data": {"k": "v"}})
    assert scene.reconcile("a") is not None, "it may yet turn out that it can't be mounted"
    assert scene.ready("a")[0] == "Starting"


def test_the_kubelets_own_words_on_a_volume_go_first() -> None:
    scene = Scene()
    scene.apply("a")
    words = 'MountVolume.SetUp failed for volume "data" : mount failed: exit status 32'
    scene.events["a-1"] = ["an earlier one", words]
    starting(scene, [{"name": "data", "nfs": {}}])
    scene.reconcile("a")
    assert scene.ready("a")[0] == "VolumeMountFailed"
    assert words in scene.ready("a")[1]
