"""A container of a pod as a local process: its environment, its files, its command."""

import base64
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultml_common.text import expand
from vaultml_operator.local.gpus import Device
from vaultml_operator.manifests import Manifest

Read = Callable[[str, str], Manifest | None]
"""Gives the Secret or ConfigMap of the pod's namespace, by kind and name."""

_SHELL = ("PATH", "HOME", "LANG", "VAULTML_CACHE", "XDG_CACHE_HOME", "LD_LIBRARY_PATH")
"""What a worker gets of our own environment: where things are, and nothing that may be secret."""
_TMP = "/tmp"  # noqa: S108 - in the pod


class CannotStart(Exception):  # noqa: N818 - a state, told in the pod's status
    """A container that can't be started as its pod says; the message says why."""


@dataclass(frozen=True)
class Launch:
    """What to start. `env` is all of the environment, secrets and all: it is never shown."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path


def worker(pod: Manifest) -> Mapping[str, Any]:
    """The container that runs here: the one named worker."""
    found: Mapping[str, Any] = next(each for each in pod["spec"]["containers"] if each["name"] == "worker")
    return found


def prepare(pod: Manifest, read: Read, *, private: Path, cache: Path, devices: Sequence[Device]) -> Launch:
    """Make the pod's files in `private` (for us alone), and say what to run. Raises CannotStart.

    What outlives the pod, built engines, goes to `cache`.
    """
    container = worker(pod)
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    places = dict(_mounts(pod, container, read, private, cache))
    own = dict(_environment(pod, container, read))
    # Nothing is mounted: a variable that names a file in a volume names the real one.
    for name, value in own.items():
        own[name] = next((str(place) + value[len(path) :] for path, place in places.items() if _in(value, path)), value)
    visible = ",".join(device.uuid for device in devices)
    ours = {"HOSTNAME": pod["metadata"]["name"], "CUDA_VISIBLE_DEVICES": visible}
    if _TMP in places or not own.get("TMPDIR"):
        ours["TMPDIR"] = str(places.get(_TMP) or _folder(private / "tmp"))
    shell = {name: os.environ[name] for name in _SHELL if name in os.environ}
    given = container.get("command") or [sys.executable, "-m", "vaultml_worker"]
    command = [expand(each, own) for each in (*given, *(container.get("args") or ()))]
    return Launch(tuple(command), {**shell, **own, **ours}, Path(container.get("workingDir") or private))


def _in(value: str, path: str) -> bool:
    return path != _TMP and (value == path or value.startswith(f"{path}/"))


# --- environment ----------------------------------------------------------------------------------------------------


def _environment(pod: Manifest, container: Mapping[str, Any], read: Read) -> Iterator[tuple[str, str]]:
    known: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        kind, ref = ("Secret", source["secretRef"]) if "secretRef" in source else ("ConfigMap", source["configMapRef"])
        for key in sorted(_keys(read(kind, ref["name"]))):
            known[f"{source.get('prefix', '')}{key}"] = _key(read, kind, {**ref, "key": key}) or ""
    for variable in container.get("env") or ():
        value = _value(pod, variable, read)
        if value is not None:
            known[variable["name"]] = expand(value, known) if "value" in variable else value
    yield from known.items()


def _value(pod: Manifest, variable: Mapping[str, Any], read: Read) -> str | None:
    source = variable.get("valueFrom")
    if source is None:
        return str(variable.get("value", ""))
    if "secretKeyRef" in source:
        return _key(read, "Secret", source["secretKeyRef"])
    if "configMapKeyRef" in source:
        return _key(read, "ConfigMap", source["configMapKeyRef"])
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    raise CannotStart(f"the variable {variable['name']} comes from something that this machine has not")


def _keys(there: Manifest | None) -> set[str]:
    return {*((there or {}).get("data") or {}), *((there or {}).get("binaryData") or {})}


def _key(read: Read, kind: str, ref: Mapping[str, Any]) -> str | None:
    content = _bytes(read, kind, ref)
    return None if content is None else content.decode(errors="replace")


def _bytes(read: Read, kind: str, ref: Mapping[str, Any]) -> bytes | None:
    there = read(kind, ref["name"])
    if ref["key"] not in _keys(there):
        if ref.get("optional"):
            return None
        raise CannotStart(f"{kind} {ref['name']} lacks the key {ref['key']}")
    assert there is not None
    if kind == "ConfigMap" and ref["key"] in (there.get("data") or {}):
        return str(there["data"][ref["key"]]).encode()
    return base64.b64decode(there["data" if kind == "Secret" else "binaryData"][ref["key"]])


def _field(pod: Manifest, path: str) -> str:
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path):
        return str((pod["metadata"].get(found[1]) or {}).get(found[2], ""))
    value: Any = {**pod, "status": {**(pod.get("status") or {}), "hostIP": "127.0.0.1"}}
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, str):
        raise CannotStart(f"a pod of this machine has no field {path}")
    return value


# --- files ----------------------------------------------------------------------------------------------------------


def _mounts(
    pod: Manifest, container: Mapping[str, Any], read: Read, private: Path, cache: Path
) -> Iterator[tuple[str, Path]]:
    volumes = {each["name"]: each for each in pod["spec"].get("volumes") or ()}
    for mount in container.get("volumeMounts") or ():
        if (volume := volumes.get(mount["name"])) is None:
            raise CannotStart(f"there is no volume {mount['name']}")
        place = _volume(volume, read, private, cache)
        yield mount["mountPath"].rstrip("/"), place / mount.get("subPath", "")


def _volume(volume: Mapping[str, Any], read: Read, private: Path, cache: Path) -> Path:
    name = volume["name"]
    if "emptyDir" in volume:
        return _folder(cache / "engines" if name == "engine-cache" else private / name)
    if "hostPath" in volume:
        return Path(volume["hostPath"]["path"])
    target = _folder(private / name)
    if "secret" in volume:
        sources = [{"secret": {"name": volume["secret"]["secretName"], **volume["secret"]}}]
    elif "configMap" in volume:
        sources = [{"configMap": volume["configMap"]}]
    elif "projected" in volume:
        sources = volume["projected"].get("sources") or []
    else:
        raise CannotStart(f"the volume {name} is of a kind that this machine has not: name files by absolute paths")
    for source in sources:
        kind, given = ("Secret", source["secret"]) if "secret" in source else ("ConfigMap", source.get("configMap"))
        if given is None:
            raise CannotStart(f"the volume {name} holds something else than Secrets and ConfigMaps")
        items = given.get("items") or [{"key": key, "path": key} for key in sorted(_keys(read(kind, given["name"])))]
        for item in items:
            content = _bytes(read, kind, {**item, "name": given["name"], "optional": given.get("optional")})
            if content is not None:
                _write(target, item["path"], content)
    return target


def _write(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    if ".." in path.parts:
        raise CannotStart(f"{name}: a file of a volume stays in it")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
        file.write(content)


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
