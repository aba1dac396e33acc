"""A container's environment and command, as Kubernetes defines them from the pod."""

import math
import re
from collections.abc import Mapping

from testbed.kubernetes.kubelet.client import Object
from testbed.kubernetes.kubelet.references import References
from vaultml_common.quantity import exact
from vaultml_common.text import expand

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


def field(pod: Object, path: str) -> str:
    """The value of a fieldRef, as in metadata.name or metadata.labels['app']."""
    if found := _SUBSCRIPT.fullmatch(path):
        return str(pod["metadata"].get(found[1], {}).get(found[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries = pod["metadata"].get(path.removeprefix("metadata."), {})
        return "\n".join(f'{key}="{value}"' for key, value in sorted(entries.items()))
    if path in ("status.podIPs", "status.hostIPs"):
        return ",".join(entry["ip"] for entry in pod["status"].get(path.removeprefix("status."), []))
    value = pod
    for part in path.split("."):
        value = value.get(part, {})
    return str(value or "")


def resource(container: Object, allocatable: Mapping[str, str], reference: Object) -> str:
    """The value of a resourceFieldRef: without a limit, what the node has."""
    kind, _, name = reference["resource"].partition(".")
    resources = container.get("resources", {})
    given = resources.get(kind, {}).get(name) or (allocatable.get(name, "0") if kind == "limits" else "0")
    divisor = reference.get("divisor", "1")
    return str(math.ceil(exact(given) / (exact(divisor) or 1)))


async def environment(
    pod: Object, container: Object, references: References, services: Mapping[str, str], allocatable: Mapping[str, str]
) -> dict[str, str]:
    """The variables of a container; `services` are set where the pod doesn't set them.

    Raises MissingReferenceError when a Secret, ConfigMap or key isn't there.
    """
    # All pods share this machine's network: each must listen on its own address, not on all of them.
    found: dict[str, str] = {"HTTP_HOST": field(pod, "status.podIP")}
    for source in container.get("envFrom", []):
        kind = "Secret" if "secretRef" in source else "ConfigMap"
        reference = source.get("secretRef") or source["configMapRef"]
        data = await references.data(kind, reference["name"], optional=reference.get("optional", False))
        found |= {source.get("prefix", "") + key: value.decode() for key, value in (data or {}).items()}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        value: str | None = expand(variable.get("value", ""), {**services, **found})
        if "secretKeyRef" in source:
            value = _text(await references.value("Secret", source["secretKeyRef"]))
        elif "configMapKeyRef" in source:
            value = _text(await references.value("ConfigMap", source["configMapKeyRef"]))
        elif "fieldRef" in source:
            value = field(pod, source["fieldRef"]["fieldPath"])
        elif "resourceFieldRef" in source:
            value = resource(container, allocatable, source["resourceFieldRef"])
        if value is not None:
            found[variable["name"]] = value
    return {**services, **found}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
