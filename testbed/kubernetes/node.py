"""A process node, as tests see it: it can be switched off, switched on again, and removed."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from testbed.kubernetes.api import ApiError
from testbed.kubernetes.distribution import version
from testbed.kubernetes.images import Image
from testbed.process import Process, wait_for

if TYPE_CHECKING:
    from testbed.kubernetes.cluster import Cluster

_ROOT = Path(__file__).parents[2]
_READY_S = 30
_CAPACITY = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "110"}
_HOLLOW_PODS = "10000"


class Node:
    """A Node of the cluster whose pods are processes of this machine; runs until `kill` or the cluster's end.

    What it does not enforce stands in testbed/README.md.
    """

    def __init__(
        self,
        cluster: "Cluster",
        name: str,
        *,
        capacity: Mapping[str, str],
        labels: Mapping[str, str],
        taints: Sequence[Mapping[str, str]],
        images: Mapping[str, Image],
        hollow: bool,
        heartbeat: float,
        first_back_off: float,
        longest_back_off: float,
        pods_api_url: str,
    ) -> None:
        """Made by `Cluster.node`."""
        self.name = name
        self._cluster = cluster
        self._folder = cluster.folder / "nodes" / name
        shutil.rmtree(self._folder, ignore_errors=True)  # of a node by that name that has been removed
        self._folder.mkdir(parents=True)
        self._settings = self._folder / "settings.json"
        self._process: Process | None = None
        settings: dict[str, Any] = {
            "name": name,
            "api_url": cluster.api_url,
            "pods_api_url": pods_api_url,
            "token": cluster.credentials.token("node"),
            "ca_file": str(cluster.credentials.ca_file),
            "server_cert": str(cluster.credentials.server_cert),
            "server_key": str(cluster.credentials.server_key),
            "capacity": _CAPACITY
            | ({"pods": _HOLLOW_PODS, "cpu": "10k", "memory": "100Ti"} if hollow else {})
            | dict(capacity),
            "labels": dict(labels),
            "taints": list(taints),
            "images": {reference: asdict(image) for reference, image in images.items()},
            "hollow": hollow,
            "heartbeat": heartbeat,
            "first_back_off": first_back_off,
            "longest_back_off": longest_back_off,
            "version": version(),
            "folder": str(self._folder),
            "logs": str(cluster.pod_logs),
            "storage": str(cluster.folder / "storage"),
        }
        self._settings.touch(mode=0o600)
        self._settings.write_text(json.dumps(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def running(self) -> bool:
        """Whether the machine is switched on."""
        return self._process is not None

    def start(self) -> Self:
        """Switch the machine on and return once its Node is ready and pods can be scheduled on it.

        Pods that were on it before it was switched off and still are start again. Raises RuntimeError or
        TimeoutError, with the end of the node's log, when it doesn't get ready.
        """
        if self._process is not None:
            raise RuntimeError(f"node {self.name} runs already")
        self._process = Process(
            [sys.executable, "-m", "testbed.kubernetes.kubelet", self._settings],
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            log=self._cluster.logs / f"node-{self.name}.log",
            cwd=_ROOT,
        )
        self._cluster.guard.watch(self._process.pid)
        wait_for(self.ready, _READY_S, f"node {self.name} to become ready", process=self._process)
        return self

    def kill(self) -> None:
        """Cut its power: the node and its pods end at once, and nobody is told."""
        if self._process is not None:
            pids = self._pids("*")
            self._process.kill()
            self._cluster.guard.forget(self._process.pid)
            self._process = None
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), 10, "its pods to end")

    def remove(self) -> None:
        """Take the machine away for good, as an autoscaler does: without power, and its Node object deleted.

        Kubernetes' garbage collector deletes its pods 40 to 60 seconds later.
        """
        self.kill()
        with contextlib.suppress(ApiError):
            self._cluster.request("DELETE", f"/api/v1/nodes/{self.name}")

    def ready(self) -> bool:
        """Whether its Node is ready, has its resources, and isn't tainted as one that isn't."""
        try:
            node = self._cluster.get(f"/api/v1/nodes/{self.name}")
        except ApiError:
            return False
        ready = any(
            entry["type"] == "Ready" and entry["status"] == "True" for entry in node["status"].get("conditions", [])
        )
        doubted = any(taint["key"].startswith("node.kubernetes.io/") for taint in node["spec"].get("taints", []))
        return ready and not doubted

    def pids(self, namespace: str, pod: str) -> dict[str, int]:
        """The process ids, on this machine, of a pod's containers that run here, by the container's name."""
        return {path.parent.name: pid for path, pid in self._pids(f"{namespace}_{pod}_*").items()}

    def log(self, namespace: str, pod: str, container: str | None = None) -> str:
        """What a pod's containers have written so far (see `Cluster.log`)."""
        return self._cluster.log(namespace, pod, container)

    def _pids(self, pattern: str) -> dict[Path, int]:
        found = {}
        for path in self._folder.glob(f"pods/{pattern}/containers/*/pid"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                found[path] = int(path.read_text())
        return found
