"""Which pods are made and ended: no more than asked for, never two unavailable in a rollout."""

import itertools
import random

import pytest

from vaultml_operator.local.deployments import Seen, plan, revision_of
from vaultml_operator.local.documents import SLOT

_COUNT = itertools.count()


def pod(name: str, revision: str = "new", *, ready: bool = True, cost: int = 0, placed: bool = True) -> Seen:
    return Seen(name, revision, placed, placed, ready, cost, next(_COUNT))


def test_what_is_missing_is_made() -> None:
    assert plan([pod("a")], 3, "new") == (2, [])


def test_those_that_do_not_work_go_first_then_the_idlest() -> None:
    pods = [pod("busy", cost=9), pod("idle", cost=1), pod("starting", ready=False, cost=9), pod("lost", placed=False)]
    assert plan(pods, 3, "new") == (0, ["lost"])
    assert plan(pods, 2, "new") == (0, ["lost", "starting"])
    assert plan(pods, 1, "new") == (0, ["lost", "starting", "idle"])
    assert plan(pods, 0, "new")[1][-1] == "busy"


def test_one_that_has_to_go_goes_before_the_idle_and_of_equals_the_younger() -> None:
    assert plan([pod("a"), pod("b", cost=-1)], 1, "new") == (0, ["b"])
    assert plan([pod("older"), pod("younger")], 1, "new") == (0, ["younger"])


def test_a_rollout_replaces_one_after_the_other() -> None:
    old = [pod("a", "old"), pod("b", "old"), pod("c", "old")]
    assert plan(old, 3, "new") == (0, ["c"])
    assert plan(old[:2], 3, "new") == (1, [])
    assert plan([*old[:2], pod("d", ready=False)], 3, "new") == (0, [])
    assert plan([*old[:2], pod("d")], 3, "new") == (0, ["b"])


def test_a_single_worker_is_replaced_without_a_second_place() -> None:
    assert plan([pod("a", "old")], 1, "new") == (0, ["a"])
    assert plan([], 1, "new") == (1, [])


def test_old_ones_that_never_got_ready_do_not_hold_up_a_rollout() -> None:
    broken = [pod("a", "old", ready=False), pod("b", "old", ready=False), pod("c", "old")]
    assert plan(broken, 3, "new") == (0, ["a"]) or plan(broken, 3, "new") == (0, ["b"])


@pytest.mark.parametrize("seed", range(10))
def test_a_rollout_ends_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        wanted = rng.randint(0, 5)
        pods = [pod(f"o{number}", "old", ready=rng.random() < 0.8) for number in range(rng.randint(0, 6))]
        for _ in range(60):
            make, end = plan(pods, wanted, "new")
            assert len(pods) - len(end) + make <= max(wanted, len(pods))
            ready = sum(each.ready for each in pods if each.name not in end)
            assert ready >= min(sum(each.ready for each in pods), wanted - 1)
            pods = [each for each in pods if each.name not in end]
            pods += [pod(f"n{next(_COUNT)}", ready=False) for _ in range(make)]
            pods = [
                each if each.ready or each.revision == "old" else pod(each.name, ready=rng.random() < 0.7)
                for each in pods
            ]
        assert len(pods) == wanted
        assert all(each.revision == "new" for each in pods)


def test_another_share_of_the_machine_is_no_reason_to_replace_workers() -> None:
    def template(slots: str, image: str = "i") -> dict[str, object]:
        limits = {"memory": "1Gi", SLOT: slots}
        return {"spec": {"containers": [{"name": "worker", "image": image, "resources": {"limits": limits}}]}}

    assert revision_of(template("1")) == revision_of(template("3"))
    assert revision_of(template("1")) != revision_of(template("1", "j"))
