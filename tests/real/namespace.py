"""A namespace of a test's own, and pods in it."""

from collections.abc import Callable
from typing import Any

from testbed.kubernetes import ApiError, Cluster
from testbed.process import wait_for

Object = dict[str, Any]

WAIT_S = 30


def pod(name: str, *command: str, image: str = "busybox", container: Object | None = None, **spec: Any) -> Object:
    """A pod of one container; `container` and `spec` add to it. By default it ends at once when told to."""
    script = 'trap "exit 0" TERM; while :; do sleep 0.1; done'
    main = {"name": "main", "image": image, "command": list(command or ("sh", "-c", script))} | (container or {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [main]} | spec,
    }


def deployment(name: str, replicas: int, template: Object) -> Object:
    """Replicas of a pod."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": template["metadata"]["labels"]},
            "template": {key: template[key] for key in ("metadata", "spec")},
        },
    }


class Namespace:
    """What a test does in its namespace."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def apply(self, *objects: Object) -> None:
        self.cluster.apply(*(item | {"metadata": item["metadata"] | {"namespace": self.name}} for item in objects))

    def get(self, path: str, *, api: str = "api/v1") -> Object:
        return self.cluster.get(f"/{api}/namespaces/{self.name}/{path}")

    def wait_service_account(self) -> None:
        """Pods can be made once the controller manager has given the namespace what each needs."""

        def there() -> bool:
            try:
                return bool(self.get("serviceaccounts/default") and self.get("configmaps/kube-root-ca.crt"))
            except ApiError:
                return False

        wait_for(there, WAIT_S, f"namespace {self.name} to be usable")

    def remove(self) -> None:
        """Delete it; no pod of it runs any more when this returns, the rest goes in the background."""
        self.cluster.request("DELETE", f"/api/v1/namespaces/{self.name}")
        # The API server would add its finalizer's pace to the pods' grace periods otherwise.
        self.cluster.request("DELETE", f"/api/v1/namespaces/{self.name}/pods", {"gracePeriodSeconds": 0})
        wait_for(lambda: not self.pods(), WAIT_S, f"the pods of namespace {self.name} to be gone")

    def pods(self) -> list[Object]:
        items: list[Object] = self.get("pods")["items"]
        return items

    def delete(self, name: str, **options: Any) -> None:
        self.cluster.request("DELETE", f"/api/v1/namespaces/{self.name}/pods/{name}", options)

    def gone(self, name: str) -> bool:
        try:
            self.get(f"pods/{name}")
        except ApiError as error:
            return error.status == 404
        return False

    def wait(self, name: str, condition: Callable[[Object], object], what: str, timeout: float = WAIT_S) -> Object:
        """The pod, once the condition holds for it."""
        seen: list[Object] = []

        def look() -> Object | None:
            seen[:] = [self.get(f"pods/{name}")]
            return seen[0] if condition(seen[0]) else None

        try:
            return wait_for(look, timeout, f"pod {name} {what}")
        except TimeoutError as error:
            raise AssertionError(f"{error}; it is {seen[0]['status']}") from None

    def wait_ready(self, name: str) -> Object:
        return self.wait(name, ready, "to become ready")

    def wait_gone(self, name: str, timeout: float = WAIT_S) -> None:
        wait_for(lambda: self.gone(name), timeout, f"pod {name} to be gone")

    def wait_log(self, name: str, text: str) -> str:
        wait_for(lambda: text in self.log(name), WAIT_S, f"{text!r} in the log of pod {name}")
        return self.log(name)

    def log(self, name: str) -> str:
        return self.cluster.log(self.name, name)

    def events(self, name: str) -> dict[str, list[str]]:
        """The messages of a pod's events by reason."""
        found: dict[str, list[str]] = {}
        for event in self.get(f"events?fieldSelector=involvedObject.name={name}")["items"]:
            found.setdefault(event["reason"], []).append(event["message"])
        return found


def condition(item: Object, kind: str) -> Object:
    found = (entry for entry in item["status"].get("conditions", []) if entry["type"] == kind)
    return next(found, {"status": "Unknown"})


def ready(item: Object) -> bool:
    return bool(condition(item, "Ready")["status"] == "True")


def main(item: Object) -> Object:
    """The status of the first container."""
    statuses = item["status"].get("containerStatuses") or [{"state": {}, "lastState": {}, "restartCount": 0}]
    status: Object = statuses[0]
    return status


def waiting(item: Object) -> str:
    """Why the first container doesn't run."""
    return str(main(item)["state"].get("waiting", {}).get("reason", ""))
