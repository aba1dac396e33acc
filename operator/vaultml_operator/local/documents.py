"""A file of pipelines, and of the Secrets and ConfigMaps beside them, as the objects that an API server would store."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vaultml_operator import api
from vaultml_operator.local import rules
from vaultml_operator.manifests import Manifest, merge

Name = tuple[str, str, str]
"""Kind, namespace and name of an object."""
SLOT = "vaultml.local/cpu-slot"
"""Extended resource: the part of this machine that a worker without a GPU takes."""

_KINDS = {api.KIND: api.API_VERSION, "Secret": "v1", "ConfigMap": "v1"}
_FIELDS = {
    api.KIND: {"spec", "status"},
    "Secret": {"data", "stringData", "type", "immutable"},
    "ConfigMap": {"data", "binaryData", "immutable"},
}


class BadFile(Exception):  # noqa: N818 - named for what it is about
    """A file that can't be used; the message has a line for each thing that is wrong, and what to write."""

    def __init__(self, file: Path, wrong: list[str]) -> None:
        super().__init__("\n  ".join([f"{file}:", *wrong]) if len(wrong) > 1 else f"{file}: {wrong[0]}")
        self.short = wrong[0] if len(wrong) == 1 else f"{wrong[0]} (and {len(wrong) - 1} more)"


class _Wrong(Exception):  # noqa: N818
    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = list(problems)


@dataclass(frozen=True)
class Documents:
    """What a file holds, by kind, namespace and name. Pipelines have their defaults."""

    objects: Mapping[Name, Manifest]

    @property
    def secret(self) -> bool:
        """Whether there are Secrets among them."""
        return any(kind == "Secret" for kind, _, _ in self.objects)

    @property
    def pipelines(self) -> dict[Name, Manifest]:
        """The pipelines among them."""
        return {name: body for name, body in self.objects.items() if name[0] == api.KIND}


