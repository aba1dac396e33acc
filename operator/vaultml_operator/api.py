"""The resource VaultMLPipeline as pydantic models: the one source of the CRD in crds/ and of all defaults.

The API server validates against the CRD; these models read what it has stored. Rules in CEL stand beside the fields
that they are about, each with a message that says what to write instead.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP = "ml.kerberos.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "VaultMLPipeline"
PLURAL = "vaultmlpipelines"
PAUSED = f"{GROUP}/paused"
"""Annotation: while "true", nothing of the pipeline is changed; only its status goes on being told."""

ENV_OF_SPEC = (
    *("QUEUE_SYSTEM", "QUEUE_NAME", "QUEUE_TARGET", "KAFKA_BROKER", "KAFKA_GROUP", "KAFKA_SECURITY"),
    *("KAFKA_MECHANISM", "KAFKA_USERNAME", "KAFKA_PASSWORD", "KAFKA_SSL_CA", "KAFKA_SSL_CERT", "KAFKA_SSL_KEY"),
    *("KAFKA_OFFSET_RESET", "VAULT_API_URL", "VAULT_ACCESS_KEY", "VAULT_SECRET_KEY", "VAULT_DOWNLOAD"),
    *("NUMBER_OF_PREDICTIONS", "MOVE_DISTANCE", "MODEL", "MODEL_WEIGHTS", "MODEL_NAMES", "MODEL_SHA256"),
    *("MODEL_PRECISION", "ENGINE", "ENGINE_CACHE"),
    *("DETECTION_THRESHOLD", "DETECTION_CLASSES", "RECORDINGS_IN_FLIGHT", "HTTP_HOST", "HTTP_PORT"),
    *("LOG_FORMAT", "LOG_LEVEL"),
)
"""The worker's variables that a field of the spec decides; `worker.env` may set any other."""


class Rule(dict[str, str]):
    """A CEL rule with the sentence that says what to write instead."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(rule=rule, message=message)


class Model(BaseModel):
    """camelCase outside, snake_case inside; unknown fields (of a newer CRD) are left alone."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")
    rules: ClassVar[tuple[Rule, ...]] = ()


_SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}


def _map(key: str) -> dict[str, Any]:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


Topic = Annotated[str, Field(max_length=245)]  # 249 is Kafka's limit; ".dlq" must fit behind
ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
]
Key = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
Labels = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)]
Annotations = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)]
Quantity = Annotated[
    str,
    WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}], "maxLength": 32}
    ),
    Field(coerce_numbers_to_str=True),
]


class SecretRef(Model):
    """A Secret of the pipeline's namespace."""

    name: ObjectName = Field(description="Name of the Secret, in the pipeline's own namespace.")


class KeyRef(Model):
    """One key of a Secret or ConfigMap of the pipeline's namespace."""

    name: ObjectName = Field(description="Name of the object, in the pipeline's own namespace.")
    key: Key = Field(default="ca.crt", description="Key in it.")


class CertificateAuthority(Model):
    """Where the brokers' certificate authority is found."""

    rules = (
        Rule(
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            "give exactly one of secretKeyRef and configMapKeyRef",
        ),
    )
    secret_key_ref: KeyRef | None = Field(
        default=None, description="Key of a Secret, e.g. Strimzi's <cluster>-cluster-ca-cert."
    )
    config_map_key_ref: KeyRef | None = Field(default=None, description="Key of a ConfigMap.")


