"""What a decision is made from, besides the spec, and what it is."""

from dataclasses import dataclass
from typing import Literal

from vaultml_operator.api import AutoscalingStatus

HARD_MAXIMUM = 1000
"""No pipeline gets more workers than this, whatever its spec says."""

Rule = Literal[
    "startup",
    "vault",
    "activation",
    "cooldown",
    "tolerance",
    "scaleOutWindow",
    "scaleInWindow",
    "scaleOutRate",
    "scaleInRate",
    "partitions",
    "evenPartitions",
    "min",
    "max",
    "paused",
    "gpus",
]


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """One successful reading of the queue.

    - `lag`: recordings that wait, those in work included.
    - `oldest_seconds`: age of the oldest of them, leaving out stuck partitions; None: unknown.
    - `parallelism`: partitions; None: unbounded.
    - `lagging`: partitions in which something waits; None: unknown.
    - `stuck`: the part of `lag` that sits in `stuck_partitions`, which do not move although others do: each needs one
      worker, however much waits behind.
    - `end`: sum of the log ends; growth is activity even though nothing waits. None: the queue does not tell.
    """

    lag: int
    oldest_seconds: float | None = None
    parallelism: int | None = None
    lagging: int | None = None
    stuck: int = 0
    stuck_partitions: int = 0
    end: int | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one poll saw. A rate that is not a positive number is unknown.

    - `backlog`: None when the reading failed; `trouble` says why.
    - `arrival`: recordings that arrive per second; `service`: recordings per second and busy worker.
    - `replicas`: workers asked for now; `ready`: those that work.
    - `startup_seconds`: from asked for to ready, as measured.
    - `slots`: workers of this pipeline that the GPUs allow at all, those running included; None: no bound. `holders`
      says who has the rest. `bound`: what bounds them, where it is not GPUs.
    - `vault_error`: why no recording can be downloaded, where Vault fails and none was finished lately; else empty.
    - `pause_scale_in`, `pause_scale_out`: the annotations that keep the number from going that way.
    """

    backlog: Backlog | None
    trouble: str = ""
    arrival: float | None = None
    service: float | None = None
    replicas: int
    ready: int = 0
    startup_seconds: float | None = None
    slots: int | None = None
    holders: str = ""
    bound: str = "GPUs"
    vault_error: str = ""
    pause_scale_in: bool = False
    pause_scale_out: bool = False


@dataclass(frozen=True, kw_only=True)
class History:
    """What earlier polls leave to the next. Times are the caller's `now`: seconds of a wall clock.

    - `time`, `replicas`, `end`: of the last poll; all None at the first.
    - `last_active`: when something last waited or arrived; `failures`: failed readings in a row.
    - `needs`: (time, workers needed), oldest first; `steps`: (time, workers added or removed).
    """

    time: float | None = None
    replicas: int | None = None
    end: int | None = None
    last_active: float | None = None
    failures: int = 0
    needs: tuple[tuple[float, int], ...] = ()
    steps: tuple[tuple[float, int], ...] = ()

    @classmethod
    def from_status(cls, status: AutoscalingStatus) -> "History":
        """What a restarted operator finds in `.status.autoscaling`."""
        last = status.last_active
        return cls(last_active=float(last) if last is not None and abs(last) < 1e15 else None)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One rule that changed the number, from `before` to `after`, and a phrase with its numbers."""

    name: Rule
    before: int
    after: int
    phrase: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How many workers to ask for, and why.

    - `needed`: before any limit; None: a reading failed and there is no fallback for it (yet).
    - `reason`: one sentence; `limits`: in the order they bit; `steps`: what each rule said.
    - `next_poll_seconds`: when to look again; `history`: to be given to that poll.
    """

    replicas: int
    needed: int | None
    reason: str
    limits: tuple[Limit, ...]
    steps: tuple[str, ...]
    next_poll_seconds: float
    history: History
