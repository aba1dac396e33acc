"""Which pipeline may consume with which group: two on one group would each see part of the events."""

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=tuple[str, str])


class _Claim(NamedTuple):
    created: str
    key: tuple[str, str]


class Groups(Generic[K]):
    """Claims of pipelines on groups, the oldest first."""

    def __init__(self) -> None:
        self._places: dict[K, frozenset[tuple[str, str]]] = {}
        self._claims: dict[tuple[str, str], dict[K, _Claim]] = {}

    def claim(self, key: K, created: str, brokers: Iterable[str], group: str) -> tuple[K | None, set[K]]:
        """Claim a group on these brokers, and no other.

        Gives the older pipeline that has it, if there is one, and those for whom this changes something.
        """
        places = frozenset((broker, group) for broker in brokers)
        concerned = self.release(key) if self._places.get(key) != places else set()
        mine = _Claim(created, key)
        older: K | None = None
        for place in places:
            claims = self._claims.setdefault(place, {})
            if key not in claims:
                concerned |= {other for other, claim in claims.items() if claim > mine}
            claims[key] = mine
            first = min(claims, key=lambda each: claims[each])
            if first != key:
                older = first
        self._places[key] = places
        return older, concerned

    def release(self, key: K) -> set[K]:
        """Claim nothing any more; gives those that may have waited for it."""
        concerned: set[K] = set()
        for place in self._places.pop(key, ()):
            claims = self._claims[place]
            del claims[key]
            concerned |= claims.keys()
            if not claims:
                del self._claims[place]
        return concerned