class Kafka(Model):
    """How to reach and enter the Kafka cluster."""

    rules = (
        Rule(
            "!self.security.startsWith('SASL') || has(self.credentialsSecretRef)",
            "security SASL_PLAINTEXT and SASL_SSL need credentialsSecretRef: name a Secret with the keys username and "
            "password (or a Strimzi user's Secret)",
        ),
        Rule(
            "self.security != 'PLAINTEXT' || !has(self.credentialsSecretRef)",
            "security PLAINTEXT sends no credentials: set security to SASL_PLAINTEXT, SASL_SSL or SSL, or leave "
            "credentialsSecretRef out",
        ),
        Rule(
            "self.security.endsWith('SSL') || !has(self.ca)",
            "ca is used with TLS only: set security to SASL_SSL or SSL, or leave ca out",
        ),
        Rule(
            "!has(self.username) || self.security.startsWith('SASL')",
            "username is used with SASL only: set security to SASL_PLAINTEXT or SASL_SSL, or leave username out",
        ),
        Rule(
            "self.brokers.all(b, b.matches('^([a-zA-Z0-9_][-a-zA-Z0-9_.]*|\\\\[[0-9a-fA-F:.]+\\\\]):[0-9]{1,5}$'))",
            'each broker is host:port, without a scheme or spaces, e.g. "kafka.kafka:9092"',
        ),
        Rule(
            "self.brokers.all(b, !b.matches(':[0-9]{1,5}$') || (int(b.split(':')[b.split(':').size() - 1]) >= 1 && "
            "int(b.split(':')[b.split(':').size() - 1]) <= 65535))",
            "a broker's port lies between 1 and 65535",
        ),
    )
    brokers: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=260)], ...], Field(min_length=1, max_length=16)
    ] = Field(description="Brokers to start from, each host:port.", json_schema_extra=_SET)
    group: Annotated[str, Field(min_length=1, max_length=249)] = Field(
        description="Consumer group that the workers share."
    )
    security: Literal["PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL", "SSL"] = Field(
        default="PLAINTEXT", description="How to talk to the brokers."
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="SASL mechanism; used with SASL only."
    )
    username: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None,
        description="SASL user. Absent: the key username of the Secret, or, for a Strimzi user's Secret, its name.",
    )
    credentials_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with username and password, and, for TLS, ca.crt, tls.crt and tls.key, each where needed. "
        "A Strimzi user's Secret works as it is (password, user.crt, user.key); its ca.crt signs users, not brokers, "
        "and is not used: give ca.",
    )
    ca: CertificateAuthority | None = Field(
        default=None,
        description="Authority that signed the brokers' certificates. Absent: ca.crt of the credentials Secret, else "
        "the authorities of the worker's image.",
    )
    offset_reset: Literal["earliest", "latest"] = Field(
        default="earliest", description="Where a group without committed offsets begins."
    )


class Queue(Model):
    """Where events come from and results go to."""

    rules = (
        Rule("self.system != 'KAFKA' || has(self.kafka)", "system KAFKA needs the block kafka: give brokers and group"),
        Rule("self.target != self.name", "target must differ from name, or each result is taken for a new event"),
        Rule(
            "self.name.matches('^[a-zA-Z0-9._-]+$') && self.name != '.' && self.name != '..'",
            "name must be a topic's name: letters, digits, dots, underscores and hyphens",
        ),
        Rule(
            "self.target == '' || (self.target.matches('^[a-zA-Z0-9._-]+$') && self.target != '.' && "
            "self.target != '..')",
            "target must be a topic's name (letters, digits, dots, underscores and hyphens), or empty to publish "
            "nothing",
        ),
        Rule(
            "!self.name.startsWith('kcloud-')",
            "a Hub queue (kcloud-…) is not supported by this version yet: name a queue of your own Vault",
        ),
    )
    system: Literal["KAFKA"] = Field(
        default="KAFKA",
        description="Kind of queue.",
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self == oldSelf",
                    "message": "system can't be changed: delete the pipeline and create it anew",
                }
            ]
        },
    )
    name: Annotated[Topic, Field(min_length=1)] = Field(description="Topic that the events are read from.")
    target: Topic = Field(default="", description="Topic that the results go to; empty publishes nothing.")
    kafka: Kafka | None = Field(default=None, description="The Kafka cluster, for system KAFKA.")


