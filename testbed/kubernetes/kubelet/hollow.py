"""Pods in name only: Running and Ready at once, deleted at once, for benchmarks with hundreds of them."""

import asyncio

from testbed.kubernetes.kubelet.client import STRATEGIC, ApiError, Object
from testbed.kubernetes.kubelet.machine import Machine
from testbed.kubernetes.kubelet.status import conditions, now, with_times


class HollowPod:
    """Has a pod's life without any process."""

    def __init__(self, machine: Machine, item: Object) -> None:
        """Take over a pod as it was first seen."""
        self._machine = machine
        self._item = item
        self._address = machine.addresses.take()
        self._deleted = asyncio.Event()
        self._gone = False
        self.update(item)

    def update(self, item: Object) -> None:
        """The object has changed."""
        if "deletionTimestamp" in item["metadata"]:
            self._deleted.set()

    def removed(self) -> None:
        """The object is gone."""
        self._gone = True
        self._deleted.set()

    async def run(self) -> None:
        """Say that it runs, and have it removed when it is deleted."""
        metadata = self._item["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        body: Object = {"metadata": {"uid": metadata["uid"]}, "status": self._status()}
        try:
            if not self._deleted.is_set() and self._item.get("status", {}).get("phase") != "Running":
                await self._machine.client.request("PATCH", f"{path}/status", body, content_type=STRATEGIC)
            await self._deleted.wait()
            if not self._gone:
                end: Object = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
                await self._machine.client.request("DELETE", path, end)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        finally:
            self._machine.addresses.give_back(self._address)

    def _status(self) -> Object:
        since, node = now(), self._machine.addresses.node
        containers = [
            {
                "name": spec["name"],
                "image": spec.get("image", ""),
                "imageID": spec.get("image", ""),
                "state": {"running": {"startedAt": since}},
                "lastState": {},
                "restartCount": 0,
                "started": True,
                "ready": True,
            }
            for spec in self._item["spec"]["containers"]
        ]
        return {
            "phase": "Running",
            "conditions": with_times(conditions("Running", [], containers, ()), []),
            "hostIP": node,
            "hostIPs": [{"$patch": "replace"}, {"ip": node}],
            "podIP": self._address,
            "podIPs": [{"$patch": "replace"}, {"ip": self._address}],
            "startTime": since,
            "containerStatuses": containers,
        }
