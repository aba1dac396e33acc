"""What nodes offer of GPUs, what pods hold of them, and where a pod may land."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultml_common.quantity import quantity
from vaultml_operator import api, manifests
from vaultml_operator.autoscaler.gpus import Demand, Pool, admits, demand_of, requests
from vaultml_operator.credentials import Credentials

GPU = "nvidia.com/gpu"
MIG = "nvidia.com/mig-1g.10gb"
SHARED = "nvidia.com/gpu.shared"


def node(name: str = "n", gpus: Any = 4, resource: str = GPU, labels: Any = None, **spec: Any) -> dict[str, Any]:
    allocatable = {"cpu": "8", "memory": "32Gi", resource: str(gpus)}
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": spec, "status": {"allocatable": allocatable}}


def container(gpus: Any = 1, resource: str = GPU, **more: Any) -> dict[str, Any]:
    return {"resources": {"limits": {resource: str(gpus), "cpu": "1"}}, **more}


def pod(uid: str, on: str | None = "n", of: str | None = None, gpus: Any = 1, resource: str = GPU) -> dict[str, Any]:
    labels = {manifests.PIPELINE: of} if of else {}
    spec: dict[str, Any] = {"containers": [container(gpus, resource)]} | ({"nodeName": on} if on else {})
    return {"metadata": {"uid": uid, "namespace": "ns", "labels": labels}, "spec": spec, "status": {"phase": "Running"}}


def demand(**fields: Any) -> Demand:
    given: dict[str, Any] = {"key": ("ns", "a"), "resource": GPU, "count": 1, "wanted": 9, "current": 0}
    return Demand(**(given | fields))


def pool(*objects: dict[str, Any]) -> Pool:
    made = Pool()
    for each in objects:
        assert (made.pod_seen if "uid" in each["metadata"] else made.node_seen)(each)
    return made


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4),
        (4, 4),
        ("1k", 1000),
        ("2Ki", 2048),
        ("1M", 10**6),
        ("1Gi", 2**30),
        ("2e3", 2000),
        ("1E", 10**18),
        ("1E2", 100),
        ("1.5k", 1500),
        ("4000m", 4),
        ("500m", 0),
        (".5k", 500),
        ("+3", 3),
        ("0", 0),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str | int, number: int) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "four", "4x", "1 k", "--1", "1e", "Ki"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no Kubernetes quantity"):
        quantity(text)


@pytest.mark.parametrize(
    ("spec", "number"),
    [
        ({"containers": [container(1), container(2)]}, 3),
        ({"containers": [container(1)], "initContainers": [container(2)]}, 2),
        ({"containers": [container(2)], "initContainers": [container(1), container(1)]}, 2),
        ({"containers": [container(1)], "initContainers": [container(1, restartPolicy="Always")]}, 2),
        # An init container runs beside the sidecars that were started before it, not beside later ones.
        ({"containers": [], "initContainers": [container(1, restartPolicy="Always"), container(2)]}, 3),
        ({"containers": [], "initContainers": [container(2), container(1, restartPolicy="Always")]}, 2),
        ({"containers": [container(1)], "overhead": {GPU: "1", "cpu": "1"}}, 2),
        ({"containers": [{"resources": {"requests": {GPU: "3"}}}]}, 3),
        ({"containers": [container(0)]}, 0),
        ({"containers": [{"resources": None}]}, 0),
        ({}, 0),
    ],
)
def test_requests_add_up_as_the_scheduler_adds_them(spec: dict[str, Any], number: int) -> None:
    assert requests(spec) == ({GPU: number} if number else {})


def free_for(pool: Pool, demand: Demand) -> int:
    """How many more pods of this demand would find a node now."""
    return sum(
        max(0, offered - pool.held(node.name, demand.resource)) // demand.count
        for node in pool.nodes.values()
        if (offered := node.offers(demand.resource)) and admits(node, demand)
    )


def test_what_is_offered_less_what_is_held_is_free() -> None:
    there = pool(node("n", 4), node("m", "1k", labels={"big": "yes"}), pod("1", "n", of="a"), pod("2", "n", gpus=2))
    assert free_for(there, demand(node_selector={"kubernetes.io/hostname": "n"})) == 0
    assert free_for(there, demand()) == 1001
    assert free_for(there, demand(node_selector={"big": "yes"})) == 1000


def test_names_of_parts_of_gpus_are_resources_of_their_own() -> None:
    there = pool(node("n", 4), node("m", 7, MIG), node("s", 8, SHARED), pod("1", "m", resource=MIG))
    assert [free_for(there, demand(resource=name)) for name in (GPU, MIG, SHARED, "amd.com/gpu")] == [4, 6, 8, 0]


def test_two_gpus_for_a_worker_have_to_be_on_one_node() -> None:
    there = pool(node("n", 3), node("m", 3), node("o", 1))
    assert free_for(there, demand(count=2)) == 2
    assert free_for(there, demand(count=4)) == 0


def test_a_pod_holds_from_the_moment_it_has_a_node_until_it_is_gone() -> None:
    there = pool(node("n", 4), waiting := pod("1", None, of="a"))
    assert (free_for(there, demand()), there.pending(("ns", "a"))) == (4, 1)

    bound = waiting | {"spec": waiting["spec"] | {"nodeName": "n"}}
    assert there.pod_seen(bound)
    assert (free_for(there, demand()), there.pending(("ns", "a"))) == (3, 0)

    terminating = bound | {"metadata": bound["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert there.pod_seen(terminating)
    assert free_for(there, demand()) == 3

    assert there.pod_gone("1")
    assert free_for(there, demand()) == 4


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_holds_nothing(phase: str) -> None:
    there = pool(node("n", 4), running := pod("1", "n"))
    assert there.pod_seen(running | {"status": {"phase": phase}})
    assert free_for(there, demand()) == 4
    assert not there.pod_gone("1")


def test_only_what_matters_is_a_change() -> None:
    there = pool(seen := node("n", 4), held := pod("1", "n"))
    assert not there.node_seen(seen | {"status": seen["status"] | {"images": [1]}})
    assert not there.pod_seen(held | {"status": {"phase": "Pending"}})
    assert not there.pod_seen(pod("2", "n", gpus=0))
    assert not there.node_gone("m")
    assert there.node_seen(node("n", 5))
    assert there.node_seen(node("n", 5, labels={"a": "b"}))
    assert there.node_gone("n")
    assert free_for(there, demand()) == 0
    assert there.pod_gone("1")
    assert not there.pods
    assert not there._held


def _ready(status: str) -> dict[str, Any]:
    made = node()
    return made | {"status": made["status"] | {"conditions": [{"type": "Ready", "status": status}]}}


def _leaving() -> dict[str, Any]:
    made = node()
    return made | {"metadata": made["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}


@pytest.mark.parametrize(
    ("made", "closed"),
    [
        (node(), ""),
        (_ready("True"), ""),
        (_ready("False"), "not ready"),
        (_ready("Unknown"), "not ready"),
        (node(unschedulable=True), "cordoned"),
        (_leaving(), "being deleted"),
    ],
)
def test_nodes_that_take_no_new_pods_do_not_count(made: dict[str, Any], closed: str) -> None:
    there = pool(made)
    assert there.nodes["n"].closed == closed
    assert free_for(there, demand(tolerations=[{"operator": "Exists"}])) == (0 if closed else 4)


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({}, False),
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}, True),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "gpu", "value": "a100"}, True),
        ({"key": "gpu", "operator": "Equal", "value": "t4"}, False),
        ({"key": "cpu", "operator": "Exists"}, False),
        ({"operator": "Exists"}, True),
        ({"key": "gpu", "operator": "Unheard"}, False),
    ],
)
def test_taints_keep_pods_away_unless_they_are_tolerated(toleration: dict[str, str], tolerated: bool) -> None:
    there = pool(node(taints=[{"key": "gpu", "value": "a100", "effect": "NoSchedule"}]))
    assert free_for(there, demand(tolerations=[toleration] if toleration else [])) == (4 if tolerated else 0)


def test_each_taint_needs_its_toleration_and_a_mere_preference_none() -> None:
    taints = [{"key": "a", "effect": "NoExecute"}, {"key": "b", "effect": "NoSchedule"}]
    there = pool(node(taints=[*taints, {"key": "c", "effect": "PreferNoSchedule"}]))
    both = [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]
    assert free_for(there, demand(tolerations=both)) == 4
    assert free_for(there, demand(tolerations=both[:1])) == 0


LABELS = {"product": "A100", "memory": "40960"}


@pytest.mark.parametrize(
    ("requirement", "selected"),
    [
        (("product", "In", ["T4", "A100"]), True),
        (("product", "In", ["T4"]), False),
        (("missing", "In", ["T4"]), False),
        (("product", "NotIn", ["T4"]), True),
        (("product", "NotIn", ["A100"]), False),
        (("missing", "NotIn", ["T4"]), True),
        (("product", "Exists", None), True),
        (("missing", "Exists", None), False),
        (("product", "DoesNotExist", None), False),
        (("missing", "DoesNotExist", None), True),
        (("memory", "Gt", ["40000"]), True),
        (("memory", "Gt", ["40960"]), False),
        (("memory", "Lt", ["50000"]), True),
        (("missing", "Lt", ["50000"]), False),
        (("product", "Gt", ["1"]), False),
        (("product", "Unheard", ["A100"]), False),
    ],
)
def test_affinity_requires(requirement: tuple[str, str, list[str] | None], selected: bool) -> None:
    key, operator, values = requirement
    term = {"matchExpressions": [{"key": key, "operator": operator} | ({"values": values} if values else {})]}
    there = pool(node(labels=LABELS))
    assert admits(there.nodes["n"], demand(affinity={"nodeSelectorTerms": [term]})) is selected


def test_terms_are_alternatives_and_what_stands_in_one_holds_together() -> None:
    product = {"key": "product", "operator": "In", "values": ["A100"]}
    little = {"key": "memory", "operator": "Lt", "values": ["100"]}
    named = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}

    def selected(*terms: dict[str, Any]) -> bool:
        there = pool(node(labels=LABELS))
        return admits(there.nodes["n"], demand(affinity={"nodeSelectorTerms": list(terms)}))

    assert not selected({"matchExpressions": [product, little]})
    assert selected({"matchExpressions": [little]}, {"matchExpressions": [product]})
    assert selected(named)
    assert not selected(named | {"matchExpressions": [little]})
    assert not selected({})
    assert not selected()


def template(**worker: Any) -> Any:
    spec = {
        "queue": {"system": "KAFKA", "name": "q", "kafka": {"brokers": ["k:9092"], "group": "g"}},
        "model": {"path": "/m.onnx"},
        "worker": worker,
    }
    pipeline = api.Pipeline(
        name="a", namespace="ns", uid="u", generation=1, paused=False, spec=api.Spec.model_validate(spec)
    )
    deployment = next(
        each for each in manifests.render(pipeline, Credentials(), "1", "i:1") if each["kind"] == "Deployment"
    )
    return deployment["spec"]["template"]["spec"]


def test_a_demand_is_read_from_what_the_pods_will_be() -> None:
    rendered = template(gpu={"resource": MIG, "count": 1}, nodeSelector={"pool": "gpu"})
    found = demand_of(rendered, key=("ns", "a"), wanted=3, current=1, resource=MIG, priority=2, weight=0.5, minimum=1)
    assert found is not None
    assert (found.resource, found.count, found.node_selector) == (MIG, 1, {"pool": "gpu"})
    assert (found.wanted, found.current, found.priority, found.weight, found.minimum) == (3, 1, 2, 0.5, 1)
    # The taint that GPU nodes commonly carry is tolerated by every worker.
    tainted = pool(node(resource=MIG, labels={"pool": "gpu"}, taints=[{"key": GPU, "effect": "NoSchedule"}]))
    assert free_for(tainted, found) == 4


def test_a_patched_template_counts() -> None:
    affinity = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "product", "operator": "Exists"}]}]}
    patch = {
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": affinity}},
            "containers": [{"name": "worker", "resources": {"limits": {GPU: "2"}}}],
        }
    }
    found = demand_of(template(podTemplate=patch), key=("ns", "a"), wanted=1, current=0, resource=GPU)
    assert found is not None
    assert (found.count, found.affinity) == (2, affinity)


def test_workers_without_a_gpu_ask_for_nothing_and_another_resource_is_found() -> None:
    assert demand_of(template(gpu={"count": 0}), key=("ns", "a"), wanted=1, current=0) is None
    found = demand_of({"containers": [container(2, "amd.com/gpu")]}, key=("ns", "a"), wanted=1, current=0, resource=GPU)
    assert found is not None
    assert (found.resource, found.count) == ("amd.com/gpu", 2)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"weight": 0}, {"wanted": -1}, {"current": -1}, {"minimum": -1}])
def test_a_demand_without_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ns/a"):
        demand(**wrong)


@st.composite
def steps(draw: st.DrawFn) -> list[dict[str, Any]]:
    uids = st.sampled_from("123")
    places = st.sampled_from(["n", "m", None])
    return draw(st.lists(st.builds(pod, uids, places, st.sampled_from(["a", None]), st.integers(0, 2)), max_size=20))


@given(steps(), st.lists(st.sampled_from("123")))
def test_the_sums_are_those_of_the_pods_that_are_there(seen: list[dict[str, Any]], gone: list[str]) -> None:
    there = pool(node("n"), node("m"))
    for each in seen:
        there.pod_seen(each)
    for uid in gone:
        there.pod_gone(uid)
    for name in ("n", "m"):
        assert there.held(name, GPU) == sum(each.asks(GPU) for each in there.pods.values() if each.node == name)
