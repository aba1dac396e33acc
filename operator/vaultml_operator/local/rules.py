"""Pure: what an API server would refuse of a pipeline: its shape, and the CRD's own rules in CEL."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import cel

from vaultml_common.quantity import quantity
from vaultml_operator import crd

Schema = Mapping[str, Any]


@cache
def schema() -> Schema:
    """The structural schema of the resource, as it stands in crds/."""
    found: Schema = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def misshapen(spec: Mapping[str, Any]) -> list[str]:
    """A sentence for each field that the resource doesn't have, each value of another type, each item given twice.

    The models are more lenient than an API server, which would say all of this.
    """
    return list(_misshapen(schema()["properties"]["spec"], spec, "spec"))


def _misshapen(node: Schema, value: Any, where: str) -> Iterator[str]:
    properties = node.get("properties")
    if isinstance(value, Mapping):
        for name, each in value.items():
            inner = (properties or {}).get(name) or node.get("additionalProperties")
            if isinstance(inner, Mapping):
                yield from _misshapen(inner, each, f"{where}.{name}")
            elif properties is not None and not node.get("x-kubernetes-preserve-unknown-fields"):
                near = difflib.get_close_matches(str(name), properties, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(properties))}"
                yield f"{where}.{name}: no such field; {hint}"
    elif isinstance(value, list) and isinstance(node.get("items"), Mapping):
        for number, each in enumerate(value):
            yield from _misshapen(node["items"], each, f"{where}[{number}]")
        if _repeats(node, value):
            yield f"{where}: holds the same twice: leave one out"
    elif value is not None and not _fits(node, value):
        yield f"{where}: {_WRONG[node.get('type', 'string')]}"


def _fits(node: Schema, value: Any) -> bool:
    if node.get("x-kubernetes-int-or-string"):
        return not isinstance(value, float)
    match node.get("type"):
        case "boolean":
            return isinstance(value, bool)
        case "integer" | "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, Mapping)
    return True


def _repeats(node: Schema, value: list[Any]) -> bool:
    keys = node.get("x-kubernetes-list-map-keys")
    if keys:
        value = [[each.get(key) for key in keys] for each in value if isinstance(each, Mapping)]
    elif node.get("x-kubernetes-list-type") != "set":
        return False
    return any(each in value[:number] for number, each in enumerate(value))


def broken(body: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[str]:
    """The message of each rule that `body`, with its defaults, breaks; `before` is what it replaces, if anything."""
    return list(_broken(schema(), body, before, ""))


def _broken(node: Schema, value: Any, before: Any, where: str) -> Iterator[str]:
    for rule in node.get("x-kubernetes-validations", ()):
        # A rule on what may change means nothing at first.
        if ("oldSelf" not in rule["rule"] or before is not None) and not _holds(rule["rule"], value, before):
            said = _message(rule, value, before)
            yield f"{where}: {said}" if where else said
    if isinstance(value, Mapping):
        for name, each in value.items():
            inner = (node.get("properties") or {}).get(name) or node.get("additionalProperties")
            if isinstance(inner, Mapping):
                old = before.get(name) if isinstance(before, Mapping) else None
                yield from _broken(inner, each, old, f"{where}.{name}".removeprefix("."))
    elif isinstance(value, list) and isinstance(node.get("items"), Mapping):
        for number, each in enumerate(value):
            yield from _broken(node["items"], each, None, f"{where}[{number}]")


def _holds(rule: str, value: Any, before: Any) -> bool:
    # A rule that can't be evaluated is broken, as for an API server.
    return bool(_evaluated(rule, value, before))


def _message(rule: Mapping[str, str], value: Any, before: Any) -> str:
    expression = rule.get("messageExpression")
    said = _evaluated(expression, value, before) if expression else None
    return said if isinstance(said, str) else rule["message"]


def _evaluated(expression: str, value: Any, before: Any) -> Any:
    """Return the value of a CEL expression; None where it can't be evaluated."""
    context = cel.Context({"self": value, "oldSelf": before}, functions=_FUNCTIONS)
    try:
        return _program(expression).execute(context)
    except (RuntimeError, TypeError, ValueError):
        return None


@cache
def _program(rule: str) -> Any:
    return cel.compile(rule)


def _is_quantity(text: str) -> bool:
    if text != text.strip():  # which quantity() forgives, and an API server does not
        return False
    try:
        quantity(text)
    except ValueError:
        return False
    return True


def nano(text: str) -> int:
    """A quantity as a number that compares: in units of 10⁻⁹, 0 for what is none (another rule says so)."""
    found = re.fullmatch(r"([^a-zA-Z]*)([a-zA-Z].*)?", text.strip())
    amount, unit = found.groups() if found is not None else (text, "")
    try:
        whole, _, part = amount.partition(".")
        return quantity(f"{whole}{(part + 9 * '0')[:9]}{unit or ''}")
    except ValueError:
        return 0


_WRONG = {
    "array": "must be a list",
    "object": "must be a map of fields",
    "boolean": "must be true or false, without quotes",
    "integer": "must be a whole number, without quotes",
    "number": "must be a number, without quotes",
    "string": "must be text: put it in quotes",
}

# What Kubernetes adds to CEL, as far as our rules use it.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "isQuantity": _is_quantity,
    "quantity": nano,
    "compareTo": lambda one, other: (one > other) - (one < other),
    "split": lambda text, separator: text.split(separator),
}
