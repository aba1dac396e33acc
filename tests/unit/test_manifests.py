"""Spec → manifests, each example against a golden file: `REWRITE_GOLDENS=1 pytest …` writes them; read the diff."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from vaultml_common.variables import OTHER, SPEC
from vaultml_operator import api, credentials, manifests
from vaultml_operator.cli import _Dumper
from vaultml_operator.credentials import Object
from vaultml_worker.settings import load, variables

ROOT = Path(__file__).parents[2]
GOLDENS = Path(__file__).parent / "goldens"
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml") if path.stem != "hub-ml")
# What the Secrets that the examples name hold, as their comments say.
KEYS: credentials.Keys = {
    Object("Secret", "vault-credentials"): frozenset({"accessKey", "secretKey"}),
    Object("Secret", "kafka-credentials"): frozenset({"username", "password", "ca.crt"}),
    Object("Secret", "vault-ml"): frozenset({"password", "sasl.jaas.config"}),
    Object("Secret", "main-cluster-ca-cert"): frozenset({"ca.crt", "ca.p12", "ca.password"}),
    Object("Secret", "kafka-client"): frozenset({"clientId", "clientSecret"}),
    Object("ConfigMap", "authorities"): frozenset({"ca.crt"}),
}


def example(name: str) -> api.Pipeline:
    body = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    body["metadata"] |= {"uid": "a-uid", "generation": 1}
    return api.Pipeline.from_body(body)


def pipeline(spec: dict[str, Any] | None = None, **parts: Any) -> api.Pipeline:
    queue = {"name": "in", "target": "out", "kafka": {"brokers": ["b:9092"], "group": "g"}}
    body = {
        "metadata": {"name": "p", "namespace": "n", "uid": "a-uid", "generation": 1},
        "spec": {"queue": queue, **(spec or {}), **parts},
    }
    return api.Pipeline.from_body(body)


def render(given: api.Pipeline, keys: credentials.Keys = KEYS) -> list[manifests.Manifest]:
    return manifests.render(given, credentials.find(given.spec, keys), "a-revision", "vaultml/worker:1")


def kinds(given: api.Pipeline) -> list[str]:
    return [each["kind"] for each in render(given)]


def pod(given: api.Pipeline, keys: credentials.Keys = KEYS) -> Any:
    deployment = next(each for each in render(given, keys) if each["kind"] == "Deployment")
    return deployment["spec"]["template"]["spec"]


def env(given: api.Pipeline, keys: credentials.Keys = KEYS) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in pod(given, keys)["containers"][0]["env"]}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_renders_as_its_golden_file(name: str) -> None:
    golden = GOLDENS / f"{name}.yaml"
    rendered = "---\n".join(yaml.dump(each, Dumper=_Dumper, sort_keys=False) for each in render(example(name)))
    if os.environ.get("REWRITE_GOLDENS") == "1":
        golden.write_text(rendered)
    assert rendered == golden.read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_worker_understands_the_environment(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = {variable for variable, *_ in variables()}
    for variable in known:
        monkeypatch.delenv(variable, raising=False)
    authority = trustme.CA()
    certificate = authority.issue_cert("worker")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    for variable, value in env(example(name)).items():
        assert variable in known, f"the worker knows no {variable}"
        if variable.startswith(("KAFKA_SSL", "VAULT_SSL", "KAFKA_OAUTH_CA", "MODEL")):
            kind = variable.rpartition("_")[2].lower()
            value = str(tmp_path / (kind if kind in ("cert", "key") else "ca"))
        monkeypatch.setenv(variable, value if isinstance(value, str) else "secret")
    settings = load()
    spec = example(name).spec
    assert settings.queue_name == spec.queue.name
    assert settings.detection_threshold == spec.detection.threshold
    assert settings.detection_classes == spec.detection.classes


def test_every_variable_of_the_worker_has_a_field_or_is_left_to_env() -> None:
    assert {name for name, *_ in variables()} == {*SPEC, *OTHER}


def test_what_the_operator_sets_is_what_env_may_not() -> None:
    everything = pipeline(
        queue={
            "name": "in",
            "target": "out",
            "kafka": {
                "brokers": ["b:1"],
                "group": "g",
                "security": "SASL_SSL",
                "credentialsSecretRef": {"name": "all"},
            },
        },
        vault={
            "apiUrl": "https://v/api",
            "credentialsSecretRef": {"name": "vault-credentials"},
            "ca": {"secretKeyRef": {"name": "all", "key": "ca.crt"}},
        },
        model={
            "path": "/m.cfg",
            "weights": "/m.weights",
            "names": "/m.names",
            "sha256": "0" * 64,
            "precision": "fp16",
        },
        detection={"classes": ["car"]},
    )
    all_keys = frozenset({"username", "password", "ca.crt", "tls.crt", "tls.key", "clientId", "clientSecret"})
    kafka = {"brokers": ["b:1"], "group": "g", "security": "SASL_SSL"}
    ca = {"configMapKeyRef": {"name": "authorities", "key": "idp"}}
    oauth = {
        "mechanism": "OAUTHBEARER",
        "credentialsSecretRef": {"name": "all"},
        "oauth": {"tokenUrl": "https://idp/token", "scope": "kafka", "extensions": "a=b", "ca": ca},
    }
    msk = {"mechanism": "AWS_MSK_IAM", "awsRegion": "eu-central-1"}
    keys = {**KEYS, Object("Secret", "all"): all_keys, Object("ConfigMap", "authorities"): frozenset({"idp"})}
    found = env(everything, keys)
    for login in (oauth, msk):
        found |= env(pipeline(queue={"name": "in", "kafka": {**kafka, **login}}), keys)
    assert set(found) == set(SPEC)
    assert found["VAULT_SSL_CA"] == "/etc/vaultml/tls/vault-ca.crt"
    assert found["KAFKA_OAUTH_CA"] == "/etc/vaultml/tls/oauth-ca.crt"
    assert found["KAFKA_OAUTH_CLIENT_SECRET"]["secretKeyRef"] == {"name": "all", "key": "clientSecret"}


def test_a_model_by_name_or_from_elsewhere() -> None:
    assert env(pipeline(model={"name": "yolov3"}))["MODEL"] == "yolov3"
    found = env(pipeline(model={"url": "https://models.test/a.onnx", "sha256": "0" * 64}))
    assert (found["MODEL"], found["MODEL_SHA256"]) == ("https://models.test/a.onnx", "0" * 64)


def test_a_secret_is_only_ever_named() -> None:
    rendered = yaml.dump(render(example("kafka-sasl")))
    assert "secretKeyRef" in rendered
    for name, value in env(example("kafka-sasl")).items():
        assert ("secretKeyRef" in value) == (name in {"KAFKA_USERNAME", "KAFKA_PASSWORD", *VAULT}), name


VAULT = {"VAULT_ACCESS_KEY", "VAULT_SECRET_KEY"}


def test_a_gpu_that_was_asked_for_is_never_replaced_by_a_cpu() -> None:
    assert env(pipeline())["ENGINE"] == "tensorrt"
    assert pod(pipeline())["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert env(pipeline(worker={"engine": "onnxruntime"}))["ENGINE"] == "onnxruntime"
    cpu = pipeline(worker={"gpu": {"count": 0}})
    assert env(cpu)["ENGINE"] == "onnxruntime"
    assert "nvidia.com/gpu" not in yaml.dump(render(cpu))


def test_a_rollout_needs_no_spare_gpu_and_a_dead_node_is_left_after_30_s() -> None:
    deployment = render(pipeline())[0]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert "replicas" not in deployment["spec"]
    tolerated = {
        each["key"]: each.get("tolerationSeconds") for each in deployment["spec"]["template"]["spec"]["tolerations"]
    }
    assert tolerated["node.kubernetes.io/unreachable"] == 30


def test_a_service_account_is_there_before_the_pods_that_need_it() -> None:
    assert kinds(pipeline()) == ["Deployment", "PodDisruptionBudget"]
    assert kinds(pipeline(worker={"serviceAccount": {"create": True}}))[:2] == ["ServiceAccount", "Deployment"]


def test_a_worker_that_is_not_ready_may_be_evicted() -> None:
    (budget,) = (each for each in render(pipeline()) if each["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["spec"]["maxUnavailable"] == 1


def annotations(given: api.Pipeline) -> Any:
    return render(given)[0]["spec"]["template"]["metadata"]["annotations"]


def test_a_node_can_be_removed_although_workers_keep_files_on_it() -> None:
    safe = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
    assert annotations(pipeline())[safe] == "tmp,engine-cache"
    assert annotations(pipeline(model={"engineCache": {"claimName": "c"}}))[safe] == "tmp"
    patch = {"metadata": {"annotations": {safe: ""}}, "spec": {"volumes": [{"name": "mine", "emptyDir": {}}]}}
    assert annotations(pipeline(worker={"podTemplate": {"spec": patch["spec"]}}))[safe] == "tmp,engine-cache"
    assert annotations(pipeline(worker={"podTemplate": patch}))[safe] == ""


def test_user_and_group_are_left_to_a_platform_that_assigns_them() -> None:
    assert pod(pipeline())["securityContext"]["runAsUser"] == 65532
    assigned = pod(pipeline(worker={"fixedUserIds": False}))["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(assigned)
    assert assigned["runAsNonRoot"] is True


def test_runtime_class_only_when_asked() -> None:
    assert "runtimeClassName" not in pod(pipeline())
    assert pod(pipeline(worker={"runtimeClassName": "nvidia"}))["runtimeClassName"] == "nvidia"


def test_a_part_of_a_gpu_is_found_behind_the_taint_of_the_whole_one() -> None:
    tolerated = [
        each["key"] for each in pod(pipeline(worker={"gpu": {"resource": "nvidia.com/mig-1g.10gb"}}))["tolerations"]
    ]
    assert tolerated[:2] == ["nvidia.com/mig-1g.10gb", "nvidia.com/gpu"]
    assert [each["key"] for each in pod(pipeline())["tolerations"]].count("nvidia.com/gpu") == 1
    other = pod(pipeline(worker={"gpu": {"resource": "amd.com/gpu"}}))
    assert next(each["key"] for each in other["tolerations"]) == "amd.com/gpu"


def test_a_volume_is_mounted_twice_by_a_pod_template() -> None:
    mounts = [{"name": "model", "mountPath": "/models"}, {"name": "model", "mountPath": "/more", "subPath": "more"}]
    patch = {"containers": [{"name": "worker", "volumeMounts": mounts}]}
    claim = {"path": "m.onnx", "persistentVolumeClaim": {"claimName": "m"}}
    found = pod(pipeline(model=claim, worker={"podTemplate": {"spec": patch}}))["containers"][0]["volumeMounts"]
    assert [each["mountPath"] for each in found] == ["/tmp", "/var/cache/vaultml", "/models", "/more"]
    assert found[2] == {"name": "model", "mountPath": "/models", "readOnly": True}


def test_pod_template_has_the_last_word() -> None:
    patched = pod(
        pipeline(
            worker={
                "env": [{"name": "ENGINE_BATCH", "value": "8"}],
                "podTemplate": {
                    "spec": {
                        "hostNetwork": True,
                        "containers": [
                            {"name": "worker", "workingDir": "/w", "env": [{"name": "ENGINE_BATCH", "value": "4"}]},
                            {"name": "sidecar", "image": "s"},
                        ],
                        "volumes": [{"name": "tmp", "emptyDir": {}}],
                    }
                },
            }
        )
    )
    worker, sidecar = patched["containers"]
    assert patched["hostNetwork"] is True
    assert worker["workingDir"] == "/w"
    assert worker["args"] == ["worker"]
    assert {"name": "ENGINE_BATCH", "value": "4"} in worker["env"]
    assert len([each for each in worker["env"] if each["name"] == "ENGINE_BATCH"]) == 1
    assert sidecar == {"name": "sidecar", "image": "s"}


def test_the_digest_follows_what_is_wanted() -> None:
    def digest(given: api.Pipeline, image: str = "i", revision: str = "r") -> str:
        rendered = manifests.render(given, credentials.find(given.spec, KEYS), revision, image)
        return str(rendered[0]["metadata"]["annotations"][manifests.HASH])

    same = digest(pipeline())
    assert digest(pipeline()) == same
    assert digest(pipeline(replicas=7)) == same  # the number is not the manifest's
    others = [digest(pipeline(detection={"threshold": 0.6})), digest(pipeline(), "j"), digest(pipeline(), "i", "s")]
    assert len({same, *others}) == 4


def test_numbers_are_written_as_people_write_them() -> None:
    given = env(pipeline(detection={"threshold": 0.35, "moveDistance": 100.0}))
    assert (given["DETECTION_THRESHOLD"], given["MOVE_DISTANCE"]) == ("0.35", "100")


def kafka(security: str, **more: Any) -> dict[str, Any]:
    block = {"brokers": ["b:9092"], "group": "g", "security": security, "credentialsSecretRef": {"name": "user"}}
    return {"name": "in", "target": "out", "kafka": block | more}


@pytest.mark.parametrize(
    ("keys", "security", "expected"),
    [
        ({"username", "password"}, "SASL_PLAINTEXT", {"KAFKA_USERNAME", "KAFKA_PASSWORD", "KAFKA_MECHANISM"}),
        ({"password", "sasl.jaas.config"}, "SASL_PLAINTEXT", {"KAFKA_USERNAME", "KAFKA_PASSWORD", "KAFKA_MECHANISM"}),
        ({"ca.crt", "user.crt", "user.key", "user.p12", "user.password"}, "SSL", {"KAFKA_SSL_CERT", "KAFKA_SSL_KEY"}),
        ({"ca.crt", "tls.crt", "tls.key"}, "SSL", {"KAFKA_SSL_CA", "KAFKA_SSL_CERT", "KAFKA_SSL_KEY"}),
        ({"ca.crt"}, "SSL", {"KAFKA_SSL_CA"}),
    ],
)
def test_whose_keys_are_understood(keys: set[str], security: str, expected: set[str]) -> None:
    given = env(pipeline(queue=kafka(security)), {Object("Secret", "user"): frozenset(keys)})
    optional = {
        "KAFKA_USERNAME",
        "KAFKA_PASSWORD",
        "KAFKA_MECHANISM",
        "KAFKA_SSL_CA",
        "KAFKA_SSL_CERT",
        "KAFKA_SSL_KEY",
    }
    assert set(given) & optional == expected
    if "sasl.jaas.config" in keys:
        assert given["KAFKA_USERNAME"] == "user"


@pytest.mark.parametrize(
    ("keys", "reason", "says"),
    [
        (None, "SecretMissing", "Secret user is missing in this namespace: create it"),
        ({"password"}, "SecretKeyMissing", "Secret user lacks the key username"),
        ({"username"}, "SecretKeyMissing", "Secret user lacks the key password"),
    ],
)
def test_what_is_missing_is_said(keys: set[str] | None, reason: str, says: str) -> None:
    there = None if keys is None else frozenset(keys)
    with pytest.raises(credentials.Missing, match=says) as caught:
        render(pipeline(queue=kafka("SASL_PLAINTEXT")), {Object("Secret", "user"): there})
    assert caught.value.reason == reason


def test_a_resource_of_a_crd_without_our_rules_is_said_to_be_wrong_without_its_values() -> None:
    secret = base64.b64encode(b"x").decode()
    with pytest.raises(api.InvalidResource, match=r"spec.queue.kafka.security: input should be") as caught:
        pipeline(queue=kafka(secret))
    assert secret not in str(caught.value)
