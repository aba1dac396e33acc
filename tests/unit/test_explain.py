"""A decision as a readable account, and what another case would bring."""

from typing import Any

import pytest

from tests.unit.test_snapshot import status
from vaultml_operator.explain import BadCase, account, parse


def resource(autoscaling: dict[str, Any] | None = None, published: dict[str, Any] | None = None) -> dict[str, Any]:
    queue = {"name": "in", "kafka": {"brokers": ["b.c:9092"], "group": "g"}}
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1},
        "spec": {"queue": queue, "autoscaling": autoscaling or {}},
        "status": {"autoscaling": published} if published is not None else {},
    }


def test_the_last_decision_is_told_as_it_was() -> None:
    said = account(resource(published=status().write()))
    for part in (
        "n/p, mode Auto",
        "lag         240, oldest message 12s",
        "partitions  8, 8 with a backlog",
        "arrival     3.1 recordings/s",
        "GPUs        for 4 workers (4 of 6 GPUs)",
        "4 workers: lag 240",
    ):
        assert part in said


def test_in_another_mode_it_says_that_it_is_not_carried_out() -> None:
    assert "Not applied: in Advisory mode" in account(resource({"mode": "Advisory"}, status().write()))


def test_nothing_is_decided_yet_or_while_suspended() -> None:
    assert "No decision yet" in account(resource())
    suspended = resource(published=status().write())
    suspended["spec"]["suspend"] = True
    assert "spec.suspend is true" in account(suspended)


def test_supposing_other_numbers() -> None:
    said = account(resource({"minReplicas": 0}, status().write()), parse("lag=500, gpus=2"), 1000.0)
    assert "assuming lag=500, gpus=2" in said
    assert "2 workers: lag 500" in said
    idle = account(resource({"minReplicas": 0}, status().write()), parse("lag=0,arrival=0"), 1000.0)
    assert "0 workers after" in idle


def test_gpus_are_no_workers_where_one_takes_two() -> None:
    two = resource({"minReplicas": 0}, status().write())
    two["spec"]["worker"] = {"gpu": {"count": 2}}
    assert "for 2 workers" in account(two, parse("lag=500,gpus=5"), 1000.0)
    none = resource({"minReplicas": 0}, status().write())
    none["spec"]["worker"] = {"gpu": {"count": 0}}
    with pytest.raises(BadCase, match="these workers take none"):
        account(none, parse("gpus=5"), 1000.0)


def test_a_long_cooldown_is_seen_to_its_end() -> None:
    said = account(
        resource({"minReplicas": 0, "cooldownSeconds": 36_000}, status().write()), parse("lag=0,arrival=0"), 1000.0
    )
    assert "0 workers after 10h" in said


@pytest.mark.parametrize("wrong", ["lags=1", "lag", "lag=many", "lag=-1", "gpus=nan", "partitions=0", "service=0"])
def test_what_can_not_be_read_says_what_to_write(wrong: str) -> None:
    with pytest.raises(BadCase, match=r"NAME=NUMBER|must be a number"):
        parse(wrong)
