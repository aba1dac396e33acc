"""The node itself: registers, sends heartbeats, and runs the pods that are bound to it."""

import asyncio
import logging
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from testbed.kubernetes.kubelet.client import MERGE, STRATEGIC, ApiError, Object
from testbed.kubernetes.kubelet.hollow import HollowPod
from testbed.kubernetes.kubelet.machine import Machine
from testbed.kubernetes.kubelet.pod import Pod
from testbed.kubernetes.kubelet.server import PORT
from testbed.kubernetes.kubelet.status import now, with_times

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_LOG = logging.getLogger(__name__)


class Agent:
    """What a kubelet does on a node, for ever."""

    def __init__(self, machine: Machine, settings: Mapping[str, Any]) -> None:
        """`settings`: labels, taints, heartbeat (seconds), hollow, version."""
        self._machine = machine
        self._settings = settings
        self._pods: dict[str, Pod | HollowPod] = {}
        self._finished: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Register, then serve until cancelled."""
        await self._register()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._heartbeat())
            group.create_task(self._follow_pods())

    async def _register(self) -> None:
        name, settings = self._machine.name, self._settings
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64" if platform.machine() == "x86_64" else "arm64",
        }
        node: Object = {
            "metadata": {"name": name, "labels": labels | settings["labels"]},
            "spec": {"taints": settings["taints"]} if settings["taints"] else {},
        }
        try:
            await self._machine.client.request("POST", "/api/v1/nodes", node)
        except ApiError as error:
            if error.status != 409:
                raise
            # Known from before it was switched off. Its taints may be others' by now.
            change: Object = {"metadata": {"labels": node["metadata"]["labels"]}}
            await self._machine.client.request("PATCH", f"/api/v1/nodes/{name}", change, content_type=MERGE)
        await self._report()

    async def _heartbeat(self) -> None:
        """Renew the lease, and say that the node is ready where the control plane has come to doubt it."""
        name, period = self._machine.name, self._settings["heartbeat"]
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            lease: Object = {
                "metadata": {"name": name},
                "spec": {
                    "holderIdentity": name,
                    "leaseDurationSeconds": 40,
                    "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                },
            }
            try:
                try:
                    await self._machine.client.request("PATCH", f"{_LEASES}/{name}", lease, content_type=MERGE)
                except ApiError as error:
                    if error.status != 404:
                        raise
                    await self._machine.client.request("POST", _LEASES, lease)
                await self._report()
            except ApiError as error:  # the Node object was deleted: a kubelet goes on, too, until its pods are deleted
                _LOG.warning("heartbeat: %s", error)
            await asyncio.sleep(max(0, begun + period - loop.time()))

    async def _report(self) -> None:
        node = await self._machine.client.get(f"/api/v1/nodes/{self._machine.name}")
        old = node.get("status", {}).get("conditions", [])
        ready = next((entry["status"] for entry in old if entry["type"] == "Ready"), "")
        capacity = node.get("status", {}).get("allocatable", {})
        address = {"type": "InternalIP", "address": self._machine.addresses.node}
        if ready == "True" and address in node["status"].get("addresses", []) and capacity == self._machine.allocatable:
            return
        conditions = [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}
        ] + [
            {"type": kind, "status": "False", "reason": f"KubeletHas{reason}", "message": f"kubelet has {reason}"}
            for kind, reason in (
                ("MemoryPressure", "SufficientMemory"),
                ("DiskPressure", "NoDiskPressure"),
                ("PIDPressure", "SufficientPID"),
            )
        ]
        for condition in conditions:
            condition["lastHeartbeatTime"] = now()
        status: Object = {
            "capacity": self._machine.allocatable,
            "allocatable": self._machine.allocatable,
            "conditions": with_times(conditions, old),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": PORT}},
            "addresses": [{"type": "Hostname", "address": self._machine.name}, address],
            "nodeInfo": {
                "kubeletVersion": self._settings["version"],
                "kubeProxyVersion": "",
                "containerRuntimeVersion": "testbed://1",
                "kernelVersion": platform.release(),
                "osImage": "Test bed",
                "operatingSystem": "linux",
                "architecture": "amd64" if platform.machine() == "x86_64" else "arm64",
                "machineID": self._machine.name,
                "systemUUID": self._machine.name,
                "bootID": str(uuid4()),
            },
        }
        path = f"/api/v1/nodes/{self._machine.name}/status"
        await self._machine.client.request("PATCH", path, {"status": status}, content_type=STRATEGIC)

    async def _follow_pods(self) -> None:
        selector = f"fieldSelector=spec.nodeName={self._machine.name}"
        async for event, found in self._machine.client.follow("/api/v1/pods", selector):
            if event == "SYNC":
                known = {item["metadata"]["uid"] for item in found}
                for uid in set(self._pods) - known:
                    self._pods[uid].removed()
                self._finished &= known
                for item in found:
                    self._see(item)
            elif event == "DELETED":
                uid = found["metadata"]["uid"]
                self._finished.discard(uid)
                if uid in self._pods:
                    self._pods[uid].update(found)
                    self._pods[uid].removed()
            else:
                self._see(found)

    def _see(self, item: Object) -> None:
        uid = item["metadata"]["uid"]
        if uid in self._pods:
            self._pods[uid].update(item)
        elif uid not in self._finished:
            pod = (HollowPod if self._settings["hollow"] else Pod)(self._machine, item)
            self._pods[uid] = pod
            task = asyncio.create_task(self._run(uid, pod))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, uid: str, pod: Pod | HollowPod) -> None:
        try:
            await pod.run()
        except Exception:
            _LOG.exception("pod %s", uid)
        finally:
            # Finalizers can keep the object for a while, with changes to come.
            self._finished.add(uid)
            del self._pods[uid]
