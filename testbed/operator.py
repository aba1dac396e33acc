"""`vaultml-operator run` as a process of its own, with the rights of deploy/install.yaml and no more."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from testbed.kubernetes import ApiError, Cluster
from testbed.process import LOOPBACK, free_port, wait_for
from testbed.service import Service
from vaultml_operator import install

IMAGE = "vaultml/worker:test"


def grant(cluster: Cluster, namespaces: Sequence[str] = ()) -> None:
    """Apply all of the installation but the operator's own Deployment."""
    wanted = install.manifests("vaultml/operator:test", IMAGE, namespaces)
    cluster.apply(*(each for each in wanted if each["kind"] != "Deployment"))


class Operator(Service):
    """One replica on this machine."""

    def __init__(
        self, cluster: Cluster, log: Path, *arguments: str, server: str | None = None, kubeconfig: Path | None = None
    ) -> None:
        """Start it with its ServiceAccount's token; `server` is the API server's address, if not the cluster's.

        `kubeconfig` is an earlier one's, for a container that is started again: it needs no new token.
        """
        port = free_port()
        self.kubeconfig = kubeconfig or cluster.kubeconfig_for(install.NAMESPACE, install.NAME, server=server)
        command = [
            *(sys.executable, "-m", "vaultml_operator", "run", "--host", LOOPBACK, "--port", str(port)),
            *("--worker-image", IMAGE, "--lease-namespace", install.NAMESPACE, "--log-format", "console"),
            *arguments,
        ]
        super().__init__("operator", command, {"KUBECONFIG": str(self.kubeconfig), "NO_PROXY": "*"}, log, port)

    @property
    def leads(self) -> bool:
        """Whether it holds the Lease."""
        return self.metrics().get("vaultml_operator_leading") == 1

    def wait_leads(self, timeout: float = 60) -> Self:
        """Return once it holds the Lease."""
        wait_for(lambda: self.leads, timeout, "the operator to lead", process=self.process)
        return self


_KINDS = {
    "vmlp": ("apis/ml.kerberos.io/v1alpha1", "vaultmlpipelines"),
    "deployment": ("apis/apps/v1", "deployments"),
    "rs": ("apis/apps/v1", "replicasets"),
    "pdb": ("apis/policy/v1", "poddisruptionbudgets"),
    "pods": ("api/v1", "pods"),
    "serviceaccount": ("api/v1", "serviceaccounts"),
    "quota": ("api/v1", "resourcequotas"),
    "events": ("apis/events.k8s.io/v1", "events"),
}


class Pipelines:
    """What people do with pipelines in one namespace, and what they see."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def apply(self, body: dict[str, Any]) -> None:
        """`kubectl apply` it here."""
        body = {**body, "metadata": {**body["metadata"], "namespace": self.namespace}}
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(body))

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in this namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """The object, or None."""
        try:
            return self.cluster.get(f"{self._path(kind)}/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def all(self, kinds: str) -> list[dict[str, Any]]:
        """All objects of a kind, or of several."""
        return [each for kind in kinds.split(",") for each in self.cluster.get(self._path(kind))["items"]]

    def _path(self, kind: str) -> str:
        # Asked in a loop: kubectl takes a fifth of a second of CPU each time.
        group, plural = _KINDS[kind]
        return f"/{group}/namespaces/{self.namespace}/{plural}"

    def condition(self, name: str, kind: str = "Ready") -> dict[str, Any]:
        """A condition of a pipeline; empty when there is none yet."""
        found = self.get("vmlp", name) or {}
        conditions = (found.get("status") or {}).get("conditions") or []
        return next((each for each in conditions if each["type"] == kind), {})

    def wait(
        self, name: str, reason: str, kind: str = "Ready", *, timeout: float = 30, generation: int | None = None
    ) -> dict[str, Any]:
        """Return the condition once it has this reason (and was said of this generation, or a later one)."""

        def there() -> dict[str, Any] | None:
            found = self.condition(name, kind)
            current = generation is None or found.get("observedGeneration", 0) >= generation
            return found if found.get("reason") == reason and current else None

        try:
            return wait_for(there, timeout, f"{name}'s {kind} to be {reason}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is {self.condition(name, kind)}") from None

    def events(self, name: str) -> list[tuple[str, str, str]]:
        """Type, reason and note of each Event about a pipeline, oldest first."""
        found = [each for each in self.all("events") if each["regarding"].get("name") == name]
        ours = [each for each in found if each["regarding"]["kind"] == "VaultMLPipeline"]
        ours.sort(key=lambda each: str(each["eventTime"]))
        return [(each["type"], each["reason"], each["note"]) for each in ours]

    def wait_event(self, name: str, reason: str, times: int = 1) -> list[tuple[str, str, str]]:
        """Return `events` once this reason is among them so often: an Event follows its deed."""

        def told() -> list[tuple[str, str, str]] | None:
            found = self.events(name)
            return found if sum(each[1] == reason for each in found) >= times else None

        try:
            return wait_for(told, 30, f"{name}'s Event {reason}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; told were {self.events(name)}") from None

    def secret(self, name: str, **data: str) -> None:
        """Create or change a Secret."""
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(body))
