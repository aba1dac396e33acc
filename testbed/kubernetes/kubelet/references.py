"""Secrets and ConfigMaps that pods refer to, with a kubelet's words for those that are missing."""

import base64

from testbed.kubernetes.kubelet.client import ApiError, Client, Object

_KINDS = {"Secret": "secrets", "ConfigMap": "configmaps"}


class MissingReferenceError(Exception):
    """Something that a pod refers to is not there (yet)."""


class References:
    """Reads them for one start of a container: each once."""

    def __init__(self, client: Client, namespace: str) -> None:
        """Read from the pod's namespace."""
        self._client = client
        self._namespace = namespace
        self._read: dict[tuple[str, str], dict[str, bytes] | None] = {}

    async def data(self, kind: str, name: str, *, optional: bool = False) -> dict[str, bytes] | None:
        """The content of a Secret or ConfigMap; None when it isn't there and needn't be."""
        if (kind, name) not in self._read:
            self._read[kind, name] = await self._get(kind, name)
        data = self._read[kind, name]
        if data is None and not optional:
            raise MissingReferenceError(f'{kind.lower()} "{name}" not found')
        return data

    async def value(self, kind: str, reference: Object) -> bytes | None:
        """The value of a key selector; None when it isn't there and needn't be."""
        optional = reference.get("optional", False)
        data = await self.data(kind, reference["name"], optional=optional)
        if data is None:
            return None
        if reference["key"] not in data and not optional:
            raise MissingReferenceError(
                f"couldn't find key {reference['key']} in {kind} {self._namespace}/{reference['name']}"
            )
        return data.get(reference["key"])

    async def _get(self, kind: str, name: str) -> dict[str, bytes] | None:
        try:
            item = await self._client.get(f"/api/v1/namespaces/{self._namespace}/{_KINDS[kind]}/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise MissingReferenceError(str(error)) from error
        data = item.get("data", {})
        if kind == "Secret":
            return {key: base64.b64decode(value) for key, value in data.items()}
        binary = item.get("binaryData", {})
        return {key: value.encode() for key, value in data.items()} | {
            key: base64.b64decode(value) for key, value in binary.items()
        }
