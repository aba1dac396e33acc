"""Folders for PersistentVolumeClaims of the test bed's storage class; they stay when pods go, and go with the claim."""

import asyncio
import shutil
from pathlib import Path

from testbed.kubernetes.kubelet.client import ApiError, Client, Object

STORAGE_CLASS = "testbed"
PROVISIONER = "testbed.invalid/folder"
_OURS = "pv.kubernetes.io/provisioned-by"


async def provision(client: Client, folder: Path) -> None:
    """Give every claim its folder, for ever. Each node does it; the first one wins."""
    async for event, found in client.follow("/api/v1/persistentvolumeclaims", ""):
        claims = found if event == "SYNC" else [found] if event in ("ADDED", "MODIFIED") else []
        for claim in claims:
            spec = claim["spec"]
            if spec.get("storageClassName") == STORAGE_CLASS and not spec.get("volumeName"):
                await _create(client, claim, folder)


async def reclaim(client: Client) -> None:
    """Delete volumes whose claims have been deleted, for ever."""
    async for event, found in client.follow("/api/v1/persistentvolumes", ""):
        volumes = found if event == "SYNC" else [found] if event in ("ADDED", "MODIFIED") else []
        for volume in volumes:
            released = volume.get("status", {}).get("phase") in ("Released", "Failed")
            if released and volume["metadata"].get("annotations", {}).get(_OURS) == PROVISIONER:
                try:
                    await client.request("DELETE", f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
                except ApiError:
                    continue  # another node was first
                path = volume["spec"]["hostPath"]["path"]
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


async def _create(client: Client, claim: Object, folder: Path) -> None:
    metadata, spec = claim["metadata"], claim["spec"]
    name = f"pvc-{metadata['uid']}"
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)
    volume: Object = {
        "metadata": {"name": name, "annotations": {_OURS: PROVISIONER}},
        "spec": {
            "capacity": spec["resources"]["requests"],
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": STORAGE_CLASS,
            "hostPath": {"path": str(path), "type": "DirectoryOrCreate"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }
    try:
        await client.request("POST", "/api/v1/persistentvolumes", volume)
    except ApiError as error:
        if error.status != 409:
            raise
