"""Pure: how many workers to ask for, and why. Reads from top to bottom; each rule is one function.

target → Vault → activation and cooldown → tolerance, start-up → window and rate per direction → partitions → minimum
and maximum → pause → GPUs. A failed reading replaces the target only; every later rule holds as ever.
"""

import math
from dataclasses import dataclass, field

from vaultml_common.text import counted
from vaultml_operator.api import Autoscaling, Fallback, ScaleIn, ScaleOut
from vaultml_operator.autoscaler import sanitize
from vaultml_operator.autoscaler.records import (
    HARD_MAXIMUM,
    Backlog,
    Decision,
    History,
    Limit,
    Observation,
    Rule,
)

_WINDOW_UNKNOWN, _WINDOW_MOST = 30.0, 300.0
"""Scale-in's own window, in seconds: while the start-up time is unknown, and at most."""
_PATIENCE = 300.0
"""The same for a step so small that it may be chance."""
_IDLE_POLLING = 5.0
"""Seconds between two polls while nothing waits, unless polls are more frequent anyway."""
_ROOM = 1.0
"""Workers beside those that are busy on average, times the square root of these: arrivals come in clusters, and a
number without room would be corrected with each of them."""
_RATES = ("scaleOutRate", "scaleInRate")
_EPSILON = 1e-9
"""6.000000001 workers are 6."""


@dataclass(frozen=True, kw_only=True)
class _Case:
    """The input, sanitized: every number finite and in its range."""

    policy: Autoscaling
    seen: Observation
    past: History
    now: float

    @property
    def current(self) -> int:
        return self.seen.replicas

    @property
    def maximum(self) -> int:
        most = self.policy.max_replicas
        return HARD_MAXIMUM if most is None else most

    @property
    def idle(self) -> int:
        """Workers while nothing waits."""
        idle = self.policy.idle_replicas
        return self.policy.min_replicas if idle is None else idle

    @property
    def partitions(self) -> int | None:
        """How many workers can have work at once."""
        backlog = self.seen.backlog
        return None if backlog is None or self.policy.allow_idle_consumers else backlog.parallelism

    @property
    def ceiling(self) -> int:
        """The least of all maxima."""
        bounds = (self.maximum, self.partitions, self.seen.slots)
        return min(bound for bound in bounds if bound is not None)

    @property
    def service(self) -> float | None:
        """Recordings per second and worker: measured, else guessed, else unknown."""
        guess = self.policy.seconds_per_recording
        return self.seen.service or (1 / guess if guess else None)

    @property
    def active(self) -> bool:
        """Whether something waits, or came in since the last poll though nothing waits now. At zero only what waits."""
        backlog = self.seen.backlog
        if backlog is None:
            return False
        grown = None not in (backlog.end, self.past.end) and backlog.end != self.past.end
        return backlog.lag > self.policy.activation_lag or (grown and self.current > self.idle)

    @property
    def cooled(self) -> bool:
        """Whether it has been quiet for the whole cooldown. A failed reading is not quiet."""
        last = self.past.last_active
        return not self.active and last is not None and self.now - last >= self.policy.cooldown_seconds

    @property
    def resting(self) -> bool:
        """Whether the idle number holds instead of the minimum: there already and nothing to do, or cooled down."""
        return not self.active and (self.current <= self.idle or (self.cooled and self.seen.backlog is not None))


@dataclass
class _Plan:
    """The number on its way through the rules. `load` is what it was rounded up from; None: it was not computed."""

    replicas: int
    load: float | None
    limits: list[Limit] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def limit(self, name: Rule, replicas: int, phrase: str) -> None:
        """Let a rule change the number; one that leaves it as it is did not bite."""
        if replicas == self.replicas:
            return
        self.limits.append(Limit(name=name, before=self.replicas, after=replicas, phrase=phrase))
        self.steps.append(f"{name}: {self.replicas} becomes {replicas}, {phrase}")
        self.replicas = replicas

    def note(self, name: str, text: str) -> None:
        """Account for a rule that had nothing to change."""
        self.steps.append(f"{name}: {text}")


