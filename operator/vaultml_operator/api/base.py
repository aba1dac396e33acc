"""What all parts of the resource are made of: names, rules, common types."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP = "ml.kerberos.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "VaultMLPipeline"
PLURAL = "vaultmlpipelines"
PAUSED = f"{GROUP}/paused"
"""Annotation: while "true", nothing of the pipeline is changed; only its status goes on being told."""

PAUSE_SCALE_IN = f"{GROUP}/pause-scale-in"
"""Annotation: while "true", workers may be added but not taken away."""
PAUSE_SCALE_OUT = f"{GROUP}/pause-scale-out"
"""Annotation: while "true", workers may be taken away but not added."""
ANNOTATIONS = (PAUSED, PAUSE_SCALE_IN, PAUSE_SCALE_OUT)
"""The annotations that mean something to the operator."""


class Rule(dict[str, str]):
    """A CEL rule with the sentence that says what to write instead.

    `expression` is CEL that gives a more precise sentence. Kubernetes falls back to `message` where it fails.
    """

    def __init__(self, rule: str, message: str, expression: str | None = None) -> None:
        super().__init__(rule=rule, message=message)
        if expression is not None:
            self["messageExpression"] = expression


class Model(BaseModel):
    """camelCase outside, snake_case inside; unknown fields (of a newer CRD) are left alone."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")
    rules: ClassVar[tuple[Rule, ...]] = ()


SET_LIST: dict[str, Any] = {"x-kubernetes-list-type": "set"}
"""A list of which no item may stand twice."""


def map_list(key: str) -> dict[str, Any]:
    """A list whose items are told apart by this field."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
"""A port as a regular expression: 1 to 65535."""
HOST = "([a-zA-Z0-9_][-a-zA-Z0-9_.]*|\\\\[[0-9a-fA-F:.]+\\\\])"
"""A host name or an address, IPv6 in brackets, as a regular expression in a CEL string."""
_QUALIFIED = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DOMAIN = "[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
LABEL_KEY = f"^({_DOMAIN}/)?{_QUALIFIED}$"
"""The key of a label, annotation or taint as a regular expression."""
LABEL_VALUE = f"^({_QUALIFIED})?$"
"""The value of a label or taint as a regular expression."""


def url_rules(
    field: str, like: str, *, query: bool = False, optional: bool = False, suffix: str = ""
) -> Sequence[Rule]:
    """Return the rules of an http(s) URL: one sentence each for its characters, its port and the rest.

    `like` is the end of the sentence "<field> must …". Regular expressions rather than isURL, which lets through a
    port of 99999 and blanks in the path.
    """
    value = f"self.{field}"
    absent = f"!has({value}) || " if optional else ""
    # Printable ASCII without @ # ? (and % only as an escape).
    part = '([!-"$&->A-~]|%[0-9a-fA-F]{2})*'
    more = f"(/{part}{suffix}){'' if suffix else '?'}" + ('([?]([!-"$&-?A-~]|%[0-9a-fA-F]{2})*)?' if query else "")
    ends = "([/?#]|$)"
    return (
        Rule(
            f"{absent}!{value}.matches('[^!-~]')",
            f"{field} must not contain blanks, tabs, newlines or other characters that need an escape such as %20",
        ),
        Rule(
            f"{absent}!{value}.matches('^[a-z]+://[^/?#]*:[0-9]*{ends}') || "
            f"{value}.matches('^[a-z]+://[^/?#]*:{PORT}{ends}')",
            f"the port in {field} must be a number from 1 to 65535",
        ),
        # One sentence for one fault: the two above have theirs.
        Rule(
            f"{absent}{value}.matches('[^!-~]') || {value}.matches('^https?://{HOST}(:[0-9]*)?{more}$')",
            f"{field} must {like}",
        ),
    )


def trimmed_rule(expression: str, sentence: str) -> Rule:
    """Return the rule of a text that may hold blanks, but neither around it nor control characters in it.

    `expression` is CEL with {} where the test of a text `t` belongs.
    """
    test = "(t == '' || t.matches('^[^[:space:][:cntrl:]]([^[:cntrl:]]*[^[:space:][:cntrl:]])?$'))"
    return Rule(expression.format(test), f"{sentence} must not begin or end with a blank, or contain a newline or tab")


def label_rules(field: str) -> Sequence[Rule]:
    """Return the rules of a map of labels, as Kubernetes has them for objects and nodes."""
    return (
        key_rule(field, "label"),
        Rule(
            f"!has(self.{field}) || self.{field}.all(k, self.{field}[k].matches('{LABEL_VALUE}'))",
            f"{field}: the value of a label has at most 63 letters, digits, hyphens, underscores and dots, and begins "
            "and ends with a letter or digit",
        ),
    )


def key_rule(field: str, kind: str) -> Rule:
    """Return the rule of the keys of labels or annotations."""
    return Rule(
        f"!has(self.{field}) || self.{field}.all(k, k.size() <= 317 && k.matches('{LABEL_KEY}'))",
        f"{field}: the key of {'an' if kind[0] in 'aeiou' else 'a'} {kind} is a name such as disk or example.com/disk: "
        "at most 63 letters, digits, hyphens, underscores and dots after the optional domain",
    )


Topic = Annotated[str, Field(max_length=245)]  # 249 is Kafka's limit; ".dlq" must fit behind
ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
]
Key = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
Labels = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)]
Annotations = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)]
Quantity = Annotated[
    str,
    WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}], "maxLength": 32}
    ),
    Field(coerce_numbers_to_str=True),
]


class SecretRef(Model):
    """A Secret of the pipeline's namespace."""

    name: ObjectName = Field(description="Name of the Secret, in the pipeline's own namespace.")


class KeyRef(Model):
    """One key of a Secret or ConfigMap of the pipeline's namespace."""

    name: ObjectName = Field(description="Name of the object, in the pipeline's own namespace.")
    key: Key = Field(default="ca.crt", description="Key in it.")
