"""Who gets how many GPUs."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultml_operator import manifests
from vaultml_operator.autoscaler.gpus import Demand, Key, Pool, admits
from vaultml_operator.autoscaler.pool import HOLD_S, Grant, Holder, arbitrate

GPU = "nvidia.com/gpu"


def node(name: str, gpus: int, resource: str = GPU, **spec: Any) -> dict[str, Any]:
    """A node whose label `on` is its own name."""
    return {
        "metadata": {"name": name, "labels": {"on": name}},
        "spec": spec,
        "status": {"allocatable": {resource: str(gpus)}},
    }


def pod(uid: str, on: str, of: str | None, gpus: int = 1, *, terminating: bool = False) -> dict[str, Any]:
    return {
        "metadata": {
            "uid": uid,
            "namespace": "ns",
            "labels": {manifests.PIPELINE: of} if of else {},
            "deletionTimestamp": "2026-01-01T00:00:00Z" if terminating else None,
        },
        "spec": {"nodeName": on, "containers": [{"resources": {"limits": {GPU: str(gpus)}}}]},
    }


def pods(number: int, on: str, of: str | None, gpus: int = 1, **more: Any) -> list[dict[str, Any]]:
    return [pod(f"{of}-{on}-{each}", on, of, gpus, **more) for each in range(number)]


def pool(*objects: dict[str, Any]) -> Pool:
    made = Pool()
    for each in objects:
        (made.pod_seen if "uid" in each["metadata"] else made.node_seen)(each)
    return made


def demand(name: str, wanted: int, *nodes: str, **more: Any) -> Demand:
    """What a pipeline wants; only on these nodes where any are named."""
    term = {"matchExpressions": [{"key": "on", "operator": "In", "values": list(nodes)}]}
    affinity = {"nodeSelectorTerms": [term]} if nodes else None
    given: dict[str, Any] = {"resource": GPU, "count": 1, "current": 0, "affinity": affinity}
    return Demand(key=("ns", name), wanted=wanted, **(given | more))


def slots(grants: Mapping[Key, Grant]) -> list[int]:
    return [grants[key].slots for key in sorted(grants)]


def coming(grants: Mapping[Key, Grant]) -> list[int]:
    return [grants[key].coming for key in sorted(grants)]


def decide(there: Pool, *demands: Demand) -> list[int]:
    return slots(arbitrate(there, demands, None, 0.0))


def promise(there: Pool, *demands: Demand) -> list[int]:
    """What each has in the end."""
    grants = arbitrate(there, demands, None, 0.0)
    return [now + later for now, later in zip(slots(grants), coming(grants), strict=True)]


def test_one_pipeline_gets_what_it_wants_or_what_there_is() -> None:
    there = pool(node("n", 2), node("m", 2))
    assert decide(there, demand("a", 3)) == [3]
    assert decide(there, demand("a", 9)) == [4]
    assert decide(there, demand("a", 0)) == [0]
    assert decide(pool(), demand("a", 1)) == [0]
    assert arbitrate(there, [], None, 0.0) == {}


def test_equals_share_alike() -> None:
    there = pool(node("n", 4), node("m", 5))
    assert decide(there, demand("a", 9), demand("b", 9), demand("c", 9)) == [3, 3, 3]
    assert decide(there, demand("a", 1), demand("b", 9), demand("c", 9)) == [1, 4, 4]


def test_need_counts_and_weight_multiplies_it() -> None:
    assert decide(pool(node("n", 6)), demand("a", 4), demand("b", 8)) == [2, 4]
    assert decide(pool(node("n", 6)), demand("a", 6), demand("b", 6, weight=2.0)) == [2, 4]


def test_a_higher_priority_goes_first_and_may_take_all() -> None:
    there = pool(node("n", 4))
    assert decide(there, demand("a", 3), demand("b", 3, priority=1)) == [1, 3]
    assert decide(there, demand("a", 3, minimum=3), demand("b", 9, priority=1)) == [0, 4]


def test_minimums_come_before_growth_but_after_the_first_worker_of_each() -> None:
    there = pool(node("n", 6))
    assert decide(there, demand("a", 9, minimum=4), demand("b", 90)) == [4, 2]
    assert decide(there, demand("a", 9, minimum=9), demand("b", 1), demand("c", 1)) == [4, 1, 1]
    assert decide(pool(node("n", 1)), demand("a", 1), demand("b", 1, minimum=1)) == [0, 1]


def test_others_hold_what_nobody_can_get() -> None:
    there = pool(node("n", 4), *pods(2, "n", None), *pods(1, "n", "manual"))
    grant = arbitrate(there, [demand("a", 4)], None, 0.0)["ns", "a"]
    assert (grant.slots, grant.coming, grant.capacity, grant.free, grant.total) == (1, 0, 1, 1, 4)
    assert grant.holders == (Holder("ns/manual", 1, 1), Holder("others", 2, 2))
    assert grant.sentence() == "1 of 4 GPUs (nvidia.com/gpu); ns/manual holds 1, others hold 2"


def test_the_loser_gives_up_now_and_the_winner_grows_when_it_is_gone() -> None:
    demands = [demand("a", 4), demand("b", 4)]
    there = pool(node("n", 4), *pods(4, "n", "a"))
    grants = arbitrate(there, demands, None, 0.0)
    assert (slots(grants), coming(grants)) == ([2, 0], [0, 2])
    assert grants["ns", "a"].sentence() == "2 of 4 GPUs (nvidia.com/gpu)"
    assert grants["ns", "b"].sentence() == (
        "0 of 4 GPUs (nvidia.com/gpu); ns/a holds 4; 2 workers more once terminating pods release their GPUs"
    )

    for each in pods(2, "n", "a", terminating=True):
        there.pod_seen(each)
    grants = arbitrate(there, demands, grants, 1.0)
    assert (slots(grants), coming(grants)) == ([2, 0], [0, 2])

    there.pod_gone("a-n-0")
    grants = arbitrate(there, demands, grants, 2.0)
    assert (slots(grants), coming(grants)) == ([2, 1], [0, 1])
    there.pod_gone("a-n-1")
    grants = arbitrate(there, demands, grants, 3.0)
    assert (slots(grants), coming(grants)) == ([2, 2], [0, 0])
    assert [grants["ns", name].since for name in "ab"] == [0.0, 3.0]


def test_its_own_terminating_pods_are_waited_for_too() -> None:
    there = pool(node("n", 2), *pods(2, "n", "a", terminating=True))
    grants = arbitrate(there, [demand("a", 2)], None, 0.0)
    assert (slots(grants), coming(grants)) == ([0], [2])


def test_a_rollout_on_a_full_pool_takes_no_worker_away() -> None:
    """The pods that are replaced hold their GPUs until they are gone; their successors are counted already."""
    rolling = [*pods(1, "n", "a", terminating=True), *pods(3, "m", "a")]
    there = pool(node("n", 1), node("m", 3), *rolling)
    assert decide(there, demand("a", 4, current=4)) == [4]
    assert decide(there, demand("a", 9, current=4)) == [4]
    assert decide(there, demand("a", 2, current=4)) == [2]
    # Also all at once, as after a change of a taint; but not what is planned for others.
    at_once = pool(node("n", 4), *pods(4, "n", "a", terminating=True))
    assert decide(at_once, demand("a", 4, current=4)) == [4]
    assert decide(at_once, demand("a", 4, current=4), demand("b", 4, priority=1)) == [0, 0]
    # One that was scaled in gets no more than it has: the GPU is given back first.
    assert decide(there, demand("a", 4, current=3)) == [3]


def test_overlapping_selectors_make_room_for_each_other() -> None:
    # a is served first and could take either node; b can use only one, and c only a's other one or a third.
    there = pool(node("m", 1), node("n", 1), node("o", 1))
    assert promise(there, demand("a", 1, "m", "n"), demand("b", 1, "m"), demand("c", 1, "n", "o")) == [1, 1, 1]


def test_pods_that_run_stay_where_they_are() -> None:
    there = pool(node("m", 1), node("n", 1), *pods(1, "m", "a"))
    assert decide(there, demand("a", 1, "m", "n"), demand("b", 1, "m")) == [1, 0]


def test_the_pod_that_is_in_the_way_is_the_one_to_leave() -> None:
    there = pool(node("m", 1), node("n", 1), *pods(1, "m", "a"), *pods(1, "n", "a"))
    grants = arbitrate(there, [demand("a", 2), demand("b", 1, "m")], None, 0.0)
    assert (slots(grants), coming(grants)) == ([1, 0], [0, 1])
    assert grants["ns", "a"].leave == ("a-m-0",)


def test_where_pools_are_alike_any_pod_may_leave() -> None:
    there = pool(node("n", 2), *pods(2, "n", "a"))
    assert arbitrate(there, [demand("a", 2), demand("b", 1)], None, 0.0)["ns", "a"].leave == ()


def test_one_that_has_to_leave_goes_before_another_starts_elsewhere() -> None:
    demands = [demand("a", 1), demand("b", 1, "m", priority=1)]
    there = pool(node("m", 1), node("n", 1), *pods(1, "m", "a"))
    grants = arbitrate(there, demands, None, 0.0)
    # With a grant of 1 nothing would happen: the Deployment has one, on the node that b needs.
    assert (slots(grants), coming(grants)) == ([0, 0], [1, 1])
    there.pod_gone("a-m-0")
    grants = arbitrate(there, demands, grants, 1.0)
    assert (slots(grants), coming(grants)) == ([0, 1], [1, 0])
    there.pod_seen(pod("b", "m", "b"))
    assert slots(arbitrate(there, demands, grants, 2.0)) == [1, 1]


def test_growth_takes_nothing_that_is_planned_for_others() -> None:
    # b may use both; what is free now is all that c can ever have.
    there = pool(node("m", 1), node("n", 1), *pods(1, "m", "a", terminating=True))
    grants = arbitrate(there, [demand("a", 0), demand("b", 1, "m", "n"), demand("c", 1, "n")], None, 0.0)
    assert (slots(grants), coming(grants)) == ([0, 0, 1], [0, 1, 0])


def test_what_is_free_now_is_used_first() -> None:
    there = pool(node("m", 1), node("n", 1), *pods(1, "m", "a"))
    assert decide(there, demand("a", 0), demand("b", 1)) == [0, 1]


def test_what_is_free_is_kept_for_one_that_has_to_leave_its_node_first() -> None:
    there = pool(node("m", 1), node("n", 1), node("o", 1), *pods(1, "m", "s"), *pods(1, "o", "z"))
    demands = [demand("d", 1, "n", "o", priority=-1), demand("h", 1, "m", priority=1), demand("s", 1, "m", "n")]
    grants = arbitrate(there, [*demands, demand("z", 0)], None, 0.0)
    assert (slots(grants), coming(grants)) == ([0, 0, 0, 0], [1, 1, 1, 0])


def test_pools_that_do_not_overlap_do_not_matter_to_each_other() -> None:
    there = pool(node("m", 2), node("n", 1), node("o", 7, "nvidia.com/mig-1g.10gb"))
    shares = [demand("a", 9, "m"), demand("b", 9, "n"), demand("c", 9, resource="nvidia.com/mig-1g.10gb")]
    assert decide(there, *shares) == [2, 1, 7]


def test_more_gpus_per_worker_need_one_node() -> None:
    there = pool(node("m", 3), node("n", 3))
    assert promise(there, demand("a", 9, count=2)) == [2]
    assert promise(there, demand("a", 9, count=2), demand("b", 9)) == [2, 2]
    assert promise(there, demand("a", 9, count=4), demand("b", 1)) == [0, 1]


def test_small_ones_move_together_for_a_large_one() -> None:
    there = pool(node("m", 2), node("n", 2), *pods(1, "m", None))
    # b may be on either node, but a needs the whole of one.
    assert promise(there, demand("a", 1, count=2), demand("b", 1)) == [1, 1]
    there = pool(node("m", 2), node("n", 2))
    # a and b are planned on m together, before c asks for all of it.
    assert promise(there, demand("a", 1), demand("b", 1), demand("c", 1, "m", count=2)) == [1, 1, 1]
    # What can't be done is undone.
    crowd = [demand("a", 1), demand("b", 1, "m"), demand("c", 1, "m", count=2), demand("d", 1, "n", count=2)]
    assert promise(there, *crowd) == [1, 1, 0, 1]


def test_a_grant_holds_for_a_while_against_equals_that_would_grow() -> None:
    there = pool(node("n", 4), *pods(3, "n", "a"), *pods(1, "n", "b"))
    before = arbitrate(there, [demand("a", 3), demand("b", 1)], None, 0.0)
    assert slots(before) == [3, 1]
    grown = [demand("a", 3), demand("b", 9)]
    assert slots(arbitrate(there, grown, before, HOLD_S - 1)) == [3, 1]
    assert slots(arbitrate(there, grown, before, HOLD_S)) == [1, 1]
    assert slots(arbitrate(there, grown, before, 5.0, hold_s=5.0)) == [1, 1]
    assert slots(arbitrate(there, [grown[0], replace(grown[1], priority=1)], before, 1.0)) == [0, 1]
    # Nobody starves meanwhile.
    assert slots(arbitrate(there, [demand("a", 3), demand("b", 1), demand("c", 1)], before, 1.0)) == [2, 1, 0]


def test_a_tie_and_what_is_nearly_one_change_nothing() -> None:
    there = pool(node("n", 3), *pods(1, "n", "a"), *pods(2, "n", "b"))
    before = arbitrate(there, [demand("a", 20), demand("b", 20)], None, 0.0)
    assert slots(before) == [1, 2]
    assert slots(arbitrate(there, [demand("a", 21), demand("b", 20)], before, 999.0)) == [1, 2]
    assert slots(arbitrate(there, [demand("a", 30), demand("b", 20)], before, 999.0)) == [1, 1]


def test_who_has_waited_longest_is_next() -> None:
    there = pool(node("n", 1))
    demands = [demand(name, 1) for name in "abc"]
    grants = arbitrate(there, demands, None, 0.0)
    served = [slots(grants)]
    for minute in range(1, 4):
        holder = next(key for key in grants if grants[key].slots)
        idle = [replace(each, wanted=0) if each.key == holder else each for each in demands]
        grants = arbitrate(there, idle, grants, 100.0 * minute)
        grants = arbitrate(there, demands, grants, 100.0 * minute + 1)
        served.append(slots(grants))
    assert served == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_a_gpu_more_and_a_node_less() -> None:
    demands = [demand("a", 9), demand("b", 9)]
    there = pool(node("m", 2), node("n", 2))
    assert decide(there, *demands) == [2, 2]
    there.node_seen(node("m", 4))
    assert decide(there, *demands) == [3, 3]
    there.node_gone("n")
    assert decide(there, *demands) == [2, 2]


def test_pods_of_a_vanished_node_are_started_elsewhere() -> None:
    there = pool(node("m", 2), node("n", 2), *pods(2, "n", "a"))
    there.node_gone("n")
    grants = arbitrate(there, [demand("a", 2)], None, 0.0)
    assert (slots(grants), grants["ns", "a"].capacity) == ([2], 2)


@pytest.mark.parametrize("spec", [{"unschedulable": True}, {"taints": [{"key": "k", "effect": "NoSchedule"}]}])
def test_what_runs_on_a_cordoned_node_counts_and_nothing_is_added(spec: dict[str, Any]) -> None:
    there = pool(node("n", 4, **spec), *pods(2, "n", "a"))
    grants = arbitrate(there, [demand("a", 4), demand("b", 4)], None, 0.0)
    assert slots(grants) == [2, 0]
    assert (grants["ns", "a"].capacity, grants["ns", "a"].free, grants["ns", "a"].total) == (2, 0, 2)
    assert grants["ns", "a"].sentence() == "2 of 2 GPUs (nvidia.com/gpu)"
    assert grants["ns", "b"].sentence() == "no matching node has an allocatable GPU (nvidia.com/gpu)"


def test_what_is_no_gpu_is_called_by_its_own_name() -> None:
    grant = Grant(
        resource="vaultml.local/cpu-slot",
        count=1,
        slots=1,
        coming=1,
        capacity=1,
        free=0,
        total=1,
        holders=(),
        leave=(),
        since=0.0,
    )
    assert (
        grant.sentence()
        == "1 of 1 CPU slot (vaultml.local/cpu-slot); 1 worker more once terminating pods release their CPU slots"
    )
    assert replace(grant, total=0).sentence() == "no matching node has an allocatable CPU slot (vaultml.local/cpu-slot)"


def test_a_device_plugin_that_restarts_costs_nobody_a_worker() -> None:
    there = pool(node("n", 0), *pods(2, "n", "a"))
    assert decide(there, demand("a", 4), demand("b", 4)) == [2, 0]


def test_workers_of_an_older_template_count_with_what_they_hold() -> None:
    there = pool(node("n", 4), *pods(1, "n", "a", gpus=2))
    assert decide(there, demand("a", 9)) == [3]


def test_many_holders_are_summed_up() -> None:
    there = pool(node("n", 9), *(pod(name, "n", name) for name in "bcdef"), *pods(2, "n", "g"), *pods(1, "n", "a"))
    grant = arbitrate(there, [demand("a", 9)], None, 0.0)["ns", "a"]
    assert grant.holders == (
        Holder("ns/g", 2, 2),
        Holder("ns/b", 1, 1),
        Holder("ns/c", 1, 1),
        Holder("3 more pipelines", 3, 3),
    )
    assert grant.sentence().endswith("ns/c holds 1, 3 more pipelines hold 3")


def test_a_grant_of_another_resource_holds_nothing() -> None:
    there = pool(node("m", 4), node("n", 4, "nvidia.com/gpu.shared"))
    before = arbitrate(there, [demand("a", 4, resource="nvidia.com/gpu.shared"), demand("b", 1)], None, 0.0)
    assert slots(before) == [4, 1]
    assert slots(arbitrate(there, [demand("a", 4), demand("b", 4)], before, 1.0)) == [2, 2]


def test_who_has_less_choice_starts_first_where_the_scheduler_could_spoil_it() -> None:
    demands = [demand("a", 1, "m", "n"), demand("b", 1, "m")]
    there = pool(node("m", 1), node("n", 1))
    grants = arbitrate(there, demands, None, 0.0)
    assert (slots(grants), coming(grants)) == ([0, 1], [1, 0])
    assert slots(arbitrate(there, demands, grants, HOLD_S - 1)) == [0, 1]
    # A pod that finds no node for another reason keeps nobody waiting for ever.
    assert slots(arbitrate(there, demands, grants, HOLD_S)) == [1, 1]
    there.pod_seen(pod("1", "m", "b"))
    assert slots(arbitrate(there, demands, grants, 1.0)) == [1, 1]
    assert slots(arbitrate(pool(node("m", 2), node("n", 1)), demands, None, 0.0)) == [1, 1]


def test_a_pipeline_asks_once() -> None:
    with pytest.raises(ValueError, match="one demand"):
        arbitrate(pool(), [demand("a", 1), demand("a", 2)], None, 0.0)


# Properties: small clusters, against trying everything.


@dataclass(frozen=True)
class Case:
    pool: Pool
    demands: list[Demand]

    def offered(self) -> dict[str, int]:
        return {name: each.offers(GPU) for name, each in self.pool.nodes.items()}


def fits(case: Case, room: dict[str, int], new: Sequence[tuple[Demand, int]]) -> bool:
    """Whether these new workers all find a place: tries every one."""
    rest = [(each, number) for each, number in new if number]
    if not rest:
        return True
    (first, number), *others = rest
    for name, node in case.pool.nodes.items():
        if room[name] >= first.count and admits(node, first):
            room[name] -= first.count
            found = fits(case, room, [(first, number - 1), *others])
            room[name] += first.count
            if found:
                return True
    return False


def feasible(case: Case, totals: Sequence[tuple[Demand, int, int]]) -> bool:
    """Whether a plan exists: for each demand so many of its running pods kept, so many new ones."""

    def keep(index: int, room: dict[str, int]) -> bool:
        if index == len(totals):
            return min(room.values(), default=0) >= 0 and fits(case, room, [(each, new) for each, _, new in totals])
        asked, kept, _ = totals[index]
        own = [each for each in case.pool.pods.values() if each.pipeline == asked.key and not each.terminating]
        for chosen in combinations(own, kept):
            left = dict(room)
            for each in chosen:
                left[each.node or ""] -= each.asks(GPU)
            if keep(index + 1, left):
                return True
        return False

    keys = {each.key for each in case.demands}
    room = case.offered()
    for each in case.pool.pods.values():
        if each.pipeline not in keys:
            room[each.node or ""] -= each.asks(GPU)
    return keep(0, room)


@st.composite
def cases(
    draw: st.DrawFn, *, counts: Sequence[int] = (1,), running: bool = True, alike: bool = False, even: bool = False
) -> Case:
    names = "mno"[: draw(st.integers(1, 3))]
    size = draw(st.sampled_from(counts))
    there = pool(*(node(name, draw(st.integers(0, 3)) * (1 if len(counts) > 1 else size)) for name in names))
    demands = []
    for name in "abcd"[: draw(st.integers(1, 4))]:
        where = () if alike else draw(st.sets(st.sampled_from(names)))
        demands.append(
            demand(
                name,
                draw(st.integers(0, 4)),
                *sorted(where),
                count=draw(st.sampled_from(counts)) if len(counts) > 1 else size,
                priority=0 if even else draw(st.integers(0, 1)),
                weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
                minimum=draw(st.integers(0, 2)),
            )
        )
    if running:
        owners = st.sampled_from([*demands, None])
        for number in range(draw(st.integers(0, 5))):
            owner, on = draw(owners), draw(st.sampled_from(names))
            gpus = owner.count if owner else 1
            place = there.nodes[on]
            if place.offers(GPU) - there.held(on, GPU) >= gpus and (owner is None or admits(place, owner)):
                of = owner.key[1] if owner else None
                there.pod_seen(pod(str(number), on, of, gpus, terminating=draw(st.booleans())))
    return Case(there, demands)


def runs(case: Case, key: Key) -> int:
    return sum(1 for each in case.pool.pods.values() if each.pipeline == key and not each.terminating)


def split(case: Case, grants: Mapping[Key, Grant]) -> list[tuple[Demand, int, int, int]]:
    """Of each demand: how many it keeps, how many more it may have now, and how many later."""
    found = []
    for each in case.demands:
        grant = grants[each.key]
        kept = min(grant.slots, runs(case, each.key))
        found.append((each, kept, grant.slots - kept, grant.coming))
    return found


@given(cases(counts=(1, 2, 3)))
def test_what_is_granted_is_there(case: Case) -> None:
    grants = arbitrate(case.pool, case.demands, None, 0.0)
    parts = split(case, grants)
    free = {name: offered - case.pool.held(name, GPU) for name, offered in case.offered().items()}
    assert fits(case, free, [(each, new) for each, _, new, _ in parts])
    assert feasible(case, [(each, kept, new + later) for each, kept, new, later in parts])
    for each in case.demands:
        grant = grants[each.key]
        assert 0 <= grant.slots <= grant.slots + grant.coming <= each.wanted
        assert grant.slots <= grant.capacity
        assert len(grant.leave) <= runs(case, each.key)


SINGLE = cases(counts=(1,)) | cases(counts=(2,))
"""All workers ask for the same number of GPUs: plans are exact."""


@given(SINGLE)
def test_nothing_that_could_be_had_is_withheld(case: Case) -> None:
    grants = arbitrate(case.pool, case.demands, None, 0.0)
    parts = [(each, kept, new + later) for each, kept, new, later in split(case, grants)]
    for index, (each, kept, new) in enumerate(parts):
        if kept + new < each.wanted:
            assert not feasible(case, [*parts[:index], (each, kept, new + 1), *parts[index + 1 :]])


@given(cases(counts=(1, 2)), st.randoms(use_true_random=False))
def test_the_order_of_what_is_seen_and_asked_does_not_matter(case: Case, order: random.Random) -> None:
    before = arbitrate(case.pool, case.demands, None, 0.0)
    shuffled = Pool()
    for name in order.sample(sorted(case.pool.nodes), len(case.pool.nodes)):
        shuffled.nodes[name] = case.pool.nodes[name]
    for uid in order.sample(sorted(case.pool.pods), len(case.pool.pods)):
        shuffled.pods[uid] = case.pool.pods[uid]
    demands = order.sample(case.demands, len(case.demands))
    assert arbitrate(shuffled, demands, None, 0.0) == before
    assert arbitrate(shuffled, demands, before, 1.0) == arbitrate(case.pool, case.demands, before, 1.0)


@given(cases(running=False, even=True))
def test_nobody_starves_where_all_could_have_one(case: Case) -> None:
    wanting = [each for each in case.demands if each.wanted]
    if feasible(case, [(each, 0, 1) for each in wanting]):
        grants = arbitrate(case.pool, case.demands, None, 0.0)
        assert all(grants[each.key].slots + grants[each.key].coming for each in wanting)


@given(cases(even=True, alike=True))
def test_nobody_starves_for_what_others_hold(case: Case) -> None:
    wanting = [each for each in case.demands if each.wanted]
    foreign = sum(1 for each in case.pool.pods.values() if each.pipeline is None)
    if sum(case.offered().values()) - foreign >= len(wanting):
        grants = arbitrate(case.pool, case.demands, None, 0.0)
        assert all(grants[each.key].slots + grants[each.key].coming for each in wanting)


@given(SINGLE, st.sampled_from("mnop"))
def test_more_gpus_are_never_fewer_workers(case: Case, where: str) -> None:
    less = arbitrate(case.pool, case.demands, None, 0.0)
    there = case.pool.nodes.get(where)
    case.pool.node_seen(node(where, (there.offers(GPU) if there else 0) + 2))
    more = arbitrate(case.pool, case.demands, None, 0.0)
    assert sum(slots(more)) + sum(coming(more)) >= sum(slots(less)) + sum(coming(less))


def follow(there: Pool, asked: Demand, grant: Grant, chance: random.Random) -> None:
    """What a Deployment and the scheduler do."""
    own = sorted(uid for uid, each in there.pods.items() if each.pipeline == asked.key and not each.terminating)
    chance.shuffle(own)
    own.sort(key=lambda uid: uid not in grant.leave)
    for uid in own[: max(0, len(own) - grant.slots)]:
        there.pods[uid] = replace(there.pods[uid], terminating=True)
    for _ in range(grant.slots - len(own)):
        free = [
            name
            for name, each in sorted(there.nodes.items())
            if admits(each, asked) and each.offers(GPU) - there.held(name, GPU) >= asked.count
        ]
        if free:
            there.pod_seen(pod(f"{chance.random()}", chance.choice(free), asked.key[1], asked.count))


def settle(case: Case, chance: random.Random, rounds: int) -> dict[Key, Grant]:
    """The grants of a cluster that does what they say, once they don't change any more."""
    there, demands = case.pool, case.demands
    grants = arbitrate(there, demands, None, 0.0)
    same = 0
    for turn in range(1, rounds):
        for uid in [uid for uid, each in there.pods.items() if each.terminating and chance.random() < 0.7]:
            there.pod_gone(uid)
        for each in chance.sample(demands, len(demands)):
            follow(there, each, grants[each.key], chance)
        before, grants = grants, arbitrate(there, demands, grants, 15.0 * turn)
        same = same + 1 if slots(before) == slots(grants) else 0
    assert same > 8, "still changing"
    return grants


SEEDS = st.integers(0, 2**32).map(random.Random)


@settings(max_examples=50)
@given(cases(even=True, alike=True), SEEDS)
def test_a_cluster_that_follows_settles_and_uses_all(case: Case, chance: random.Random) -> None:
    grants = settle(case, chance, 25)
    foreign = sum(1 for each in case.pool.pods.values() if each.pipeline is None and not each.terminating)
    room = sum(case.offered().values()) - foreign
    assert sum(slots(grants)) == min(room, sum(each.wanted for each in case.demands))
    assert not any(coming(grants))


@settings(max_examples=50)
@given(cases(counts=(1, 2)), SEEDS)
def test_overlapping_pools_settle(case: Case, chance: random.Random) -> None:
    settle(case, chance, 40)
