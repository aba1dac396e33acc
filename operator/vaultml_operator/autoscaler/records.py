"""What a decision is made from and what it is: the words of `decide`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

HARD_MAXIMUM = 1000
"""No pipeline gets more workers than this, whatever the policy says."""

Rule = Literal[
    "startup",
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
Behavior = Literal["Static", "Current", "CurrentIfHigher", "CurrentIfLower"]


@dataclass(frozen=True, kw_only=True)
class Direction:
    """How fast the number may go one way.

    - `stabilization_seconds`: out, the lowest need of so many seconds counts; in, the highest. None: out 0; in, as long
      as a worker takes to start (at least a poll, at most 300 s; 30 s while unknown), since an idle worker is worth
      keeping for as long as a new one would take, and 300 s for a step so small that it may be chance.
    - `max_step` workers or `max_percent` of the workers there were, whichever is more, within `period_seconds`; both
      None: no limit.
    """

    stabilization_seconds: float | None = None
    max_step: int | None = None
    max_percent: int | None = None
    period_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """What to want after so many failed readings in a row; before, the number stays.

    Static: `replicas`; Current: what there is; CurrentIfHigher: the more of both; CurrentIfLower: the fewer.
    """

    failures: int = 3
    behavior: Behavior = "Static"
    replicas: int = 1


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the user asks for.

    - `min_replicas`, `max_replicas`: workers; no maximum: what partitions and GPUs allow.
    - `idle_replicas`: workers once nothing has waited for `cooldown_seconds`, at most the minimum; None: the minimum.
    - `lag_per_replica`: recordings waiting per worker, the rule while the service rate is unknown or `drain_seconds` is
      None.
    - `drain_seconds`: nothing shall wait longer than this.
    - `seconds_per_recording`: a first guess, until it is measured.
    - `activation_lag`: up to so many waiting recordings count as nothing.
    - `polling_seconds`, and `idle_polling_seconds` while nothing waits (the smaller of both).
    - `tolerance`: a share of the workers there are; a need so close changes nothing.
    - `even_partitions`: only numbers that divide the partitions.
    - `limit_to_lagging_partitions`: no more workers than partitions in which something waits.
    - `allow_idle_consumers`: more workers than partitions may run.
    - `pause_scale_in`, `pause_scale_out`: the number may not go that way.
    """

    min_replicas: int = 1
    max_replicas: int | None = None
    idle_replicas: int | None = None
    lag_per_replica: int = 10
    drain_seconds: float | None = 60.0
    seconds_per_recording: float | None = None
    activation_lag: int = 0
    polling_seconds: float = 15.0
    idle_polling_seconds: float = 5.0
    cooldown_seconds: float = 300.0
    tolerance: float = 0.1
    scale_out: Direction = field(default_factory=Direction)
    scale_in: Direction = field(default_factory=Direction)
    fallback: Fallback | None = None
    even_partitions: bool = False
    limit_to_lagging_partitions: bool = False
    allow_idle_consumers: bool = False
    pause_scale_in: bool = False
    pause_scale_out: bool = False


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
    def from_status(cls, status: Mapping[str, Any]) -> "History":
        """What a restarted operator finds in `.status.autoscaling`; anything else counts as unknown."""
        last = status.get("lastActive")
        return cls(last_active=float(last) if isinstance(last, int | float) and abs(last) < 1e15 else None)


@dataclass(frozen=True, kw_only=True)
class Clamp:
    """One rule that changed the number, from `before` to `after`, and a phrase with its numbers."""

    name: Rule
    before: int
    after: int
    phrase: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How many workers to ask for, and why.

    - `needed`: before any clamp; None: a reading failed and there is no fallback for it (yet).
    - `reason`: one sentence; `clamps`: in the order they bit; `steps`: what each rule said.
    - `next_poll_seconds`: when to look again; `history`: to be given to that poll.
    """

    replicas: int
    needed: int | None
    reason: str
    clamps: tuple[Clamp, ...]
    steps: tuple[str, ...]
    next_poll_seconds: float
    history: History