class Vault(Model):
    """Kerberos Vault, where the recordings are."""

    rules = (
        Rule(
            "self.apiUrl.matches('^https?://[^/@?#]+(/[^@?#]*)?$') && isURL(self.apiUrl)",
            "apiUrl must look like http://vault-lb.kerberos-vault/api, without user, password, query or fragment",
        ),
    )
    api_url: Annotated[str, Field(min_length=1, max_length=2048)] = Field(
        description="Vault's address, with /api for newer Vaults."
    )
    credentials_secret_ref: SecretRef = Field(description="Secret with the keys accessKey and secretKey.")
    download: Literal["blob", "signed-url"] = Field(
        default="blob", description="blob: through Vault. signed-url: straight from its storage provider."
    )


class Claim(Model):
    """A PersistentVolumeClaim of the pipeline's namespace."""

    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim.")


ModelPath = Annotated[str, Field(min_length=1, max_length=1024)]


_PATHS = "[has(self.path) ? self.path : '', has(self.weights) ? self.weights : '', has(self.names) ? self.names : '']"


class NeuralNetwork(Model):
    """The network that looks at the frames."""

    rules = (
        Rule(
            "[has(self.name), has(self.path), has(self.url)].filter(x, x).size() <= 1",
            "give one of name (a published model), path (a file) and url, or none for the image's own model",
        ),
        Rule(
            "!has(self.url) || (isURL(self.url) && "
            "self.url.matches('^https?://[^/@?#[:space:]]+/[^@?#[:space:]]+[.](cfg|onnx)$'))",
            "url must be http(s) and end in .cfg (with .weights beside it) or .onnx, without user, password, query or "
            "fragment",
        ),
        Rule(
            "!has(self.url) || has(self.sha256)",
            "url needs sha256: the digest of the .onnx, or of the .weights beside a .cfg",
        ),
        Rule(
            "!has(self.sha256) || has(self.path) || has(self.url)",
            "sha256 belongs to path or url: a published model is checked by its own digest",
        ),
        Rule(
            "!has(self.precision) || ![has(self.path) ? self.path : '', has(self.url) ? self.url : '']"
            ".exists(p, p.endsWith('.onnx'))",
            "an .onnx has its own precision: leave precision out",
        ),
        Rule(
            "!has(self.path) || self.path.endsWith('.cfg') || self.path.endsWith('.onnx')",
            "path must end in .cfg (Darknet, with its .weights) or .onnx",
        ),
        Rule(
            "has(self.path) || (!has(self.weights) && !has(self.names))",
            "weights and names belong to a path: give path, too",
        ),
        Rule(
            "has(self.path) || !has(self.persistentVolumeClaim)",
            "persistentVolumeClaim needs path: the model's file in it",
        ),
        Rule(
            "!has(self.path) || !self.path.endsWith('.onnx') || !has(self.weights)",
            "an .onnx carries its weights: leave weights out",
        ),
        Rule(
            f"{_PATHS}.all(p, p == '' || p.startsWith('/') != has(self.persistentVolumeClaim))",
            "paths are relative with persistentVolumeClaim (to its top), and absolute without (in the image)",
        ),
        Rule(
            f"{_PATHS}.all(p, !('..' in p.split('/')))",
            "paths must not contain ..",
        ),
    )
    name: Literal["yolov3", "yolov3-tiny"] | None = Field(
        default=None,
        description="A published model. Where the image lacks it the worker fetches it, which needs the internet.",
    )
    path: ModelPath | None = Field(
        default=None,
        description="A Darknet .cfg or an .onnx, in the claim or in the image. Without path, name and url: the model "
        "of the image.",
    )
    url: Annotated[str, Field(min_length=1, max_length=2048)] | None = Field(
        default=None,
        description="Where the worker fetches a .cfg (with .weights and, if there are any, .names beside it) or an "
        ".onnx from, over http(s). It is kept in the engine cache.",
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        default=None,
        description="SHA-256 of the .onnx or the weights, in small hexadecimal digits; another file is refused.",
    )
    precision: Literal["fp32", "fp16"] | None = Field(
        default=None,
        description="Precision of a Darknet network's convolutions. Absent: the engine's best; fp16 with tensorrt.",
    )
    weights: ModelPath | None = Field(
        default=None, description="Darknet weights. Absent: the file beside the .cfg that ends in .weights."
    )
    names: ModelPath | None = Field(
        default=None,
        description="Labels, one a line. Absent: the file beside the model that ends in .names, else COCO's.",
    )
    persistent_volume_claim: Claim | None = Field(
        default=None, description="Volume with the model's files, mounted read-only."
    )
    engine_cache: Claim | None = Field(
        default=None,
        description="Volume that keeps built engines between starts. Absent: they live as long as the pod.",
    )


