"""The resource on a real API server: what it refuses and with which words, what it fills in, what kubectl shows."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.kubernetes import Cluster, KubectlError
from vaultml_operator import crd

ROOT = Path(__file__).parents[3]
GOOD: dict[str, Any] = {
    "apiVersion": "ml.kerberos.io/v1alpha1",
    "kind": "VaultMLPipeline",
    "metadata": {"name": "good"},
    "spec": {
        "queue": {"name": "in", "target": "out", "kafka": {"brokers": ["kafka.kafka:9092"], "group": "g"}},
        "vault": {"apiUrl": "http://vault/api", "credentialsSecretRef": {"name": "vault"}},
    },
}
SASL = {"security": "SASL_PLAINTEXT", "credentialsSecretRef": {"name": "user"}}
NONE = object()
PORTS = (":99999", ":0", ":65536", ":123456", ":00080", ":")
OWNED = (
    ("KAFKA_GROUP", "set .spec.queue.kafka.group instead"),
    ("QUEUE_NAME", "set .spec.queue.name instead"),
    ("KAFKA_SSL_CERT", "set .spec.queue.kafka.credentialsSecretRef instead"),
    ("LOG_LEVEL", "set .spec.worker.logLevel instead"),
    ("HTTP_PORT", "it can't be changed"),
)
PASSWORDS = (
    ("HTTP_PROXY", "http://user:secret@proxy:3128"),
    ("https_proxy", "http://user:sec/ret@proxy:3128"),
    ("ALL_PROXY", "user:secret@proxy:3128"),
    ("VAULT_PROXY", "socks5h://user:secret@proxy:1080/"),
    ("PIP_INDEX_URL", "https://user:secret@index.example/simple"),
)


def spaced(text: str) -> list[str]:
    """The text with a blank, tab or newline around it and in it."""
    return [f"{text}\n", f"{text} ", f" {text}", f"{text}\t", f"{text[:-1]} {text[-1:]}", f"{text}\r"]


# Where it is bad, what stands there (NONE: the field is left out), and a part of the sentence that the API server says.
BAD: list[tuple[str, Any, str]] = [
    ("metadata.name", "with.dots", "small letters, digits and hyphens, no dots"),
    ("metadata.name", "x" * 53, "at most 52 characters"),
    ("spec.queue", NONE, "spec.queue: Required value"),
    ("spec.queue.name", NONE, "spec.queue.name: Required value"),
    ("spec.queue.name", "", "should be at least 1 chars long"),
    ("spec.queue.name", "a topic", "name must be a topic's name: letters, digits, dots, underscores and hyphens"),
    ("spec.queue.name", "..", "name must be a topic's name"),
    ("spec.queue.name", "q" * 246, "Too long: may not be more than 245"),
    ("spec.queue.name", "kcloud-analysis-queue.fifo", "the queues of Hub's classifier are not supported"),
    ("spec.queue.kafka.group", "group ", "without blanks or quotes around it"),
    ("spec.queue.target", "in", "target must differ from name, or each result is taken for a new event"),
    ("spec.queue.target", "out?", "target must be a topic's name"),
    (
        "spec",
        {
            "queue": {"name": "in", "kafka": {"brokers": ["k:1"], "group": "g", "offsetReset": "latest"}},
            "autoscaling": {"minReplicas": 0},
        },
        "offsetReset latest needs a worker at all times",
    ),
    ("spec.queue.system", "SQS", 'Unsupported value: "SQS": supported values: "KAFKA"'),
    ("spec.queue.kafka", NONE, "system KAFKA needs the block kafka: give brokers and group"),
    ("spec.queue.kafka.brokers", NONE, "brokers: Required value"),
    ("spec.queue.kafka.brokers", [], "brokers in body should have at least 1 items"),
    ("spec.queue.kafka.brokers", "kafka:9092", "must be of type array"),
    (
        "spec.queue.kafka.brokers",
        ["kafka"],
        'each broker is host:port, without a scheme or spaces, e.g. "kafka.kafka:9092"',
    ),
    ("spec.queue.kafka.brokers", ["http://kafka:9092"], "each broker is host:port"),
    ("spec.queue.kafka.brokers", ["a:9092,b:9092"], "each broker is host:port"),
    ("spec.queue.kafka.brokers", ["kafka :9092"], "each broker is host:port"),
    ("spec.queue.kafka.brokers", ["kafka:0"], "a broker's port lies between 1 and 65535"),
    ("spec.queue.kafka.brokers", ["kafka:70000"], "a broker's port lies between 1 and 65535"),
    ("spec.queue.kafka.brokers", ["kafka:9092", "kafka:9092"], "Duplicate value"),
    ("spec.queue.kafka.group", "", "should be at least 1 chars long"),
    ("spec.queue.kafka.group", NONE, "group: Required value"),
    ("spec.queue.kafka.security", "TLS", 'supported values: "PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL", "SSL"'),
    ("spec.queue.kafka.security", "SASL_PLAINTEXT", "need credentialsSecretRef: name a Secret with the keys username"),
    ("spec.queue.kafka.security", "SASL_SSL", "need credentialsSecretRef"),
    ("spec.queue.kafka.mechanism", "GSSAPI", 'supported values: "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"'),
    (
        "spec.queue.kafka.credentialsSecretRef",
        {"name": "user"},
        "security PLAINTEXT sends no credentials: set security",
    ),
    ("spec.queue.kafka.credentialsSecretRef", {}, "credentialsSecretRef.name: Required value"),
    ("spec.queue.kafka.credentialsSecretRef", {"name": "User"}, "should match"),
    ("spec.queue.kafka.username", "me", "username is used with SASL only"),
    ("spec.queue.kafka.ca", {"secretKeyRef": {"name": "ca"}}, "ca is used with TLS only"),
    (
        "spec.queue.kafka",
        {**SASL, "brokers": ["b:1"], "group": "g", "security": "SASL_SSL", "ca": {}},
        "give exactly one of",
    ),
    ("spec.queue.kafka.offsetReset", "none", 'supported values: "earliest", "latest"'),
    ("spec.vault.apiUrl", "vault/api", "apiUrl must look like http://vault-lb.kerberos-vault/api"),
    ("spec.vault.apiUrl", "ftp://vault/api", "apiUrl must look like"),
    ("spec.vault.apiUrl", "http://user:secret@vault/api", "without user, password, query or fragment"),
    ("spec.vault.apiUrl", "http://vault/api?x=1", "without user, password, query or fragment"),
    ("spec.vault.credentialsSecretRef", NONE, "credentialsSecretRef: Required value"),
    ("spec.vault.download", "ftp", 'supported values: "blob", "signed-url"'),
    ("spec.model", {"path": "/m.pt"}, "path must end in .cfg (Darknet, with its .weights) or .onnx"),
    ("spec.model", {"weights": "/m.weights"}, "weights and names belong to a path: give path, too"),
    ("spec.model", {"persistentVolumeClaim": {"claimName": "m"}}, "persistentVolumeClaim needs path"),
    ("spec.model", {"path": "/m.onnx", "weights": "/m.weights"}, "an .onnx carries its weights: leave weights out"),
    ("spec.model", {"path": "m.onnx"}, "absolute without (in the image)"),
    ("spec.model", {"path": "/m.onnx", "persistentVolumeClaim": {"claimName": "m"}}, "paths are relative with"),
    ("spec.model", {"path": "../m.onnx", "persistentVolumeClaim": {"claimName": "m"}}, "paths must not contain .."),
    ("spec.model", {"name": "yolov9"}, 'supported values: "yolov3", "yolov3-tiny"'),
    ("spec.model", {"name": "yolov3", "path": "/m.cfg"}, "give one of name (a published model), path (a file) and url"),
    ("spec.model", {"url": "https://models.test/a.onnx"}, "url needs sha256: the digest of the .onnx"),
    ("spec.model", {"url": "https://models.test/a.pt", "sha256": "0" * 64}, "must be http(s) and end in .cfg"),
    ("spec.model", {"url": "https://a:b@models.test/a.onnx", "sha256": "0" * 64}, "without user, password, query"),
    ("spec.model", {"name": "yolov3", "sha256": "0" * 64}, "sha256 belongs to path or url"),
    ("spec.model", {"path": "/m.onnx", "sha256": "ABC"}, "should match"),
    ("spec.model", {"path": "/m.onnx", "precision": "fp16"}, "an .onnx has its own precision: leave precision out"),
    ("spec.detection.numberOfPredictions", 0, "should be greater than or equal to 1"),
    ("spec.detection.numberOfPredictions", 2.5, "must be of type integer"),
    ("spec.detection.threshold", 0, "should be greater than 0"),
    ("spec.detection.threshold", 1, "should be less than 1"),
    ("spec.detection.threshold", "0.5", "must be of type number"),
    ("spec.detection.classes", ["car,person"], "a class is one label, without commas"),
    ("spec.detection.classes", ["car", "car"], "Duplicate value"),
    ("spec.detection.moveDistance", -1, "should be greater than or equal to 0"),
    ("spec.replicas", -1, "should be greater than or equal to 0"),
    ("spec.autoscaling.mode", "Automatic", 'supported values: "Auto", "Advisory", "Manual"'),
    (
        "spec.autoscaling",
        {"minReplicas": 5, "maxReplicas": 4},
        "minReplicas must not exceed maxReplicas: lower the one",
    ),
    ("spec.autoscaling", {"minReplicas": 1, "idleReplicas": 2}, "idleReplicas must not exceed minReplicas"),
    ("spec.autoscaling", {"gpuCapacity": "Unlimited"}, "gpuCapacity Unlimited needs maxReplicas"),
    ("spec.autoscaling.gpuCapacity", "Some", 'supported values: "Observed", "Unlimited"'),
    ("spec.autoscaling.maxReplicas", 0, "should be greater than or equal to 1"),
    ("spec.autoscaling.pollingSeconds", 0, "should be greater than or equal to 1"),
    ("spec.autoscaling.drainSeconds", 0, "should be greater than or equal to 1"),
    ("spec.autoscaling.lagPerReplica", 0, "should be greater than or equal to 1"),
    ("spec.autoscaling.tolerance", 2, "should be less than or equal to 1"),
    ("spec.autoscaling.weight", 0, "should be greater than 0"),
    ("spec.autoscaling.scaleIn", {"maxPercent": 200}, "should be less than or equal to 100"),
    ("spec.autoscaling.fallback", {"behavior": "Zero"}, 'supported values: "Static", "Current"'),
    ("spec.queue.kafka.ensurePartitions", 0, "should be greater than or equal to 1"),
    ("spec.suspend", "yes", "must be of type boolean"),
    ("spec.worker.gpu.resource", "gpu", "resource is an extended resource, e.g. nvidia.com/gpu"),
    ("spec.worker.gpu", {"resource": "nvidia.com/gpu.shared", "count": 2}, "gives no more compute: set count to 1"),
    ("spec.worker.gpu.count", -1, "should be greater than or equal to 0"),
    (
        "spec.worker",
        {"engine": "tensorrt", "gpu": {"count": 0}},
        "engine tensorrt needs a GPU: set gpu.count to 1 or more",
    ),
    ("spec.worker.engine", "cpu", 'supported values: "tensorrt", "onnxruntime"'),
    (
        "spec.worker.resources",
        {"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}},
        "the request of cpu must not exceed",
    ),
    (
        "spec.worker.resources",
        {"requests": {"memory": "2Gi"}, "limits": {"memory": 1000}},
        "the request of memory must not",
    ),
    ("spec.worker.resources", {"requests": {"cpu": 0.5}}, "must be of type integer,string"),
    ("spec.worker.resources", {"limits": {"memory": "4 GB"}}, "an amount is written like 500m or 2 (cpu), 512Mi or"),
    ("spec.worker.resources", {"limits": {"nvidia.com/gpu": 1}}, "GPUs are asked for by worker.gpu, not here"),
    (
        "spec.worker.tolerations",
        [{"key": "a", "operator": "Exists", "value": "b"}],
        "operator Exists compares no value",
    ),
    ("spec.worker.tolerations", [{"value": "b"}], "operator Equal needs key"),
    (
        "spec.worker.podTemplate",
        {"spec": {"containers": [{"name": "worker", "env": [{"name": "VAULT_SECRET_KEY", "value": "x"}]}]}},
        "VAULT_SECRET_KEY is set by the operator: set .spec.vault.credentialsSecretRef instead",
    ),
    (
        "spec.worker.env",
        [{"name": "MY_PASSWORD", "value": "x"}],
        "this looks like a secret: use valueFrom.secretKeyRef",
    ),
    ("spec.worker.env", [{"name": "token", "value": "x"}], "this looks like a secret"),
    ("spec.worker.env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}], "this looks like a secret"),
    ("spec.worker.env", [{"name": "A", "value": "x"}, {"name": "A", "value": "y"}], "Duplicate value"),
    ("spec.worker.env", [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "p"}}}], "not both"),
    (
        "spec.worker.env",
        [{"name": "A", "valueFrom": {}}],
        "give exactly one of secretKeyRef, configMapKeyRef and fieldRef",
    ),
    ("spec.worker.serviceAccount", {"annotations": {"a": "b"}}, "set create to true, or annotate yours"),
    (
        "spec.worker.podTemplate.metadata",
        {"labels": {"ml.kerberos.io/pipeline": "x"}},
        "are the operator's: choose others",
    ),
    ("spec.worker.podTemplate.metadata", {"annotations": {"ml.kerberos.io/manifest": "x"}}, "are the operator's"),
    ("spec.worker.terminationGracePeriodSeconds", 1, "should be greater than or equal to 5"),
    ("spec.worker.logLevel", "TRACE", 'supported values: "DEBUG", "INFO", "WARNING", "ERROR"'),
    ("spec.worker.gpus", 1, 'unknown field "spec.worker.gpus"'),
]


BROKERS = {"brokers": ["b:1"], "group": "g"}
OAUTH = {
    **BROKERS,
    "security": "SASL_SSL",
    "mechanism": "OAUTHBEARER",
    "credentialsSecretRef": {"name": "client"},
}
CHARACTERS = "must not contain blanks, tabs, newlines or other characters that need an escape"
AROUND = "must not begin or end with a blank, or contain a newline or tab"


def _with_worker_env(container: str, name: str, value: str = "x") -> dict[str, Any]:
    return {"spec": {"containers": [{"name": container, "env": [{"name": name, "value": value}]}]}}


# As above; each fault is answered by this sentence and no other.
ONE_SENTENCE: list[tuple[str, Any, str]] = [
    *(("spec.vault.apiUrl", f"http://vault{port}/api", "the port in apiUrl must be") for port in PORTS),
    *(("spec.vault.apiUrl", f"http://vault{port}", "the port in apiUrl must be") for port in PORTS),
    ("spec.vault.apiUrl", "https://[::1]:65536/api", "the port in apiUrl must be a number from 1 to 65535"),
    *(("spec.vault.apiUrl", url, f"apiUrl {CHARACTERS}") for url in spaced("http://vault/api")),
    ("spec.vault.apiUrl", "http://vault/a\u00a0b", f"apiUrl {CHARACTERS}"),
    ("spec.vault.apiUrl", "http://vault/%zz", "apiUrl must look like"),
    ("spec.vault.apiUrl", "http://:80/api", "apiUrl must look like"),
    *(
        ("spec.queue.kafka", {**OAUTH, "oauth": {"tokenUrl": f"https://idp{port}/token"}}, "the port in tokenUrl must")
        for port in PORTS
    ),
    *(
        ("spec.queue.kafka", {**OAUTH, "oauth": {"tokenUrl": url}}, f"tokenUrl {CHARACTERS}")
        for url in spaced("https://idp/token")
    ),
    *(
        (
            "spec.queue.kafka",
            {**OAUTH, "oauth": {"tokenUrl": "https://idp/t", field: f"{field}=a\n"}},
            f"{field} {AROUND}",
        )
        for field in ("scope", "extensions")
    ),
    *(
        ("spec.model", {"url": f"https://models{port}/a.onnx", "sha256": "0" * 64}, "the port in url must be")
        for port in PORTS
    ),
    *(
        ("spec.model", {"url": url, "sha256": "0" * 64}, f"url {CHARACTERS}")
        for url in spaced("https://models.test/a.onnx")
    ),
    *(("spec.queue.kafka.brokers", [broker], "each broker is host:port") for broker in spaced("kafka:9092")),
    *(
        ("spec.queue.kafka.brokers", [f"kafka{port}"], "a broker's port lies between 1 and 65535")
        for port in PORTS
        if port != ":"
    ),
    (
        "spec.queue.name",
        "out.dlq",
        "to replay dead letters, set another target, e.g. out-replay, so that those that fail again go to "
        "out-replay.dlq",
    ),
    # A pipeline without a target has its dead letters in in.dlq: back to in is no way out.
    ("spec.queue", {"name": "in.dlq", "target": "in", "kafka": BROKERS}, "set another target, e.g. in-replay"),
    ("spec.queue.target", "in.dlq", "target must not end in .dlq: such a topic holds dead letters"),
    ("spec.queue", {"name": "in.dlq", "target": "in.dlq.dlq", "kafka": BROKERS}, "target must not end in .dlq"),
    *(("spec.queue.name", name, "name must be a topic's name") for name in spaced("in")),
    *(("spec.queue.target", name, "target must be a topic's name") for name in spaced("out")),
    *(("spec.queue.kafka.group", name, "group must be printable") for name in ("g\n", "\tg", "g\x00h", "g\nh", " g")),
    *(
        ("spec.queue.kafka", {**BROKERS, **SASL, "username": name}, f"username {AROUND}")
        for name in ("me\n", " me", "m\te")
    ),
    *(
        (
            "spec.queue.kafka",
            {**BROKERS, "security": "SASL_SSL", "mechanism": "AWS_MSK_IAM", "awsRegion": region},
            "awsRegion must be the name of a region",
        )
        for region in spaced("eu-central-1")
    ),
    ("spec.model", {"path": "/a\tb.onnx"}, f"path, weights and names {AROUND}"),
    ("spec.model", {"path": "/m.cfg", "weights": "/m.weights\n"}, f"path, weights and names {AROUND}"),
    *(("spec.detection.classes", [name], f"a class {AROUND}") for name in ("car\n", " car", "traffic\tlight")),
    *(("spec.worker.image", image, "image must not contain blanks, tabs or newlines") for image in spaced("image:1")),
    (
        "spec.worker.env",
        [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName\n"}}}],
        "fieldPath must not contain blanks",
    ),
    ("spec.worker.nodeSelector", {"a key": "x"}, "nodeSelector: the key of a label is a name such as"),
    ("spec.worker.nodeSelector", {"": "x"}, "nodeSelector: the key of a label is a name such as"),
    ("spec.worker.nodeSelector", {"a/b/c": "x"}, "nodeSelector: the key of a label is a name such as"),
    ("spec.worker.nodeSelector", {"x" * 64: "x"}, "nodeSelector: the key of a label is a name such as"),
    *(
        ("spec.worker.nodeSelector", {"disk": value}, "nodeSelector: the value of a label has at most")
        for value in ("ssd ", "ssd\n", "-ssd", "a/b")
    ),
    ("spec.worker.podTemplate.metadata", {"labels": {"a key": "x"}}, "labels: the key of a label is a name"),
    ("spec.worker.podTemplate.metadata", {"labels": {"a": "x y"}}, "labels: the value of a label has at most"),
    ("spec.worker.podTemplate.metadata", {"annotations": {"a key": "x"}}, "annotations: the key of an annotation is"),
    (
        "spec.worker.serviceAccount",
        {"create": True, "annotations": {"a\n": "x"}},
        "annotations: the key of an annotatio",
    ),
    ("spec.monitoring.labels", {"a key": "x"}, "labels: the key of a label is a name"),
    ("spec.monitoring.labels", {"a": "x\n"}, "labels: the value of a label has at most"),
    ("spec.monitoring.labels", {"ml.kerberos.io/pipeline": "x"}, "are the operator's: choose others"),
    ("spec.worker.tolerations", [{"key": "gpu ", "operator": "Exists"}], "key must be the key of a taint"),
    ("spec.worker.tolerations", [{"key": "gpu", "value": "a\n"}], "value must be letters, digits"),
    (
        "spec.worker.tolerations",
        [{"key": "gpu", "operator": "Exists", "tolerationSeconds": 5}],
        "tolerationSeconds needs effect NoExecute",
    ),
    *(
        ("spec.worker.resources", {part: {name: amount}}, "an amount must be more than 0")
        for part in ("requests", "limits")
        for name in ("cpu", "memory", "ephemeral-storage")
        for amount in ("-1", "0", 0, -1, "0Mi", "-0.5")
    ),
    *(
        ("spec.worker.resources", {"limits": {"memory": amount}}, "an amount of memory must be at least 1Mi")
        for amount in ("512m", 512, "1e3")
    ),
    *(
        ("spec.worker.resources", {"limits": {"cpu": amount}}, "an amount of cpu must be at most 4096 cores")
        for amount in ("4Gi", "500M")
    ),
    *(
        ("spec.worker.resources", {"requests": {"cpu": amount}, "limits": {"cpu": "2"}}, "an amount is written like")
        for amount in ("two", "", " 1", "1 ", "1\n", "500 m", "1,5")
    ),
    ("spec.worker.resources", {"requests": {"cpus": 1}}, "a resource is one of cpu, memory, ephemeral-storage"),
    (
        "spec.autoscaling",
        {"maxReplicas": 4, "fallback": {"behavior": "Static", "replicas": 5}},
        "fallback.replicas must not exceed maxReplicas: lower the one or raise the other",
    ),
    ("spec.autoscaling", {"minReplicas": 5, "maxReplicas": 4}, "minReplicas must not exceed maxReplicas"),
    ("spec.autoscaling", {"idleReplicas": 2, "maxReplicas": 4}, "idleReplicas must not exceed minReplicas"),
    *(
        ("spec.worker.env", [{"name": name, "value": "x"}], f"{name} is set by the operator: {says}")
        for name, says in OWNED
    ),
    *(
        ("spec.worker.podTemplate", _with_worker_env("worker", name), f"{name} is set by the operator: {says}")
        for name, says in OWNED
    ),
    (
        "spec.worker.podTemplate",
        {"spec": {"containers": [{"name": "worker", "env": [{"name": "MODEL", "valueFrom": {"fieldRef": {}}}]}]}},
        "MODEL is set by the operator: set .spec.model instead",
    ),
    *(
        (
            "spec.worker.env",
            [{"name": name, "value": value}],
            "this URL contains a password: use valueFrom.secretKeyRef",
        )
        for name, value in PASSWORDS
    ),
    *(
        ("spec.worker.podTemplate", _with_worker_env(container, name, value), "this URL contains a password")
        for container in ("worker", "sidecar")
        for name, value in PASSWORDS
    ),
    (
        "spec.worker.podTemplate",
        {"spec": {"initContainers": [{"name": "init", "env": [{"name": "https_proxy", "value": "http://a:b@c"}]}]}},
        "this URL contains a password",
    ),
    ("spec.worker.podTemplate", _with_worker_env("sidecar", "MY_PASSWORD"), "this looks like a secret"),
]


def spoilt(where: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(GOOD)
    *path, last = where.split(".")
    part: Any = body
    for step in path:
        part = part.setdefault(step, {})
    if value is NONE:
        del part[last]
    else:
        part[last] = value
    return body


@pytest.mark.parametrize(("where", "value", "sentence"), BAD, ids=[f"{n}-{each[0]}" for n, each in enumerate(BAD)])
def test_a_bad_resource_is_refused_with_what_to_write(crds: Cluster, where: str, value: Any, sentence: str) -> None:
    with pytest.raises(KubectlError) as refusal:
        crds.kubectl("apply", "-f", "-", stdin=json.dumps(spoilt(where, value)))
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("where", "value", "sentence"), ONE_SENTENCE, ids=[f"{n}-{each[0]}" for n, each in enumerate(ONE_SENTENCE)]
)
def test_a_fault_is_answered_by_one_sentence(crds: Cluster, where: str, value: Any, sentence: str) -> None:
    with pytest.raises(KubectlError) as refusal:
        crds.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(spoilt(where, value)))
    assert sentence in str(refusal.value)
    # The API server writes several faults as a list.
    assert "* " not in str(refusal.value)
    assert str(refusal.value).count("Invalid value") == 1


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (
            "spec.queue.kafka.brokers",
            ["[::1]:9092", "kafka_1:9092", "kafka.kafka.svc.cluster.local.:9092", "10.0.0.1:1"],
        ),
        ("spec.vault.apiUrl", "https://[::1]:8443/vault/api"),
        ("spec.vault.apiUrl", "http://vault_lb:80"),
        ("spec.vault.apiUrl", "http://vault:65535/a%20b/~c,d;e=f!"),
        ("spec.queue.kafka", {**OAUTH, "oauth": {"tokenUrl": "https://idp:1/t?a=%20b&c=/?", "scope": "a b"}}),
        ("spec.detection.classes", ["traffic light", "vélo"]),
        ("spec.queue.kafka.group", "my group"),
        ("spec.worker.nodeSelector", {"nvidia.com/gpu.product": "NVIDIA-L4", "empty": "", "x" * 63: "y" * 63}),
        ("spec.worker.tolerations", [{"operator": "Exists"}, {"key": "a.b/c", "value": ""}]),
        ("spec.worker.resources", {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"hugepages-2Mi": "2Mi"}}),
        ("spec.autoscaling", {"maxReplicas": 4, "fallback": {"behavior": "Static", "replicas": 4}}),
        ("spec.worker.env", [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]),
        ("spec.worker.env", [{"name": "HTTPS_PROXY", "valueFrom": {"secretKeyRef": {"name": "p", "key": "url"}}}]),
        ("spec.worker.env", [{"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "/var/run/token"}]),
        ("spec.worker.podTemplate", _with_worker_env("sidecar", "LOG_LEVEL")),
        ("spec.worker.podTemplate", _with_worker_env("worker", "ENGINE_BATCH", "4")),
        ("spec.worker.podTemplate", {"spec": {"containers": [{"name": "worker", "livenessProbe": None}]}}),
        ("spec.queue.target", ""),
        ("spec.queue.name", "site-1_cameras.v2"),
        ("spec.queue", {"name": "out.dlq", "target": "out-replay", "kafka": BROKERS}),
        ("spec.queue", {"name": "out.dlq", "target": "", "kafka": BROKERS}),
        (
            "spec.worker.env",
            [{"name": "TOKENIZERS_PARALLELISM", "value": "false"}, {"name": "MAX_TOKENS", "value": "9"}],
        ),
        ("spec.worker.resources", {"requests": {"cpu": "0.5", "memory": 1000000000}, "limits": {"cpu": "1500m"}}),
        ("spec.worker.image", "registry.local:5000/a/b@sha256:" + "0" * 64),
        ("spec.model", {"path": "a/b.onnx", "persistentVolumeClaim": {"claimName": "m"}}),
        ("spec.model", {"name": "yolov3", "precision": "fp16"}),
        ("spec.model", {"url": "http://127.0.0.1:8000/models/v2/best.onnx", "sha256": "0f" * 32}),
        ("spec.model", {"path": "/m.cfg", "sha256": "0f" * 32, "precision": "fp32"}),
    ],
)
def test_what_is_unusual_but_right_is_taken(crds: Cluster, where: str, value: Any) -> None:
    crds.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(spoilt(where, value)))


def test_the_good_one_is_taken_and_filled_in(crds: Cluster, namespace: str) -> None:
    crds.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(GOOD))
    spec = json.loads(crds.kubectl("get", "vmlp/good", "-n", namespace, "-o", "json"))["spec"]
    assert spec["replicas"] == 1
    assert spec["detection"] == {"classes": [], "moveDistance": 0, "numberOfPredictions": 5, "threshold": 0.5}
    assert spec["worker"]["gpu"] == {"resource": "nvidia.com/gpu", "count": 1}
    assert spec["queue"]["kafka"]["security"] == "PLAINTEXT"


def test_the_queue_system_never_changes(crds: Cluster) -> None:
    """With one system there is nothing to change to yet: that the rule is in force is seen in the CRD."""
    found = json.loads(crds.kubectl("get", "crd/vaultmlpipelines.ml.kerberos.io", "-o", "json"))
    schema = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert schema["queue"]["properties"]["system"]["x-kubernetes-validations"][0]["rule"] == "self == oldSelf"


@pytest.mark.parametrize("name", ["pipelines", "pipeline", "vmlp", "kerberos", "vaultmlpipelines"])
def test_kubectl_finds_it_by_every_name(crds: Cluster, namespace: str, name: str) -> None:
    crds.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(GOOD))
    table = crds.kubectl("get", name, "-n", namespace)
    assert table.splitlines()[0].split() == [
        "NAME",
        "READY",
        "REPLICAS",
        "DESIRED",
        "LAG",
        "RATE",
        "REASON",
        "AGE",
    ]
    assert "good" in table


def test_explain_teaches_every_field(crds: Cluster) -> None:
    text = crds.kubectl("explain", "vaultmlpipeline.spec", "--recursive")
    assert "credentialsSecretRef" in text
    said = crds.kubectl("explain", "vaultmlpipeline.spec.queue.kafka")
    assert "How to talk to the brokers." in said
    assert "enum: PLAINTEXT, SASL_PLAINTEXT, SASL_SSL, SSL" in said

    def described(schema: dict[str, Any], path: str) -> None:
        for name, field in schema.get("properties", {}).items():
            if path != "" or name != "metadata":
                assert field.get("description"), f"{path}.{name} has no description"
                described(field.get("items", field), f"{path}.{name}")

    described(crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_taken(crds: Cluster, namespace: str, path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    for each in documents:
        each["metadata"]["namespace"] = namespace
    everything = {"apiVersion": "v1", "kind": "List", "items": documents}
    crds.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(everything))