def decide(policy: Autoscaling, observation: Observation, history: History, now: float) -> Decision:
    """How many workers to ask for, as `.spec.autoscaling` says.

    `now` is in seconds of the clock that made the history; jumps of it are harmless. Total: any input gives a decision.
    Never more than the GPUs allow; a failed reading never takes the last worker.
    """
    seen, past, now = sanitize.inputs(policy.polling_seconds, observation, history, now)
    case = _Case(policy=policy, seen=seen, past=past, now=now)
    plan, sentence = _target(case)
    needed = plan.replicas if case.seen.backlog is not None or _fallback(case) is not None else None
    _lagging(plan, case)
    _vault(plan, case)
    _activation(plan, case)
    _tolerance(plan, case)
    _startup(plan, case)
    needs = (*case.past.needs, (case.now, _need(plan)))
    _window(plan, case, needs)
    _rate(plan, case)
    _partitions(plan, case)
    _even(plan, case)
    _bounds(plan, case)
    _pause(plan, case)
    _gpus(plan, case)
    return Decision(
        replicas=plan.replicas,
        needed=needed,
        reason=_reason(plan, case, sentence),
        limits=tuple(plan.limits),
        steps=tuple(plan.steps),
        next_poll_seconds=_next_poll(plan, case),
        history=_remember(case, needs),
    )


# --- target ---


def _target(case: _Case) -> tuple[_Plan, str]:
    """The number that the queue asks for, and the sentence that says why."""
    if case.seen.backlog is None:
        replicas, sentence = _without_reading(case)
        return _Plan(replicas, None, steps=[f"needed: {sentence}"]), sentence
    backlog = case.seen.backlog
    seen, (load, purpose) = _facts(case, backlog), _load(case, backlog)
    plan = _Plan(max(_up(load), min(backlog.lag, 1)), load)
    plan.note("observed", f"{seen}; {counted(case.current, 'replica')}, {case.seen.ready} ready")
    plan.note("needed", f"{plan.replicas} {purpose}")
    return plan, f"{seen}: {_workers(plan.replicas)} needed {purpose}"


def _load(case: _Case, backlog: Backlog) -> tuple[float, str]:
    """The workers needed, as a fraction, and what for."""
    waiting = max(backlog.lag - backlog.stuck, 0)
    stuck = min(backlog.stuck_partitions, backlog.stuck)
    aside = f", {stuck} of them for {counted(stuck, 'stuck partition')}" if stuck else ""
    service, drain = case.service, case.policy.drain_seconds
    if service is None or drain is None:
        each = case.policy.lag_per_replica
        return waiting / each + stuck, f"({waiting} waiting, {each} per worker){aside}"
    busy = (case.seen.arrival or 0.0) / service
    room = _ROOM * math.sqrt(busy)
    # So many are always in work, by workers that are counted already.
    queued = waiting - min(busy + room, case.seen.ready, waiting)
    # By a deadline, not by a share of what waits: that would shrink with the queue, and the queue with it, for ever.
    # But nobody who starts now helps sooner than it takes to start, and to do one.
    startup = case.seen.startup_seconds or 0.0
    least = max(case.policy.polling_seconds, startup, 1 / service)
    left = max(drain - (backlog.oldest_seconds or 0.0), least)
    load = min(busy + max(room, queued / left / service), sanitize.MANY)
    if load > case.current:
        # Those that are missing start first, and help for what is left after.
        load = case.current + (load - case.current) * left / max(left - startup, least)
    purpose = f"to drain in {_short(left)} s" if queued / left / service > room else "to keep up, with spare capacity"
    # More workers than recordings help nobody, however slow one is.
    return min(load, max(busy + room, waiting), sanitize.MANY) + stuck, f"{purpose}{aside}"


def _facts(case: _Case, backlog: Backlog) -> str:
    facts = [f"lag {backlog.lag}"]
    if backlog.stuck:
        facts.append(f"{backlog.stuck} of it in stuck partitions")
    if backlog.lag and backlog.oldest_seconds is not None:
        facts.append(f"oldest message {_short(backlog.oldest_seconds)} s")
    if case.seen.arrival is not None:
        facts.append(f"{_short(case.seen.arrival)} recordings/s arriving")
    if case.service is not None:
        facts.append(f"{_short(case.service)}/s per worker{'' if case.seen.service else ' (secondsPerRecording)'}")
    return ", ".join(facts)


