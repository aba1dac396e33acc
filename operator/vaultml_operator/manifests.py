"""Pure: what a pipeline's spec means as Kubernetes objects."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from vaultml_operator import api
from vaultml_operator.credentials import Credentials, Source

Manifest = dict[str, Any]

MANAGER = "vaultml-operator"
PIPELINE = f"{api.GROUP}/pipeline"
"""Label of all that belongs to a pipeline; its value is the pipeline's name."""
HASH = f"{api.GROUP}/manifest"
"""Annotation: digest of the manifest that was last applied."""
REVISION = f"{api.GROUP}/credentials-revision"
"""Annotation of the pods: changes with the values that they read from Secrets and ConfigMaps."""
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""Annotation of a pod: of those that can go, the ones with the least go first."""
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
"""Annotation of the pods: volumes on the node that the cluster autoscaler need not spare a node for."""
OURS = {"app.kubernetes.io/managed-by": MANAGER}

_PORT = 8080
_USER = 65532
_TLS = "/etc/vaultml/tls"
_MODEL = "/models"
_CACHE = "/var/cache/vaultml"
_UNREACHABLE_S = 30
_GPU = "nvidia.com/gpu"


def labels(pipeline: api.Pipeline) -> dict[str, str]:
    """Labels of every object of the pipeline."""
    return {
        "app.kubernetes.io/name": "vaultml-worker",
        "app.kubernetes.io/instance": pipeline.name,
        "app.kubernetes.io/part-of": "vaultml",
        **OURS,
        PIPELINE: pipeline.name,
    }


def selector(pipeline: api.Pipeline) -> dict[str, str]:
    """Labels by which the pipeline's pods are found; they never change."""
    return {"app.kubernetes.io/name": "vaultml-worker", PIPELINE: pipeline.name}


def gpu(spec: api.Spec) -> str:
    """The GPU of each worker in a word, for the printer column."""
    return f"{spec.worker.gpu.resource}:{spec.worker.gpu.count}" if spec.worker.gpu.count else "none"


def render(pipeline: api.Pipeline, credentials: Credentials, revision: str, image: str) -> list[Manifest]:
    """Every object that the pipeline should have, each with its digest as an annotation.

    `revision` stands for the state of the Secrets and ConfigMaps that the pods read; `image` is the worker's where the
    spec names none. The Deployment carries no replicas: they are applied to its scale subresource.
    """
    # Pods are refused while their ServiceAccount is missing: it comes first.
    wanted = [_service_account(pipeline)] if pipeline.spec.worker.service_account.create else []
    wanted += [_deployment(pipeline, credentials, revision, image), _disruption_budget(pipeline)]
    if pipeline.spec.monitoring.pod_monitor:
        wanted.append(_pod_monitor(pipeline))
    for manifest in wanted:
        manifest["metadata"].setdefault("annotations", {})[HASH] = _digest(manifest)
    return wanted


def env(pipeline: api.Pipeline, credentials: Credentials) -> list[dict[str, Any]]:
    """The worker container's environment; a secret is only ever named."""
    spec = pipeline.spec
    plain = dict(_queue(spec.queue, credentials))
    if spec.vault is not None:
        plain |= {
            "VAULT_API_URL": spec.vault.api_url,
            "VAULT_ACCESS_KEY": credentials.vault_access_key,
            "VAULT_SECRET_KEY": credentials.vault_secret_key,
            "VAULT_DOWNLOAD": spec.vault.download,
        }
    plain |= _model(spec.model)
    plain |= {
        "ENGINE": spec.worker.engine or ("tensorrt" if spec.worker.gpu.count else "onnxruntime"),
        "ENGINE_CACHE": _CACHE,
        "NUMBER_OF_PREDICTIONS": str(spec.detection.number_of_predictions),
        "DETECTION_THRESHOLD": _number(spec.detection.threshold),
        "DETECTION_CLASSES": ",".join(spec.detection.classes),
        "MOVE_DISTANCE": _number(spec.detection.move_distance),
        "RECORDINGS_IN_FLIGHT": str(spec.worker.recordings_in_flight),
        "HTTP_PORT": str(_PORT),
        "LOG_FORMAT": spec.worker.log_format,
        "LOG_LEVEL": spec.worker.log_level,
    }
    plain |= {name: f"{_TLS}/{file}" for name, (file, _) in _tls_files(credentials).items()}
    found = [_variable(name, value) for name, value in plain.items() if value not in (None, "")]
    own = [each.model_dump(by_alias=True, exclude_none=True) for each in spec.worker.env]
    return found + own


