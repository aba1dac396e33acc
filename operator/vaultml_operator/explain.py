"""Pure: the last decision on a pipeline's workers as a short readable account, and what another case would bring."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from vaultml_common.text import counted
from vaultml_operator import api
from vaultml_operator.autoscaler import snapshot
from vaultml_operator.autoscaler.decide import decide
from vaultml_operator.autoscaler.records import Backlog, Decision, History, Observation

_KEYS = ("lag", "oldest", "partitions", "arrival", "service", "startup", "replicas", "ready", "gpus")
_ABOVE_0 = ("partitions", "service")
_HORIZON_S = 24 * 3600.0
_COARSER, _COARSEST_S = 0.01, 60.0
"""What is far ahead is looked at in steps of this share of the time until then, and none that would be taken for a gap
in which nobody looked.
"""


class BadCase(ValueError):  # noqa: N818 - named for what it is about
    """A `--what-if` that can't be read; the message says what to write."""


def parse(what_if: str) -> dict[str, float]:
    """`lag=500,gpus=2` as numbers. Raises BadCase."""
    found = {}
    for part in filter(None, (each.strip() for each in what_if.split(","))):
        name, _, value = part.partition("=")
        if name.strip() not in _KEYS:
            raise BadCase(f"{part!r}: write NAME=NUMBER, comma-separated; names are {', '.join(_KEYS)}")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < 1e12:
            raise BadCase(f"{part!r}: the value must be a number that is not negative")
        if number == 0 and name.strip() in _ABOVE_0:
            raise BadCase(f"{part!r}: the value must be a number above 0")
        found[name.strip()] = number
    return found


def account(body: Mapping[str, Any], what_if: Mapping[str, float] | None = None, now: float = 0.0) -> str:
    """Seen → what each rule did → result, for people. `body` is the resource as the API server gives it."""
    pipeline = api.Pipeline.from_body(dict(body))
    published = api.AutoscalingStatus.read(body)
    head = f"{pipeline.namespace}/{pipeline.name}, mode {pipeline.spec.autoscaling.mode}"
    if pipeline.spec.suspend:
        return f"{head}\nspec.suspend is true: no workers run, and nothing is decided.\n"
    if published.desired_replicas is None and not what_if:
        return f"{head}\nNo decision yet: the operator has not read the queue.\n"
    seen = snapshot.observation(published)
    if what_if:
        case = suppose(seen, what_if, pipeline.spec.worker.gpu.count)
        return "\n".join([head, *_supposed(pipeline.spec.autoscaling, case, published, what_if, now)]) + "\n"
    lines = [head, "", "observed", *_seen(seen, published), "", "decision"]
    lines += [f"  {each}" for each in published.trace or ()]
    lines += ["", "result", f"  {counted(published.desired_replicas or 0, 'worker')}: {published.message or ''}"]
    if pipeline.spec.autoscaling.mode != "Auto":
        mode = pipeline.spec.autoscaling.mode
        lines.append(f"  Not applied: in {mode} mode spec.replicas is used, which is {pipeline.spec.replicas}.")
    return "\n".join(lines) + "\n"


def _seen(seen: Observation, published: api.AutoscalingStatus) -> Iterator[str]:
    backlog = seen.backlog
    if backlog is None:
        yield f"  lag         unknown: {seen.trouble or 'no reading'}"
    else:
        oldest = (
            "" if backlog.oldest_seconds is None else f", oldest message {snapshot.duration(backlog.oldest_seconds)}"
        )
        yield f"  lag         {backlog.lag}{oldest}"
        if backlog.parallelism is not None:
            stuck = f", {backlog.stuck_partitions} stuck" if backlog.stuck_partitions else ""
            yield f"  partitions  {backlog.parallelism}, {backlog.lagging} with a backlog{stuck}"
    yield f"  arrival     {_rate(seen.arrival)}"
    yield f"  speed       {_rate(seen.service)}{'' if seen.service is None else ' per busy worker'}"
    if seen.startup_seconds is not None:
        yield f"  start-up    {seen.startup_seconds:g} s"
    yield f"  workers     {counted(seen.replicas, 'replica')}, {seen.ready} ready"
    if seen.slots is not None:
        yield f"  {seen.bound:<12}for {counted(seen.slots, 'worker')}" + (f" ({seen.holders})" if seen.holders else "")
    if published.dead_letters is not None:
        yield f"  done        {published.processed or 0}, dead letters {published.dead_letters}"


def _supposed(
    policy: api.Autoscaling,
    case: Observation,
    published: api.AutoscalingStatus,
    what_if: Mapping[str, float],
    now: float,
) -> Iterator[str]:
    said = ", ".join(f"{name}={value:g}" for name, value in what_if.items())
    yield from ("", f"assuming {said}", *_seen(case, published))
    first, last, seconds = settle(policy, case, History.from_status(published), now)
    yield from ("", "decision now", *(f"  {each}" for each in first.steps))
    yield from ("", "result", f"  {counted(first.replicas, 'worker')}: {first.reason}")
    if last.replicas != first.replicas:
        yield f"  {counted(last.replicas, 'worker')} after {snapshot.duration(seconds)}, if it stays so: {last.reason}"


def suppose(seen: Observation, what_if: Mapping[str, float], gpus_each: int) -> Observation:
    """What would be seen if these numbers were others; a worker takes `gpus_each` GPUs. Raises BadCase."""
    if "gpus" in what_if and not gpus_each:
        raise BadCase("gpus: these workers take none, worker.gpu.count is 0")
    known = seen.backlog or Backlog(lag=0)
    lag = int(what_if.get("lag", known.lag))
    partitions = int(what_if["partitions"]) if "partitions" in what_if else known.parallelism
    lagging = known.lagging
    if lag != known.lag or partitions != known.parallelism:
        lagging = None if partitions is None else min(lag, partitions)
    backlog = replace(
        known,
        lag=lag,
        parallelism=partitions,
        lagging=lagging,
        oldest_seconds=what_if.get("oldest", known.oldest_seconds if lag else None),
    )
    return replace(
        seen,
        backlog=backlog,
        trouble="",
        arrival=what_if.get("arrival", seen.arrival),
        service=what_if.get("service", seen.service),
        startup_seconds=what_if.get("startup", seen.startup_seconds),
        replicas=int(what_if.get("replicas", seen.replicas)),
        ready=int(what_if.get("ready", what_if.get("replicas", seen.ready))),
        slots=int(what_if["gpus"]) // gpus_each if "gpus" in what_if else seen.slots,
        holders="" if "gpus" in what_if else seen.holders,
    )


def settle(
    policy: api.Autoscaling, case: Observation, history: History, now: float
) -> tuple[Decision, Decision, float]:
    """The decision at once; the one that it comes to when nothing else changes, and after how many seconds."""
    first = decision = decide(policy, case, history, now)
    changed, time = 0.0, now
    while time - now <= _HORIZON_S:
        case = replace(case, replicas=decision.replicas, ready=decision.replicas)
        time += max(decision.next_poll_seconds, min(_COARSER * (time - now), _COARSEST_S))
        following = decide(policy, case, decision.history, time)
        if following.replicas != decision.replicas:
            changed = time - now
        decision = following
    return first, decision, changed


def _rate(rate: float | None) -> str:
    return "not measured yet" if rate is None else f"{rate:.2g} recordings/s"