class Detection(Model):
    """What is looked at and reported."""

    rules = (
        Rule(
            "self.classes.all(c, c.matches('^[^,]+$'))",
            "a class is one label, without commas: give a list, e.g. [car, person]",
        ),
    )
    number_of_predictions: int = Field(
        default=5, ge=1, le=1000, description="Frames looked at per recording, spread evenly over its duration."
    )
    threshold: float = Field(default=0.5, gt=0, lt=1, description="Least probability of a detection.")
    classes: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=256)] = Field(
        default=(), description="Labels to report; empty: all that the model knows.", json_schema_extra=_SET
    )
    move_distance: float = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Pixels that an object's box centre must travel to count as moving; 0: everything counts.",
    )


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
    request, limit = (f"quantity(string(self.{each}['{name}']))" for each in ("requests", "limits"))
    return Rule(
        f"!({both}) || {request}.compareTo({limit}) <= 0",
        f"the request of {name} must not exceed its limit",
    )


class Resources(Model):
    """CPU and memory of one worker, as in a container."""

    rules = (
        _within_limit("cpu"),
        _within_limit("memory"),
        Rule(
            "[has(self.requests) ? self.requests : {}, has(self.limits) ? self.limits : {}].all(r, "
            "r.all(k, !k.contains('/')))",
            "GPUs are asked for by worker.gpu, not here",
        ),
        Rule(
            "[has(self.requests) ? self.requests : {}, has(self.limits) ? self.limits : {}].all(r, "
            "r.all(k, isQuantity(string(r[k]))))",
            "an amount is written like 500m or 2 (cpu), 512Mi or 4Gi (memory)",
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
    )


class EnvKeyRef(Model):
    """One key of a Secret or ConfigMap."""

    name: ObjectName = Field(description="Name of the object, in the pipeline's own namespace.")
    key: Key = Field(description="Key in it.")
    optional: bool | None = Field(default=None, description="Whether it may be missing.")


class FieldRef(Model):
    """A field of the pod."""

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
        Rule(
            f"!(self.name in {list(ENV_OF_SPEC)!r})",
            "this variable is decided by a field of the spec: see kubectl explain vaultmlpipeline.spec",
        ),
        Rule(
            "!self.name.matches('(?i)passw|(^|_)(secret|token|(access|api)_?key|credentials?)(_|$)') || "
            "has(self.valueFrom)",
            "this looks like a secret: use valueFrom.secretKeyRef, so that it does not stand in the resource",
        ),
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
    )
    labels: Labels | None = Field(default=None, description="Labels to add.")
    annotations: Annotations | None = Field(default=None, description="Annotations to add.")


class PodTemplate(Model):
    """A patch on the pod template: the last word on anything that has no field of its own."""

    metadata: PodMetadata | None = Field(default=None, description="Labels and annotations to add.")
    spec: dict[str, Any] | None = Field(
        default=None,
        description="Merged into the pod's spec: maps by key, lists of named things (containers, volumes, …) by name, "
        "volumeMounts by mountPath, other lists are replaced. The worker's container is named worker.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class Worker(Model):
    """The worker pods."""

    rules = (
        Rule(
            "!has(self.engine) || self.engine != 'tensorrt' || self.gpu.count > 0",
            "engine tensorrt needs a GPU: set gpu.count to 1 or more, or engine to onnxruntime",
        ),
        Rule(
            "!has(self.nodeSelector) || self.nodeSelector.all(k, k.size() <= 317)",
            "a label's key in nodeSelector has at most 317 characters",
        ),
    )
    image: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^\S+$")] | None = Field(
        default=None, description="Image of the worker. Absent: the one that belongs to the operator's version."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When the image is pulled."
    )
    image_pull_secrets: Annotated[tuple[SecretRef, ...], Field(max_length=16)] = Field(
        default=(), description="Secrets to pull the image with.", json_schema_extra=_map("name")
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
        json_schema_extra=_map("name"),
    )
    pod_template: PodTemplate = Field(
        default=PodTemplate(), description="A patch on the pod template, for what has no field of its own."
    )