def _without_reading(case: _Case) -> tuple[int, str]:
    failed = case.past.failures + 1
    why = f"{case.seen.trouble}, " if case.seen.trouble else ""
    seen = f"lag unknown ({why}{counted(failed, 'failed read')})"
    fallback = _fallback(case)
    if fallback is None:
        until = case.policy.fallback.failures if case.policy.fallback is not None else None
        after = f" until failed read {until}" if until is not None else ""
        return case.current, f"{seen}; keeping {_workers(case.current)}{after}"
    replicas = {
        "Static": fallback.replicas,
        "Current": case.current,
        "CurrentIfHigher": max(case.current, fallback.replicas),
        "CurrentIfLower": min(case.current, fallback.replicas),
    }[fallback.behavior]
    # Not knowing is no reason to stop altogether.
    replicas = max(replicas, min(case.current, 1))
    return replicas, f"{seen}; fallback {fallback.behavior} of {fallback.replicas}: {_workers(replicas)}"


def _fallback(case: _Case) -> Fallback | None:
    """The fallback, once enough readings have failed."""
    fallback = case.policy.fallback
    due = case.seen.backlog is None and fallback is not None and case.past.failures + 1 >= fallback.failures
    return fallback if due else None


# --- the rules, in their order ---


def _lagging(plan: _Plan, case: _Case) -> None:
    """If asked for, no more workers than partitions in which something waits.

    Before the windows, unlike the other rule of partitions: the number would follow each partition that empties.
    """
    backlog = case.seen.backlog
    if not case.policy.limit_to_lagging_partitions or backlog is None or backlog.lagging is None:
        return
    limit = max(backlog.lagging, 1)
    if plan.replicas > limit:
        plan.load = float(limit)
        plan.limit("partitions", limit, f"{counted(backlog.lagging, 'partition')} with a backlog")


def _vault(plan: _Plan, case: _Case) -> None:
    """One worker is enough to find out when Vault works again; more would only hold GPUs.

    Before the windows: workers stay through an outage that is shorter than the one of scaling in.
    """
    if case.seen.vault_error and case.seen.backlog is not None and plan.replicas > 1:
        plan.load = 1.0
        plan.limit("vault", 1, f"no recording can be downloaded: {case.seen.vault_error}")


def _activation(plan: _Plan, case: _Case) -> None:
    """Between nothing and one: wake for more than the activation lag, keep the last worker through the cooldown."""
    if case.seen.backlog is None:
        plan.note("activation", "unknown")
    elif case.active:
        plan.limit("activation", max(plan.replicas, 1), "messages have arrived")
        plan.note("activation", "active")
    elif case.resting:
        lag, plan.load = case.seen.backlog.lag, None
        quiet = f"no message for {_short(case.policy.cooldown_seconds)} s" if case.cooled else "no backlog"
        plan.limit(
            "activation",
            min(plan.replicas, case.idle),
            f"{quiet} (lag {lag}, activationLag {case.policy.activation_lag})",
        )
        plan.note("activation", f"{quiet}, {_workers(case.idle)} while idle")
    else:
        quiet_for = max(case.now - (case.past.last_active or case.now), 0.0)
        of = f"no message for {_short(quiet_for)} of {_short(case.policy.cooldown_seconds)} s"
        plan.limit("cooldown", max(plan.replicas, min(case.current, 1)), f"{of}, the last worker stays")
        plan.note("cooldown", of)


def _tolerance(plan: _Plan, case: _Case) -> None:
    """Leave the number when it is about right."""
    current, share = case.current, case.policy.tolerance
    load = float(plan.replicas) if plan.load is None else plan.load
    if case.resting or plan.replicas == current:
        return
    if plan.replicas > current:
        # Against a maximum there is no next step that would be worth waiting for.
        if load <= current * (1 + share) and plan.replicas < case.ceiling:
            plan.limit("tolerance", current, f"{_short(load)} is within {share:.0%} of {current}")
        return
    if load >= current * (1 - share):
        plan.limit("tolerance", current, f"{_short(load)} is within {share:.0%} of {current}")


def _startup(plan: _Plan, case: _Case) -> None:
    """No worker that would start after the work is done."""
    startup, service, backlog = case.seen.startup_seconds, case.service, case.seen.backlog
    if startup is None or service is None or backlog is None or plan.replicas <= case.current:
        return
    working = min(case.seen.ready, case.current, case.partitions or sanitize.MANY)
    left = backlog.lag + (case.seen.arrival or 0.0) * startup - working * service * startup
    if working and left <= 0:
        phrase = f"{_workers(working)} will be done before another has started ({_short(startup)} s)"
        plan.limit("startup", case.current, phrase)


