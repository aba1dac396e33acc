"""`vaultml-operator install`: each option is where Kubernetes wants it, and what makes no sense is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vaultml_operator import crd, install
from vaultml_operator.cli import app

ROOT = Path(__file__).parents[2]
ALL = (
    *("--no-user-ids", "--network-policy", "--priority-class", "system-cluster-critical", "--replicas", "3"),
    *("--image-pull-secret", "second", "--image-pull-secret", "first"),
    *("--request", "memory=256Mi", "--request", "cpu=0.5", "--limit", "memory=1Gi", "--limit", "cpu=1500m"),
    *("--toleration", "infra=true:NoSchedule", "--toleration", "spot", "--toleration", "gone:NoExecute"),
    *("--namespace", "b", "--namespace", "a", "--namespace", "b"),
)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["install", *arguments], env={"WORKER_IMAGE": ""})
    return result.exit_code, result.output


def documents(*arguments: str) -> list[dict[str, Any]]:
    code, output = run(*arguments)
    assert code == 0, output
    return list(yaml.safe_load_all(output))


def only(kind: str, *arguments: str) -> dict[str, Any]:
    (found,) = (each for each in documents(*arguments) if each["kind"] == kind)
    return found


def pod(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = only("Deployment", *arguments)["spec"]["template"]["spec"]
    return found


def test_without_options_it_is_as_before() -> None:
    given = pod()
    assert given["securityContext"]["runAsUser"] == 65532
    assert not {"imagePullSecrets", "priorityClassName", "tolerations"} & set(given)
    assert "NetworkPolicy" not in {each["kind"] for each in documents()}


def test_user_and_group_are_left_to_the_platform() -> None:
    context = pod("--no-user-ids")["securityContext"]
    assert not {"runAsUser", "runAsGroup"} & set(context)
    assert context["runAsNonRoot"] is True


def test_pods_are_as_the_options_say() -> None:
    given = pod(*ALL)
    assert given["imagePullSecrets"] == [{"name": "first"}, {"name": "second"}]
    assert given["priorityClassName"] == "system-cluster-critical"
    assert given["containers"][0]["resources"] == {
        "requests": {"cpu": "0.5", "memory": "256Mi"},
        "limits": {"cpu": "1500m", "memory": "1Gi"},
    }
    assert given["tolerations"] == [
        {"key": "infra", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists"},
        {"key": "gone", "operator": "Exists", "effect": "NoExecute"},
    ]
    assert only("Deployment", *ALL)["spec"]["replicas"] == 3


def test_each_namespace_is_watched_once() -> None:
    found = documents(*ALL)
    roles = [each["metadata"]["namespace"] for each in found if each["kind"] == "Role"]
    assert roles == [install.NAMESPACE, "a", "b"]
    assert pod(*ALL)["containers"][0]["args"][-2:] == ["--namespace=a", "--namespace=b"]


def test_what_belongs_to_the_operators_pods_selects_them() -> None:
    labels = only("Deployment")["spec"]["template"]["metadata"]["labels"]
    service, budget = only("Service")["spec"], only("PodDisruptionBudget")["spec"]
    policy = only("NetworkPolicy", "--network-policy")["spec"]
    selectors = [service["selector"], budget["selector"]["matchLabels"], policy["podSelector"]["matchLabels"]]
    for selector in (*selectors, only("Deployment")["spec"]["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert policy["policyTypes"] == ["Ingress"]
    ports = {each["name"] for each in pod()["containers"][0]["ports"]}
    assert {service["ports"][0]["targetPort"], policy["ingress"][0]["ports"][0]["port"]} <= ports


def test_the_printed_yaml_is_stable() -> None:
    assert run(*ALL) == run(*ALL)
    swapped = [
        "--namespace",
        "a",
        "--limit",
        "memory=1Gi",
        "--namespace",
        "b",
        "--request",
        "cpu=1",
        "--limit",
        "cpu=2",
    ]
    other = ["--limit", "cpu=2", "--namespace", "b", "--namespace", "a", "--request", "cpu=1", "--limit", "memory=1Gi"]
    assert run(*swapped) == run(*other)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--request", "cpu"), "--request cpu: write cpu=100m, memory=256Mi"),
        (("--limit", "gpu=1"), "--limit gpu=1: write cpu=100m"),
        (("--limit", "memory=lots"), "memory=lots is no amount"),
        (("--limit", "cpu=0"), "cpu=0 is no amount"),
        (("--request", "cpu=-1"), "cpu=-1 is no amount"),
        (("--request", "cpu=0m"), "cpu=0m is no amount"),
        (("--request", "memory=1Gi"), "the request memory=1Gi exceeds the limit memory=512Mi: raise the limit, too"),
        (("--request", "cpu=600m", "--limit", "cpu=0.5"), "the request cpu=600m exceeds the limit cpu=0.5"),
        (("--toleration", "a=b:Never"), "is no taint: write key=value:NoSchedule"),
        (("--toleration", ""), "is no taint"),
        (("--toleration", "=b"), "is no taint"),
        (("--toleration", "a b"), "is no taint"),
        (("--priority-class", "High Priority"), "is no name of a Secret or PriorityClass"),
        (("--image-pull-secret", "pull\n"), "is no name of a Secret or PriorityClass"),
        (("--namespace", "A"), "is no name of a namespace"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_sentence(arguments: tuple[str, ...], says: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert says in output
    assert output.startswith("vaultml-operator: ")
    assert output.count("\n") == 1


def test_kustomize_knows_each_reference_of_the_resource() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "kustomizeconfig.yaml").read_text())
    known = {
        (each["kind"], field["path"])
        for each in config["nameReference"]
        for field in each["fieldSpecs"]
        if (field["group"], field["kind"]) == ("ml.kerberos.io", "VaultMLPipeline")
    }
    wanted = set(references(crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"], ""))
    assert len(wanted) == 11
    assert wanted <= known


def references(schema: dict[str, Any], path: str) -> list[tuple[str, str]]:
    """Each `name` whose description says that it is of a Secret, or that lies under a field that is called so."""
    found = []
    for name, each in schema.get("properties", {}).items():
        inner, here = each.get("items", each), f"{path}/{name}".removeprefix("/")
        if name == "name" and (kind := kind_of(path)) is not None:
            found.append((kind, here))
        found += references(inner, here)
    return found


def kind_of(path: str) -> str | None:
    last = path.rpartition("/")[2]
    if last.endswith(("SecretRef", "secretKeyRef", "Secrets")):
        return "Secret"
    return "ConfigMap" if last.endswith(("configMapKeyRef", "ConfigMapRef")) else None
