"""The worker pods."""

from typing import Annotated, Literal

from pydantic import Field

from vaultml_operator.api.base import (
    LABEL_KEY,
    LABEL_VALUE,
    Annotations,
    Key,
    Labels,
    Model,
    ObjectName,
    Quantity,
    Rule,
    SecretRef,
    key_rule,
    label_rules,
    map_list,
)
from vaultml_operator.api.environment import PodSpecPatch, owned_rule, secret_rules


class Gpu(Model):
    """The GPU that each worker asks for."""

    rules = (
        Rule(
            "self.resource.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[a-zA-Z0-9]([-a-zA-Z0-9_.]*[a-zA-Z0-9])?$')",
            "resource is an extended resource, e.g. nvidia.com/gpu or nvidia.com/mig-1g.10gb",
        ),
        Rule(
            "!self.resource.endsWith('.shared') || self.count <= 1",
            "asking for more than one share of a GPU gives no more compute: set count to 1",
        ),
    )
    resource: Annotated[str, Field(min_length=3, max_length=128)] = Field(
        default="nvidia.com/gpu",
        description="Extended resource: nvidia.com/gpu, a MIG profile such as nvidia.com/mig-1g.10gb, or a renamed "
        "shared GPU, nvidia.com/gpu.shared.",
    )
    count: int = Field(default=1, ge=0, le=16, description="How many per worker; 0 runs on the CPU.")


def _within_limit(name: str) -> Rule:
    both = " && ".join(f"has(self.{each}) && '{name}' in self.{each}" for each in ("requests", "limits"))
    request, limit = (f"string(self.{each}['{name}'])" for each in ("requests", "limits"))
    return Rule(
        f"!({both}) || !isQuantity({request}) || !isQuantity({limit}) || "
        f"quantity({request}).compareTo(quantity({limit})) <= 0",
        f"the request of {name} must not exceed its limit",
    )


_AMOUNTS = "[has(self.requests) ? self.requests : {}, has(self.limits) ? self.limits : {}]"


def _amounts(names: str, test: str) -> str:
    """Return CEL: each quantity whose name `k` passes `names` passes `test`, where it is written {}."""
    amount = "string(r[k])"
    passes = test.replace("{}", f"quantity({amount})")
    return f"{_AMOUNTS}.all(r, r.all(k, !({names}) || !isQuantity({amount}) || {passes}))"


class Resources(Model):
    """CPU and memory of one worker, as in a container."""

    rules = (
        _within_limit("cpu"),
        _within_limit("memory"),
        Rule(f"{_AMOUNTS}.all(r, r.all(k, !k.contains('/')))", "GPUs are asked for by worker.gpu, not here"),
        Rule(
            f"{_AMOUNTS}.all(r, r.all(k, k.contains('/') || k.startsWith('hugepages-') || "
            "k in ['cpu', 'memory', 'ephemeral-storage']))",
            "a resource is one of cpu, memory, ephemeral-storage and hugepages-<size>",
        ),
        Rule(
            f"{_AMOUNTS}.all(r, r.all(k, isQuantity(string(r[k]))))",
            "an amount is written like 500m or 2 (cpu), 512Mi or 4Gi (memory)",
        ),
        Rule(
            _amounts("true", "{}.compareTo(quantity('0')) > 0"),
            "an amount must be more than 0: leave the resource out to set none",
        ),
        # 512m of memory is half a byte, 4Gi of CPU are four billion cores: the unit of the one for the other.
        Rule(
            _amounts("k == 'memory'", "({}.compareTo(quantity('1Mi')) >= 0 || {}.compareTo(quantity('0')) <= 0)"),
            "an amount of memory must be at least 1Mi: write 512Mi, not 512m or 512",
        ),
        Rule(
            _amounts("k == 'cpu'", "{}.compareTo(quantity('4096')) <= 0"),
            "an amount of cpu must be at most 4096 cores: write 500m or 2, without Mi or Gi",
        ),
    )
    requests: Annotated[dict[str, Quantity], Field(max_length=8)] | None = Field(
        default=None, description="What is set aside, e.g. {cpu: 500m, memory: 1Gi}."
    )
    limits: Annotated[dict[str, Quantity], Field(max_length=8)] | None = Field(
        default=None, description="What may be used at most."
    )


