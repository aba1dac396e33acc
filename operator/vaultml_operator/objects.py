"""What a reconcile asks of whoever keeps the objects: a cluster's API server, or the memory of one machine."""

from collections.abc import Mapping
from typing import Any, Protocol

from vaultml_operator.manifests import Manifest


class Objects(Protocol):
    """Plain dicts as the API server gives them; see `cluster.Cluster`. All methods raise ApiError."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None when there is none, or no such kind."""
        ...

    async def children(self, kind: str, namespace: str, pipeline: str) -> list[Manifest]:
        """The objects of a kind that carry the pipeline's label."""
        ...

    async def nodes(self) -> list[Manifest] | None:
        """All nodes; None when we may not see them."""
        ...

    async def apply(self, manifest: Manifest, *, creating: bool = False) -> Manifest:
        """Have the object say what the manifest says; gives it as it is then."""
        ...

    async def scale(self, deployment: Manifest, replicas: int) -> None:
        """Set the number, unless the Deployment has changed since."""
        ...

    async def delete(self, live: Manifest) -> None:
        """Delete just this object: not one that took its name in the meantime."""
        ...

    async def write_status(self, body: Manifest, status: Mapping[str, Any]) -> None:
        """Replace the status of the pipeline that `body` is."""
        ...

    async def post_event(self, body: Manifest, kind: str, reason: str, action: str, note: str) -> None:
        """Post an Event about the pipeline that `body` is; `kind` is Normal or Warning."""
        ...

    async def annotate_pod(self, pod: Manifest, annotations: Mapping[str, str]) -> None:
        """Set annotations of this very pod, if it is still there."""
        ...