def _need(plan: _Plan) -> int:
    """What the windows remember. The worker that the cooldown holds is not needed: zero would come a window late."""
    last = plan.limits[-1] if plan.limits else None
    return last.before if last is not None and last.name == "cooldown" else plan.replicas


def _window(plan: _Plan, case: _Case, needs: tuple[tuple[float, int], ...]) -> None:
    """Out only as far as the lowest need of its window, in only as far as the highest; straight up from zero."""
    current = case.current
    if plan.replicas > current > 0:
        seconds = _window_seconds(case.policy.scale_out, None)
        lowest = min(need for time, need in needs if case.now - time <= seconds) if seconds else plan.replicas
        phrase = f"the lowest need of the last {_short(seconds)} s was {lowest}"
        plan.limit("scaleOutWindow", max(min(plan.replicas, lowest), current), phrase)
    elif plan.replicas < current:
        own, seconds = case.policy.scale_in.stabilization_seconds is None, _scale_in_window(case)
        highest = _highest(case, needs, seconds)
        if own and not case.resting and current - highest <= math.sqrt(current):
            seconds = max(seconds, _PATIENCE)
            highest = _highest(case, needs, seconds)
        phrase = f"the highest need of the last {_short(seconds)} s was {highest}"
        plan.limit("scaleInWindow", min(max(plan.replicas, highest), current), phrase)


def _highest(case: _Case, needs: tuple[tuple[float, int], ...], seconds: float) -> int:
    return max(need for time, need in needs if case.now - time <= seconds)


def _allowance(case: _Case, sign: int) -> tuple[int, int] | None:
    """How many were added (sign 1) or removed (-1) within the period, and how many more may be; None: no limit."""
    direction = case.policy.scale_out if sign > 0 else case.policy.scale_in
    if direction.max_step is direction.max_percent is None:
        return None
    since = case.now - direction.period_seconds
    done = sum(abs(delta) for time, delta in case.past.steps if time > since and delta * sign > 0)
    before = max(case.current - sign * done, 1)
    percent = math.ceil(before * (direction.max_percent or 0) / 100)
    return done, max(max(direction.max_step or 0, percent) - done, 0)


def _rate(plan: _Plan, case: _Case) -> None:
    """No more workers added, or removed, within a period than allowed."""
    current, out = case.current, plan.replicas > case.current
    allowance = _allowance(case, 1 if out else -1)
    if plan.replicas == current or allowance is None:
        return
    done, room = allowance
    seconds = (case.policy.scale_out if out else case.policy.scale_in).period_seconds
    phrase = f"{'scaleOut' if out else 'scaleIn'} allows {done + room} in {_short(seconds)} s, {done} done"
    if out:
        plan.limit("scaleOutRate", min(plan.replicas, current + room), phrase)
    else:
        plan.limit("scaleInRate", max(plan.replicas, current - room), phrase)


def _partitions(plan: _Plan, case: _Case) -> None:
    """A worker without a partition has nothing to do."""
    if case.partitions is not None:
        only = f"the topic has {counted(case.partitions, 'partition')} (raise kafka.ensurePartitions)"
        plan.limit("partitions", min(plan.replicas, case.partitions), only)


def _even(plan: _Plan, case: _Case) -> None:
    """A number that divides the partitions: the next one up, or down where a maximum is in the way.

    On the way there no further than the rates allow, but one such number at least in each period.
    """
    count, current = case.partitions, case.current
    if not case.policy.even_partitions or case.resting or count is None or not 0 < plan.replicas <= count:
        return
    even = [number for number in range(1, count + 1) if count % number == 0]
    allowed = [number for number in even if number <= case.ceiling]
    if not allowed:
        return
    wanted = next((each.before for each in plan.limits if each.name in _RATES), plan.replicas)
    chosen = next((number for number in allowed if number >= wanted), allowed[-1])
    sign = 1 if chosen > current else -1
    if (allowance := _allowance(case, sign)) is not None:
        done, room = allowance
        way = [each for each in allowed[::sign] if 0 < sign * (each - current) <= sign * (chosen - current)]
        within = [each for each in way if abs(each - current) <= room]
        chosen = within[-1] if within else way[0] if way and not done else current
    plan.limit("evenPartitions", chosen, f"{chosen} divides {counted(count, 'partition')} evenly")


