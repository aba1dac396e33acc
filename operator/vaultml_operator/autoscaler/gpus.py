"""Pure: what nodes offer of GPUs, what pods hold of them, and where a pod may land."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vaultml_common.quantity import quantity
from vaultml_common.text import plural
from vaultml_operator.manifests import PIPELINE

Key = tuple[str, str]
"""A pipeline: its namespace and name."""
Units = tuple[tuple[str, int], ...]
"""Extended resources and how many of each, sorted by name."""


def noun(resource: str, number: int = 2) -> str:
    """What people call one, or several, of an extended resource: a GPU, unless it is named a CPU slot."""
    return plural("CPU slot" if resource.endswith("/cpu-slot") else "GPU", number)


def requests(spec: Mapping[str, Any]) -> dict[str, int]:
    """The extended resources that a pod's spec asks for, as the scheduler adds them up; none is 0.

    Containers run together; so do the init containers that stay (sidecars). The others run one after the other, each
    beside the sidecars before it. A limit stands for a request that is missing.
    """
    together: dict[str, int] = {}
    for container in spec.get("containers") or ():
        _add(together, _asked(container))
    sidecars: dict[str, int] = {}
    highest: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            _add(sidecars, _asked(container))
            continue
        for name, number in _asked(container).items():
            highest[name] = max(highest.get(name, 0), number + sidecars.get(name, 0))
    _add(together, sidecars)
    total = {name: max(together.get(name, 0), highest.get(name, 0)) for name in {*together, *highest}}
    _add(total, _extended(spec.get("overhead") or {}))
    return {name: number for name, number in total.items() if number > 0}


def _asked(container: Mapping[str, Any]) -> dict[str, int]:
    resources = container.get("resources") or {}
    return _extended({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _extended(quantities: Mapping[str, Any]) -> dict[str, int]:
    return {name: quantity(value) for name, value in quantities.items() if "/" in name}


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, number in more.items():
        total[name] = total.get(name, 0) + number


class Taint(NamedTuple):
    """A taint that keeps pods from a node: NoSchedule or NoExecute."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Node:
    """What matters of a node. `closed` says why it takes no new pods: cordoned, not ready, being deleted, or ""."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    closed: str
    allocatable: Units

    def offers(self, resource: str) -> int:
        """How many there are of an extended resource, held or not."""
        return next((number for name, number in self.allocatable if name == resource), 0)


@dataclass(frozen=True, slots=True)
class Pod:
    """What matters of a pod. `node` is None while it waits for one; `pipeline` is None for pods that aren't ours."""

    uid: str
    node: str | None
    pipeline: Key | None
    requests: Units
    terminating: bool

    def asks(self, resource: str) -> int:
        """How many it holds, or waits for, of an extended resource."""
        return next((number for name, number in self.requests if name == resource), 0)


@dataclass(slots=True)
class Pool:
    """All nodes, and all pods that ask for an extended resource: fed from watches, each call tells whether it matters.

    Pods that have ended hold nothing. Pods that terminate hold theirs until they are gone. Pods on a node that is
    gone hold nothing: nobody can use what they have.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    _held: dict[str, dict[str, int]] = field(default_factory=dict)
    # Thousands of pods ask for the same few things.
    _same: dict[Units, Units] = field(default_factory=dict)

    def node_seen(self, node: Mapping[str, Any]) -> bool:
        """Take a Node as the API server gives it."""
        record = _node(node)
        if self.nodes.get(record.name) == record:
            return False
        self.nodes[record.name] = record
        return True

    def node_gone(self, name: str) -> bool:
        """Forget a node."""
        return self.nodes.pop(name, None) is not None

    def pod_seen(self, pod: Mapping[str, Any]) -> bool:
        """Take a Pod as the API server gives it."""
        metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
        asked = tuple(sorted(requests(spec).items()))
        if not asked or status.get("phase") in ("Succeeded", "Failed"):
            return self.pod_gone(metadata["uid"])
        name = (metadata.get("labels") or {}).get(PIPELINE)
        record = Pod(
            uid=metadata["uid"],
            node=sys.intern(spec["nodeName"]) if spec.get("nodeName") else None,
            pipeline=(sys.intern(metadata["namespace"]), sys.intern(name)) if name else None,
            requests=self._same.setdefault(asked, asked),
            terminating=bool(metadata.get("deletionTimestamp")),
        )
        before = self.pods.get(record.uid)
        if before == record:
            return False
        if before is not None:
            self._hold(before, -1)
        self._hold(record, 1)
        self.pods[record.uid] = record
        return True

    def pod_gone(self, uid: str) -> bool:
        """Forget a pod."""
        if (record := self.pods.pop(uid, None)) is None:
            return False
        self._hold(record, -1)
        return True

    def held(self, node: str, resource: str) -> int:
        """How many of a node's resource its pods hold."""
        return self._held.get(node, {}).get(resource, 0)

    def pending(self, key: Key) -> int:
        """How many of a pipeline's pods wait for a node."""
        return sum(1 for pod in self.pods.values() if pod.pipeline == key and pod.node is None and not pod.terminating)

    def _hold(self, pod: Pod, sign: int) -> None:
        if pod.node is None:
            return
        held = self._held.setdefault(pod.node, {})
        for name, number in pod.requests:
            held[name] = held.get(name, 0) + sign * number
            if not held[name]:
                del held[name]
        if not held:
            del self._held[pod.node]


