"""Scores of probabilistic forecasts, and paired bootstrap intervals over series.

Knows arrays only: forecasts as samples or cones, and what happened. Knows no candles, models or files. Lower
is better in every score but coverage, whose ideal is the nominal share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from training.baselines import Cone

Floats = NDArray[np.float64]

LEVELS = np.round(np.arange(0.1, 0.91, 0.1), 1)
CENTRAL = (0.1, 0.9)  # the quantiles around the central 80 % interval
_erf = np.vectorize(math.erf, otypes=[np.float64])


def crps_samples(samples: Floats, actual: Floats) -> Floats:
    """Fair CRPS of sample paths: mean |X - y| - sum_ij |X_i - X_j| / (2 n (n - 1)).

    samples [..., n] with n >= 2, actual [...] -> [...]; in the unit of the values. Fair: its expectation does
    not depend on n (Ferro 2014), so few paths can be compared with a closed form.
    """
    n = samples.shape[-1]
    if n < 2:
        raise ValueError("the fair CRPS needs at least 2 samples")
    ordered = np.sort(samples, axis=-1)
    rank = 2 * np.arange(1, n + 1) - n - 1
    spread = 2 * (ordered * rank).sum(axis=-1)  # = sum over ordered pairs of |X_i - X_j|
    return np.asarray(np.abs(samples - actual[..., None]).mean(axis=-1) - spread / (2 * n * (n - 1)))


def crps_gaussian(mean: Floats, std: Floats, actual: Floats) -> Floats:
    """CRPS of a normal forecast in closed form (Gneiting and Raftery 2007, eq. 21); |actual - mean| where std
    is 0."""
    safe = np.where(std > 0, std, 1.0)
    z = (actual - mean) / safe
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    spread = safe * (z * _erf(z / np.sqrt(2)) + 2 * density - 1 / np.sqrt(np.pi))
    return np.where(std > 0, spread, np.abs(actual - mean))


def pinball(quantiles: Floats, levels: Floats, actual: Floats) -> Floats:
    """Quantile loss, mean over the levels: quantiles [..., q], levels [q], actual [...] -> [...]."""
    miss = actual[..., None] - quantiles
    return np.asarray(np.maximum(levels * miss, (levels - 1.0) * miss).mean(axis=-1))


def covered(low: Floats, high: Floats, actual: Floats) -> Floats:
    """1 where low <= actual <= high, else 0."""
    return ((low <= actual) & (actual <= high)).astype(np.float64)


@dataclass(frozen=True)
class Scores:
    """One value per series, [series]; closes in units of the lookback's standard deviation but for
    `percent`."""

    mae: Floats  # of the point forecast: the mean of the paths, as the service answers
    mse: Floats
    percent: Floats  # mean absolute error in percent of the last close
    crps: Floats
    pinball: Floats  # mean over the levels 0.1 ... 0.9
    coverage: Floats  # share of candles inside the central 80 % interval


def score_samples(samples: Floats, actual: Floats, scale: Floats) -> Scores:
    """samples [series, horizon, paths], actual [series, horizon], scale [series]: percent per unit."""
    quantiles = np.moveaxis(np.quantile(samples, LEVELS, axis=-1), 0, -1)
    return _scores(samples.mean(axis=-1), quantiles, crps_samples(samples, actual), actual, scale)


def score_cone(cone: Cone, actual: Floats, scale: Floats) -> Scores:
    """A normal forecast; shapes as `score_samples`."""
    z = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
    quantiles = cone.mean[..., None] + cone.std[..., None] * z
    return _scores(cone.mean, quantiles, crps_gaussian(cone.mean, cone.std, actual), actual, scale)


def _scores(point: Floats, quantiles: Floats, crps: Floats, actual: Floats, scale: Floats) -> Scores:
    miss = np.abs(point - actual)
    low, high = (quantiles[..., int(np.argmin(np.abs(LEVELS - level)))] for level in CENTRAL)
    return Scores(
        mae=miss.mean(axis=1),
        mse=(miss**2).mean(axis=1),
        percent=miss.mean(axis=1) * scale,
        crps=crps.mean(axis=1),
        pinball=pinball(quantiles, LEVELS, actual).mean(axis=1),
        coverage=covered(low, high, actual).mean(axis=1),
    )


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % bootstrap interval."""

    estimate: float
    low: float
    high: float


def bootstrap_mean(values: Floats, seed: int, resamples: int = 4000) -> Interval:
    """Mean over series, percentile bootstrap over series: values [series]."""
    draws = _resample(len(values), seed, resamples)
    return _interval(float(values.mean()), values[draws].mean(axis=1))


def bootstrap_change(ours: Floats, theirs: Floats, seed: int, resamples: int = 4000) -> Interval:
    """Relative change mean(ours) / mean(theirs) - 1, paired by series: a series enters or leaves both sums
    together.

    ours, theirs: one score per series, [series]. Negative = ours is better (lower).
    """
    draws = _resample(len(ours), seed, resamples)
    ratio = ours[draws].sum(axis=1) / theirs[draws].sum(axis=1)
    return _interval(float(ours.sum() / theirs.sum() - 1.0), ratio - 1.0)


def _resample(count: int, seed: int, resamples: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(count, size=(resamples, count))


def _interval(estimate: float, draws: Floats) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))
