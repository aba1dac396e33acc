"""Pure: who gets how many of the GPUs that pipelines compete for, decided once for the whole pool.

One worker is granted at a time: by priority, then to who has none, then up to each minimum, then what was granted
lately, then to the lowest served share. Pools overlap, so each worker is planned on a node, and one more is granted
only if there is room for it, or room can be made by planning others elsewhere (an augmenting path). Pods that run stay
where they are: a pipeline keeps them first, and may only lose them. What others still hold, running or terminating, is
promised (`coming`) and granted when it is gone. What its own terminating pods hold never lowers a pipeline's number.
Where a plan would have a pipeline give up one pod and start another, it gives up first: its Deployment knows only a
number.

Exact where all workers of overlapping pools ask for the same number of GPUs; with mixed numbers (bin packing) good:
others are moved by chains of single moves, or several straight to where there is room.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vaultml_common.text import counted
from vaultml_operator.autoscaler.gpus import Demand, Key, Pod, Pool, admits, noun

HOLD_S = 60.0
"""How long a grant holds against equals that would only grow."""
_NEAR = 0.9
"""Shares that are nearer to each other than this are a tie: who has the GPU keeps it."""
_NAMED = 3
"""How many holders are named."""


class Holder(NamedTuple):
    """Who holds GPUs: "namespace/name", "others" or "7 more pipelines"; with how many pods, and how many GPUs."""

    who: str
    workers: int
    gpus: int

    @property
    def verb(self) -> str:
        """Whether one holds, or several hold."""
        return "holds" if "/" in self.who or not self.who.endswith("s") else "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a pipeline may have now.

    `slots` workers, those that it keeps included, never more than it wants; `coming` more when others' pods are gone.
    `capacity`: what it could run now if it alone grew: its own that run and the `free` ones, in workers. `total`: the
    GPUs on nodes that it may use, whoever holds them; `holders` are the others that do. `leave`: uids of its pods that
    have to be the ones to go; empty where any will do. `since`: when `slots` last changed.
    """

    resource: str
    count: int
    slots: int
    coming: int
    capacity: int
    free: int
    total: int
    holders: tuple[Holder, ...]
    leave: tuple[str, ...]
    since: float

    def sentence(self) -> str:
        """In a phrase: "2 of 4 GPUs (nvidia.com/gpu); kerberos/highway holds 2"."""
        if not self.total:
            return f"no matching node has an allocatable {noun(self.resource, 1)} ({self.resource})"
        said = [f"{self.slots * self.count} of {self.total} {noun(self.resource, self.total)} ({self.resource})"]
        held = [f"{each.who} {each.verb} {each.gpus}" for each in self.holders]
        if held:
            said.append(", ".join(held))
        if self.coming:
            said.append(
                f"{counted(self.coming, 'worker')} more once terminating pods release their {noun(self.resource)}"
            )
        return "; ".join(said)


Grants = Mapping[Key, Grant]


def arbitrate(
    pool: Pool, demands: Iterable[Demand], before: Grants | None, now: float, *, hold_s: float = HOLD_S
) -> dict[Key, Grant]:
    """The grants of all pipelines that compete, one for each demand.

    `before` are the last ones, `now` is seconds of any clock that they share. The order of the demands doesn't matter.
    Pods of pipelines without a demand are not asked to leave. ValueError for two demands of one pipeline.
    """
    ordered = sorted(demands, key=lambda demand: demand.key)
    if len({demand.key for demand in ordered}) < len(ordered):
        raise ValueError("a pipeline has one demand")
    grants: dict[Key, Grant] = {}
    for resource in sorted({demand.resource for demand in ordered}):
        # What was granted of another resource holds nothing of this one.
        last = {key: grant for key, grant in (before or {}).items() if grant.resource == resource}
        ground = _Ground(pool, resource, [demand for demand in ordered if demand.resource == resource])
        for members in ground.parts():
            plan = _Plan(ground, members, last, now, hold_s)
            plan.run()
            grants.update(plan.grants())
    return grants


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _Ask(NamedTuple):
    """A place for one worker: of demand `who`, `units` GPUs; `kept` means one of its running pods."""

    who: int
    units: int
    kept: bool