def _queue(queue: api.Queue, credentials: Credentials) -> Iterator[tuple[str, str | Source | None]]:
    yield "QUEUE_SYSTEM", queue.system
    yield "QUEUE_NAME", queue.name
    yield "QUEUE_TARGET", queue.target
    if (kafka := queue.kafka) is None:
        return
    yield "KAFKA_BROKER", ",".join(kafka.brokers)
    yield "KAFKA_GROUP", kafka.group
    yield "KAFKA_SECURITY", kafka.security
    yield "KAFKA_OFFSET_RESET", kafka.offset_reset
    if kafka.security.startswith("SASL"):
        yield "KAFKA_MECHANISM", kafka.mechanism
        yield "KAFKA_USERNAME", credentials.username
        yield "KAFKA_PASSWORD", credentials.password
    yield "KAFKA_AWS_REGION", kafka.aws_region
    if kafka.oauth is not None:
        yield "KAFKA_OAUTH_TOKEN_URL", kafka.oauth.token_url
        yield "KAFKA_OAUTH_CLIENT_ID", credentials.oauth_client_id
        yield "KAFKA_OAUTH_CLIENT_SECRET", credentials.oauth_client_secret
        yield "KAFKA_OAUTH_SCOPE", kafka.oauth.scope
        yield "KAFKA_OAUTH_EXTENSIONS", kafka.oauth.extensions


def _tls_files(credentials: Credentials) -> dict[str, tuple[str, Source]]:
    """The worker's variable for each file of TLS, the file's name and where it comes from."""
    files = {
        "KAFKA_SSL_CA": ("ca.crt", credentials.ca),
        "KAFKA_SSL_CERT": ("tls.crt", credentials.certificate),
        "KAFKA_SSL_KEY": ("tls.key", credentials.key),
        "KAFKA_OAUTH_CA": ("oauth-ca.crt", credentials.oauth_ca),
        "VAULT_SSL_CA": ("vault-ca.crt", credentials.vault_ca),
    }
    return {name: (file, source) for name, (file, source) in files.items() if source is not None}


def _model(model: api.NeuralNetwork) -> dict[str, str]:
    folder = f"{_MODEL}/" if model.persistent_volume_claim is not None else ""
    files = {"MODEL": model.path, "MODEL_WEIGHTS": model.weights, "MODEL_NAMES": model.names}
    found = {name: folder + path for name, path in files.items() if path is not None}
    others = {"MODEL": model.name or model.url, "MODEL_SHA256": model.sha256, "MODEL_PRECISION": model.precision}
    return found | {name: value for name, value in others.items() if value is not None}


def _variable(name: str, value: str | Source | None) -> dict[str, Any]:
    if not isinstance(value, Source):
        return {"name": name, "value": value}
    field = "secretKeyRef" if value.object.kind == "Secret" else "configMapKeyRef"
    return {"name": name, "valueFrom": {field: {"name": value.object.name, "key": value.key}}}


def _number(value: float) -> str:
    return f"{value:.10g}"


def _deployment(pipeline: api.Pipeline, credentials: Credentials, revision: str, image: str) -> Manifest:
    worker = pipeline.spec.worker
    pod = _pod(pipeline, credentials, image)
    template = {
        "metadata": {
            "labels": labels(pipeline),
            "annotations": {
                REVISION: revision,
                "kubectl.kubernetes.io/default-container": "worker",
                SAFE_TO_EVICT: _local_volumes(pod),
            },
        },
        "spec": pod,
    }
    return _object(
        pipeline,
        "apps/v1",
        "Deployment",
        {
            "selector": {"matchLabels": selector(pipeline)},
            # A rollout must not need a spare GPU.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": worker.progress_deadline_seconds,
            "template": merge(template, worker.pod_template.model_dump(by_alias=True, exclude_none=True)),
        },
    )


def _local_volumes(pod: Manifest) -> str:
    """Return the names of the pod's own volumes on the node, comma-separated.

    The cluster autoscaler removes no node with a pod that has local storage, so an idle GPU node would stay for ever.
    A worker can be evicted at any time: it finishes what it has on SIGTERM, the rest is read again from the queue, and
    a built engine is built anew. Rather these volumes by name than safe-to-evict: "true", which would also cover
    volumes and sidecars that a podTemplate adds.
    """
    return ",".join(each["name"] for each in pod["volumes"] if "emptyDir" in each)


def _pod(pipeline: api.Pipeline, credentials: Credentials, image: str) -> dict[str, Any]:
    spec, worker = pipeline.spec, pipeline.spec.worker
    account = worker.service_account.name or (pipeline.name if worker.service_account.create else None)
    volumes, mounts = _volumes(spec, credentials)
    optional = {
        "serviceAccountName": account,
        "nodeSelector": worker.node_selector,
        "runtimeClassName": worker.runtime_class_name,
        "priorityClassName": worker.priority_class_name,
        "imagePullSecrets": [each.model_dump() for each in worker.image_pull_secrets],
    }
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": worker.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            **({"runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER} if worker.fixed_user_ids else {}),
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(pipeline)},
            }
        ],
        "tolerations": _tolerations(worker),
        **{name: value for name, value in optional.items() if value},
        "containers": [_container(pipeline, credentials, image, mounts)],
        "volumes": volumes,
    }


