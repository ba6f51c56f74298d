"""Scaling laws X(N): throughput at saturation over the number of workers, chosen by AICc.

Knows: linear, Amdahl, USL and a hard ceiling; how to fit them to many resamples at once; intervals of their parameters.
Does not know: where the throughputs come from, latency.

The USL (Gunther 2007) is X(N) = λN / (1 + σ(N−1) + κN(N−1)); Amdahl is κ = 0, linear is σ = κ = 0. All three are linear in
their parameters when written as N/X, which is how they are fitted (relative least squares, σ and κ not negative). The ceiling,
X(N) = min(λN, C), is what a host without spare cores does: none of the three can bend so sharply.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from scipy.special import fdtrc

from fleet.tune.protocol import Floats
from fleet.tune.statistics import Interval, expanded, resamples

MISFIT = 0.01
"""Below this probability the best law does not describe what was measured."""


class Law(msgspec.Struct, frozen=True):
    """A fitted law. ``parameters``: ``per_worker`` (λ, requests a second) and σ, κ or the ceiling (requests a second).

    ``misfit`` is the probability of so bad a fit if the law were true (None: not enough runs to say).
    """

    family: str
    parameters: dict[str, Interval]
    aicc: dict[str, float]
    misfit: float | None
    counts: tuple[int, ...]
    rounds: int

    @property
    def fits(self) -> bool:
        return self.misfit is None or self.misfit >= MISFIT

    def extrapolates(self, workers: int) -> bool:
        """Outside of what was measured a law is a guess, and has to be marked as one."""
        return not self.counts[0] <= workers <= self.counts[-1]

    def throughput(self, workers: int) -> float:
        """The law's X(N), requests a second."""
        values = {name: np.array([interval.value]) for name, interval in self.parameters.items()}
        return float(FAMILIES[self.family].predict(values, np.array([float(workers)]))[0, 0])


class Family(msgspec.Struct, frozen=True):
    """``fit`` takes log X (resamples, counts) and the counts, ``predict`` gives X (resamples, counts)."""

    free: int
    fit: Callable[[Floats, Floats], dict[str, Floats]]
    predict: Callable[[Mapping[str, Floats], Floats], Floats]


def _fit_contention(log_x: Floats, counts: Floats, terms: int) -> dict[str, Floats]:
    """Relative least squares of N/X = a + b(N−1) + cN(N−1) with b, c ≥ 0: the best of all sets of terms that are positive."""
    inverse = counts / np.exp(log_x)
    basis = np.stack([np.ones_like(counts), counts - 1, counts * (counts - 1)])[: terms + 1]
    best = np.full(len(log_x), math.inf)
    found = np.zeros((len(log_x), 3))
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(1, terms + 1), size) for size in range(terms + 1)):
        columns = [0, *chosen]
        if len(columns) > len(counts):
            continue
        scaled = basis[columns][None] / inverse[:, None, :]
        normal = scaled @ scaled.transpose(0, 2, 1)
        solution = np.linalg.solve(normal, scaled.sum(axis=2)[..., None])[..., 0]
        error = ((np.einsum("bk,bkn->bn", solution, scaled) - 1) ** 2).sum(axis=1)
        better = (error < best) & (solution[:, 1:] >= 0).all(axis=1) & (solution[:, 0] > 0)
        best[better] = error[better]
        found[better] = 0
        found[np.ix_(np.flatnonzero(better), np.array(columns))] = solution[better]
    return {"per_worker": 1 / found[:, 0], "sigma": found[:, 1] / found[:, 0], "kappa": found[:, 2] / found[:, 0]}


def _contention(values: Mapping[str, Floats], counts: Floats) -> Floats:
    per_worker = values["per_worker"][:, None]
    sigma, kappa = (values.get(name, np.zeros(1))[:, None] for name in ("sigma", "kappa"))
    return np.asarray(per_worker * counts / (1 + sigma * (counts - 1) + kappa * counts * (counts - 1)))


def _fit_linear(log_x: Floats, counts: Floats) -> dict[str, Floats]:
    return {"per_worker": np.exp((log_x - np.log(counts)).mean(axis=1))}


def _fit_amdahl(log_x: Floats, counts: Floats) -> dict[str, Floats]:
    fitted = _fit_contention(log_x, counts, 1)
    return {name: fitted[name] for name in ("per_worker", "sigma")}


def _fit_usl(log_x: Floats, counts: Floats) -> dict[str, Floats]:
    return _fit_contention(log_x, counts, 2)


