"""Pure: whether what is there still says what was asked for."""

from collections.abc import Iterable, Mapping
from typing import Any

from vaultml_operator.manifests import list_key


def contains(live: Any, wanted: Any) -> bool:
    """Whether all that `wanted` names stands in `live`: maps by key, lists as `manifests.merge` does."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(key in live and contains(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list) and any(isinstance(each, Mapping) for each in wanted):
        return isinstance(live, list) and all(
            other is not None and contains(other, each) for each, other in _pairs(live, wanted)
        )
    return bool(live == wanted)


def project(live: Any, wanted: Any) -> Any:
    """What `live` says where `wanted` says something."""
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        return {key: project(live[key], wanted[key]) for key in wanted if key in live}
    if isinstance(wanted, list) and isinstance(live, list):
        return [project(other, each) for each, other in _pairs(live, wanted)]
    return live


def _pairs(live: list[Any], wanted: list[Any]) -> Iterable[tuple[Any, Any]]:
    if (key := list_key(live, wanted)) is not None:
        named = {each[key]: each for each in live}
        return [(each, named.get(each[key])) for each in wanted]
    return [(each, live[index] if index < len(live) else None) for index, each in enumerate(wanted)]
