"""What is said about one worker count.

Knows: run-level and pooled statistics of one count. Does not know: which count is the answer.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from fleet.tune.decide import Chance
from fleet.tune.evidence import Evidence
from fleet.tune.latency import Model
from fleet.tune.laws import Law
from fleet.tune.protocol import Floats
from fleet.tune.runstats import RunStats, quantile
from fleet.tune.statistics import Interval, mean_interval


class Count(msgspec.Struct, frozen=True):
    """One worker count. Intervals are of run-level statistics (geometric means over runs); ``pooled`` are quantiles of all
    requests of all runs; ``figures`` are what the fleet said at saturation (Evidence.figures). ``carries``: the largest rate
    the model says it can hold, unmeasured. Seconds, requests a second."""

    workers: int
    chance: Chance
    open_runs: int
    closed_runs: int
    overloaded: int
    throughput: Interval | None
    per_worker: Interval | None
    goodput: Interval | None
    p50: Interval | None
    p95: Interval | None
    p99: Interval | None
    quantile: Interval | None
    pooled: dict[str, float]
    answered: float | None
    carries: float | None
    extrapolated: bool
    figures: dict[str, float]
    run_throughput: list[float]
    run_quantile: list[float]


def count(evidence: Evidence, model: Model | None, law: Law | None, chance: Chance) -> Count:
    """All that the runs at this count say."""
    workers = chance.workers

    def spread(mode: str, value: Callable[[RunStats], float]) -> Interval | None:
        values = evidence.values("open" if mode == "open" else "closed", workers, value)
        return mean_interval(np.log(np.maximum(values, 1e-9)), evidence.plan.first_look).exp() if len(values) else None

    throughput = spread("closed", lambda stats: stats.throughput)
    runs = evidence.of("open", workers)
    goodput = evidence.values("open", workers, lambda stats: stats.goodput)
    return Count(
        workers=workers,
        chance=chance,
        open_runs=len(runs),
        closed_runs=len(evidence.of("closed", workers)),
        overloaded=sum(run.verdict.kind == "overloaded" for run in runs),
        throughput=throughput,
        per_worker=None if throughput is None else _scaled(throughput, 1 / workers),
        goodput=mean_interval(goodput, evidence.plan.first_look) if len(goodput) else None,
        p50=spread("open", lambda stats: stats.p50),
        p95=spread("open", lambda stats: stats.p95),
        p99=spread("open", lambda stats: stats.p99),
        quantile=spread("open", lambda stats: stats.quantile),
        pooled=_pooled(evidence, workers),
        answered=float(evidence.values("open", workers, lambda stats: stats.answered).mean()) if runs else None,
        carries=None if model is None else model.carries(workers),
        extrapolated=law is None or law.extrapolates(workers),
        figures=evidence.figures("closed", workers),
        run_throughput=evidence.values("closed", workers, lambda stats: stats.throughput).tolist(),
        run_quantile=evidence.values("open", workers, lambda stats: stats.quantile).tolist(),
    )


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor, interval.claim)


def _pooled(evidence: Evidence, workers: int) -> dict[str, float]:
    """Quantiles of the raw points of all usable runs together; percentiles of runs are never averaged into these."""
    pieces: list[Floats] = []
    for run in evidence.of("open", workers):
        points = run.record.points
        if points is not None:
            pieces.append(points.latency[points.due >= evidence.cuts["open"]])
    if not pieces:
        return {}
    everything = np.concatenate(pieces)
    return {name: quantile(everything, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