class _Ground:
    """Nodes that have one resource, as bits of masks, and what is held there."""

    def __init__(self, pool: Pool, resource: str, demands: Sequence[Demand]) -> None:
        self.demands = demands
        numbers = {demand.key: number for number, demand in enumerate(demands)}
        pods = [pod for pod in pool.pods.values() if pod.node in pool.nodes and pod.asks(resource)]
        busy = {pod.node for pod in pods}
        nodes = [node for name, node in sorted(pool.nodes.items()) if node.offers(resource) or name in busy]
        at = {node.name: number for number, node in enumerate(nodes)}
        self.offered = [node.offers(resource) for node in nodes]
        self.free = list(self.offered)
        self.holders: list[dict[Key | None, tuple[int, int]]] = [{} for _ in nodes]
        self.running: list[dict[int, list[Pod]]] = [{} for _ in demands]
        self.terminating = [0 for _ in demands]
        ours = [0] * len(nodes)
        for pod in sorted(pods, key=lambda pod: pod.uid):
            node, units = at[pod.node or ""], pod.asks(resource)
            self.free[node] -= units
            workers, gpus = self.holders[node].get(pod.pipeline, (0, 0))
            self.holders[node][pod.pipeline] = (workers + 1, gpus + units)
            if pod.pipeline is not None and (who := numbers.get(pod.pipeline)) is not None:
                ours[node] += units
                if pod.terminating:
                    self.terminating[who] += 1
                else:
                    self.running[who].setdefault(node, []).append(pod)
        # A device plugin that restarts offers nothing for a moment: what runs there stays, and nothing is added.
        closed = sum(1 << node for node, free in enumerate(self.free) if free < 0)
        self.free = [max(0, free) for free in self.free]
        self.room = [free + own for free, own in zip(self.free, ours, strict=True)]
        same: dict[str, int] = {}
        self.masks: list[int] = []
        for demand in demands:
            placement = demand.placement()
            if placement not in same:
                same[placement] = sum(1 << at[node.name] for node in nodes if admits(node, demand))
            self.masks.append(same[placement])
        self.open = ~closed
        self.resource = resource
        self.units = [
            dict.fromkeys(pod.asks(resource) for each in own.values() for pod in each) for own in self.running
        ]
        self._sums: dict[tuple[int, int], tuple[int, int, dict[Key | None, tuple[int, int]], list[Key]]] = {}

    def parts(self) -> list[list[int]]:
        """Demands, by number, in groups that share no node."""
        parts: list[tuple[int, list[int]]] = []
        for who, mask in enumerate(self.masks):
            reach = mask | sum(1 << node for node in self.running[who] if not mask >> node & 1)
            joined = [part for part in parts if part[0] & reach]
            parts = [part for part in parts if not part[0] & reach]
            for nodes, members in joined:
                reach |= nodes
                joined[0][1].extend(members if members is not joined[0][1] else ())
            parts.append((reach, [*(joined[0][1] if joined else ()), who]))
        return [sorted(members) for _, members in parts]

    def sums(self, mask: int, count: int) -> tuple[int, int, dict[Key | None, tuple[int, int]], list[Key]]:
        """On these nodes: GPUs offered, workers that fit now, who holds (pods, GPUs), who of the pipelines most."""
        if (mask, count) not in self._sums:
            held: dict[Key | None, tuple[int, int]] = {}
            offered = fits = 0
            for node in _bits(mask):
                offered += self.offered[node]
                fits += self.free[node] // count
                for key, (workers, gpus) in self.holders[node].items():
                    more = held.get(key, (0, 0))
                    held[key] = (more[0] + workers, more[1] + gpus)
            most = heapq.nsmallest(_NAMED + 1, (key for key in held if key is not None), key=lambda k: (-held[k][1], k))
            self._sums[mask, count] = (offered, fits, held, most)
        return self._sums[mask, count]


