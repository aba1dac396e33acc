"""Pure: a pipeline as a row, with the columns that `kubectl get` shows."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from vaultml_operator import crd

_SHOWN = ("Ready", "Replicas", "Desired", "Lag", "Rate", "GPU", "Reason")
_WIDE = ("Oldest", "Limit", "Processed", "Dead")
_MORE = ("Queue", "Target", "Message")
"""In the JSON only."""

Row = dict[str, Any]


def columns(*, wide: bool) -> tuple[str, ...]:
    """What is shown, in capitals."""
    return tuple(each.upper() for each in ("Name", *_SHOWN, *(_WIDE if wide else ())))


def row(body: Mapping[str, Any]) -> Row:
    """The values by the columns' names in small letters; None where nothing is known."""
    paths = _paths()
    metadata = body["metadata"]
    found: Row = {"namespace": metadata["namespace"], "name": metadata["name"]}
    found["decision"] = value(body, ".status.autoscaling.message")
    return found | {name.lower(): value(body, paths[name]) for name in (*_SHOWN, *_WIDE, *_MORE)}


def value(body: Any, path: str) -> Any:
    """What stands at a JSON path of the kind that printer columns use."""
    for step in re.findall(r"\.([A-Za-z]+)|\[\?\(@\.type==\"(\w+)\"\)\]", path):
        field, kind = step
        if field:
            body = body.get(field) if isinstance(body, Mapping) else None
        elif isinstance(body, Sequence):
            body = next((each for each in body if each.get("type") == kind), None)
    return body


def cell(found: Any) -> str:
    """As it is shown."""
    return "" if found is None else str(found)


@cache
def _paths() -> Mapping[str, str]:
    printed = crd.definition()["spec"]["versions"][0]["additionalPrinterColumns"]
    return {each["name"]: each["jsonPath"] for each in printed}
