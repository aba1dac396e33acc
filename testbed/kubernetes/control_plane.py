"""etcd, API server, controller manager and scheduler as local processes."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import requests
import yaml

from testbed.guard import Guard
from testbed.kubernetes.credentials import Credentials
from testbed.kubernetes.distribution import binaries
from testbed.process import LOOPBACK, Process, free_port, wait_for

_KEPT_LOGS = Path(__file__).parents[2] / ".test-output"
_START_S = 60
_ETCD = "etcd"
_API_SERVER = "kube-apiserver"
_CLIENTS = ("kube-controller-manager", "kube-scheduler")
Flags = Mapping[str, Sequence[str]]


class ControlPlane:
    """Runs from entering the context on; ports and data stay the same while single parts are stopped and started."""

    def __init__(self, *, node_grace: float, toleration: int, flags: Flags) -> None:
        """Choose ports and write credentials.

        A node that sends no heartbeat for `node_grace` seconds is taken for dead, and its pods are evicted
        `toleration` seconds later where they say nothing else. `flags` are added to a binary's own, by its name.
        """
        self._data = tempfile.TemporaryDirectory(prefix="vaultml-kubernetes-")
        self.folder = Path(self._data.name)
        self.logs = self.folder / "logs"
        self.logs.mkdir()
        self.credentials = Credentials(self.folder)
        self.api_url = f"https://{LOOPBACK}:{free_port()}"
        self._etcd_url = f"http://{LOOPBACK}:{free_port()}"
        self._etcd_peer_url = f"http://{LOOPBACK}:{free_port()}"
        self._node_grace = node_grace
        self._toleration = toleration
        self._flags = flags
        self._processes: dict[str, Process] = {}
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(self.credentials.ca_file)
        self._session.headers["Authorization"] = f"Bearer {self.credentials.admin}"
        self.guard = Guard(self.folder)

    def __enter__(self) -> Self:
        try:
            self._run(_ETCD, self._etcd())
            self.start_api_server()
            for name in _CLIENTS:
                self._run(name, self._client(name))
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for name in reversed(list(self._processes)):  # nobody reads the data again: no orderly end
                self._kill(name)
            if kind is not None:
                self.keep_logs()
        finally:
            self.guard.__exit__(None, None, None)
            self._session.close()
            self._data.cleanup()

    def start_api_server(self) -> None:
        """Start the API server on its port and data and return once it is ready.

        Raises RuntimeError or TimeoutError, with the end of its log, when it does not come up.
        """
        if _API_SERVER in self._processes:
            raise RuntimeError("the API server runs already")
        process = self._run(_API_SERVER, self._api_server())
        wait_for(self._ready, _START_S, "the API server to become ready", process=process)

    def stop_api_server(self) -> None:
        """End the API server at once: connections break, and new ones are refused until `start_api_server`."""
        self._kill(_API_SERVER)

    def compact(self) -> None:
        """Forget etcd's history; clients that watch from an older resource version than now get 410 Gone.

        The API server is restarted, for it would go on to serve the last minutes from its memory.
        """
        with requests.Session() as session:
            session.trust_env = False
            head = session.post(f"{self._etcd_url}/v3/kv/range", json={"key": "AA=="}, timeout=10)
            head.raise_for_status()
            order = {"revision": head.json()["header"]["revision"], "physical": True}
            session.post(f"{self._etcd_url}/v3/kv/compaction", json=order, timeout=30).raise_for_status()
        self.stop_api_server()
        self.start_api_server()

    def keep_logs(self) -> Path:
        """Copy all logs to `.test-output/`, as is done on failure; returns the folder where they lie."""
        return Path(shutil.copytree(self.logs, _KEPT_LOGS / self.folder.name, dirs_exist_ok=True))

    def _run(self, name: str, flags: Mapping[str, str | float | Path]) -> Process:
        command: list[str | Path] = [
            binaries() / name,
            *(f"--{flag}={value}" for flag, value in flags.items()),
            *self._flags.get(name, ()),
        ]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        process = Process(command, env=env, log=self.logs / f"{name}.log", cwd=self.folder)
        self.guard.watch(process.pid)
        self._processes[name] = process
        return process

    def _kill(self, name: str) -> None:
        if (process := self._processes.pop(name, None)) is not None:
            process.kill()
            self.guard.forget(process.pid)

    def _ready(self) -> bool:
        try:
            return self._session.get(f"{self.api_url}/readyz", timeout=5).ok
        except requests.ConnectionError:
            return False

    def _etcd(self) -> dict[str, str | float | Path]:
        return {
            "data-dir": self.folder / "etcd",
            "listen-client-urls": self._etcd_url,
            "advertise-client-urls": self._etcd_url,
            "listen-peer-urls": self._etcd_peer_url,
            "initial-advertise-peer-urls": self._etcd_peer_url,
            "initial-cluster": f"default={self._etcd_peer_url}",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }

    def _api_server(self) -> dict[str, str | float | Path]:
        credentials = self.credentials
        return {
            "etcd-servers": self._etcd_url,
            "bind-address": LOOPBACK,
            "secure-port": self.api_url.rpartition(":")[2],
            "tls-cert-file": credentials.server_cert,
            "tls-private-key-file": credentials.server_key,
            "token-auth-file": credentials.tokens,
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-signing-key-file": credentials.service_account_key,
            "service-account-key-file": credentials.service_account_key,
            "authorization-mode": "RBAC",
            "allow-privileged": "true",
            "service-cluster-ip-range": "10.0.0.0/24",
            "endpoint-reconciler-type": "none",
            "kubelet-preferred-address-types": "InternalIP",  # for `kubectl logs`: the nodes' names are in no DNS
            "default-not-ready-toleration-seconds": self._toleration,
            "default-unreachable-toleration-seconds": self._toleration,
            "profiling": "false",
        }

    def _client(self, name: str) -> dict[str, str | float | Path]:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self.credentials.kubeconfig(self.credentials.token(name), self.api_url)))
        flags: dict[str, str | float | Path] = {
            "kubeconfig": path,
            "leader-elect": "false",
            "secure-port": 0,
            # What hundreds of pods at once need not to wait for these two; a large cluster sets them, too.
            "kube-api-qps": 200,
            "kube-api-burst": 400,
        }
        if name == "kube-controller-manager":
            flags |= {
                "use-service-account-credentials": "true",
                "service-account-private-key-file": self.credentials.service_account_key,
                "root-ca-file": self.credentials.ca_file,
                "node-monitor-period": f"{min(5, max(0.2, self._node_grace / 10)):g}s",
                "node-monitor-grace-period": f"{self._node_grace:g}s",
                "node-startup-grace-period": f"{max(60, self._node_grace):g}s",
                # Tests kill one node after the other; the default waits ten seconds between two. Not 1 a second: once
                # all nodes were lost, Kubernetes takes its limiter that lets nobody pass for one of that very rate,
                # keeps it when nodes are back, and no pod is evicted any more.
                "node-eviction-rate": 2,
            }
        return flags
