"""A pod's volumes as folders of its own, to be mounted into its containers, and kept up to date."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from testbed.kubernetes.kubelet.client import ApiError, Client, Object
from testbed.kubernetes.kubelet.environment import field, resource
from testbed.kubernetes.kubelet.references import MissingReferenceError, References
from vaultml_common.text import expand

_TOKEN_S = 3600
Files = dict[str, tuple[bytes, int]]


class MountError(Exception):
    """A volume can't be mounted (yet), in a kubelet's words."""


class Volumes:
    """The volumes of one pod; `prepare` makes them, `refresh` renews what is projected into them."""

    def __init__(self, client: Client, folder: Path, allocatable: dict[str, str]) -> None:
        """Keep them under `folder`."""
        self._client = client
        self._folder = folder
        self._allocatable = allocatable
        self._sources: dict[str, Path] = {}
        self._tokens: dict[tuple[str, str], tuple[bytes, float]] = {}

    async def prepare(self, pod: Object) -> None:
        """Make every volume that isn't there yet. Raises MountError for the first that can't be."""
        for volume in pod["spec"].get("volumes", []):
            if volume["name"] not in self._sources:
                try:
                    self._sources[volume["name"]] = await self._make(pod, volume)
                except (MissingReferenceError, ApiError, OSError) as error:
                    text = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                    raise MountError(text) from error

    async def refresh(self, pod: Object) -> None:
        """Write Secrets, ConfigMaps, tokens and labels anew where they have changed; what is missing now stays."""
        for volume in pod["spec"].get("volumes", []):
            try:
                files = await self._projected(pod, volume)
            except (MissingReferenceError, ApiError):
                continue
            if files is not None:
                _publish(self._folder / volume["name"], files, _owner(pod))

    def mounts(self, container: Object, variables: dict[str, str]) -> list[dict[str, object]]:
        """What to mount where in a container."""
        mounts = []
        for mount in container.get("volumeMounts", []):
            source = self._sources[mount["name"]]
            part = expand(mount.get("subPathExpr", ""), variables) or mount.get("subPath", "")
            if part:
                source = source / part
                if not source.exists():
                    source.mkdir(parents=True)
            read_only = mount.get("readOnly", False)
            mounts.append({"source": str(source), "target": mount["mountPath"], "read_only": read_only})
        return mounts

    def remove(self) -> None:
        """Delete what was the pod's own; claims and the machine's folders stay."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _make(self, pod: Object, volume: Object) -> Path:
        if "hostPath" in volume:
            return _host_path(volume["hostPath"])
        if "persistentVolumeClaim" in volume:
            return await self._claimed(pod["metadata"]["namespace"], volume["persistentVolumeClaim"]["claimName"])
        folder: Path = self._folder / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        files = await self._projected(pod, volume)
        if files is not None:
            _publish(folder, files, _owner(pod))
        elif "emptyDir" in volume:
            folder.chmod(0o777)
        else:
            kind = next((key for key in volume if key != "name"), "?")
            raise MissingReferenceError(f"the test bed has no volumes of type {kind}")
        return folder

    async def _projected(self, pod: Object, volume: Object) -> Files | None:
        """The files of a volume that Kubernetes fills; None when it is of another type."""
        if "projected" in volume:
            mode = volume["projected"].get("defaultMode", 0o644)
            files: Files = {}
            for source in volume["projected"].get("sources", []):
                files |= await self._source(pod, source, mode)
            return files
        for kind in ("secret", "configMap", "downwardAPI"):
            if kind in volume:
                source = {"name": volume[kind].get("secretName"), **volume[kind]}
                return await self._source(pod, {kind: source}, volume[kind].get("defaultMode", 0o644))
        return None

    async def _source(self, pod: Object, source: Object, mode: int) -> Files:
        if "serviceAccountToken" in source:
            token = source["serviceAccountToken"]
            return {token["path"]: (await self._token(pod, token), 0o600)}
        if "downwardAPI" in source:
            return {
                item["path"]: (self._downward(pod, item), item.get("mode", mode))
                for item in source["downwardAPI"]["items"]
            }
        kind = "Secret" if "secret" in source else "ConfigMap"
        wanted = source.get("secret") or source["configMap"]
        optional = wanted.get("optional", False)
        references = References(self._client, pod["metadata"]["namespace"])
        data = await references.data(kind, wanted["name"], optional=optional) or {}
        if "items" not in wanted:
            return {key: (value, mode) for key, value in data.items()}
        files = {}
        for item in wanted["items"]:
            if item["key"] in data:
                files[item["path"]] = data[item["key"]], item.get("mode", mode)
            elif not optional:
                missing = (
                    "references non-existent secret key"
                    if kind == "Secret"
                    else "configmap references non-existent config key"
                )
                raise MissingReferenceError(f"{missing}: {item['key']}")
        return files

    def _downward(self, pod: Object, item: Object) -> bytes:
        if "fieldRef" in item:
            return field(pod, item["fieldRef"]["fieldPath"]).encode()
        reference = item["resourceFieldRef"]
        container = next(one for one in pod["spec"]["containers"] if one["name"] == reference["containerName"])
        return resource(container, self._allocatable, reference).encode()

    async def _token(self, pod: Object, wanted: Object) -> bytes:
        """A token that is bound to the pod, renewed when four fifths of its time are over."""
        key = wanted["path"], wanted.get("audience", "")
        if key not in self._tokens or self._tokens[key][1] < time.monotonic():
            metadata, seconds = pod["metadata"], wanted.get("expirationSeconds", _TOKEN_S)
            spec: Object = {
                "expirationSeconds": seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]},
            }
            if key[1]:
                spec["audiences"] = [key[1]]
            account = pod["spec"].get("serviceAccountName", "default")
            path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
            answer = await self._client.request("POST", path, {"spec": spec})
            self._tokens[key] = answer["status"]["token"].encode(), time.monotonic() + 0.8 * seconds
        return self._tokens[key][0]

    async def _claimed(self, namespace: str, name: str) -> Path:
        claim = await self._client.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
        if claim["status"].get("phase") != "Bound":
            raise MissingReferenceError(f'persistentvolumeclaim "{name}" is not bound')
        volume = (await self._client.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}"))["spec"]
        if "hostPath" in volume:
            return _host_path(volume["hostPath"] | {"type": "DirectoryOrCreate"})
        if "local" in volume:
            return Path(volume["local"]["path"])
        raise MissingReferenceError("the test bed has no persistent volumes of this type")