def read(file: Path, before: Documents | None = None) -> Documents:
    """Read and check a file; `before` is what it held until now. Raises BadFile."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise BadFile(file, [f"can't be read: {reason}"]) from None
    try:
        found = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        raise BadFile(file, [_position(error)]) from None
    except ValueError:  # what looks like a date, and is none
        raise BadFile(file, ["something in it looks like a date or a number, and is none: put it in quotes"]) from None
    objects: dict[Name, Manifest] = {}
    wrong: list[str] = []
    for number, document in enumerate(found, start=1):
        try:
            name, body = _object(document)
            if name[0] == api.KIND:
                body = _pipeline(body, (before.objects if before is not None else {}).get(name))
        except _Wrong as error:
            wrong += [f"{_called(document, number)}: {problem}" for problem in error.problems]
            continue
        if name in objects:
            wrong.append(f"{_called(document, number)}: stands in the file twice")
        objects[name] = body
    if not wrong and not any(name[0] == api.KIND for name in objects):
        wrong = [f"holds no {api.KIND}: see examples/local/pipeline.yaml for one"]
    if wrong:
        raise BadFile(file, wrong)
    return Documents(objects)


def _position(error: yaml.YAMLError) -> str:
    # What PyYAML quotes of the file may be part of a password.
    problem = re.sub(r"'[^']*'", "…", str(getattr(error, "problem", None) or "not YAML"))
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark is not None else problem


def _called(document: Any, number: int) -> str:
    metadata = document.get("metadata") if isinstance(document, Mapping) else None
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if name is None:
        return f"document {number}"
    return f"{document.get('kind') or f'document {number},'} {name}"


def _object(document: Any) -> tuple[Name, Manifest]:
    if not isinstance(document, Mapping):
        raise _Wrong("must be an object: begin with apiVersion, kind and metadata")
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        known = f"{api.KIND} ({api.API_VERSION}), Secret and ConfigMap (v1)"
        said = "kind is missing" if kind is None else f"kind {kind} is of no use here"
        raise _Wrong(f"{said}: there are {known}")
    if document.get("apiVersion") != _KINDS[kind]:
        raise _Wrong(f"apiVersion must be {_KINDS[kind]}")
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(metadata, Mapping) or not isinstance(name, str) or not name:
        raise _Wrong("metadata.name is missing: give a name, in quotes if it is a number")
    namespace = metadata.get("namespace") or "default"
    if not isinstance(namespace, str):
        raise _Wrong("metadata.namespace must be text: put it in quotes")
    if more := {*document} - {"apiVersion", "kind", "metadata", *_FIELDS[kind]}:
        raise _Wrong(*(f"{each}: no such field of a {kind}" for each in sorted(map(str, more))))
    kept = {key: _strings(metadata, key) for key in ("labels", "annotations") if metadata.get(key)}
    body: Manifest = {
        "apiVersion": _KINDS[kind],
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **kept},
    }
    if kind == api.KIND:
        return (kind, namespace, name), body | {"spec": document.get("spec")}
    return (kind, namespace, name), body | (_secret(document) if kind == "Secret" else _config(document))


def _secret(document: Mapping[str, Any]) -> Manifest:
    encoded, plain = _strings(document, "data"), _strings(document, "stringData")
    wrong = [f"data.{key}: not base64: encode it, or write it plainly under stringData" for key in _not_base64(encoded)]
    if wrong:
        raise _Wrong(*wrong)
    return {"data": encoded | {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}}


def _config(document: Mapping[str, Any]) -> Manifest:
    encoded = _strings(document, "binaryData")
    if wrong := [f"binaryData.{key}: not base64: encode it, or write text under data" for key in _not_base64(encoded)]:
        raise _Wrong(*wrong)
    return {"data": _strings(document, "data"), "binaryData": encoded}


def _strings(document: Mapping[str, Any], field: str) -> dict[str, str]:
    given = document.get(field) or {}
    if not isinstance(given, Mapping):
        raise _Wrong(f"{field}: must be a map of keys to text")
    if wrong := [f"{field}.{key}: must be text: put it in quotes" for key in given if not isinstance(given[key], str)]:
        raise _Wrong(*wrong)
    return {str(key): value for key, value in given.items()}


def _not_base64(given: Mapping[str, str]) -> Iterator[str]:
    for key, value in given.items():
        try:
            base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            yield key


def _pipeline(body: Manifest, before: Manifest | None) -> Manifest:
    """Defaults, and all that an API server would refuse, and what this machine can't have."""
    given = body["spec"]
    if not isinstance(given, Mapping):
        raise _Wrong("spec is missing: say at least spec.queue")
    if wrong := rules.misshapen(given):
        raise _Wrong(*wrong)
    try:
        stored = {"uid": "", "generation": 1}
        spec = api.Pipeline.from_body({**body, "metadata": {**body["metadata"], **stored}}).spec
    except api.InvalidResource as error:
        raise _Wrong(*str(error).split("; ")) from None
    full = {**body, "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}
    wrong = [*rules.broken(full, before), *_elsewhere(spec)]
    if wrong:
        raise _Wrong(*wrong)
    return full


def _elsewhere(spec: api.Spec) -> Iterator[str]:
    if spec.model.persistent_volume_claim is not None:
        yield "spec.model.persistentVolumeClaim: there are no claims here: leave it out, and give absolute paths"
    if spec.model.engine_cache is not None:
        yield "spec.model.engineCache: there are no claims here: leave it out; engines are kept in the cache folder"


def with_slots(body: Manifest, slots: int) -> Manifest:
    """The pipeline, each of its workers taking so many CPU slots; those with a GPU take none."""
    worker = body["spec"]["worker"]
    if worker["gpu"]["count"]:
        return body
    template = worker.get("podTemplate") or {}
    patch = {"containers": [{"name": "worker", "resources": {"limits": {SLOT: str(slots)}}}]}
    patched = {**template, "spec": merge(template.get("spec") or {}, patch)}
    return {**body, "spec": {**body["spec"], "worker": {**worker, "podTemplate": patched}}}
