"""How long recordings wait and what that costs, under `decide`, a model of KEDA with the HPA, and a clairvoyant."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.measure import table
from benchmarks.simulator import plots
from benchmarks.simulator.contenders import Keda, Keeper, Ours, floor
from benchmarks.simulator.traces import Trace, traces
from benchmarks.simulator.world import World

PLOTS = Path(__file__).parents[1] / "plots"
THRESHOLDS = (1, 2, 3, 5, 10, 20)
"""The lag thresholds that KEDA may choose from, anew for each trace."""
EXCESS, BURST_EXCESS, SPENT = 1.0, 0.3, 0.7
"""Goals: our share of KEDA's excess p95, elsewhere and on bursts, and of its GPU-seconds."""
SEEN = (("240 at once", 65.7, 998.0), ("60 at once", 34.6, 415.0))
"""What the real KEDA did on the test bed: the trace, p95 in seconds, GPU-seconds."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Seconds from arrival to result, GPU-seconds, and the most turns (in to out, or back) of one pipeline."""

    label: str
    p50: float
    p95: float
    longest: float
    gpu_seconds: float
    turns: int


def run(_footage: Path | None) -> str:
    """Simulate all traces, write the plots; gives Markdown."""
    rows, seen = [], []
    for trace in traces():
        ours, keda, best = measure(trace)
        rows.append(_row(trace, ours, keda, best))
        for name, p95, spent in SEEN:
            if trace.name.startswith(name):
                seen.append(_seen(name, "ours", p95, spent, ours, best))
                seen += [_seen(name, each.label, p95, spent, each, best) for each in keepers(trace)]
    header = ["trace", "floor p95", "ours p50 / p95 / max", "GPU-s", "turns (allowed)", "KEDA at its fastest"]
    header += ["GPU-s, turns", "excess", "GPU-s", "goal", "KEDA at our price", "excess"]
    return (
        "Simulated seconds from arrival to result, seeded. The floor is a clairvoyant that has every GPU from the "
        "first recording on. KEDA with the HPA is a model of its documented loops, at the lag threshold (of "
        f"{', '.join(map(str, THRESHOLDS))}) with the shortest p95 of each trace, of those within 10 % the cheapest; "
        "and at the one whose GPU-seconds are nearest to ours. Ours is the operator's `decide` with its defaults. "
        f"Excess: p95 over the floor, ours / KEDA's; goals {EXCESS}, on bursts and cold starts (*) {BURST_EXCESS}, at "
        f"{SPENT} of the GPU-seconds. Turns: changes of direction; allowed is one per change of the load. Plots are "
        f"in `{PLOTS.relative_to(Path(__file__).parents[2])}`.\n\n"
        f"{table(header, rows)}\n\nBeside what the real KEDA 2.21 did on the test bed; and whether "
        "anybody could do better who learns of a burst when it comes, sees it at once, keeps so many workers between "
        "bursts, and none after the last:\n\n"
        f"{table(['trace', 'KEDA p95, GPU-s', 'contender', 'p95, GPU-s', 'excess', 'GPU-s', 'goal'], seen)}"
    )


def measure(trace: Trace) -> tuple[Outcome, list[Outcome], Outcome]:
    """Ours, KEDA at each threshold, and the floor; writes the plot."""
    mine = World(trace, trace.minimum)
    mine.run(Ours(trace))
    worlds = [World(trace, trace.minimum) for _ in THRESHOLDS]
    for world, threshold in zip(worlds, THRESHOLDS, strict=True):
        world.run(Keda(trace, threshold))
    keda = [outcome(world, f"lag {threshold}") for world, threshold in zip(worlds, THRESHOLDS, strict=True)]
    _plot(trace, mine, worlds[keda.index(fastest(keda))])
    return outcome(mine, "ours"), keda, outcome(floor(trace), "floor")


