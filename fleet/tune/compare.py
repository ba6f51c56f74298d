"""Before and after: is one configuration different from another, by enough to matter, and by more than noise does to equals?

Knows: paired ratios within rounds, the minimum effect, the A/A floor. Does not know: which configuration is wanted.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from fleet.tune.evidence import Evidence
from fleet.tune.plan import FEWEST_FOR_CLAIMS, Mode
from fleet.tune.protocol import Floats
from fleet.tune.runstats import RunStats
from fleet.tune.statistics import Interval, mean_interval, t_quantile

MINIMUM_EFFECT = 0.05
METRICS: dict[str, tuple[Mode, bool]] = {"throughput": ("closed", True), "quantile": ("open", False)}
"""Mode it is taken from, and whether more is better."""


class Ratio(msgspec.Struct, frozen=True):
    """After over before. ``floor`` is how far equals were apart (|log ratio|); ``more_runs``: to decide, per side."""

    metric: str
    ratio: Interval | None
    rounds: int
    paired: bool
    floor: float | None
    verdict: Literal["better", "worse", "no difference that matters", "undecided", "not measured"]
    more_runs: int | None


def value(metric: str, stats: RunStats) -> float:
    return stats.throughput if metric == "throughput" else stats.quantile


def by_round(evidence: Evidence, metric: str, workers: int, twin: bool = False) -> dict[int, float]:
    """Logarithms, by round; from valid runs only: a queue that grows has no quantile to compare."""
    mode, _ = METRICS[metric]
    runs = [run for run in evidence.of(mode, workers, twin) if run.verdict.kind == "valid"]
    return {run.slot.round: math.log(max(value(metric, run.stats), 1e-9)) for run in runs if run.stats is not None}


def floor(evidence: Evidence, metric: str) -> tuple[Interval | None, float | None]:
    """The A/A control: ratio of the twin to the reference, and the farthest that its interval reaches from equality."""
    first, second = (by_round(evidence, metric, evidence.plan.reference, twin) for twin in (False, True))
    common = sorted(set(first) & set(second))
    if len(common) < 2:
        return None, None
    interval = mean_interval(np.array([second[number] - first[number] for number in common]))
    return interval.exp(), max(abs(interval.low), abs(interval.high))


def compare(before: Evidence, after: Evidence, workers: tuple[int, int], metric: str, effect: float = MINIMUM_EFFECT) -> Ratio:
    """One metric of two configurations; ``workers`` before and after. Runs of the same rounds are paired."""
    first, second = by_round(before, metric, workers[0]), by_round(after, metric, workers[1])
    floors = [found for found in (floor(before, metric)[1], floor(after, metric)[1]) if found is not None]
    level = max(floors) if floors else None
    common = sorted(set(first) & set(second)) if before.plan == after.plan else []
    paired = len(common) >= 2
    if paired:
        differences = np.array([second[number] - first[number] for number in common])
        rounds = len(common)
        interval = mean_interval(differences)
    else:
        rounds = min(len(first), len(second))
        if rounds < 2:
            return Ratio(metric, None, rounds, paired, level, "not measured", None)
        interval = unpaired(np.array(list(first.values())), np.array(list(second.values())))
    matters = max(math.log1p(effect), level or 0.0)
    verdict = judge(interval, matters, METRICS[metric][1])
    more = _more(interval, rounds, matters) if verdict == "undecided" else 0
    return Ratio(metric, interval.exp(), rounds, paired, level, verdict, more)


def judge(
    interval: Interval, matters: float, more_is_better: bool
) -> Literal["better", "worse", "no difference that matters", "undecided"]:
    """A verdict needs six rounds, an interval without equality, and a size that matters."""
    if not interval.claim:
        return "undecided"
    if (interval.low > 0 or interval.high < 0) and abs(interval.value) >= matters:
        return "better" if (interval.value > 0) == more_is_better else "worse"
    if -matters < interval.low and interval.high < matters:
        return "no difference that matters"
    return "undecided"


def unpaired(first: Floats, second: Floats) -> Interval:
    """Of the difference of means when the runs were not interleaved: what changed in between is part of the difference."""
    errors = [float(values.var(ddof=1)) / len(values) for values in (first, second)]
    freedom = min(len(first), len(second)) - 1
    half = t_quantile(0.975, freedom) * math.sqrt(sum(errors))
    middle = float(second.mean() - first.mean())
    return Interval(middle, middle - half, middle + half, freedom + 1 >= FEWEST_FOR_CLAIMS)


def _more(interval: Interval, rounds: int, matters: float) -> int | None:
    """Rounds until the interval is narrow enough to tell, if its width falls with the root of their number."""
    if not math.isfinite(interval.half):
        return FEWEST_FOR_CLAIMS
    gap = max(abs(abs(interval.value) - matters), matters / 4)
    return max(FEWEST_FOR_CLAIMS - rounds, math.ceil(rounds * (interval.half / gap) ** 2) - rounds, 1)
