"""One pod on this node: volumes, init containers, containers, its status, and its end."""

import asyncio
import contextlib
import logging
import shutil

from testbed.kubernetes.kubelet.client import STRATEGIC, ApiError, Object
from testbed.kubernetes.kubelet.container import Container
from testbed.kubernetes.kubelet.machine import Machine
from testbed.kubernetes.kubelet.status import conditions, now, phase, with_times
from testbed.kubernetes.kubelet.volumes import MountError, Volumes

_RETRY_S = 0.5
_REFRESH_S = 30
_FINISHED = ("Succeeded", "Failed")


_LOG = logging.getLogger(__name__)


class Pod:
    """Lives in `run` from when it is bound to the node until its object is gone."""

    def __init__(self, machine: Machine, item: Object) -> None:
        """Take over a pod as it was first seen."""
        metadata = item["metadata"]
        self.object = item
        self._machine = machine
        self._path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self._folder = machine.folder / "pods" / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        self._address = machine.addresses.take()
        self._deleted = asyncio.Event()
        self._gone = "deletionTimestamp" in metadata and metadata.get("deletionGracePeriodSeconds") == 0
        self._dirty = asyncio.Event()
        self._sending = asyncio.Lock()
        self._sent: Object = {}
        self._over = False
        self._volumes = Volumes(machine.client, self._folder / "volumes", machine.allocatable)
        self._was_finished = item.get("status", {}).get("phase") in _FINISHED
        self._start_time = item.get("status", {}).get("startTime") or now()
        self.object = self._with_addresses(item)
        self._inits = [self._container(spec, init=True) for spec in item["spec"].get("initContainers", [])]
        self._containers = [self._container(spec, init=False) for spec in item["spec"]["containers"]]
        self.update(item)

    def update(self, item: Object) -> None:
        """The object has changed."""
        self.object = self._with_addresses(item)
        if "deletionTimestamp" in item["metadata"]:
            if self._deleted.is_set():  # again, perhaps by force
                for container in self._containers:
                    container.hurry(self._grace())
            self._deleted.set()

    def removed(self) -> None:
        """The object is gone: nobody waits for the pod any more."""
        self._gone = True
        self._deleted.set()

    async def run(self) -> None:
        """Run the pod until it has been deleted."""
        self._folder.mkdir(parents=True, exist_ok=True)
        reporter = asyncio.create_task(self._report_changes())
        life = asyncio.create_task(self._live())
        for task in (reporter, life):
            task.add_done_callback(_log_failure)
        try:
            await self._deleted.wait()
            await self._terminate(life)
        finally:
            reporter.cancel()
            life.cancel()
            await asyncio.gather(reporter, life, return_exceptions=True)
            self._volumes.remove()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._machine.addresses.give_back(self._address)

    async def _live(self) -> None:
        if self._was_finished:
            return
        self._dirty.set()
        await self._mount()
        background = [asyncio.create_task(self._refresh())]
        try:
            for container in self._inits:
                if container.sidecar:
                    background.append(asyncio.create_task(container.run()))
                    await container.up.wait()
                else:
                    await container.run()
                    if not container.status["ready"]:
                        return
            await asyncio.gather(*(container.run() for container in self._containers))
            await self._stop_sidecars()
        finally:
            for task in background:
                task.cancel()

    async def _mount(self) -> None:
        """Mount the volumes, as soon as all can be."""
        while not self._deleted.is_set():
            try:
                await self._volumes.prepare(self.object)
            except MountError as error:
                self._machine.recorder.warning(self.object, "FailedMount", str(error))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._deleted.wait(), _RETRY_S)
            else:
                return

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            await self._volumes.refresh(self.object)

    async def _terminate(self, life: asyncio.Task[None]) -> None:
        """End the containers within the grace period, report it, and have the object removed."""
        self._dirty.set()
        grace = self._grace()
        await asyncio.gather(*(container.stop(grace) for container in self._containers))
        await asyncio.gather(*(container.stop(grace) for container in self._inits if not container.sidecar))
        await self._stop_sidecars()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        self._over = True
        if self._gone:
            return
        await self._report()
        body: Object = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.object["metadata"]["uid"]}}
        with contextlib.suppress(ApiError):  # gone already, or another pod by that name
            await self._machine.client.request("DELETE", self._path, body)

    async def _stop_sidecars(self) -> None:
        """The last one first, when nothing else of the pod runs any more."""
        for container in reversed(self._inits):
            if container.sidecar:
                await container.stop(self._grace())

    def _grace(self) -> float:
        """The seconds that the pod has to end."""
        intended = self.object["spec"].get("terminationGracePeriodSeconds", 30)
        return float(max(1, self.object["metadata"].get("deletionGracePeriodSeconds", intended)))  # a kubelet's least

    async def _report_changes(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._report()

    async def _report(self) -> None:
        """Write the status, if it isn't what was written last."""
        async with self._sending:
            status = self._status()
            if status == self._sent or self._gone:
                return
            body = {"metadata": {"uid": self.object["metadata"]["uid"]}, "status": status}
            try:
                answer = await self._machine.client.request(
                    "PATCH", f"{self._path}/status", body, content_type=STRATEGIC
                )
            except ApiError as error:
                if error.status not in (404, 409):  # gone, or another pod by that name
                    _LOG.error("status of %s: %s", self._path, error)
                return
            self._sent = status
            self.object = self._with_addresses(answer)

    def _status(self) -> Object:
        spec, old = self.object["spec"], self.object.get("status", {})
        inits = [container.status for container in self._inits]
        containers = [container.status for container in self._containers]
        plain = [status for container, status in zip(self._inits, inits, strict=True) if not container.sidecar]
        pod_phase = phase(spec.get("restartPolicy", "Always"), plain, containers, over=self._over)
        true = {entry["type"] for entry in old.get("conditions", []) if entry["status"] == "True"}
        gates = [gate["conditionType"] for gate in spec.get("readinessGates", []) if gate["conditionType"] not in true]
        status: Object = {
            "phase": pod_phase,
            "conditions": with_times(conditions(pod_phase, plain, containers, gates), old.get("conditions", [])),
            "hostIP": self._machine.addresses.node,
            "hostIPs": [{"$patch": "replace"}, {"ip": self._machine.addresses.node}],
            "podIP": self._address,
            "podIPs": [{"$patch": "replace"}, {"ip": self._address}],  # they would be added to those before
            "startTime": self._start_time,
            "containerStatuses": containers,
        }
        return status | ({"initContainerStatuses": inits} if inits else {})

    def _with_addresses(self, item: Object) -> Object:
        """Containers may ask for them before the API server has them."""
        node = self._machine.addresses.node
        known = {"podIP": self._address, "podIPs": [{"ip": self._address}], "hostIP": node, "hostIPs": [{"ip": node}]}
        return item | {"status": item.get("status", {}) | known}

    def _container(self, spec: Object, *, init: bool) -> Container:
        statuses = self.object["status"].get("initContainerStatuses" if init else "containerStatuses", [])
        before = next((status for status in statuses if status["name"] == spec["name"]), None)
        folder = self._folder / "containers" / spec["name"]
        (folder / "scratch").mkdir(parents=True, exist_ok=True)
        return Container(
            self._machine, lambda: self.object, spec, self._volumes, folder, self._dirty.set, init=init, before=before
        )


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("a pod is not run any more", exc_info=error)