def keepers(trace: Trace) -> list[Outcome]:
    """What nobody can do better without seeing ahead, for some numbers of workers kept between bursts."""
    outcomes = []
    for kept in (0, trace.gpus // 2, trace.gpus * 3 // 4, trace.gpus):
        world = World(trace, 0)
        world.run(Keeper(trace, kept))
        outcomes.append(outcome(world, f"{kept} kept"))
    return outcomes


def outcome(world: World, label: str) -> Outcome:
    """What came of a world that has run."""
    waits = sorted(wait for each in world.pipelines for wait in each.waits)
    if not waits:
        raise ValueError(f"nothing was done in {world.trace.name!r}")
    return Outcome(
        label=label,
        p50=waits[len(waits) // 2],
        p95=waits[min(int(len(waits) * 0.95), len(waits) - 1)],
        longest=waits[-1],
        gpu_seconds=world.gpu_seconds,
        turns=max(turns(each.replicas, world.trace.settled) for each in world.pipelines),
    )


def turns(replicas: Sequence[tuple[float, int]], since: float = 0.0) -> int:
    """How often a number went up after it had gone down, or down after up, from `since` on."""
    moves = [after - before for (_, before), (time, after) in pairwise(replicas) if time >= since]
    return sum(before * after < 0 for before, after in pairwise(moves))


def fastest(keda: Sequence[Outcome]) -> Outcome:
    """The shortest p95; of those within 10 % of it, the cheapest."""
    shortest = min(each.p95 for each in keda)
    return min((each for each in keda if each.p95 <= 1.1 * shortest), key=lambda each: each.gpu_seconds)


def _row(trace: Trace, ours: Outcome, keda: Sequence[Outcome], best: Outcome) -> list[str]:
    quick = fastest(keda)
    price = min(keda, key=lambda each: abs(each.gpu_seconds - ours.gpu_seconds))
    excess, spent = _excess(ours.p95, quick.p95, best), ours.gpu_seconds / quick.gpu_seconds
    return [
        f"{trace.name}{' *' if trace.burst else ''}",
        f"{best.p95:.1f}",
        f"{ours.p50:.1f} / {ours.p95:.1f} / {ours.longest:.1f}",
        f"{ours.gpu_seconds:.0f}",
        f"{ours.turns} ({trace.changes})",
        f"{quick.label}: {quick.p50:.1f} / {quick.p95:.1f} / {quick.longest:.1f}",
        f"{quick.gpu_seconds:.0f}, {quick.turns}",
        _ratio(excess),
        f"{spent:.2f}",
        _verdict(excess, spent, trace.burst, ours.turns <= trace.changes),
        f"{price.label}: p95 {price.p95:.1f}, {price.gpu_seconds:.0f}, {price.turns}",
        _ratio(_excess(ours.p95, price.p95, best)),
    ]


def _seen(name: str, label: str, p95: float, spent: float, ours: Outcome, best: Outcome) -> list[str]:
    excess, share = _excess(ours.p95, p95, best), ours.gpu_seconds / spent
    return [
        name,
        f"{p95:.1f}, {spent:.0f}",
        label,
        f"{ours.p95:.1f}, {ours.gpu_seconds:.0f}",
        _ratio(excess),
        f"{share:.2f}",
        _verdict(excess, share, burst=True, calm=True),
    ]


def _excess(ours: float, theirs: float, best: Outcome) -> float | None:
    """None: there is none of KEDA's to compare with, it is within a tenth of a second of the floor."""
    return (ours - best.p95) / (theirs - best.p95) if theirs - best.p95 > 0.1 else None


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _verdict(excess: float | None, spent: float, burst: bool, calm: bool) -> str:
    missed = [
        what
        for what, met in (
            ("wait", excess is not None and excess <= (BURST_EXCESS if burst else EXCESS)),
            ("GPU-s", spent <= SPENT),
            ("turns", calm),
        )
        if not met
    ]
    return f"missed: {', '.join(missed)}" if missed else "met"


def _plot(trace: Trace, mine: World, theirs: World) -> None:
    PLOTS.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", trace.name.lower()).strip("-")
    workers = {
        label: plots.steps(world.pipelines[0].replicas, trace.length)
        for label, world in (("ours", mine), ("KEDA", theirs))
    }
    waiting: dict[str, plots.Line] = {"ours": mine.lags, "KEDA": theirs.lags}
    first = " of the first" if len(trace.arrivals) > 1 else ""
    panels = {"recordings waiting": waiting, f"workers asked for{first}": workers}
    plots.write(PLOTS / f"{name}.svg", trace.name, panels, trace.length)
