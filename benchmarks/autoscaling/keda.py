"""The real KEDA with the real HPA: built from its Go module, run as two processes beside the control plane."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme

from benchmarks.autoscaling.scene import GROUP, NAME, SPACE, Scene, deployment, replicas
from testbed.kubernetes import ApiError, Cluster, Object
from testbed.kubernetes.control_plane import Flags
from testbed.kubernetes.distribution import Build, version_in
from testbed.process import LOOPBACK, Process, free_port, wait_for

LAG_THRESHOLD = 5

_MODULE = Path(__file__).with_name("keda")
_KEDA = "github.com/kedacore/keda/v2"
VERSION = version_in(_MODULE, _KEDA).removeprefix("v")
_OPERATOR, _ADAPTER = "keda", "keda-adapter"
_BUILD = Build(
    module=_MODULE,
    packages={_OPERATOR: f"{_KEDA}/cmd/operator", _ADAPTER: f"{_KEDA}/cmd/adapter"},
    stamps={f"{_KEDA}/version.Version": VERSION},
    name=f"keda-{VERSION}",
)
_METRICS = "external.metrics.k8s.io"
_PROXY = "front-proxy-client"
_START_S = 60


class Keda:
    """KEDA, one ScaledObject, and the HPA that it makes."""

    label = f"KEDA {VERSION}"

    def __init__(self, folder: Path) -> None:
        """Make the certificates in a folder: the API server and KEDA's parts know each other by them."""
        self._binaries = _BUILD.get()
        self._certificates = folder / "keda"
        self._certificates.mkdir()
        self._authority = self._certificates / "ca.crt"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self._authority)
        self._issue(authority.issue_cert("localhost", LOOPBACK), "tls")
        self._issue(authority.issue_cert(_PROXY, common_name=_PROXY), "proxy")

    @property
    def flags(self) -> Flags:
        """For an API server that passes requests for metrics on."""
        return {
            "kube-apiserver": (
                f"--client-ca-file={self._authority}",
                f"--requestheader-client-ca-file={self._authority}",
                f"--requestheader-allowed-names={_PROXY}",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                f"--proxy-client-cert-file={self._certificates / 'proxy.crt'}",
                f"--proxy-client-key-file={self._certificates / 'proxy.key'}",
            )
        }

    @contextmanager
    def scaling(self, scene: Scene) -> Iterator[None]:
        """Scale the workers, from none, until the block ends."""
        cluster = scene.cluster
        port, service = free_port(), f"localhost:{free_port()}"
        folder = Path(json.loads(_BUILD.go("mod", "download", "-json", _KEDA))["Dir"])
        for path in sorted((folder / "config" / "crd" / "bases").glob("*.yaml")):
            cluster.kubectl("apply", "--server-side", "-f", str(path))
        # Not with `kubectl wait`: it fails on a CRD that has no conditions yet.
        wait_for(lambda: _defined(cluster), _START_S, "KEDA's kinds to be served")
        cluster.apply(*_installation(port))
        with self._operator(cluster, service), self._adapter(cluster, service, port) as adapter:
            wait_for(lambda: _serves(cluster), _START_S, "KEDA to serve metrics", process=adapter)
            cluster.apply(*deployment(scene))
            cluster.apply(_scaled_object(scene))
            wait_for(lambda: _scaled(cluster), _START_S, "KEDA to make an HPA and scale to zero")
            yield

    @staticmethod
    def note(cluster: Cluster) -> str:
        """What the HPA says."""
        hpas = cluster.get(f"/apis/autoscaling/v2/namespaces/{SPACE}/horizontalpodautoscalers")["items"]
        status = hpas[0].get("status") or {} if hpas else {}
        said = {each["type"]: f"{each['reason']}: {each['message']}" for each in status.get("conditions") or ()}
        return f"HPA wants {status.get('desiredReplicas')}; {said.get('ScalingActive', '')}; {said.get('AbleToScale')}"

    def _issue(self, certificate: trustme.LeafCert, name: str) -> None:
        key = self._certificates / f"{name}.key"
        key.touch(mode=0o600)
        key.write_bytes(certificate.private_key_pem.bytes())
        chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
        (self._certificates / f"{name}.crt").write_bytes(chain)

    def _operator(self, cluster: Cluster, service: str) -> Process:
        return self._start(
            cluster,
            _OPERATOR,
            f"--metrics-bind-address={LOOPBACK}:{free_port()}",
            f"--health-probe-bind-address={LOOPBACK}:{free_port()}",
            f"--metrics-service-bind-address={service}",
            f"--cert-dir={self._certificates}",
            "--enable-webhook-patching=false",
            "--enable-apiservice-patching=false",
        )

    def _adapter(self, cluster: Cluster, service: str, port: int) -> Process:
        return self._start(
            cluster,
            _ADAPTER,
            *(
                f"--{name}kubeconfig={cluster.kubeconfig}"
                for name in ("", "lister-", "authentication-", "authorization-")
            ),
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
            f"--port={free_port()}",
            f"--metrics-service-address={service}",
            f"--client-ca-file={self._authority}",
            f"--cert-dir={self._certificates}",
            f"--tls-cert-file={self._certificates / 'tls.crt'}",
            f"--tls-private-key-file={self._certificates / 'tls.key'}",
        )

    def _start(self, cluster: Cluster, name: str, *arguments: str) -> Process:
        env = {
            "KUBECONFIG": str(cluster.kubeconfig),
            "HOME": str(cluster.folder),
            "WATCH_NAMESPACE": "",
            "POD_NAMESPACE": "keda",
            "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda",
        }
        process = Process([self._binaries / name, *arguments], env=env, log=cluster.logs / f"{name}.log")
        cluster.guard.watch(process.pid)
        return process


