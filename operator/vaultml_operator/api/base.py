"""What all parts of the resource are made of: names, rules, common types."""

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
    """A CEL rule with the sentence that says what to write instead."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(rule=rule, message=message)


class Model(BaseModel):
    """camelCase outside, snake_case inside; unknown fields (of a newer CRD) are left alone."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")
    rules: ClassVar[tuple[Rule, ...]] = ()


SET_LIST: dict[str, Any] = {"x-kubernetes-list-type": "set"}
"""A list of which no item may stand twice."""


def map_list(key: str) -> dict[str, Any]:
    """A list whose items are told apart by this field."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


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
