"""What happens in the simulated world: recordings that come in, and what breaks."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One scenario of one or more pipelines that share the GPUs. Times in seconds.

    - `arrivals`: per pipeline, when each recording comes in, and into which partition.
    - `seconds`: of work per recording; `spread`: of its logarithm; `startup`: from asked for, with a GPU, to ready.
    - `poison`: (partition, since): what is in it is tried for ever; `outage`: (from, until) nobody reaches the broker.
    - `settled`: what came before does not count, since everybody starts with the minimum.
    - `changes`: how often the load changes, each time allowing one change of direction.
    - `burst`: whether the goal for bursts and cold starts counts; `polling`: of both autoscalers, None: their defaults.
    """

    name: str
    arrivals: tuple[tuple[tuple[float, int], ...], ...]
    length: float
    gpus: int = 16
    partitions: int = 24
    seconds: float = 2.0
    spread: float = 0.3
    startup: float = 20.0
    minimum: int = 1
    cooldown: float = 300.0
    polling: float | None = None
    poison: tuple[int, float] | None = None
    outage: tuple[float, float] | None = None
    changes: int = 1
    burst: bool = False
    settled: float = 0.0


def at_once(count: int, time: float, partitions: int) -> list[tuple[float, int]]:
    """So many recordings at the same time, dealt out to the partitions."""
    return [(time, number % partitions) for number in range(count)]


def poisson(
    rate: Callable[[float], float], length: float, partitions: int, *, seed: int, most: float
) -> list[tuple[float, int]]:
    """Recordings at random times, `rate(time)` of them per second, never above `most`."""
    rng = random.Random(seed)
    time, found = 0.0, []
    while (time := time + rng.expovariate(most)) < length:
        if rng.random() * most < rate(time):
            found.append((time, rng.randrange(partitions)))
    return found


def after_outage(arrivals: list[tuple[float, int]], outage: tuple[float, float]) -> list[tuple[float, int]]:
    """What cameras could not deliver comes when the broker is back."""
    start, end = outage
    return sorted((end if start <= time < end else time, partition) for time, partition in arrivals)


def traces() -> list[Trace]:
    """All scenarios: the two that were seen on the test bed with the real KEDA, then the others."""
    bed = Trace(
        name="",
        arrivals=(),
        length=240,
        partitions=16,
        seconds=1,
        spread=0,
        startup=5,
        minimum=0,
        cooldown=30,
        polling=5,
    )
    first = replace(
        bed, name="240 at once from zero, 16 GPUs", arrivals=(tuple(at_once(240, 20, 16)),), changes=2, burst=True
    )
    twice = at_once(60, 20, 8) + at_once(120, 80, 8)
    second = replace(
        bed,
        name="60 at once, 120 a minute later, 4 GPUs",
        arrivals=(tuple(twice),),
        gpus=4,
        partitions=8,
        changes=4,
        burst=True,
    )
    return [first, second, *_everyday(), _poison(), _outage(), _shortage()]


def _everyday() -> list[Trace]:
    hour = 3600.0

    def curve(time: float) -> float:
        return 2.6 - 2.5 * math.cos(2 * math.pi * time / (4 * hour))

    def rush(time: float) -> float:
        return 5.0 if 900 <= time < 1800 else 0.5

    return [
        Trace(
            name="steady, 1.5/s",
            arrivals=(tuple(poisson(lambda _: 1.5, hour, 24, seed=1, most=2)),),
            length=hour,
            settled=600,
        ),
        Trace(
            name="slow: 20 s each, 0.25/s",
            arrivals=(tuple(poisson(lambda _: 0.25, 2 * hour, 24, seed=7, most=1)),),
            length=2 * hour,
            seconds=20,
            startup=60,
            settled=1200,
        ),
        Trace(
            name="daily curve in 4 h, 0.1 to 5.1/s",
            arrivals=(tuple(poisson(curve, 4 * hour, 24, seed=2, most=5.2)),),
            length=4 * hour,
            settled=600,
            changes=2,
        ),
        Trace(
            name="rush hour, 0.5 to 5/s",
            arrivals=(tuple(poisson(rush, hour, 24, seed=3, most=5)),),
            length=hour,
            settled=600,
            changes=2,
            burst=True,
        ),
        Trace(
            name="cold start, 600 at once",
            arrivals=(tuple(at_once(600, 60, 24)),),
            length=900,
            minimum=0,
            changes=2,
            burst=True,
        ),
    ]


def _poison() -> Trace:
    arrivals = poisson(lambda _: 1.0, 2700, 8, seed=4, most=1)
    return Trace(
        name="one poison camera of 8",
        arrivals=(tuple(arrivals),),
        length=2700,
        partitions=8,
        poison=(3, 900.0),
        settled=600,
        changes=1,
    )


def _outage() -> Trace:
    gone = (1200.0, 1500.0)
    arrivals = after_outage(poisson(lambda _: 1.5, 3000, 24, seed=5, most=1.5), gone)
    return Trace(
        name="broker away for 5 min, 1.5/s",
        arrivals=(tuple(arrivals),),
        length=3000,
        outage=gone,
        settled=600,
        changes=2,
        burst=True,
    )


def _shortage() -> Trace:
    def surge(start: float) -> Callable[[float], float]:
        return lambda time: 3.0 if start <= time < start + 600 else 0.3

    return Trace(
        name="three pipelines, 8 GPUs",
        arrivals=tuple(
            tuple(poisson(surge(start), 3000, 12, seed=6 + number, most=3))
            for number, start in enumerate((600.0, 900.0, 1200.0))
        ),
        length=3000,
        gpus=8,
        partitions=12,
        # Of each pipeline: its own surge begins and ends, and so do two others', for the same GPUs.
        changes=6,
        settled=300,
    )
