"""Naive forecasts of the close, to judge a model by.

Knows a history of closes and a horizon; gives a normal distribution for each candle ahead. No randomness, no
fitting beyond the history's own mean and standard deviation of one-candle moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cone:
    """A normal forecast per candle ahead: mean and standard deviation, each [series, horizon], unit of the
    closes."""

    mean: Floats
    std: Floats


def last_value(closes: Floats, horizon: int) -> Cone:
    """The last close, with certainty. closes [series, lookback]."""
    mean = np.repeat(closes[:, -1:], horizon, axis=1)
    return Cone(mean, np.zeros_like(mean))


def drift(closes: Floats, horizon: int) -> Cone:
    """The last close plus the mean one-candle move per candle ahead, and the history's volatility."""
    move = (closes[:, -1:] - closes[:, :1]) / (closes.shape[1] - 1)
    return Cone(closes[:, -1:] + move * np.arange(1, horizon + 1), _spread(closes, horizon))


def historical_volatility(closes: Floats, horizon: int) -> Cone:
    """A Gaussian random walk from the last close: standard deviation of the one-candle moves times
    sqrt(candles ahead)."""
    return Cone(last_value(closes, horizon).mean, _spread(closes, horizon))


def _spread(closes: Floats, horizon: int) -> Floats:
    return np.asarray(np.diff(closes, axis=1).std(axis=1, keepdims=True) * np.sqrt(np.arange(1, horizon + 1)))


BASELINES: dict[str, Callable[[Floats, int], Cone]] = {
    "last value": last_value,
    "drift": drift,
    "historical volatility": historical_volatility,
}
