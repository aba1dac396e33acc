"""Pure: what has to be applied to a cluster to run the operator in it, with no more rights than it needs."""

from collections.abc import Sequence
from typing import Any

from vaultml_operator import api, crd

Manifest = dict[str, Any]

NAMESPACE = "vaultml-system"
NAME = "vaultml-operator"
_LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "vaultml"}
_PORT = 8080


def manifests(image: str, worker_image: str, watched: Sequence[str] = (), replicas: int = 2) -> list[Manifest]:
    """CRD, namespace, RBAC and the operator's Deployment. No `watched` namespaces: the whole cluster is watched."""
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
    found.append(_deployment(image, worker_image, watched, replicas))
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
        _rule("events.k8s.io", ["events"], ["create"]),
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


def _deployment(image: str, worker_image: str, watched: Sequence[str], replicas: int) -> Manifest:
    selector = {"app.kubernetes.io/name": NAME}
    args = ["run", "--worker-image", worker_image, *(f"--namespace={each}" for each in watched)]
    probe = {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3}
    container = {
        "name": "operator",
        "image": image,
        "args": args,
        "ports": [{"name": "http", "containerPort": _PORT, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, **probe},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, **probe, "periodSeconds": 2},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - in the pod
    }
    pod = {
        "serviceAccountName": NAME,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector},
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
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": _LABELS}, "spec": pod},
        },
    }
