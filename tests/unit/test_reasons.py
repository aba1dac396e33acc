"""The table of reasons, and that nothing else says what a reason means."""

import ast
from pathlib import Path

import pytest

from vaultml_operator import reasons
from vaultml_operator.reasons import EventReason, Reason

SOURCES = Path(reasons.__file__).parent
USERS = ("status.py", "reconcile.py", "pods.py", "credentials.py", "scaling.py")


def test_a_missing_object_and_a_missing_key_are_the_same_kind_of_trouble() -> None:
    facts = [(each.blocks, each.retried, each.expected) for each in (Reason.SECRET_MISSING, Reason.SECRET_KEY_MISSING)]
    assert facts[0] == facts[1] == (True, False, False)


def test_a_reason_is_its_own_word_and_in_one_table_only() -> None:
    assert all(each == each.value == str(each) for each in Reason)
    assert not {each.value for each in Reason} & {each.value for each in EventReason}
    assert all(len(each) <= 64 for each in Reason), "the CRD's limit"


def test_each_reason_is_on_the_page_with_its_conditions() -> None:
    page = reasons.reference()
    for each in Reason:
        assert f"| `{each.value}` | {', '.join(each.conditions)} |" in page
        assert each.conditions
        assert each.meaning.endswith(".")
    for event in EventReason:
        assert f"| `{event.value}` |" in page


@pytest.mark.parametrize("file", USERS)
def test_no_code_spells_a_reason_out(file: str) -> None:
    """What the scheduler and the kubelet write is theirs."""
    others = {"Unschedulable"}
    spelled = {
        node.value
        for node in ast.walk(ast.parse((SOURCES / file).read_text()))
        if isinstance(node, ast.Constant) and node.value in reasons.NAMES | {each.value for each in EventReason}
    }
    assert spelled <= others
