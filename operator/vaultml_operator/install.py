"""Pure: what has to be applied to a cluster to run the operator in it, with no more rights than it needs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from vaultml_common.quantity import exact
from vaultml_operator import api, crd

Manifest = dict[str, Any]

NAMESPACE = "vaultml-system"
NAME = "vaultml-operator"
_LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "vaultml"}
_SELECTOR = {"app.kubernetes.io/name": NAME}
_PORT = 8080
_USER = 65532
_REQUESTS: Mapping[str, str] = MappingProxyType({"cpu": "50m", "memory": "128Mi"})
_LIMITS: Mapping[str, str] = MappingProxyType({"memory": "512Mi"})
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_TAINT = re.compile(r"(?P<key>[A-Za-z0-9][-A-Za-z0-9_./]*)?(=(?P<value>[-A-Za-z0-9_.]*))?(:(?P<effect>[A-Za-z]+))?")


class BadOption(ValueError):  # noqa: N818 - named as BadFile
    """An option that makes no manifest; the message says what to write."""


@dataclass(frozen=True, kw_only=True)
class PodOptions:
    """What may differ between clusters in the operator's pods. Raises BadOption.

    `user_ids` False leaves user and group to the platform, as OpenShift asks for. `requests` and `limits` go over the
    defaults. A toleration is written as kubectl writes a taint: key=value:effect, each part optional.
    """

    user_ids: bool = True
    pull_secrets: Sequence[str] = ()
    priority_class: str | None = None
    requests: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in (*self.pull_secrets, *([self.priority_class] if self.priority_class is not None else [])):
            if not _NAME.fullmatch(name):
                raise BadOption(f"{name!r} is no name of a Secret or PriorityClass: use small letters, digits, hyphens")
        resources = self.resources()
        for name, amount in resources["limits"].items():
            request = resources["requests"].get(name)
            if request is not None and _amount(name, request) > _amount(name, amount):
                raise BadOption(f"the request {name}={request} exceeds the limit {name}={amount}: raise the limit, too")
        for each in resources.values():
            for name, amount in each.items():
                _amount(name, amount)
        self.all_tolerations()

    def resources(self) -> dict[str, dict[str, str]]:
        """Return the container's resources."""
        requests, limits = {**_REQUESTS, **self.requests}, {**_LIMITS, **self.limits}
        return {"requests": dict(sorted(requests.items())), "limits": dict(sorted(limits.items()))}

    def all_tolerations(self) -> list[dict[str, str]]:
        """Return the pod's tolerations."""
        return [_toleration(each) for each in dict.fromkeys(self.tolerations)]


def _amount(name: str, amount: str) -> Fraction:
    """Return an amount exactly. Raises BadOption."""
    try:
        found = exact(amount)
    except ValueError:
        found = Fraction(0)
    if found <= 0:
        raise BadOption(f"{name}={amount} is no amount: write cpu=100m or memory=256Mi")
    return found


def _toleration(text: str) -> dict[str, str]:
    found = _TAINT.fullmatch(text)
    if found is None or not text or found["effect"] not in (None, *_EFFECTS) or (found["value"] and not found["key"]):
        raise BadOption(
            f"{text!r} is no taint: write key=value:NoSchedule, key:NoExecute or key ({', '.join(_EFFECTS)})"
        )
    how = {"operator": "Exists"} if found["value"] is None else {"operator": "Equal", "value": found["value"]}
    parts = {"key": found["key"], **how, "effect": found["effect"]}
    return {name: part for name, part in parts.items() if part is not None}


def manifests(
    image: str,
    worker_image: str,
    watched: Sequence[str] = (),
    replicas: int = 2,
    *,
    pods: PodOptions | None = None,
    network_policy: bool = False,
) -> list[Manifest]:
    """CRD, namespace, RBAC, and the operator's Deployment with what belongs to it.

    No `watched` namespaces: the whole cluster is watched. The order of options doesn't change what is returned.
    """
    watched = sorted(set(watched))
    for namespace in watched:
        if not _NAME.fullmatch(namespace):
            raise BadOption(f"{namespace!r} is no name of a namespace: use small letters, digits and hyphens")
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}
    found: list[Manifest] = [
        crd.definition(),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": _LABELS}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(NAMESPACE)},
        _role("Role", f"{NAME}-lease", NAMESPACE, _lease_rules()),
        _binding("Role", f"{NAME}-lease", NAMESPACE, account),
    ]
    if watched:
        for namespace in watched:
            found += [
                _role("Role", NAME, namespace, _rules()),
                _binding("Role", NAME, namespace, account),
            ]
    else:
        found += [
            _role("ClusterRole", NAME, None, [*_rules(), *_node_rules()]),
            _binding("ClusterRole", NAME, None, account),
        ]
    found += [
        _deployment(image, worker_image, watched, replicas, pods or PodOptions()),
        _service(),
        _disruption_budget(),
    ]
    if network_policy:
        found.append(_network_policy())
    return found