class _Places:
    """Who is planned where; and how one more can be, by moving others.

    `room`: GPUs left on each node. `first`: what of them is free now, used up first. `options`: the nodes of each ask.
    `limits`: how many may be kept on each node.
    """

    def __init__(
        self, room: list[int], first: list[int], options: Mapping[_Ask, int], limits: Mapping[_Ask, Mapping[int, int]]
    ):
        self.room, self._first = room, first
        self._options, self._limits = dict(options), limits
        sizes = sorted({ask.units for ask in options})
        self.smallest = sizes[0] if sizes else 1
        self.uniform = len(sizes) < 2
        self._wide = {size: sum(1 << node for node, left in enumerate(room) if left >= size) for size in sizes}
        self._now = {size: sum(1 << node for node, left in enumerate(first) if left >= size) for size in sizes}
        self.planned: list[dict[_Ask, int]] = [{} for _ in room]
        self._dead = 0
        self._refused: set[tuple[int, int]] = set()

    def place(self, ask: _Ask) -> bool:
        """Plan one more, if there is a way."""
        options = self._options[ask] & ~self._dead
        if not options or (options, ask.units) in self._refused:
            return False
        if self._chain(ask) or (not self.uniform and self._clear(ask)):
            return True
        self._refused.add((options, ask.units))
        return False

    def put(self, ask: _Ask, node: int, number: int = 1) -> None:
        """Plan `number` more (or fewer) on a node."""
        planned = self.planned[node].get(ask, 0) + number
        if planned:
            self.planned[node][ask] = planned
        else:
            del self.planned[node][ask]
        self.room[node] -= ask.units * number
        if not ask.kept:
            self._first[node] -= ask.units * number
        bit = 1 << node
        for masks, left in ((self._wide, self.room[node]), (self._now, self._first[node])):
            for size in masks:
                masks[size] = masks[size] | bit if left >= size else masks[size] & ~bit
        if ask.kept:
            spare = planned < self._limits[ask][node]
            self._options[ask] = self._options[ask] | bit if spare else self._options[ask] & ~bit

    def _chain(self, ask: _Ask) -> bool:
        """Breadth first: each may take the place of one that finds another."""
        seen = self._dead
        came: dict[int, tuple[_Ask, int]] = {}
        known = {ask}
        queue = deque([(ask, -1)])
        while queue:
            mover, at = queue.popleft()
            options = self._options[mover] & ~seen
            if wide := options & self._wide[mover.units]:
                to = self._best(mover, wide)
                while at >= 0:
                    self.put(mover, at, -1)
                    self.put(mover, to)
                    to = at
                    mover, at = came[at]
                self.put(mover, to)
                return True
            seen |= options
            for node in _bits(options):
                came[node] = (mover, at)
                missing = mover.units - self.room[node]
                for other in self.planned[node]:
                    if other.units >= missing and other not in known:
                        known.add(other)
                        queue.append((other, node))
        if ask.units == self.smallest:
            # No way leads out of what was reached, and none will: room only gets less.
            self._dead = seen
        return False

    def _clear(self, ask: _Ask) -> bool:
        """Make room on one node by moving several to where there is room already."""
        if not self._wide[self.smallest]:
            return False
        for node in sorted(_bits(self._options[ask]), key=lambda node: (-self.room[node], node)):
            moved: list[tuple[_Ask, int]] = []
            for other in sorted(self.planned[node], key=lambda other: (-other.units, other)):
                while self.room[node] < ask.units and other in self.planned[node]:
                    wide = self._options[other] & self._wide[other.units] & ~(1 << node)
                    if not wide:
                        break
                    to = self._best(other, wide)
                    self.put(other, node, -1)
                    self.put(other, to)
                    moved.append((other, to))
            if self.room[node] >= ask.units:
                self.put(ask, node)
                return True
            for other, to in reversed(moved):
                self.put(other, to, -1)
                self.put(other, node)
        return False

    def _best(self, ask: _Ask, wide: int) -> int:
        # What is free now comes first; a tight fit leaves room for those that ask for more.
        if not ask.kept:
            wide = wide & self._now[ask.units] or wide
        if self.uniform:
            return (wide & -wide).bit_length() - 1
        return min(_bits(wide), key=lambda node: (self.room[node], node))


