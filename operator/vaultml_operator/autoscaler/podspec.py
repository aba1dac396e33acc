"""Pure: whether the spec of a pod, which a patch may have changed, has the shape that counting GPUs relies on."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic.alias_generators import to_camel

from vaultml_common.quantity import quantity


class _Part(BaseModel):
    """What is not named here does not count: a null is as good as nothing."""

    model_config = {"alias_generator": to_camel}


def _counts(value: str | float) -> str | float:
    quantity(value)
    return value


_Quantities = dict[str, Annotated[str | int | float, AfterValidator(_counts)]] | None


class _Resources(_Part):
    limits: _Quantities = None
    requests: _Quantities = None


class _Container(_Part):
    resources: _Resources | None = None
    restart_policy: str | None = None


class _Requirement(_Part):
    key: str
    operator: str
    values: list[str] | None = None


class _Term(_Part):
    match_expressions: list[_Requirement] | None = None
    match_fields: list[_Requirement] | None = None


class _Selector(_Part):
    node_selector_terms: list[_Term] | None = None


class _NodeAffinity(_Part):
    required: Annotated[_Selector | None, Field(alias="requiredDuringSchedulingIgnoredDuringExecution")] = None


class _Affinity(_Part):
    node_affinity: _NodeAffinity | None = None


class _Toleration(_Part):
    key: str | None = None
    operator: str | None = None
    value: str | None = None
    effect: str | None = None


class _PodSpec(_Part):
    containers: list[_Container]
    init_containers: list[_Container] | None = None
    overhead: _Quantities = None
    node_selector: dict[str, str] | None = None
    affinity: _Affinity | None = None
    tolerations: list[_Toleration] | None = None


def wrong(spec: Mapping[str, Any]) -> str | None:
    """What is wrong first, and where; None when nothing is."""
    try:
        _PodSpec.model_validate(spec)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    return None
