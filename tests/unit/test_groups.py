"""Who may consume with which group."""

from vaultml_operator.groups import Groups

A, B, C = ("n", "a"), ("n", "b"), ("m", "c")


def test_the_older_one_has_it_whoever_comes_first() -> None:
    groups: Groups[tuple[str, str]] = Groups()
    assert groups.claim(B, "2026-02", ["x:1"], "g") == (None, set())
    # The older one comes later, as after a restart: the younger has to be looked at again.
    assert groups.claim(A, "2026-01", ["x:1", "y:1"], "g") == (None, {B})
    assert groups.claim(B, "2026-02", ["x:1"], "g") == (A, set())
    assert groups.release(A) == {B}
    assert groups.claim(B, "2026-02", ["x:1"], "g") == (None, set())


def test_one_broker_in_common_is_enough_and_another_group_is_not() -> None:
    groups: Groups[tuple[str, str]] = Groups()
    groups.claim(A, "1", ["x:1", "y:1"], "g")
    assert groups.claim(B, "2", ["y:1", "z:1"], "g")[0] == A
    assert groups.claim(C, "3", ["x:1"], "h")[0] is None


def test_of_the_same_age_the_name_decides_and_a_new_claim_gives_up_the_old() -> None:
    groups: Groups[tuple[str, str]] = Groups()
    groups.claim(B, "1", ["x:1"], "g")
    assert groups.claim(A, "1", ["x:1"], "g") == (None, {B})
    assert groups.claim(A, "1", ["x:1"], "other") == (None, {B})
    assert groups.claim(B, "1", ["x:1"], "g") == (None, set())
    assert groups.release(C) == set()