class Monitoring(Model):
    """Prometheus."""

    pod_monitor: bool = Field(
        default=False, description="Create a PodMonitor (the Prometheus operator's CRDs must be there)."
    )
    labels: Labels = Field(default={"release": "prometheus"}, description="Labels of the PodMonitor.")


class Spec(Model):
    """What a pipeline should be."""

    queue: Queue = Field(description="Where events come from and results go to.")
    vault: Vault | None = Field(
        default=None, description="Kerberos Vault. Absent: each event brings its own address and keys."
    )
    model: NeuralNetwork = Field(default=NeuralNetwork(), description="The network that looks at the frames.")
    detection: Detection = Field(default=Detection(), description="What is looked at and reported.")
    replicas: int = Field(default=1, ge=0, le=1000, description="How many workers run; kubectl scale sets it, too.")
    suspend: bool = Field(default=False, description="true: no workers; replicas is kept for later.")
    worker: Worker = Field(default=Worker(), description="The worker pods.")
    monitoring: Monitoring = Field(default=Monitoring(), description="Prometheus.")


class Condition(Model):
    """One aspect of the pipeline's state, as metav1.Condition."""

    type: Annotated[str, Field(max_length=64)] = Field(description="The aspect.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int = Field(description="Generation of the spec that this is about.")
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] = Field(
        description="When status last changed."
    )
    reason: Annotated[str, Field(max_length=64)] = Field(description="Why, in one word of docs/reasons.md.")
    message: Annotated[str, Field(max_length=2048)] = Field(description="Why, in a sentence, and what to do.")


class Status(Model):
    """What the pipeline is."""

    observed_generation: int | None = Field(default=None, description="Generation of the spec that was last acted on.")
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field(
        default=(),
        description="Ready, Progressing, QueueReachable, VaultReachable, Paused.",
        json_schema_extra=_map("type"),
    )
    replicas: int | None = Field(default=None, description="Worker pods that exist.")
    ready_replicas: int | None = Field(default=None, description="Worker pods that are ready.")
    workers: str | None = Field(default=None, description="Ready and wanted workers, as in 1/2.")
    gpu: str | None = Field(default=None, description="The GPU of each worker, as in nvidia.com/gpu:1.")
    image: str | None = Field(default=None, description="Image of the workers.")
    selector: str | None = Field(default=None, description="Label selector of the worker pods, for autoscalers.")


def is_paused(body: dict[str, Any]) -> bool:
    """Whether the resource, as the API server gives it, carries the annotation that pauses it."""
    return (body["metadata"].get("annotations") or {}).get(PAUSED) == "true"


class InvalidResource(Exception):  # noqa: N818 - named as the worker's InvalidInput
    """A stored resource that this operator can't read; the message says which fields and why."""


class Pipeline(Model):
    """A VaultMLPipeline as stored, with what the operator needs of its metadata."""

    name: str
    namespace: str
    uid: str
    generation: int
    paused: bool
    spec: Spec

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> "Pipeline":
        """Read a resource as the API server gives it. Raises InvalidResource for one that an older CRD let in."""
        metadata = body["metadata"]
        try:
            spec = Spec.model_validate(body.get("spec") or {})
        except ValidationError as error:
            wrong = "; ".join(
                f"spec.{'.'.join(str(part) for part in item['loc'])}: {item['msg'][:1].lower()}{item['msg'][1:]}"
                for item in error.errors(include_url=False, include_input=False)
            )
            raise InvalidResource(wrong) from None
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata["generation"],
            paused=is_paused(body),
            spec=spec,
        )


ROOT_RULES = (
    Rule(
        "self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "a pipeline's name has at most 52 characters: small letters, digits and hyphens, no dots",
    ),
)
