"""The CustomResourceDefinition, generated from the models in api/."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from vaultml_operator import api

Schema = dict[str, Any]

_COLUMNS = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether all is as wanted.", 0),
    ("Replicas", "string", ".status.workers", "Ready and desired workers.", 0),
    ("Desired", "integer", ".status.autoscaling.desiredReplicas", "Replicas that the autoscaler wants.", 0),
    ("Lag", "integer", ".status.autoscaling.lag", "Recordings that wait.", 0),
    ("Rate", "string", ".status.autoscaling.rate", "Recordings that arrive per second.", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', "Why, in one word.", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Since when it exists.", 0),
    # Long, and the same as in the spec: without it a row with a long name fits into 120 characters.
    ("GPU", "string", ".status.gpu", "The GPU of each worker.", 1),
    ("Queue", "string", ".spec.queue.name", "Topic that the events are read from.", 1),
    ("Target", "string", ".spec.queue.target", "Topic that the results go to.", 1),
    ("Oldest", "string", ".status.autoscaling.oldestMessageAge", "Age of the oldest message that waits.", 1),
    ("Limit", "string", ".status.autoscaling.limitedBy", "What limits the number of workers.", 1),
    ("Processed", "integer", ".status.autoscaling.processed", "Recordings done.", 1),
    ("Dead", "integer", ".status.autoscaling.deadLetters", "Dead letters.", 1),
    ("Image", "string", ".status.image", "Image of the workers.", 1),
    ("Message", "string", '.status.conditions[?(@.type=="Ready")].message', "Why, in a sentence.", 1),
)


def definition() -> dict[str, Any]:
    """The CRD as it is applied: apiextensions.k8s.io/v1, with a structural schema."""
    names = {
        "plural": api.PLURAL,
        "singular": api.KIND.lower(),
        "kind": api.KIND,
        "listKind": f"{api.KIND}List",
        # The last two are also the full names of Tekton's resource, which kubectl then prefers.
        "shortNames": ["vmlp", "pipelines", "pipeline"],
        "categories": ["kerberos"],
    }
    schema = {
        "description": "Turns the recordings that a queue announces into detections, with GPU workers.",
        "type": "object",
        "required": ["spec"],
        "x-kubernetes-validations": [dict(rule) for rule in api.ROOT_RULES],
        "properties": {
            # Without these two lines the rules may not look at the name.
            "metadata": {"type": "object"},
            "spec": _object(api.Spec, "What the pipeline should be."),
            "status": _object(api.Status, "What the pipeline is; written by the operator."),
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{api.PLURAL}.{api.GROUP}"},
        "spec": {
            "group": api.GROUP,
            "names": names,
            "scope": "Namespaced",
            "versions": [
                {
                    "name": api.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": text, "priority": priority}
                        for name, kind, path, text, priority in _COLUMNS
                    ],
                }
            ],
        },
    }


def _object(model: type[BaseModel], description: str) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return {**_structural(schema, _rules(model), schema.get("$defs", {})), "description": description}


def _rules(model: type[BaseModel]) -> dict[str, list[dict[str, str]]]:
    """The CEL rules of a model and of all models in it, by their names in the schema."""
    found: dict[str, list[dict[str, str]]] = {}
    pending = [model, *_subclasses(api.Model)]
    for each in pending:
        if rules := getattr(each, "rules", ()):
            found[each.__name__] = [dict(rule) for rule in rules]
    return found


def _subclasses(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [each for direct in model.__subclasses__() for each in (direct, *_subclasses(direct))]


def _structural(schema: Schema, rules: Mapping[str, list[dict[str, str]]], defs: Schema) -> Schema:
    """Turn pydantic's JSON schema into a structural one.

    References are resolved, null and titles are gone, exclusive bounds are flags.
    """
    given = dict(schema)
    own: list[dict[str, str]] = list(given.pop("x-kubernetes-validations", []))
    if "$ref" in given:
        name = given.pop("$ref").rpartition("/")[2]
        resolved = _structural(defs[name], rules, defs)
        return {**resolved, **{key: _without_null(value) for key, value in given.items() if key != "title"}}
    if "anyOf" in given and not given.get("x-kubernetes-int-or-string"):
        # X | None. No default: absent and empty mean different things.
        (option,) = (each for each in given["anyOf"] if each.get("type") != "null")
        extra = {key: value for key, value in given.items() if key not in ("title", "anyOf", "default")}
        return _structural({**option, **extra}, rules, defs)
    result: dict[str, Any] = {}
    for key, value in given.items():
        match key:
            case "title" | "$defs":
                continue
            case "const":
                result["enum"] = [value]
            case "exclusiveMinimum":
                result |= {"minimum": value, "exclusiveMinimum": True}
            case "exclusiveMaximum":
                result |= {"maximum": value, "exclusiveMaximum": True}
            case "properties":
                result["properties"] = {name: _structural(each, rules, defs) for name, each in value.items()}
            case "items" | "additionalProperties" if isinstance(value, dict):
                result[key] = _structural(value, rules, defs)
            case "additionalProperties" if value is True and "x-kubernetes-preserve-unknown-fields" in given:
                continue
            case _:
                result[key] = value
    own += rules.get(str(schema.get("title")), []) if schema.get("type") == "object" else []
    if own:
        result["x-kubernetes-validations"] = [dict(rule) for rule in own]
    return result


def _without_null(value: Any) -> Any:
    """Write a default as people do: what is absent has no entry."""
    return (
        {key: _without_null(each) for key, each in value.items() if each is not None}
        if isinstance(value, dict)
        else value
    )
