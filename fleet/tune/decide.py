"""How sure it is that a worker count meets the objective, and which count follows.

Knows: run-level quantiles, capacity, Student's t. Does not know: models for counts that were not measured (latency.py).

The question is about a long time on this host, not about one run of 30 s: the scatter between runs has a part that a long run
would average out (sampling, known from within each run) and a part that it would not (the host's moods). P(objective met) counts
what is unknown of the mean, and the host's part. Where no model describes the count, capacity must exceed the rate besides: a
queue that grows slowly can look well for the length of a run.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from fleet.tune.evidence import Evidence
from fleet.tune.plan import FEWEST_FOR_CLAIMS
from fleet.tune.protocol import Floats
from fleet.tune.response import SURE, Outlook, Response, Runs
from fleet.tune.statistics import Interval, mean_interval, t_probability, t_quantile

FAR = 3.0
"""A count whose interval is so many half widths away from the objective is settled, however wide it is …"""
CLEAR = 1.5
"""The objective is so many half widths away from a slow hour when it is known which side of it the count is on. Not one: whoever
looks after each round finds an interval without the objective too easily."""
PLAIN = 0.005
"""… unless P(objective met) is farther than this from 0 and from 1: a slow hour may still reach the objective."""


class Chance(msgspec.Struct, frozen=True):
    """P(objective met) at one count. ``latency`` and ``capacity`` are the two conditions, ``p`` the smaller, or that of latency
    where it comes from a model, which knows of saturation. None: not known.

    ``runs`` were measured, ``met`` of them met the objective by themselves; 0 runs: from the model. ``spare`` is the objective
    over the long-run quantile in a slow hour: above 1 the count is enough. ``settling``: by the model alone, since latency still
    fell when the runs ended.
    """

    workers: int
    p: float | None
    latency: float | None
    capacity: float | None
    runs: int
    met: int
    quantile: Interval | None
    spare: Interval | None = None
    settling: bool = False


def chance(evidence: Evidence, workers: int, response: Response | None = None) -> Chance:
    """From the runs at this count. ``response``: see ``below``."""
    target = math.log(evidence.plan.objective.seconds)
    logs = np.log(evidence.values("open", workers, lambda stats: stats.quantile))
    errors = evidence.values("open", workers, lambda stats: stats.log_error)
    met = int(evidence.values("open", workers, lambda stats: float(stats.met)).sum()) if len(logs) else 0
    settling = response is not None and evidence.settling(workers)
    outlook = response.outlook(target, None) if response is not None and settling else below(target, logs, errors, response)
    latency = None if outlook is None else outlook.p
    capacity = can_carry(evidence, workers)
    p = latency
    if outlook is not None and not outlook.saturates and capacity is not None:
        p = min(outlook.p, capacity)
    quantile = mean_interval(logs, evidence.plan.first_look).exp() if len(logs) else None
    spare = None if outlook is None else _spare(outlook, len(logs))
    return Chance(workers, p, latency, capacity, len(logs), met, quantile, spare, settling)


def _spare(outlook: Outlook, runs: int) -> Interval:
    half = t_quantile(0.975, runs - 1) * outlook.error
    return Interval(outlook.spare, outlook.spare - half, outlook.spare + half, runs >= FEWEST_FOR_CLAIMS).exp()


def below(target: float, logs: Floats, errors: Floats, response: Response | None = None) -> Outlook | None:
    """Whether the long-run value lies below the target, from run-level logarithms and their errors within a run.

    ``response`` is what a model says of this count. Without one that explains the runs, the host's part is what the runs
    scatter more than their own errors explain.
    """
    if len(logs) < 2:
        return None
    runs = Runs(len(logs), float(logs.mean()), float(logs.var(ddof=1)), float((errors**2).mean()))
    if response is not None and response.explains(runs):
        return response.outlook(target, runs)
    spare, host = target - runs.mean, math.sqrt(max(0.0, runs.between - runs.within))
    p = t_probability(spare / math.sqrt(runs.variance + host**2), runs.number - 1)
    return Outlook(p, spare - t_quantile(SURE, runs.number - 1) * host, math.sqrt(runs.variance), saturates=False)


def can_carry(evidence: Evidence, workers: int) -> float | None:
    """Probability that throughput at saturation exceeds the rate, in whatever mood the host is; None when not measured."""
    logs = np.log(evidence.values("closed", workers, lambda stats: max(stats.throughput, 1e-9)))
    found = evidence.moods
    if len(logs) == 0 or found.freedom == 0:
        return None
    scale = math.sqrt(found.total**2 / len(logs) + found.host**2) or 1e-9
    return t_probability((float(logs.mean()) - math.log(evidence.plan.rate)) / scale, found.freedom)


def recommended(chances: list[Chance], sure: float = SURE) -> Chance | None:
    """The smallest count that meets the objective with at least this probability."""
    return next((found for found in chances if found.p is not None and found.p >= sure), None)


def settled(evidence: Evidence, found: Chance) -> bool:
    """Whether more runs at this count are not worth their time: they do not last long enough; or the interval is narrow or far
    from the objective, and it is known which side of it a slow hour is on."""
    plan = evidence.plan
    logs = np.log(evidence.values("open", found.workers, lambda stats: stats.quantile))
    if len(logs) < plan.first_look or found.settling:
        return found.settling
    half = half_width(logs)
    margin = abs(math.log(plan.objective.seconds) - float(logs.mean()))
    unclear = found.p is not None and PLAIN < found.p < 1 - PLAIN
    spare = found.spare
    clear = spare is None or abs(math.log(spare.value)) >= CLEAR * math.log(spare.high / spare.value)
    return clear and (half <= plan.precision or (margin >= FAR * half and not unclear))


def half_width(logs: Floats) -> float:
    """Of the t interval of the mean."""
    return t_quantile(0.975, len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))


def runs_needed(evidence: Evidence, workers: int) -> int | None:
    """How many more runs would decide this count if what was seen goes on; None when no number of runs would."""
    logs = np.log(evidence.values("open", workers, lambda stats: stats.quantile))
    if len(logs) < 2:
        return FEWEST_FOR_CLAIMS
    errors = evidence.values("open", workers, lambda stats: stats.log_error)
    between, within = float(logs.var(ddof=1)), float((errors**2).mean())
    host = max(0.0, between - within)
    margin = abs(math.log(evidence.plan.objective.seconds) - float(logs.mean()))
    for runs in range(max(len(logs), FEWEST_FOR_CLAIMS), 1000):
        if margin >= t_quantile(0.95, runs - 1) * math.sqrt(max(between, within) / runs + host):
            return max(1, runs - len(logs))
    return None