def _bounds(plan: _Plan, case: _Case) -> None:
    """The user's minimum and maximum; the idle number goes below the minimum while nothing is to do."""
    idle = case.resting and case.policy.idle_replicas is not None
    least, name = (case.idle, "idleReplicas") if idle else (case.policy.min_replicas, "minReplicas")
    plan.limit("min", max(plan.replicas, least), f"{name} is {least}")
    most = "the most for any pipeline is" if case.policy.max_replicas is None else "maxReplicas is"
    plan.limit("max", min(plan.replicas, case.maximum), f"{most} {case.maximum}")


def _pause(plan: _Plan, case: _Case) -> None:
    """What a person has stopped stays as it is, even outside minimum and maximum."""
    way = plan.replicas - case.current
    if (way < 0 and case.seen.pause_scale_in) or (way > 0 and case.seen.pause_scale_out):
        plan.limit("paused", case.current, f"scaling {'in' if way < 0 else 'out'} is paused by annotation")


def _gpus(plan: _Plan, case: _Case) -> None:
    """Last, so that nothing asks for a GPU that is not there."""
    if case.seen.slots is not None:
        plan.limit("gpus", min(plan.replicas, case.seen.slots), _allowed(case))


def _allowed(case: _Case) -> str:
    held = f" ({case.seen.holders})" if case.seen.holders else ""
    return f"{case.seen.bound} for {_workers(case.seen.slots or 0)}{held}"


# --- the result ---


def _reason(plan: _Plan, case: _Case, sentence: str) -> str:
    """One sentence: what was seen, what it asks for, what is done, and the rule that bit last."""
    if plan.limits:
        last = plan.limits[-1]
        sentence = f"{sentence}, running {plan.replicas}: {last.phrase}"
    if case.seen.slots is not None and not any(limit.name == "gpus" for limit in plan.limits):
        sentence = f"{sentence}; {_allowed(case)}"
    plan.note("result", f"{_workers(plan.replicas)}, {plan.replicas - case.current:+d}")
    return sentence


def _next_poll(plan: _Plan, case: _Case) -> float:
    """Sooner while nothing waits, so that the first recording wakes, and when the queue is expected to be empty."""
    usual, backlog, service = case.policy.polling_seconds, case.seen.backlog, case.service
    soon = min(usual, _IDLE_POLLING)
    if backlog is None:
        return usual
    if plan.replicas == 0 or backlog.lag == 0:
        return soon
    working = min(case.seen.ready, plan.replicas)
    net = working * service - (case.seen.arrival or 0.0) if service is not None else 0.0
    empty = backlog.lag / net if net > 0 else sanitize.LONG
    return min(usual, max(soon, empty))


def _remember(case: _Case, needs: tuple[tuple[float, int], ...]) -> History:
    horizon = case.now - max(_scale_in_window(case), _PATIENCE, _window_seconds(case.policy.scale_out, None))
    period = case.now - max(case.policy.scale_in.period_seconds, case.policy.scale_out.period_seconds)
    backlog, past = case.seen.backlog, case.past
    # Quiet has to be seen: a poll that could not look goes on as if something were there.
    active = case.active or backlog is None or past.last_active is None
    return History(
        time=case.now,
        replicas=case.current,
        end=past.end if backlog is None else backlog.end,
        last_active=case.now if active else past.last_active,
        failures=past.failures + 1 if backlog is None else 0,
        needs=tuple(each for each in needs if each[0] >= horizon)[-sanitize.ENTRIES :],
        steps=tuple(each for each in past.steps if each[0] > period)[-sanitize.ENTRIES :],
    )


def _window_seconds(direction: ScaleIn | ScaleOut, unset: float | None) -> float:
    seconds = direction.stabilization_seconds
    return seconds if seconds is not None else unset or 0.0


def _scale_in_window(case: _Case) -> float:
    """In seconds: as long as a worker takes to start, and at least the poll before counts."""
    startup = case.seen.startup_seconds
    own = _WINDOW_UNKNOWN if startup is None else min(startup, _WINDOW_MOST)
    return _window_seconds(case.policy.scale_in, max(own, case.policy.polling_seconds))


# --- words ---


def _up(load: float) -> int:
    return math.ceil(min(load, sanitize.MANY) - _EPSILON)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.3g}"


def _workers(count: int) -> str:
    return counted(count, "worker")