def _rules() -> list[Manifest]:
    """What is needed where the pipelines are."""
    watch = ["get", "list", "watch"]
    apply = [*watch, "create", "patch"]
    return [
        _rule(api.GROUP, [api.PLURAL], watch),
        _rule(api.GROUP, [f"{api.PLURAL}/status"], ["patch"]),
        _rule("apps", ["deployments"], apply),
        _rule("apps", ["deployments/scale"], ["patch"]),
        _rule("policy", ["poddisruptionbudgets"], apply),
        _rule("monitoring.coreos.com", ["podmonitors"], [*apply, "delete"]),
        _rule("", ["serviceaccounts"], [*apply, "delete"]),
        # Patched with their deletion cost, so that the idlest workers go first.
        _rule("", ["pods"], ["list", "watch", "patch"]),
        # Watched for changes, read to check broker and Vault; never written.
        _rule("", ["secrets", "configmaps"], watch),
        _rule("events.k8s.io", ["events"], ["create", "list"]),
    ]


def _node_rules() -> list[Manifest]:
    """To count GPUs, and to tell "no node offers that GPU" from "all are taken".

    Without it nobody counts, and the scheduler's words are passed on.
    """
    return [_rule("", ["nodes"], ["list", "watch"])]


def _lease_rules() -> list[Manifest]:
    return [_rule("coordination.k8s.io", ["leases"], ["get", "create", "update"])]


def _rule(group: str, resources: list[str], verbs: list[str]) -> Manifest:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _metadata(namespace: str | None, name: str = NAME) -> Manifest:
    return {"name": name, **({"namespace": namespace} if namespace else {}), "labels": _LABELS}


def _role(kind: str, name: str, namespace: str | None, rules: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": _metadata(namespace, name),
        "rules": rules,
    }


def _binding(kind: str, name: str, namespace: str | None, account: Manifest) -> Manifest:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": f"{kind}Binding",
        "metadata": _metadata(namespace, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [account],
    }


def _service() -> Manifest:
    """For Prometheus: each replica has metrics, and only the leader those of pipelines."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(NAMESPACE),
        "spec": {
            "selector": _SELECTOR,
            "ports": [{"name": "http", "port": _PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def _disruption_budget() -> Manifest:
    # maxUnavailable rather than minAvailable, which would block the drain of a node with the only replica.
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": _SELECTOR},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(NAMESPACE),
        "spec": spec,
    }


def _network_policy() -> Manifest:
    """Only health and metrics can be reached. Egress stays open: brokers and Vaults may be anywhere."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(NAMESPACE),
        "spec": {
            "podSelector": {"matchLabels": _SELECTOR},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": "http", "protocol": "TCP"}]}],
        },
    }


def _deployment(image: str, worker_image: str, watched: Sequence[str], replicas: int, options: PodOptions) -> Manifest:
    args = ["run", "--worker-image", worker_image, *(f"--namespace={each}" for each in watched)]
    probe = {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3}
    container = {
        "name": "operator",
        "image": image,
        "args": args,
        "ports": [{"name": "http", "containerPort": _PORT, "protocol": "TCP"}],
        "resources": options.resources(),
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, **probe},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, **probe, "periodSeconds": 2},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - in the pod
    }
    optional = {
        "imagePullSecrets": [{"name": each} for each in sorted(set(options.pull_secrets))],
        "priorityClassName": options.priority_class,
        "tolerations": options.all_tolerations(),
    }
    pod = {
        "serviceAccountName": NAME,
        **{name: value for name, value in optional.items() if value},
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": True,
            **({"runAsUser": _USER, "runAsGroup": _USER} if options.user_ids else {}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _SELECTOR},
            }
        ],
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(NAMESPACE),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": _SELECTOR},
            "template": {"metadata": {"labels": _LABELS}, "spec": pod},
        },
    }


_POD_REFERENCES = {
    "Secret": ("envFrom/secretRef/name", "env/valueFrom/secretKeyRef/name"),
    "ConfigMap": ("envFrom/configMapRef/name", "env/valueFrom/configMapKeyRef/name"),
}
_VOLUME_REFERENCES = {
    "Secret": ("secret/secretName", "projected/sources/secret/name"),
    "ConfigMap": ("configMap/name", "projected/sources/configMap/name"),
}


def kustomize_config() -> Manifest:
    """Return kustomize's configuration for the names of Secrets and ConfigMaps in a pipeline.

    With it, names that kustomize changes (a prefix, the hash of a generator) are changed in pipelines, too.
    """
    spec = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    template = "spec/worker/podTemplate/spec"
    references: dict[str, list[str]] = {"Secret": [], "ConfigMap": []}
    for kind, path in _references(spec, "spec"):
        references[kind].append(path)
    for kind, paths in references.items():
        for containers in ("containers", "initContainers"):
            paths += [f"{template}/{containers}/{path}" for path in _POD_REFERENCES[kind]]
        paths += [f"{template}/volumes/{path}" for path in _VOLUME_REFERENCES[kind]]
    return {
        "nameReference": [
            {
                "kind": kind,
                "version": "v1",
                "fieldSpecs": [{"group": api.GROUP, "kind": api.KIND, "path": path} for path in paths],
            }
            for kind, paths in references.items()
        ]
    }


def _references(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Find the fields that name a Secret or ConfigMap: an object with a name, called after the kind."""
    for name, each in schema.get("properties", {}).items():
        # kustomize steps into lists by itself.
        inner = each.get("items", each)
        kind = next((kind for kind in ("Secret", "ConfigMap") if kind.lower() in name.lower()), None)
        if kind is not None and "name" in inner.get("properties", {}):
            yield kind, f"{path}/{name}/name"
        else:
            yield from _references(inner, f"{path}/{name}")