def _installation(port: int) -> list[Object]:
    """What stands in KEDA's config/metrics-server, for an adapter on this machine."""
    service = {"name": "keda-metrics-apiserver", "namespace": "keda"}
    reader = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "keda-external-metrics-reader"}
    hpa = {"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": "kube-system"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "keda"}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": service,
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"v1beta1.{_METRICS}"},
            "spec": {
                "service": {**service, "port": port},
                "group": _METRICS,
                "version": "v1beta1",
                "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": reader["name"]},
            "rules": [{"apiGroups": [_METRICS], "resources": ["*"], "verbs": ["*"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "keda-hpa-controller-external-metrics"},
            "roleRef": reader,
            "subjects": [hpa],
        },
    ]


def _scaled_object(scene: Scene) -> Object:
    trace = scene.trace
    metadata = {
        "bootstrapServers": scene.brokers,
        "consumerGroup": GROUP,
        "topic": scene.topic,
        "lagThreshold": str(LAG_THRESHOLD),
        "offsetResetPolicy": "earliest",
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": NAME, "namespace": SPACE},
        "spec": {
            "scaleTargetRef": {"name": NAME},
            "minReplicaCount": 0,
            # It does not know of GPUs: who writes it counts them.
            "maxReplicaCount": trace.gpus,
            "pollingInterval": round(trace.polling or 0),
            "cooldownPeriod": round(trace.cooldown),
            "triggers": [{"type": "kafka", "metadata": metadata}],
        },
    }


def _defined(cluster: Cluster) -> bool:
    try:
        cluster.get("/apis/keda.sh/v1alpha1/scaledobjects")
    except ApiError:
        return False
    return True


def _serves(cluster: Cluster) -> bool:
    try:
        cluster.get(f"/apis/{_METRICS}/v1beta1")
    except ApiError:
        return False
    return True


def _scaled(cluster: Cluster) -> bool:
    found = cluster.get(f"/apis/keda.sh/v1alpha1/namespaces/{SPACE}/scaledobjects/{NAME}")
    conditions = (found.get("status") or {}).get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and replicas(cluster) == 0