def _container(
    pipeline: api.Pipeline, credentials: Credentials, image: str, mounts: list[dict[str, Any]]
) -> dict[str, Any]:
    worker = pipeline.spec.worker
    resources = worker.resources.model_dump(exclude_none=True)
    if worker.gpu.count:
        resources.setdefault("limits", {})[worker.gpu.resource] = str(worker.gpu.count)
    pull_policy = {"imagePullPolicy": worker.image_pull_policy} if worker.image_pull_policy else {}
    return {
        "name": "worker",
        "image": worker.image or image,
        **pull_policy,
        "args": ["worker"],
        "env": env(pipeline, credentials),
        "ports": [{"name": "http", "containerPort": _PORT, "protocol": "TCP"}],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # The server answers from the start; a model that loads for minutes is alive, but not ready.
        "startupProbe": _probe("/healthz", period=2, failures=60),
        "livenessProbe": _probe("/healthz", period=10, failures=3),
        "readinessProbe": _probe("/readyz", period=2, failures=1),
        # A worker's last words tell why it ended: the operator passes them on.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def _volumes(spec: api.Spec, credentials: Credentials) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    cache = spec.model.engine_cache
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        {"name": "engine-cache"}
        | ({"persistentVolumeClaim": {"claimName": cache.claim_name}} if cache is not None else {"emptyDir": {}}),
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the pod
        {"name": "engine-cache", "mountPath": _CACHE},
    ]
    if (claim := spec.model.persistent_volume_claim) is not None:
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}})
        mounts.append({"name": "model", "mountPath": _MODEL, "readOnly": True})
    if files := list(_tls_files(credentials).values()):
        sources = [
            {
                "secret" if source.object.kind == "Secret" else "configMap": {
                    "name": source.object.name,
                    "items": [{"key": source.key, "path": file}],
                }
            }
            for file, source in files
        ]
        volumes.append({"name": "tls", "projected": {"sources": sources, "defaultMode": 0o440}})
        mounts.append({"name": "tls", "mountPath": _TLS, "readOnly": True})
    return volumes, mounts


def _tolerations(worker: api.Worker) -> list[dict[str, Any]]:
    found = [each.model_dump(by_alias=True, exclude_none=True) for each in worker.tolerations]
    if worker.gpu.count:
        # GPU nodes are commonly tainted with the resource's own name, and those with parts of GPUs with the whole's.
        taints = dict.fromkeys(
            (worker.gpu.resource, *([_GPU] if worker.gpu.resource.startswith("nvidia.com/") else []))
        )
        found += [{"key": taint, "operator": "Exists", "effect": "NoSchedule"} for taint in taints]
    found += [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _UNREACHABLE_S,
        }
        for state in ("not-ready", "unreachable")
    ]
    return found


def _disruption_budget(pipeline: api.Pipeline) -> Manifest:
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector(pipeline)},
        # A worker that is not ready does no work: otherwise one that crash-loops blocks the drain of its node.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return _object(pipeline, "policy/v1", "PodDisruptionBudget", spec)


def _service_account(pipeline: api.Pipeline) -> Manifest:
    account = pipeline.spec.worker.service_account
    manifest = _object(pipeline, "v1", "ServiceAccount", None)
    manifest["metadata"] |= {"name": account.name or pipeline.name, "annotations": dict(account.annotations or {})}
    return manifest | {"automountServiceAccountToken": False}


def _pod_monitor(pipeline: api.Pipeline) -> Manifest:
    spec = {
        "selector": {"matchLabels": selector(pipeline)},
        "podMetricsEndpoints": [{"port": "http", "path": "/metrics"}],
    }
    manifest = _object(pipeline, "monitoring.coreos.com/v1", "PodMonitor", spec)
    manifest["metadata"]["labels"] |= pipeline.spec.monitoring.labels
    return manifest


def _object(pipeline: api.Pipeline, api_version: str, kind: str, spec: Manifest | None) -> Manifest:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": pipeline.name,
            "namespace": pipeline.namespace,
            "labels": labels(pipeline),
            "ownerReferences": [
                {
                    "apiVersion": api.API_VERSION,
                    "kind": api.KIND,
                    "name": pipeline.name,
                    "uid": pipeline.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
    } | ({"spec": spec} if spec is not None else {})


def merge(base: Any, patch: Any) -> Any:
    """`patch` over `base`: maps by key, lists of named things by name, mounts by path, all else replaced."""
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        return {**base, **{key: merge(base.get(key), value) for key, value in patch.items()}}
    if isinstance(base, list) and isinstance(patch, list) and (key := list_key(base, patch)) is not None:
        over = {each[key]: each for each in patch}
        merged = [merge(each, over.pop(each[key])) if each[key] in over else each for each in base]
        return merged + list(over.values())
    return patch


def list_key(*lists: list[Any]) -> str | None:
    """The field that tells the items of these lists apart: a volume may be mounted twice, everything else is named."""
    items = [item for each in lists for item in each]
    for key in ("mountPath", "name"):
        if all(isinstance(item, Mapping) and key in item for item in items):
            return key
    return None


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:32]
