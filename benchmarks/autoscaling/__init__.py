"""Our operator and the real KEDA with the real HPA, on the same queue, the same GPUs and the same traces."""

import os
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.autoscaling.keda import LAG_THRESHOLD, VERSION, Keda
from benchmarks.autoscaling.ours import DRAIN_SECONDS, LAG_PER_REPLICA, Ours
from benchmarks.autoscaling.scene import POLL_S, Run, play
from benchmarks.measure import table
from benchmarks.simulator import BURST_EXCESS, PLOTS, SPENT, outcome, plots, turns
from benchmarks.simulator.contenders import floor
from benchmarks.simulator.traces import Trace, traces
from testbed.kafka import Broker

ROUNDS = int(os.environ.get("ROUNDS", "3"))
_SHIFT_S = 7.3
"""So much later each round's first recording comes: it meets the loops (of 5 s and 15 s) elsewhere than the last."""


@dataclass(frozen=True, kw_only=True)
class _Result:
    """All runs of a trace, the same number of each, and the p95 that nobody can beat."""

    trace: Trace
    ours: Sequence[Run]
    keda: Sequence[Run]
    floor: float

    def excess(self, runs: Sequence[Run]) -> float:
        """Seconds by which their p95 is above the floor."""
        return _middle([run.quantile(0.95) for run in runs]) - self.floor

    @property
    def waiting(self) -> float:
        """Our excess over KEDA's; above every goal where KEDA has none."""
        theirs = self.excess(self.keda)
        return self.excess(self.ours) / theirs if theirs > 0 else float("inf")

    @property
    def spending(self) -> float:
        """Our GPU-seconds over KEDA's."""
        return _middle([run.gpu_seconds for run in self.ours]) / _middle([run.gpu_seconds for run in self.keda])


def run(_footage: Path | None) -> str:
    """Play both traces with both autoscalers, write the plots; gives Markdown. Takes a quarter of an hour a round."""
    with Broker() as broker:
        results = [_measure(trace, broker) for trace in traces()[:2]]
    first = results[0].trace
    said = ["trace", "autoscaler", "first asked, s", "p50, s", "p95, s", "max, s", "excess p95, s", "GPU-s (of work)"]
    rows = [row for result in results for row in _rows(result)]
    judged = ["trace", "excess p95, ours / KEDA's", "goal", "GPU-s, ours / KEDA's", "goal", "turns", "verdict"]
    return (
        f"The real operator and the real KEDA {VERSION} with the HPA of Kubernetes, each on a control plane of its own "
        "with process nodes, and on a real Kafka. The workers' pods are the same to the last probe; they wait "
        f"{first.startup:g} s, then take {first.seconds:g} s for each recording. Both look each {first.polling:g} s "
        f"and cool down for {first.cooldown:g} s. KEDA: lagThreshold {LAG_THRESHOLD}, maxReplicaCount as many as there "
        f"are GPUs. Ours: lagPerReplica {LAG_PER_REPLICA}, drainSeconds {DRAIN_SECONDS}, nothing known before the "
        f"first recording. Median of {ROUNDS} rounds (least to most), whose first recordings meet the loops elsewhere. "
        "First asked: from the first recording until the Deployment asks for a worker. "
        "Wait: from a recording's timestamp to its commit. GPU-s: of pods that have a node, looked at each "
        f"{POLL_S:g} s, until the last one is gone. Floor: a clairvoyant that holds all GPUs from the first recording "
        "on. Turns: changes of direction. CPU: of this machine, which runs all of it, and its other work.\n\n"
        f"{table([*said, 'turns (allowed)', 'CPU busy, %'], rows)}\n\n"
        f"{table(judged, [_judgement(result) for result in results])}\n\n"
        "Workers asked for, in seconds since the first recording (the middle round by p95; plots are in "
        f"`{PLOTS.relative_to(Path(__file__).parents[2])}`):\n\n"
        f"{table(['trace', 'autoscaler', 'workers'], [row for result in results for row in _histories(result)])}"
    )


def _measure(trace: Trace, broker: Broker) -> _Result:
    ours: list[Run] = []
    keda: list[Run] = []
    for number in range(ROUNDS):
        later = number * _SHIFT_S
        print(f"{trace.name}, round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
        ours.append(play(trace, lambda _: Ours(), broker, later))
        keda.append(play(trace, Keda, broker, later))
    result = _Result(trace=trace, ours=ours, keda=keda, floor=outcome(floor(trace), "floor").p95)
    _plot(result)
    return result


def _rows(result: _Result) -> list[list[str]]:
    trace = result.trace
    work = len(trace.arrivals[0]) * trace.seconds
    best = [trace.name, "the floor", "", "", f"{result.floor:.1f}", "", "0", f"({work:.0f})", "", ""]
    return [
        best,
        *(
            [
                trace.name,
                label,
                _range([run.first_asked for run in runs]),
                *(_range([run.quantile(share) for run in runs]) for share in (0.5, 0.95, 1)),
                f"{result.excess(runs):.1f}",
                f"{_range([run.gpu_seconds for run in runs], 0)} ({work:.0f})",
                f"{_range([turns(run.replicas) for run in runs], 0)} ({trace.changes})",
                _range([100 * run.busy for run in runs], 0),
            ]
            for label, runs in ((Ours.label, result.ours), (Keda.label, result.keda))
        ),
    ]


def _judgement(result: _Result) -> list[str]:
    most = max(turns(run.replicas) for run in result.ours)
    goals = {
        "wait": result.waiting <= BURST_EXCESS,
        "GPU-s": result.spending <= SPENT,
        "turns": most <= result.trace.changes,
    }
    missed = [name for name, met in goals.items() if not met]
    return [
        result.trace.name,
        f"{result.waiting:.2f}",
        f"≤ {BURST_EXCESS}",
        f"{result.spending:.2f}",
        f"≤ {SPENT}",
        f"{most} of {result.trace.changes} allowed",
        f"missed: {', '.join(missed)}" if missed else "met",
    ]


def _histories(result: _Result) -> list[list[str]]:
    rows = []
    for label, runs in ((Ours.label, result.ours), (Keda.label, result.keda)):
        steps = [f"{count} at {time:.0f}" for time, count in _typical(runs).replicas[1:]]
        rows.append([result.trace.name, label, ", ".join(steps)])
    return rows


def _plot(result: _Result) -> None:
    runs = {Ours.label: _typical(result.ours), Keda.label: _typical(result.keda)}
    length = max(run.replicas[-1][0] for run in runs.values()) + 10
    workers = {label: plots.steps([(0, 0), *run.replicas[1:]], length) for label, run in runs.items()}
    name = re.sub(r"[^a-z0-9]+", "-", result.trace.name.lower()).strip("-")
    PLOTS.mkdir(exist_ok=True)
    waiting: dict[str, plots.Line] = {label: run.waiting for label, run in runs.items()}
    panels = {"recordings waiting": waiting, "workers asked for": workers}
    plots.write(PLOTS / f"measured-{name}.svg", f"Measured: {result.trace.name}", panels, length)


def _typical(runs: Sequence[Run]) -> Run:
    """The one in the middle, by p95."""
    return sorted(runs, key=lambda run: run.quantile(0.95))[len(runs) // 2]


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def _range(values: Sequence[float], digits: int = 1) -> str:
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    middle = f"{_middle(values):.{digits}f}"
    return middle if least == most else f"{middle} ({least} to {most})"