_HOST_PATHS: dict[str, tuple[Callable[[Path], bool], str]] = {
    "Directory": (Path.is_dir, "is not a directory"),
    "File": (Path.is_file, "is not a file"),
    "Socket": (Path.is_socket, "is not a socket file"),
    "": (Path.exists, "does not exist"),
}


def _host_path(volume: Object) -> Path:
    path, kind = Path(volume["path"]), volume.get("type", "")
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch(mode=0o644)
    else:
        fits, problem = _HOST_PATHS.get(kind, _HOST_PATHS[""])
        if not fits(path):
            raise MissingReferenceError(f"hostPath type check failed: {path} {problem}")
    return path


def _owner(pod: Object) -> int:
    """Whose the files are: a pod's token is for its own user to read, and for nobody else."""
    user: int | None = pod["spec"].get("securityContext", {}).get("runAsUser")
    return user if user is not None and os.geteuid() == 0 else os.geteuid()


def _publish(folder: Path, files: Files, owner: int) -> None:
    """Swap all files at once, as a kubelet does: names are links into a folder that one rename replaces."""
    link = folder / "..data"
    if link.exists() and _read(link) == {name: content for name, (content, _) in files.items()}:
        return
    before = link.resolve() if link.exists() else None
    fresh = folder / f"..{time.strftime('%Y_%m_%d_%H_%M_%S')}.{uuid4().int % 10**9}"
    for name, (content, mode) in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        os.chown(path, owner, -1)
    fresh.mkdir(exist_ok=True)
    scratch = folder / "..data_tmp"
    scratch.symlink_to(fresh.name)
    scratch.rename(link)
    names = {name.partition("/")[0] for name in files}
    for name in names:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    for path in folder.iterdir():
        if not path.name.startswith("..") and path.name not in names:
            path.unlink()
    if before is not None:
        shutil.rmtree(before)


def _read(folder: Path) -> dict[str, bytes]:
    folder = folder.resolve()
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