def _fit_ceiling(log_x: Floats, counts: Floats) -> dict[str, Floats]:
    """The break lies between two counts: before it a line through the origin, after it the ceiling."""
    logs = np.log(counts)
    best = np.full(len(log_x), math.inf)
    rate, top = np.zeros(len(log_x)), np.zeros(len(log_x))
    for below in range(1, len(counts)):
        slope = (log_x[:, :below] - logs[:below]).mean(axis=1)
        ceiling = np.clip(log_x[:, below:].mean(axis=1), slope + logs[below - 1], slope + logs[below])
        fitted = np.minimum(slope[:, None] + logs, ceiling[:, None])
        error = ((fitted - log_x) ** 2).sum(axis=1)
        better = error < best
        best[better], rate[better], top[better] = error[better], slope[better], ceiling[better]
    return {"per_worker": np.exp(rate), "ceiling": np.exp(top)}


def _ceiling(values: Mapping[str, Floats], counts: Floats) -> Floats:
    return np.minimum(values["per_worker"][:, None] * counts, values["ceiling"][:, None])


FAMILIES = {
    "linear": Family(1, _fit_linear, _contention),
    "amdahl": Family(2, _fit_amdahl, _contention),
    "usl": Family(3, _fit_usl, _contention),
    "ceiling": Family(2, _fit_ceiling, _ceiling),
}


def choose(table: Floats, counts: tuple[int, ...]) -> Law | None:
    """The law with the least AICc. ``table`` is log X (rounds, counts), NaN where a run is missing.

    None when that is too little: fewer than three counts, or a count without any run.
    """
    known = ~np.isnan(table)
    if len(counts) < 3 or not known.any(axis=0).all():
        return None
    aligned = _aligned(table)
    places = np.array(counts, float)
    means = np.nanmean(aligned, axis=0)[None]
    runs = known.sum(axis=0)
    freedom = int(known.sum()) - int(known.any(axis=1).sum()) + 1  # the rounds' own effects are not the law's
    pure = float(np.nansum((aligned - means) ** 2))
    errors = {name: pure + float((runs * (means - np.log(_at(name, means, places))) ** 2).sum()) for name in FAMILIES}
    scores = {name: aicc(errors[name], freedom, family.free + 1) for name, family in FAMILIES.items()}
    best = min(scores, key=lambda name: (scores[name], FAMILIES[name].free))
    left, extra = freedom - len(counts), len(counts) - FAMILIES[best].free
    misfit = None
    if left > 0 and extra > 0:
        misfit = float(fdtrc(extra, left, ((errors[best] - pure) / extra) / max(pure / left, 1e-18)))
    return Law(best, _parameters(best, table, places), scores, misfit, counts, int(known.any(axis=1).sum()))


def aicc(squares: float, runs: int, free: int) -> float:
    """Akaike's criterion with the correction for few runs (Hurvich and Tsai 1989); ``free`` counts the variance."""
    if runs - free - 1 <= 0:
        return math.inf
    return runs * math.log(max(squares, 1e-18) / runs) + 2 * free + 2 * free * (free + 1) / (runs - free - 1)


def _at(name: str, log_x: Floats, counts: Floats) -> Floats:
    return FAMILIES[name].predict(FAMILIES[name].fit(log_x, counts), counts)


def _aligned(table: Floats) -> Floats:
    """Without what is common to a round: a host that was slow for a whole round says nothing about the law."""
    aligned = table.copy()
    for _ in range(20):  # alternating means; exact at once when no run is missing
        residual = aligned - np.nanmean(aligned, axis=0)
        shift = np.nanmean(residual, axis=1, keepdims=True)
        aligned = aligned - np.nan_to_num(shift)
    return aligned


def column_means(table: Floats, weights: Floats) -> Floats:
    """Weighted means of each count over rounds, for each resample; a count that a resample missed takes its overall mean."""
    known = ~np.isnan(table)
    total = weights @ known
    sums = weights @ np.nan_to_num(table)
    overall = np.nansum(table, axis=0) / known.sum(axis=0)
    return np.where(total > 0, sums / np.where(total > 0, total, 1), overall)


def _parameters(name: str, table: Floats, counts: Floats) -> dict[str, Interval]:
    """With the certainty of as many rounds as a count has runs: rounds that measured a few counts only do not add to it."""
    rows = len(table)
    rounds = int((~np.isnan(table)).sum()) // len(counts)
    everything = np.full((1, rows), 1 / rows)
    point = FAMILIES[name].fit(column_means(table, everything), counts)
    if rounds < 2:
        return {key: expanded(value, float(value[0]), 1) for key, value in point.items()}
    spread = FAMILIES[name].fit(column_means(table, resamples(rows)), counts)
    return {key: expanded(spread[key], float(value[0]), rounds) for key, value in point.items()}
