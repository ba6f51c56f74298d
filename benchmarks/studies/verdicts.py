"""From the figures of all runs to one line per variant and one verdict per pair.

Knows: ratios within rounds, the A/A floor, the words of ``fleet compare``. Does not know: raw points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from benchmarks.studies.figures import Figures, Used
from benchmarks.studies.study import Study
from fleet.tune.compare import MINIMUM_EFFECT, judge
from fleet.tune.statistics import Interval, mean_interval

METRICS = {"throughput": True, "p50": False, "p95": False}
"""Figure → whether more is better."""


class Run(msgspec.Struct, frozen=True):
    """One run and its figures; ``doubts`` say why it does not count."""

    id: str
    round: int
    variant: str
    begun: str
    meaning: str
    figures: Figures
    used: Used | None
    doubts: tuple[str, ...] = ()


class Line(msgspec.Struct, frozen=True):
    """A variant over its runs that count: geometric means of run-level statistics with intervals, means of the rest."""

    variant: str
    runs: int
    throughput: Interval | None
    p50: Interval | None
    p95: Interval | None
    p99: Interval | None
    refused: float
    failed: float
    used: Used | None
    median_run: str


class Versus(msgspec.Struct, frozen=True):
    """After over before, within rounds. ``floor``: how far equals were apart (|log ratio|)."""

    metric: str
    before: str
    after: str
    ratio: Interval | None
    rounds: int
    floor: float | None
    verdict: str


def counted(runs: Sequence[Run], variant: str) -> list[Run]:
    """The runs of a variant that count."""
    return [run for run in runs if run.variant == variant and not run.doubts]


def line(runs: Sequence[Run], variant: str) -> Line:
    """One variant."""
    good = counted(runs, variant)
    spent = [run.used for run in good if run.used is not None]
    throughput, p50, p95, p99 = (_geometric(good, name) for name in ("throughput", "p50", "p95", "p99"))
    refused, failed = (_share(good, name) for name in ("refused", "failed"))
    return Line(variant, len(good), throughput, p50, p95, p99, refused, failed, _mean(spent), median(good))


def median(runs: Sequence[Run]) -> str:
    """Id of the run in the middle by throughput; of two the slower."""
    ranked = sorted(runs, key=lambda run: (run.figures.throughput, run.id))
    return ranked[(len(ranked) - 1) // 2].id if ranked else ""


def _share(runs: Sequence[Run], name: str) -> float:
    return sum(float(getattr(run.figures, name)) for run in runs) / max(len(runs), 1)


def _geometric(runs: Sequence[Run], name: str) -> Interval | None:
    logs = list(_logs(runs, name).values())
    return mean_interval(np.array(logs)).exp() if logs else None


def _mean(spent: Sequence[Used]) -> Used | None:
    if not spent:
        return None
    names = Used.__struct_fields__
    return Used(*(sum(getattr(each, name) for each in spent) / len(spent) for name in names))


def _logs(runs: Sequence[Run], name: str) -> dict[str, float]:
    """Logarithms by run; none of a figure that is not a number greater than 0."""
    values = {run.id: float(getattr(run.figures, name)) for run in runs}
    return {key: math.log(value) for key, value in values.items() if 0 < value < math.inf}


def by_round(runs: Sequence[Run], variant: str, name: str) -> dict[int, float]:
    """Logarithms of a figure by round."""
    good = counted(runs, variant)
    logs = _logs(good, name)
    return {run.round: logs[run.id] for run in good if run.id in logs}


def difference(runs: Sequence[Run], before: str, after: str, name: str) -> tuple[Interval | None, int]:
    """Of logarithms within rounds, and how many rounds have both."""
    first, second = by_round(runs, before, name), by_round(runs, after, name)
    common = sorted(set(first) & set(second))
    if len(common) < 2:
        return None, len(common)
    return mean_interval(np.array([second[number] - first[number] for number in common])), len(common)


def floors(study: Study, runs: Sequence[Run]) -> dict[str, float]:
    """By figure: the farthest that the interval of an A/A pair reaches from equality."""
    found: dict[str, float] = {}
    for twin in (variant for variant in study.variants if variant.twin_of):
        for name in METRICS:
            interval, _ = difference(runs, twin.twin_of, twin.name, name)
            if interval is not None:
                found[name] = max(found.get(name, 0.0), abs(interval.low), abs(interval.high))
    return found


def versus(study: Study, runs: Sequence[Run], effect: float = MINIMUM_EFFECT) -> list[Versus]:
    """Every pair of the study and its A/A pair, by every figure."""
    level = floors(study, runs)
    twins = [(variant.twin_of, variant.name) for variant in study.variants if variant.twin_of]
    return [_versus(runs, pair, name, level, effect) for pair in (*study.pairs, *twins) for name in METRICS]


def _versus(runs: Sequence[Run], pair: tuple[str, str], name: str, level: Mapping[str, float], effect: float) -> Versus:
    interval, rounds = difference(runs, *pair, name)
    floor = level.get(name)
    if interval is None:
        return Versus(name, *pair, None, rounds, floor, "not measured")
    verdict = judge(interval, max(math.log1p(effect), floor or 0.0), METRICS[name])
    return Versus(name, *pair, interval.exp(), rounds, floor, verdict)
