import pytest

from vaultml_common.text import counted, expand

KNOWN = {"NAME": "value", "OTHER": "$(NAME)", "a.b-c": "dotted"}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(NAME)", "value"),
        ("x$(NAME)y$(a.b-c)", "xvaluey" + "dotted"),
        ("$$(NAME)", "$(NAME)"),
        ("$$$(NAME)", "$value"),
        ("a$$b", "a$b"),
        ("$", "$"),
        ("$NAME $(", "$NAME $("),
        ("$(NOBODY)", "$(NOBODY)"),
        ("$(OTHER)", "$(NAME)"),
    ],
)
def test_references_are_expanded_as_kubernetes_does_it(text: str, expanded: str) -> None:
    """As k8s.io/kubernetes/third_party/forked/golang/expansion."""
    assert expand(text, KNOWN) == expanded


def test_nouns_follow_their_number() -> None:
    assert [counted(number, "worker") for number in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]
    assert counted(3, "class") == "3 classes"
