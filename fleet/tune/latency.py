"""A latency model from what was measured: service times in a discrete-event simulation, for counts and rates without runs.

Knows: how to calibrate queueing.Shape from runs, and by how much the model errs where it can be checked. Does not know: the
fleet's real law; that is the point.

Speeds of k busy workers come from throughput at saturation with k workers (a flow-equivalent server); the shape of service
times from the least loaded open runs, where little waits; gaps between arrivals from the runs themselves. Where workers overlap
requests (slots), throughput of one worker exceeds 1 / latency; how many slots there are is chosen by the error at the counts that
were measured. What error is left there corrects a prediction, and widens it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from fleet.tune import queueing
from fleet.tune.evidence import Evidence
from fleet.tune.laws import Law
from fleet.tune.moods import Moods
from fleet.tune.objective import Objective
from fleet.tune.protocol import Floats
from fleet.tune.response import DOUBT, SLOWNESS, Response
from fleet.tune.runstats import FARTHEST, quantile
from fleet.tune.statistics import t_probability, t_quantile

REPLICATES = 16
"""Simulated runs per prediction."""
LONG_RUN = 40_000
"""Requests of a long time: fewer scatter as much near saturation as what is to be decided."""
SLOTS = (2, 4, 8, 16)
OVERLAP = 1.05
"""Throughput of one worker times its latency alone, from which on it must be overlapping requests."""
MOST_SAMPLES = 20_000


class Prediction(msgspec.Struct, frozen=True):
    """Of the objective's quantile (s) at a count and rate: the mean of ``runs`` runs lies in the interval with 95 %.

    ``p`` is P(objective met); ``extrapolated`` is true when throughput at this count lies outside of what was measured.
    """

    workers: int
    rate: float
    quantile: float
    low: float
    high: float
    p: float
    runs: int
    extrapolated: bool


@dataclass(frozen=True)
class Model:
    """``work``: seconds of one request at speed 1; ``gaps``: between arrivals, relative to their mean; ``moods``: what throughput
    at saturation says of the host; ``errors``: log(measured / model) by count, trusted from three counts on."""

    objective: Objective
    law: Law
    speed: tuple[float, ...]
    work: Floats
    gaps: Floats
    overhead_s: float
    slots: int
    batch_cost: float
    moods: Moods
    duration_s: float
    cut_s: float
    errors: dict[int, float]
    seed: int

    def shape(self, workers: int) -> queueing.Shape:
        """The simulated fleet of this size."""
        return queueing.Shape(self.speed[: workers + 1], self.slots, self.batch_cost, overhead_s=self.overhead_s)

    def quantiles(self, workers: int, rate: float, replicates: int = REPLICATES) -> Floats:
        """Logarithm of the objective's quantile in simulated runs like the measured ones."""
        random = np.random.default_rng([self.seed, workers, round(rate * 1e6)])
        found = []
        for _ in range(replicates):
            count = math.ceil(rate * self.duration_s)
            work = random.choice(self.work, count) * math.exp(random.normal() * self.moods.host)
            found.append(self._quantile(workers, random.choice(self.gaps, count) / rate, work))
        return np.array(found)

    def predict(self, workers: int, rate: float, runs: int) -> Prediction:
        """The mean of ``runs`` runs, corrected by the error at the nearest counts that were measured."""
        logs = self.quantiles(workers, rate)
        errors = np.array(list(self.errors.values()))
        near = sorted(self.errors, key=lambda count: abs(count - workers))[:2]
        shift = float(np.mean([self.errors[count] for count in near])) if near else 0.0
        doubt = max(float(errors.std(ddof=1)), DOUBT / 3) if len(errors) >= 3 else DOUBT
        middle, spread = float(logs.mean()) + shift, float(logs.std(ddof=1))
        freedom = max(2, len(errors) - 1)
        half = t_quantile(0.975, freedom) * math.sqrt(spread**2 / runs + spread**2 / len(logs) + doubt**2)
        p = t_probability((math.log(self.objective.seconds) - middle) / math.hypot(doubt, spread), freedom)
        low, high = math.exp(middle - half), math.exp(middle + half)
        return Prediction(workers, rate, math.exp(middle), low, high, p, runs, self.law.extrapolates(workers))

    def response(self, workers: int, rate: float) -> Response:
        """Latency over slowness, in runs like the measured ones and over a long time; the same requests are used for all of it,
        so that chance cancels."""
        random = np.random.default_rng([self.seed, workers, 0])
        count = math.ceil(rate * self.duration_s)
        runs = range(max(REPLICATES, math.ceil(LONG_RUN / count)))
        gaps = random.choice(self.gaps, (len(runs), count)) / rate
        work = random.choice(self.work, (len(runs), count))
        factors = np.exp(SLOWNESS)
        short = np.array([[self._quantile(workers, gaps[run], work[run] * by) for run in runs] for by in factors])
        long = np.array([self._quantile(workers, gaps.ravel(), work.ravel() * by) for by in factors])
        mean, long = (np.maximum.accumulate(curve) for curve in (short.mean(axis=1), long))  # chance aside, they never fall
        return Response(mean, short.var(axis=1, ddof=1), long, self.moods)

    def _quantile(self, workers: int, gaps: Floats, work: Floats) -> float:
        """Logarithm of the objective's quantile in one simulated run, after the warm-up."""
        trace = queueing.open_loop(self.shape(workers), np.cumsum(gaps), work.tolist())
        value = quantile(trace.latency[trace.due >= self.cut_s], self.objective.share)
        return math.log(min(value, FARTHEST * self.objective.seconds))

    def carries(self, workers: int) -> float:
        """The largest rate (requests a second) at which the model meets the objective; 0 when there is none."""
        target, low, high = math.log(self.objective.seconds), 0.0, self.law.throughput(workers)
        for _ in range(7):
            middle = (low + high) / 2
            met = float(self.quantiles(workers, middle, 3).mean()) <= target
            low, high = (middle, high) if met else (low, middle)
        return low