class Toleration(Model):
    """A taint that the workers put up with, as in a pod."""

    key: Annotated[str, Field(max_length=317)] | None = Field(
        default=None, description="Key of the taint; absent: any."
    )
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How value is compared.")
    value: Annotated[str, Field(max_length=63)] | None = Field(default=None, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; absent: any."
    )
    toleration_seconds: int | None = Field(default=None, description="How long NoExecute is put up with, in seconds.")
    rules = (
        Rule(
            "self.operator == 'Equal' || !has(self.value)",
            "operator Exists compares no value: leave value out, or use operator Equal",
        ),
        Rule("self.operator == 'Exists' || has(self.key)", "operator Equal needs key"),
        Rule(
            f"!has(self.key) || self.key == '' || (self.key.matches('{LABEL_KEY}'))",
            "key must be the key of a taint, e.g. nvidia.com/gpu, without blanks",
        ),
        Rule(
            f"!has(self.value) || self.value.matches('{LABEL_VALUE}')",
            "value must be letters, digits, hyphens, underscores and dots, without blanks",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds needs effect NoExecute",
        ),
    )


class EnvKeyRef(Model):
    """One key of a Secret or ConfigMap."""

    name: ObjectName = Field(description="Name of the object, in the pipeline's own namespace.")
    key: Key = Field(description="Key in it.")
    optional: bool | None = Field(default=None, description="Whether it may be missing.")


class FieldRef(Model):
    """A field of the pod."""

    rules = (Rule("self.fieldPath.matches('^[!-~]+$')", "fieldPath must not contain blanks, tabs or newlines"),)
    field_path: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="e.g. spec.nodeName.")


class EnvSource(Model):
    """Where the value of a variable comes from."""

    rules = (
        Rule(
            "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].filter(x, x).size() == 1",
            "give exactly one of secretKeyRef, configMapKeyRef and fieldRef",
        ),
    )
    secret_key_ref: EnvKeyRef | None = Field(default=None, description="Key of a Secret.")
    config_map_key_ref: EnvKeyRef | None = Field(default=None, description="Key of a ConfigMap.")
    field_ref: FieldRef | None = Field(default=None, description="Field of the pod.")


class EnvVar(Model):
    """A variable for the worker that no other field sets."""

    rules = (
        Rule("!has(self.value) || !has(self.valueFrom)", "give value or valueFrom, not both"),
        owned_rule("self"),
        *secret_rules("self"),
    )
    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")] = Field(
        description="Name of the variable."
    )
    value: Annotated[str, Field(max_length=32768)] | None = Field(default=None, description="Its value.")
    value_from: EnvSource | None = Field(default=None, description="Where its value comes from.")


class ServiceAccount(Model):
    """The ServiceAccount of the worker pods."""

    rules = (
        Rule(
            "self.create || !has(self.annotations)",
            "annotations are put on a ServiceAccount of ours: set create to true, or annotate yours",
        ),
        key_rule("annotations", "annotation"),
    )
    create: bool = Field(default=False, description="Create one for this pipeline, named as it is unless name is set.")
    name: ObjectName | None = Field(default=None, description="Name of an existing one, or of the one to create.")
    annotations: Annotations | None = Field(
        default=None, description="Annotations of the one that is created, e.g. a cloud role."
    )


class PodMetadata(Model):
    """Labels and annotations for the pods."""

    rules = (
        Rule(
            "!has(self.labels) || self.labels.all(k, !k.startsWith('ml.kerberos.io/') && "
            "!k.startsWith('app.kubernetes.io/'))",
            "labels ml.kerberos.io/… and app.kubernetes.io/… are the operator's: choose others",
        ),
        Rule(
            "!has(self.annotations) || self.annotations.all(k, !k.startsWith('ml.kerberos.io/'))",
            "annotations ml.kerberos.io/… are the operator's: choose others",
        ),
        *label_rules("labels"),
        key_rule("annotations", "annotation"),
    )
    labels: Labels | None = Field(default=None, description="Labels to add.")
    annotations: Annotations | None = Field(default=None, description="Annotations to add.")


