"""Who scales: ours, a model of KEDA and the HPA, and the clairvoyant floor."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from benchmarks.simulator.traces import Trace
from benchmarks.simulator.world import Pipeline, World
from vaultml_operator.api import Autoscaling
from vaultml_operator.autoscaler.decide import decide
from vaultml_operator.autoscaler.rates import Rates, Sample, started, update
from vaultml_operator.autoscaler.records import Backlog, Decision, History, Observation

Scaler = Callable[[Pipeline], float]

_STUCK = 120.0
"""Seconds after which a partition that does not move, while others do, counts as stuck."""


class Ours:
    """The real `decide` and `rates`, fed as the operator feeds them. Keeps every decision."""

    def __init__(self, trace: Trace, policy: Autoscaling | None = None) -> None:
        asked = {"min_replicas": trace.minimum, "cooldown_seconds": trace.cooldown}
        polling = {} if trace.polling is None else {"polling_seconds": trace.polling}
        self.policy = (policy or Autoscaling()).model_copy(update=asked | polling)
        self.trace, self.decisions = trace, list[tuple[float, int, Decision]]()
        self._history: dict[int, History] = {}
        self._rates: dict[int, Rates] = {}
        self._before: dict[int, Sample] = {}

    def __call__(self, pipeline: Pipeline) -> float:
        """One poll of one pipeline."""
        number, now = pipeline.number, pipeline.world.now
        if not pipeline.world.away:
            self._measure(pipeline)
        rates = self._rates.get(number, Rates())
        seen = Observation(
            backlog=None if pipeline.world.away else self._backlog(pipeline),
            trouble="broker away" if pipeline.world.away else "",
            arrival=rates.arrival,
            service=rates.service,
            replicas=pipeline.wanted,
            ready=len(pipeline.ready),
            startup_seconds=rates.startup_seconds,
            slots=self._slots(pipeline),
        )
        decision = decide(self.policy, seen, self._history.get(number, History()), now)
        self.decisions.append((now, number, decision))
        self._history[number] = decision.history
        # What it would have without the others: calmer than the need itself, as a share should be.
        pipeline.need = next((each.before for each in decision.limits if each.name == "gpus"), decision.replicas)
        pipeline.scale(decision.replicas)
        return decision.next_poll_seconds

    def _measure(self, pipeline: Pipeline) -> None:
        sample = Sample(
            time=pipeline.world.now,
            end=pipeline.end,
            done=pipeline.end - pipeline.lag,
            lag=pipeline.lag,
            busy=pipeline.busy,
            ready=len(pipeline.ready),
            partitions=len(pipeline.partitions),
        )
        rates = update(self._rates.get(pipeline.number, Rates()), self._before.get(pipeline.number), sample)
        while pipeline.startups:
            rates = started(rates, pipeline.startups.pop(0))
        self._rates[pipeline.number], self._before[pipeline.number] = rates, sample

    def _backlog(self, pipeline: Pipeline) -> Backlog:
        now, lagging = pipeline.world.now, [each for each in pipeline.partitions if each.waiting]
        since = max(each.moved for each in pipeline.partitions)
        stuck = [
            each
            for each in lagging
            if min(since - each.moved, now - each.waiting[0]) > _STUCK and now - since < _STUCK and pipeline.ready
        ]
        oldest = [now - each.waiting[0] for each in lagging if each not in stuck]
        return Backlog(
            lag=pipeline.lag,
            oldest_seconds=max(oldest, default=None),
            parallelism=len(pipeline.partitions),
            lagging=len(lagging),
            stuck=sum(len(each.waiting) for each in stuck),
            stuck_partitions=len(stuck),
            end=pipeline.end,
        )

    def _slots(self, pipeline: Pipeline) -> int:
        """Its share of the GPUs and what nobody claims."""
        needs = {each.number: each.need for each in pipeline.world.pipelines}
        shares = fair(needs, self.trace.gpus)
        return shares[pipeline.number] + self.trace.gpus - sum(shares.values())


def fair(needs: Mapping[int, int], slots: int) -> dict[int, int]:
    """Max-min fair whole shares."""
    shares = dict.fromkeys(needs, 0)
    while slots > 0 and (hungry := [each for each in needs if shares[each] < needs[each]]):
        poorest = min(hungry, key=lambda each: (shares[each], each))
        shares[poorest] += 1
        slots -= 1
    return shares


class Keda:
    """KEDA's loop for 0 and 1, the HPA's for the rest: 15 s, 10 %, max(double, 4), highest of 300 s."""

    def __init__(self, trace: Trace, threshold: int) -> None:
        self.trace, self.threshold = trace, threshold
        self._polling = trace.polling or 30.0
        self._tick = math.gcd(round(self._polling), 15)
        self._active: dict[int, float] = {}
        self._advice: dict[int, list[tuple[float, int]]] = {}
        self._ticks: dict[int, int] = {}

    def __call__(self, pipeline: Pipeline) -> float:
        """One tick; each loop runs at its own multiple."""
        number = pipeline.number
        tick = self._ticks[number] = self._ticks.get(number, -1) + 1
        if not pipeline.world.away:
            if tick * self._tick % self._polling == 0:
                self._keda(pipeline)
            if tick * self._tick % 15 == 0 and pipeline.wanted > 0:
                self._hpa(pipeline)
        return self._tick

    def _keda(self, pipeline: Pipeline) -> None:
        now = pipeline.world.now
        if pipeline.lag > 0:
            self._active[pipeline.number] = now
            if pipeline.wanted == 0:
                pipeline.scale(1)
        elif now - self._active.get(pipeline.number, now) >= self.trace.cooldown and self.trace.minimum == 0:
            self._advice.pop(pipeline.number, None)
            if pipeline.wanted > 0:
                pipeline.scale(0)

    def _hpa(self, pipeline: Pipeline) -> None:
        now, current = pipeline.world.now, pipeline.wanted
        lag = min(pipeline.lag, len(pipeline.partitions) * self.threshold)
        ratio = lag / (self.threshold * current)
        advice = current if abs(1 - ratio) <= 0.1 else math.ceil(lag / self.threshold)
        past = [each for each in self._advice.get(pipeline.number, []) if now - each[0] <= 300]
        self._advice[pipeline.number] = past = [*past, (now, advice)]
        wanted = max(each[1] for each in past) if advice < current else advice
        wanted = min(wanted, current) if advice < current else min(wanted, max(2 * current, 4))
        pipeline.scale(min(max(wanted, 1), self.trace.gpus))


class Keeper:
    """The best that can be done by who sees everything at once, but not ahead, and keeps some workers between bursts.

    As many workers as there is work for; `kept` while there is none; none once nothing will come any more.
    """

    def __init__(self, trace: Trace, kept: int) -> None:
        self.trace, self.kept = trace, kept
        self._last = max(time for time, _ in trace.arrivals[0])

    def __call__(self, pipeline: Pipeline) -> float:
        """Ten times a second."""
        over = pipeline.world.now > self._last
        began = bool(pipeline.end)
        least = self.kept if began and not over else 0
        pipeline.scale(min(max(pipeline.lag, least), self.trace.gpus))
        return 0.1


def floor(trace: Trace) -> World:
    """The clairvoyant: all workers that the GPUs and partitions allow, ready when the first recording's would be.

    Pipelines are one here, so that each GPU serves whom it likes without starting anew.
    """
    merged = sorted(
        (time, number * trace.partitions + partition)
        for number, arrivals in enumerate(trace.arrivals)
        for time, partition in arrivals
    )
    partitions = trace.partitions * len(trace.arrivals)
    poison = trace.poison
    world = World(replace(trace, arrivals=(tuple(merged),), partitions=partitions, poison=poison), 0)
    all_of_them = min(trace.gpus, partitions)
    start = max(merged[0][0] - (trace.startup if trace.minimum else 0), 0.0)

    def once(pipeline: Pipeline) -> float:
        if pipeline.wanted == 0:
            pipeline.scale(all_of_them)
        return trace.length

    world.run(once, (start,))
    return world
