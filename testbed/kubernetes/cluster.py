"""A Kubernetes cluster on this machine: real control plane, nodes whose pods are local processes."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from testbed.kubernetes import distribution
from testbed.kubernetes.api import Api, ApiError, Object
from testbed.kubernetes.control_plane import ControlPlane, Flags
from testbed.kubernetes.distribution import binaries
from testbed.kubernetes.images import BUSYBOX, PYTHON, Image
from testbed.kubernetes.kubelet import runtime
from testbed.kubernetes.kubelet.claims import PROVISIONER, STORAGE_CLASS
from testbed.kubernetes.node import Node
from testbed.process import wait_for

_START_S = 60
_IMAGES = {"busybox": BUSYBOX, "python": PYTHON}
_STORAGE_CLASS: Object = {
    "metadata": {"name": STORAGE_CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": PROVISIONER,
    "reclaimPolicy": "Delete",
}


def available() -> str | None:
    """Return None when a cluster can be started here, else one sentence saying what is missing."""
    return distribution.available() or runtime.available()


class KubectlError(Exception):
    """`kubectl` failed; the text is what it said."""


class Cluster:
    """etcd, API server, controller manager, scheduler and process nodes; entering the context starts it.

    Leaving ends it and removes its data; all logs are kept under `.test-output/` when the block fails.
    """

    def __init__(
        self,
        *,
        images: Mapping[str, Image] | None = None,
        node_grace: float = 10,
        toleration: int = 300,
        flags: Flags | None = None,
    ) -> None:
        """`images` are what its nodes can run, besides busybox (sh) and python, by name without tag.

        A node without a heartbeat for `node_grace` seconds is taken for dead (Kubernetes: 50 s); its pods are evicted
        `toleration` seconds later where they say nothing else (Kubernetes: 300 s). `flags` are added to the command
        of a binary, by its name.
        """
        self._images = _IMAGES | dict(images or {})
        self._node_grace = node_grace
        self._control_plane = ControlPlane(node_grace=node_grace, toleration=toleration, flags=flags or {})
        self.folder = self._control_plane.folder
        self.logs = self._control_plane.logs
        self.pod_logs = self.logs / "pods"
        self.credentials = self._control_plane.credentials
        self.guard = self._control_plane.guard
        self.api_url = self._control_plane.api_url
        self.kubeconfig = self.write_kubeconfig("admin", self.credentials.admin)
        self._api = Api(self.api_url, self.credentials.admin, str(self.credentials.ca_file))
        self._nodes: dict[str, Node] = {}

    def __enter__(self) -> Self:
        self._control_plane.__enter__()
        try:
            # What every pod needs, written by the controller manager.
            wait_for(
                lambda: self._has("configmaps/kube-root-ca.crt") and self._has("serviceaccounts/default"),
                _START_S,
                "the controller manager to work",
            )
            self.request("POST", "/apis/storage.k8s.io/v1/storageclasses", _STORAGE_CLASS)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for node in self._nodes.values():
                node.kill()
        finally:
            self._api.close()
            self._control_plane.__exit__(kind, error, trace)

    def node(
        self,
        name: str,
        *,
        capacity: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
        images: Mapping[str, Image] | None = None,
        hollow: bool = False,
        first_back_off: float = 1,
        longest_back_off: float = 30,
        pods_api_url: str | None = None,
    ) -> Node:
        """Add a node and return it once it is ready.

        `capacity` adds to a large machine's (as in {"nvidia.com/gpu": "2"}), `images` to the cluster's. A `hollow`
        node runs pods in name only. Containers that crash, and images that are not there, are tried again after
        `first_back_off` seconds (Kubernetes: 10), then after twice that, up to `longest_back_off` (Kubernetes: 300).
        Pods are told that the API server is at `pods_api_url`, where that isn't its own address.
        """
        if name in self._nodes and self._nodes[name].running:
            raise ValueError(f"there is a node {name} already")
        node = Node(
            self,
            name,
            capacity=capacity or {},
            labels=labels or {},
            taints=taints,
            images=self._images | dict(images or {}),
            hollow=hollow,
            heartbeat=min(10.0, self._node_grace / 5),
            first_back_off=first_back_off,
            longest_back_off=longest_back_off,
            pods_api_url=pods_api_url or self.api_url,
        )
        self._nodes[name] = node
        return node.start()

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run kubectl as admin and return what it prints. Raises KubectlError with what it says when it fails."""
        kubectl = subprocess.run(
            [binaries() / "kubectl", *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "KUBECONFIG": str(self.kubeconfig)},
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if kubectl.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {kubectl.stderr.strip()}")
        return kubectl.stdout

    def apply(self, *objects: Object) -> None:
        """`kubectl apply` some objects; returns once the kinds that CRDs among them define are served."""
        listed = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
        for each in objects:
            if each["kind"] == "CustomResourceDefinition":
                name = each["metadata"]["name"]
                # `kubectl wait` fails on one that has no conditions yet.
                wait_for(lambda name=name: self._established(name), _START_S, f"{name} to be served")  # type: ignore[misc]

    def request(
        self, method: str, path: str, body: Object | None = None, *, content_type: str = "application/json"
    ) -> Object:
        """Send a request as admin. Raises ApiError when the API server refuses."""
        return self._api.request(method, path, body, content_type=content_type)

    def get(self, path: str) -> Object:
        """GET an object or list by its path, as in /api/v1/namespaces/default/pods."""
        return self.request("GET", path)

    def token_for(self, namespace: str, service_account: str, seconds: int = 3600) -> str:
        """A token of a ServiceAccount."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        token: str = self.request("POST", path, {"spec": {"expirationSeconds": seconds}})["status"]["token"]
        return token

    def kubeconfig_for(self, namespace: str, service_account: str, *, server: str | None = None) -> Path:
        """The path of a kubeconfig for a ServiceAccount, with the API server at `server` where that isn't its own."""
        token = self.token_for(namespace, service_account)
        return self.write_kubeconfig(f"{namespace}-{service_account}", token, server=server, namespace=namespace)

    def write_kubeconfig(self, name: str, token: str, *, server: str | None = None, namespace: str = "default") -> Path:
        """Write a kubeconfig with any token and address into the cluster's folder; returns its path."""
        path = self.folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(self.credentials.kubeconfig(token, server or self.api_url, namespace)))
        return path

    def stop_api_server(self) -> None:
        """Take the API server away: connections break, and new ones are refused until `start_api_server`."""
        self._control_plane.stop_api_server()

    def start_api_server(self) -> None:
        """Bring the API server back, on the same port with the same data; returns once it is ready."""
        self._control_plane.start_api_server()

    def compact(self) -> None:
        """Make all old resource versions too old: who watches from one gets 410 Gone. Restarts the API server."""
        self._control_plane.compact()

    def log(self, namespace: str, pod: str, container: str | None = None) -> str:
        """All that a pod's containers, or the one named, have written, over all restarts and pods of that name.

        Empty when there is none; it stays when the pod is deleted.
        """
        paths = self.pod_logs.glob(f"{namespace}/{pod}_*/{container or '*'}/*.log")
        ordered = sorted(paths, key=lambda path: (path.stat().st_mtime, path.parent.name, int(path.stem)))
        return "".join(path.read_text(errors="replace") for path in ordered)

    def keep_logs(self) -> Path:
        """Copy all logs to `.test-output/`, as is done on failure; returns the folder where they lie."""
        return self._control_plane.keep_logs()

    def _established(self, name: str) -> bool:
        found = self.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        conditions = (found.get("status") or {}).get("conditions") or []
        return any((each["type"], each["status"]) == ("Established", "True") for each in conditions)

    def _has(self, path: str) -> bool:
        try:
            self.get(f"/api/v1/namespaces/default/{path}")
        except ApiError:
            return False
        return True