class PodTemplate(Model):
    """A patch on the pod template: the last word on anything that has no field of its own."""

    metadata: PodMetadata | None = Field(default=None, description="Labels and annotations to add.")
    spec: PodSpecPatch | None = Field(
        default=None,
        description="Merged into the pod's spec: maps by key, lists of named things (containers, volumes, …) by name, "
        "volumeMounts by mountPath, other lists are replaced. The worker's container is named worker.",
    )


class Worker(Model):
    """The worker pods."""

    rules = (
        Rule(
            "!has(self.engine) || self.engine != 'tensorrt' || self.gpu.count > 0",
            "engine tensorrt needs a GPU: set gpu.count to 1 or more, or engine to onnxruntime",
        ),
        *label_rules("nodeSelector"),
        Rule(
            "!has(self.image) || self.image.matches('^[!-~]+$')",
            "image must not contain blanks, tabs or newlines",
        ),
    )
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="Image of the worker. Absent: the one that belongs to the operator's version."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When the image is pulled."
    )
    image_pull_secrets: Annotated[tuple[SecretRef, ...], Field(max_length=16)] = Field(
        default=(), description="Secrets to pull the image with.", json_schema_extra=map_list("name")
    )
    engine: Literal["tensorrt", "onnxruntime"] | None = Field(
        default=None,
        description="What runs the network. Absent: tensorrt with a GPU, onnxruntime without. A worker that lacks what "
        "its engine needs ends with an error; it never falls back to the CPU.",
    )
    gpu: Gpu = Field(default=Gpu(), description="The GPU that each worker asks for.")
    resources: Resources = Field(
        default=Resources(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "4Gi"}),
        description="CPU and memory of each worker.",
    )
    node_selector: Labels | None = Field(
        default=None, description="Labels that a node must have, e.g. nvidia.com/gpu.product: NVIDIA-L4."
    )
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = Field(
        default=(),
        description="Taints that the workers put up with, besides one named as the GPU resource.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    runtime_class_name: ObjectName | None = Field(
        default=None, description="RuntimeClass of the pods, e.g. nvidia; only where the cluster needs it."
    )
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")
    service_account: ServiceAccount = Field(
        default=ServiceAccount(), description="ServiceAccount of the pods. Absent: the namespace's default."
    )
    fixed_user_ids: bool = Field(
        default=True,
        description="Set runAsUser, runAsGroup and fsGroup of the pods to 65532. false: the platform assigns them, as "
        "OpenShift does.",
    )
    recordings_in_flight: int = Field(default=4, ge=1, le=256, description="Recordings in work at once, per worker.")
    termination_grace_period_seconds: int = Field(
        default=120, ge=5, le=3600, description="Seconds that a worker has to finish its recordings when it must go."
    )
    progress_deadline_seconds: int = Field(
        default=900,
        ge=10,
        le=7200,
        description="Seconds without progress after which a rollout is reported as stuck; building an engine takes "
        "minutes.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level logged.")
    log_format: Literal["console", "json"] = Field(default="json", description="How the log is written.")
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] = Field(
        default=(),
        description="More variables for the worker: those of docs/variables.md that no field sets.",
        json_schema_extra=map_list("name"),
    )
    pod_template: PodTemplate = Field(
        default=PodTemplate(), description="A patch on the pod template, for what has no field of its own."
    )


class Monitoring(Model):
    """Prometheus."""

    rules = (
        Rule(
            "!has(self.labels) || self.labels.all(k, !k.startsWith('ml.kerberos.io/') && "
            "!k.startsWith('app.kubernetes.io/'))",
            "labels ml.kerberos.io/… and app.kubernetes.io/… are the operator's: choose others",
        ),
        *label_rules("labels"),
    )
    pod_monitor: bool = Field(
        default=False, description="Create a PodMonitor (the Prometheus operator's CRDs must be there)."
    )
    labels: Labels = Field(default={"release": "prometheus"}, description="Labels of the PodMonitor.")