def _node(node: Mapping[str, Any]) -> Node:
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    # A node without the condition is one that no kubelet speaks for: its taints decide, as for the scheduler.
    ready = all(each["status"] == "True" for each in status.get("conditions") or () if each["type"] == "Ready")
    return Node(
        name=sys.intern(metadata["name"]),
        labels={sys.intern(name): sys.intern(value) for name, value in (metadata.get("labels") or {}).items()},
        taints=tuple(
            sorted(
                Taint(each["key"], each.get("value") or "", each["effect"])
                for each in spec.get("taints") or ()
                if each["effect"] in ("NoSchedule", "NoExecute")
            )
        ),
        closed="being deleted"
        if metadata.get("deletionTimestamp")
        else "cordoned"
        if spec.get("unschedulable")
        else ""
        if ready
        else "not ready",
        allocatable=tuple(
            (sys.intern(name), number) for name, number in sorted(_extended(status.get("allocatable") or {}).items())
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one pipeline asks of the pool.

    `count` of `resource` per worker, at least 1. `affinity` is what its pods' nodeAffinity requires during scheduling.
    `wanted` workers are needed, `minimum` of them are its minReplicas; it has `current`. A higher `priority` goes
    first; among equals GPUs are shared by `weight` × `wanted`.
    """

    key: Key
    resource: str
    count: int
    wanted: int
    current: int
    node_selector: Mapping[str, str] = field(default_factory=dict)
    affinity: Mapping[str, Any] | None = None
    tolerations: Sequence[Mapping[str, Any]] = ()
    priority: int = 0
    weight: float = 1.0
    minimum: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.weight <= 0 or min(self.wanted, self.current, self.minimum) < 0:
            raise ValueError(f"{'/'.join(self.key)}: count is at least 1, weight above 0, the rest not negative")

    def placement(self) -> str:
        """Equal for demands that may land on the same nodes because they say the same."""
        said = (dict(self.node_selector), self.affinity, list(self.tolerations))
        return json.dumps(said, sort_keys=True, default=dict)


def demand_of(
    spec: Mapping[str, Any],
    *,
    key: Key,
    wanted: int,
    current: int,
    resource: str = "",
    priority: int = 0,
    weight: float = 1.0,
    minimum: int = 0,
) -> Demand | None:
    """The demand of workers made from a pod template's `spec`; None when they ask for no GPU.

    Where a patch has them ask for something else than `resource`, it is what they ask for most of.
    """
    asked = requests(spec)
    if not asked:
        return None
    name = resource if resource in asked else min(asked, key=lambda each: (-asked[each], each))
    node_affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    return Demand(
        key=key,
        resource=name,
        count=asked[name],
        wanted=wanted,
        current=current,
        node_selector=spec.get("nodeSelector") or {},
        affinity=node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution"),
        tolerations=spec.get("tolerations") or (),
        priority=priority,
        weight=weight,
        minimum=minimum,
    )


def admits(node: Node, demand: Demand) -> bool:
    """Whether a new pod of this demand may land on the node, whatever is free there."""
    return (
        not node.closed
        and all(node.labels.get(name) == value for name, value in demand.node_selector.items())
        and (demand.affinity is None or _selected(node, demand.affinity))
        and all(any(_tolerates(each, taint) for each in demand.tolerations) for taint in node.taints)
    )


def _selected(node: Node, affinity: Mapping[str, Any]) -> bool:
    # Terms are alternatives; what stands in one holds together; an empty one selects nothing.
    return any(
        bool(wanted := list(_requirements(node, term))) and all(_holds(*each) for each in wanted)
        for term in affinity.get("nodeSelectorTerms") or ()
    )


def _requirements(node: Node, term: Mapping[str, Any]) -> Iterator[tuple[str | None, str, Iterable[str]]]:
    for each in term.get("matchExpressions") or ():
        yield node.labels.get(each["key"]), each["operator"], each.get("values") or ()
    for each in term.get("matchFields") or ():
        yield node.name if each["key"] == "metadata.name" else None, each["operator"], each.get("values") or ()


def _holds(value: str | None, operator: str, values: Iterable[str]) -> bool:
    match operator:
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value is None or value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            try:
                number, limit = int(value or ""), int(*values)
            except (TypeError, ValueError):
                return False
            return number > limit if operator == "Gt" else number < limit
    return False


def _tolerates(toleration: Mapping[str, Any], taint: Taint) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.effect:
        return False
    key = toleration.get("key") or ""
    match toleration.get("operator") or "Equal":
        case "Exists":
            return key in ("", taint.key)
        case "Equal":
            return bool(key == taint.key and (toleration.get("value") or "") == taint.value)
    return False
