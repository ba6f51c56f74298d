"""Intervals for few runs: the unit is the run, the resampling is over rounds.

Knows: Student's t, the bootstrap. Does not know: what is measured.

With n rounds a plain percentile bootstrap is too narrow by about √((n−1)/n) and by Student's t against the normal. The
*expanded* percentile interval (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3.3) takes
percentiles further out, so that the mean of n normal values gets its exact t interval.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import msgspec
import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from fleet.tune.plan import FEWEST_FOR_CLAIMS
from fleet.tune.protocol import Floats

LEVEL = 0.95
RESAMPLES = 4000
MOST_T = 1e6


class Interval(msgspec.Struct, frozen=True):
    """An estimate and its 95 % interval; below six rounds ``claim`` is false and the ends only rank."""

    value: float
    low: float
    high: float
    claim: bool = True

    def exp(self) -> Interval:
        """From logarithms to the scale of the measurement."""
        return Interval(math.exp(self.value), math.exp(self.low), math.exp(self.high), self.claim)

    @property
    def half(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2


def t_quantile(p: float, degrees: float) -> float:
    return float(stdtrit(degrees, p))


def t_probability(t: float, degrees: float) -> float:
    """P(T ≤ t)."""
    return float(stdtr(degrees, max(-MOST_T, min(MOST_T, t))))


@cache
def resamples(rounds: int) -> Floats:
    """Weights (RESAMPLES, rounds) of a bootstrap over rounds: how often each round was drawn, over the number of rounds."""
    draws = np.random.default_rng(rounds).multinomial(rounds, np.full(rounds, 1 / rounds), RESAMPLES)
    weights: Floats = draws / rounds
    return weights


def expanded(values: Floats, point: float, rounds: int) -> Interval:
    """Interval from the values of a statistic over resamples, with percentiles that fit the number of rounds."""
    if rounds < 2 or len(values) == 0:
        return Interval(point, -math.inf, math.inf, False)
    low, high = _ends(values, rounds)
    stretch = _stretch(rounds)
    return Interval(point, point + stretch * (low - point), point + stretch * (high - point), rounds >= FEWEST_FOR_CLAIMS)


def _ends(values: Floats, rounds: int) -> tuple[float, float]:
    z = math.sqrt(rounds / (rounds - 1)) * t_quantile((1 + LEVEL) / 2, rounds - 1)
    tail = NormalDist().cdf(-z)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


@cache
def _stretch(rounds: int) -> float:
    """What is still missing: no mean of a resample lies beyond the farthest round. Found on normal scores, where t is exact."""
    scores = ndtri((np.arange(rounds) + 0.5) / rounds)
    exact = t_quantile((1 + LEVEL) / 2, rounds - 1) * float(scores.std(ddof=1)) / math.sqrt(rounds)
    low, high = _ends(resamples(rounds) @ scores, rounds)
    return exact / ((high - low) / 2)


def mean_interval(values: Floats, first: int | None = None) -> Interval:
    """Of the mean of one value per round. Raises ValueError when there is none.

    ``first``: how many rounds there were when it was first asked whether they are enough. Who stops when an interval is narrow
    prefers those that are too narrow, so it keeps the degrees of freedom of these rounds however many follow (Stein 1945).
    """
    rounds = len(values)
    if rounds == 0:
        raise ValueError("no interval without values")
    found = expanded(resamples(rounds) @ values, float(values.mean()), rounds)
    if first is None or rounds <= first:
        return found
    wider = t_quantile((1 + LEVEL) / 2, first - 1) / t_quantile((1 + LEVEL) / 2, rounds - 1)
    middle = found.value
    return Interval(middle, middle + wider * (found.low - middle), middle + wider * (found.high - middle), found.claim)