def calibrate(evidence: Evidence, law: Law | None, largest: int) -> Model | None:
    """The model of these runs, for up to ``largest`` workers; None when there is too little: no law, or no steady open run."""
    if law is None:
        return None
    steady = [count for count in evidence.counts("open") if _valid(evidence, count) and not evidence.settling(count)]
    if not steady:
        return None
    alone, latency = law.throughput(1), _latencies(evidence, steady[-1])
    relative, least = latency / latency.mean(), float(latency.mean())
    speed = (1.0, *(law.throughput(count) / (count * alone) for count in range(1, largest + 1)))
    plan = evidence.plan
    base = Model(
        plan.objective, law, speed, relative / alone, _gaps(evidence, steady), max(0.0, least - 1 / alone), 1, 0.0,
        evidence.moods, plan.duration_s, evidence.cuts["open"], {}, plan.seed,
    )  # fmt: skip
    candidates = [base]
    if least * alone > OVERLAP:
        candidates += [
            replace(base, work=latency, overhead_s=0.0, slots=slots, batch_cost=(slots / (least * alone) - 1) / (slots - 1))
            for slots in SLOTS
            if slots >= least * alone
        ]
    checked = [replace(model, errors=_errors(model, evidence, steady)) for model in candidates]
    return min(checked, key=lambda model: float(np.mean(np.square(list(model.errors.values())))))


def _valid(evidence: Evidence, workers: int) -> bool:
    """Most runs at this count were steady and answered, so that a model of the steady state can be compared with them."""
    runs = evidence.of("open", workers)
    share = evidence.plan.objective.share
    good = sum(run.verdict.kind == "valid" and run.stats is not None and run.stats.answered >= share for run in runs)
    return good * 2 > len(runs)


def _errors(model: Model, evidence: Evidence, counts: Sequence[int]) -> dict[int, float]:
    """Log of measured over model at each count with a steady state."""
    measured = {count: np.log(evidence.values("open", count, lambda stats: stats.quantile)).mean() for count in counts}
    return {count: float(measured[count] - model.quantiles(count, evidence.plan.rate, 6).mean()) for count in counts}


def _latencies(evidence: Evidence, workers: int) -> Floats:
    """Of all right answers in the steady windows at this count."""
    pieces = []
    for run in evidence.of("open", workers):
        points = run.record.points
        if points is not None:
            pieces.append(points.latency[(points.due >= evidence.cuts["open"]) & points.ok])
    return _thinned(np.concatenate(pieces))


def _gaps(evidence: Evidence, counts: Sequence[int]) -> Floats:
    """Between arrivals, relative to their mean."""
    pieces = [np.diff(run.record.points.due) for count in counts for run in evidence.of("open", count) if run.record.points]
    gaps = _thinned(np.concatenate(pieces))
    return np.asarray(gaps / gaps.mean())


def _thinned(values: Floats) -> Floats:
    return np.asarray(values[:: max(1, len(values) // MOST_SAMPLES)])