class _Plan:
    """The grants of demands whose pools overlap."""

    def __init__(self, ground: _Ground, members: Sequence[int], before: Grants, now: float, hold_s: float) -> None:
        self._ground, self._members, self._before, self._now = ground, members, before, now
        self._hold_s = hold_s
        self._granted = dict.fromkeys(members, 0)
        self._kept = dict.fromkeys(members, 0)
        self._keeps: dict[int, list[_Ask]] = {}
        self._runs: dict[int, int] = {}
        self._had: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self._stable: dict[int, int] = {}
        self._since: dict[int, float] = {}
        self._order: list[int] = []
        self._ready: dict[int, int] = dict.fromkeys(members, 0)
        self._limits: dict[_Ask, dict[int, int]] = {}
        for who in members:
            demand, own = ground.demands[who], ground.running[who]
            self._keeps[who] = [_Ask(who, units, True) for units in sorted(ground.units[who])]
            self._runs[who] = sum(len(pods) for pods in own.values())
            for ask in self._keeps[who]:
                numbers = {
                    node: sum(pod.asks(ground.resource) == ask.units for pod in pods) for node, pods in own.items()
                }
                self._limits[ask] = {node: number for node, number in numbers.items() if number}
            last = before.get(demand.key)
            had = demand.current if last is None else last.slots
            self._since[who] = now if last is None else last.since
            self._had[who] = had
            self._held[who] = had if last is not None and now - last.since < hold_s else 0
            self._stable[who] = max(had, self._runs[who])
        options = {ask: sum(1 << node for node in nodes) for ask, nodes in self._limits.items()}
        options |= {self._new(who): ground.masks[who] & ground.open for who in members}
        self._options = options
        self._places = _Places(list(ground.room), list(ground.free), options, self._limits)

    def run(self) -> None:
        """Plan all that can be had, then find out what of it can be had now."""
        demands = self._ground.demands
        heap = [(self._rank(who), who) for who in self._members if demands[who].wanted]
        heapq.heapify(heap)
        while heap:
            _, who = heapq.heappop(heap)
            if self._serve(who):
                self._granted[who] += 1
            elif not self._keeps[who]:
                continue
            else:
                # What runs can't be kept: from here on it asks like one that has none running.
                self._keeps[who] = []
                self._stable[who] = 0
            if self._granted[who] < demands[who].wanted:
                heapq.heappush(heap, (self._rank(who), who))
        self._divide()

    def _new(self, who: int) -> _Ask:
        return _Ask(who, self._ground.demands[who].count, False)

    def _rank(self, who: int) -> tuple[int, int, float, bool, float, Key]:
        """Lower is served earlier."""
        demand, granted = self._ground.demands[who], self._granted[who]
        new = granted >= self._stable[who]
        if granted == 0:
            tier, share = 0, 0.0 if demand.minimum else 1.0
        elif granted < demand.minimum:
            tier, share = 1, granted / (demand.weight * demand.minimum)
        else:
            tier, share = (2 if granted < self._held[who] else 3), granted / (demand.weight * demand.wanted)
        return -demand.priority, tier, share * (1.0 if new or not tier else _NEAR), new, self._since[who], demand.key

    def _serve(self, who: int) -> bool:
        if self._keeps[who] and self._kept[who] < self._runs[who]:
            if any(self._places.place(ask) for ask in self._keeps[who]):
                self._kept[who] += 1
                return True
            return False
        self._keeps[who] = []
        if self._places.place(self._new(who)):
            self._order.append(who)
            return True
        return False

    def _divide(self) -> None:
        """Which of the new workers fit into what is free now, without taking what the plan has for others."""
        planned = self._places.planned
        spots: dict[int, dict[int, int]] = {who: {} for who in self._members}
        for node, asks in enumerate(planned):
            for ask, number in asks.items():
                if not ask.kept:
                    spots[ask.who][node] = number
        free = list(self._ground.free)
        there: list[tuple[_Ask, int]] = []
        waiting: list[_Ask] = []
        for who in self._order:
            if self._kept[who] < self._runs[who]:
                continue
            ask = self._new(who)
            for node, number in spots[who].items():
                if number and free[node] >= ask.units:
                    spots[who][node] -= 1
                    free[node] -= ask.units
                    there.append((ask, node))
                    break
            else:
                waiting.append(ask)
        # Others may move aside, to what is free now and not planned for anyone else.
        room = [min(pair) for pair in zip(free, self._places.room, strict=True)]
        for ask, node in there:
            room[node] += ask.units
        options = {ask: nodes for ask, nodes in self._options.items() if not ask.kept}
        places = _Places(room, list(room), options, {})
        for ask, node in there:
            places.put(ask, node)
        for ask in [each for each, _ in there] + [each for each in waiting if places.place(each)]:
            self._ready[ask.who] += 1
        self._stagger()

    def _stagger(self) -> None:
        """Let those with less choice start first where the scheduler, which knows no plan, might put others in the way.

        Only while their grant is new: pods that have no node after that wait for something else.
        """
        kinds: dict[tuple[int, int], list[int]] = {}
        for who in self._members:
            if self._ready[who]:
                kinds.setdefault((self._ground.demands[who].count, self._ground.masks[who]), []).append(who)
        if len(kinds) < 2:
            return
        number = {kind: sum(self._ready[who] for who in members) for kind, members in kinds.items()}
        ordered = sorted(kinds, key=lambda kind: (-kind[0], kind[1].bit_count(), kind[1]))
        for index, (count, mask) in enumerate(ordered):
            if not number[count, mask] or not any(self._new_grant(who) for who in kinds[count, mask]):
                continue
            arriving = sum(-(-kind[0] // count) * many for kind, many in number.items() if kind[1] & mask)
            missing = arriving - self._ground.sums(mask, count)[1]
            for kind in reversed(ordered[index + 1 :]):
                if missing <= 0:
                    break
                if kind[1] & mask and number[kind]:
                    spoils = -(-kind[0] // count)
                    later = self._put_off(kinds[kind], -(-missing // spoils))
                    number[kind] -= later
                    missing -= later * spoils

    def _put_off(self, members: Sequence[int], most: int) -> int:
        """Have at most so many of the workers that weren't granted before wait; tells how many do."""
        later = 0
        for who in reversed(members):
            new = self._ready[who] - max(0, self._had[who] - self._kept[who])
            put_off = max(0, min(new, most - later))
            self._ready[who] -= put_off
            later += put_off
        return later

    def _new_grant(self, who: int) -> bool:
        last = self._before.get(self._ground.demands[who].key)
        slots = self._kept[who] + self._ready[who]
        return last is None or last.slots != slots or self._now - last.since < self._hold_s

    def grants(self) -> dict[Key, Grant]:
        """The grants, once the plan is made."""
        for who in self._members:
            # What its own terminating pods give back, as in a rollout, is for those that replace them.
            has = self._kept[who] + self._ready[who]
            missing = min(self._ground.demands[who].current, self._granted[who]) - has
            self._ready[who] += max(0, min(missing, self._ground.terminating[who]))
        coming = {who: self._granted[who] - self._kept[who] - self._ready[who] for who in self._members}
        # Where all may use the same nodes, it doesn't matter whose pod goes where.
        alike = self._places.uniform and len({self._ground.masks[who] for who in self._members}) == 1
        return {
            self._ground.demands[who].key: self._grant(who, coming[who], hint=not alike and any(coming.values()))
            for who in self._members
        }

    def _grant(self, who: int, coming: int, *, hint: bool) -> Grant:
        demand, mask = self._ground.demands[who], self._ground.masks[who]
        offered, free, held, most = self._ground.sums(mask, demand.count)
        outside = [self._ground.holders[n][demand.key][1] for n in self._ground.running[who] if not mask >> n & 1]
        slots = self._kept[who] + self._ready[who]
        last = self._before.get(demand.key)
        return Grant(
            resource=demand.resource,
            count=demand.count,
            slots=slots,
            coming=coming,
            capacity=free + self._runs[who],
            free=free,
            total=offered + sum(outside),
            holders=tuple(_others(demand.key, held, most)),
            leave=tuple(self._leaving(who)) if hint else (),
            since=self._now if last is None or last.slots != slots else last.since,
        )

    def _leaving(self, who: int) -> Iterator[str]:
        for node, pods in sorted(self._ground.running[who].items()):
            for ask in sorted(self._limits):
                if ask.who == who:
                    same = [pod.uid for pod in pods if pod.asks(self._ground.resource) == ask.units]
                    yield from same[self._places.planned[node].get(ask, 0) :]


def _others(own: Key, held: Mapping[Key | None, tuple[int, int]], most: Sequence[Key]) -> Iterator[Holder]:
    named = [key for key in most if key != own][:_NAMED]
    for key in named:
        yield Holder("/".join(key), *held[key])
    if None in held:
        yield Holder("others", *held[None])
    rest = len(held) - len(named) - (None in held) - (own in held)
    if rest:
        known = [held[key] for key in (own, None, *named) if key in held]
        workers, gpus = (sum(each[i] for each in held.values()) - sum(each[i] for each in known) for i in (0, 1))
        yield Holder(f"{rest} more {'pipeline' if rest == 1 else 'pipelines'}", workers, gpus)
