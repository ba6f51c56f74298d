"""Synthetic candles with structure a model can learn.

Knows how candle series are drawn: calendars, price dynamics, volumes. Does not know models, tokens or
normalisation, and makes no claim to look like any particular market: the structure is there to be learned,
and stronger than in markets.

The log price, in `SUBSTEPS` equal steps within each candle, is the sum of three parts

    p = level + swing + season(phase)

    level:   d level = momentum dt + w_level sigma v dW1      a random walk with a slowly changing drift
    swing:   d swing = -swing / tau dt + w_swing sigma v dW2  Ornstein-Uhlenbeck: mean reversion to the level
    season:  amplitude sigma (sin(2 pi u) + sin(4 pi u + 1) / 2), u = phase of the day (daily candles: week)

    momentum: AR(1) over candles, stationary standard deviation w_momentum sigma
    v:        exp(h) activity(u), h an AR(1) over candles: log-normal stochastic volatility (Taylor 1982)
              times the intraday U shape; this is the volatility clustering

with dt in candles, sigma the standard deviation of one candle's noise (log units), w_level^2 + w_swing^2 = 1.
At the first candle after a pause (night, lunch, weekend) the level jumps by GAP sigma v N(0, 1). Open is the
price before the first sub-step, close the last sub-step, high and low the extremes of all of them. Volume
follows activity(u), v, the size of the candle's move and an AR(1) noise; amount is volume times the mean
price of the sub-steps times a lot. A regime (`REGIMES`) is a set of ranges for these parameters; each series
draws its regime, calendar and parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SUBSTEPS = 8
GAP = 2.0
UNTRADED = 0.1  # share of series without volume and amount, as index series come
TICKED = 0.4  # share of series whose prices move on a coarse grid, a few ticks per candle
FIRST_DAY = np.datetime64("2015-01-05")
DAYS = 3600

Floats = NDArray[np.float64]
Times = NDArray[np.datetime64]


@dataclass(frozen=True)
class Spacing:
    """The distance between candles: minutes, and the typical standard deviation of one candle's log
    return."""

    name: str
    minutes: int
    sigma: float


@dataclass(frozen=True)
class Regime:
    """Ranges (low, high) from which a series draws its dynamics; weights are in units of sigma, times in
    candles."""

    name: str
    share: float
    swing: tuple[float, float]  # share of the noise variance that goes into the mean-reverting part
    momentum: tuple[float, float]  # stationary standard deviation of the drift
    season: tuple[float, float]  # amplitude of the daily cycle


@dataclass(frozen=True)
class Series:
    """A batch of candle series: values float64[count, length, 6] in the order open, high, low, close, volume,
    amount; times datetime64[s][count, length] (wall clock); the regime's and the spacing's name of each
    series."""

    values: Floats
    times: Times
    regimes: tuple[str, ...]
    spacings: tuple[str, ...]


SPACINGS = (
    Spacing("1 min", 1, 6e-4),
    Spacing("5 min", 5, 1.3e-3),
    Spacing("15 min", 15, 2.3e-3),
    Spacing("1 h", 60, 4.5e-3),
    Spacing("1 day", 1440, 1.6e-2),
)
REGIMES = (
    Regime("reverting", 0.35, swing=(0.95, 1.0), momentum=(0.0, 0.0), season=(0.0, 0.5)),
    Regime("trending", 0.20, swing=(0.0, 0.2), momentum=(0.4, 1.0), season=(0.0, 0.5)),
    Regime("seasonal", 0.20, swing=(0.5, 0.9), momentum=(0.0, 0.0), season=(3.0, 8.0)),
    Regime("mixed", 0.15, swing=(0.3, 0.97), momentum=(0.0, 0.5), season=(0.0, 5.0)),
    Regime("walk", 0.10, swing=(0.0, 0.0), momentum=(0.0, 0.0), season=(0.0, 0.0)),
)
# Minutes of the day that trade: all of them, one session, two sessions around a lunch break.
SESSIONS = (((0, 1440),), ((570, 960),), ((570, 690), (780, 900)))


def generate(seed: int | tuple[int, ...], count: int, length: int) -> Series:
    """`count` independent series of `length` candles, a function of `seed` alone."""
    rng = np.random.default_rng(seed)
    regimes = rng.choice(len(REGIMES), size=count, p=[regime.share for regime in REGIMES])
    spacings = rng.integers(len(SPACINGS), size=count)
    calendars = [_calendar(rng, SPACINGS[index], length) for index in spacings]
    times, phase, gaps = (np.stack(column) for column in zip(*calendars, strict=True))
    sigma = np.array([SPACINGS[index].sigma for index in spacings]) * np.exp(rng.normal(0.0, 0.4, count))
    volatility = np.exp(_log_volatility(rng, count, length)) * _activity(phase, 0.3)
    log_price = _log_price(rng, [REGIMES[index] for index in regimes], phase, gaps, volatility)
    prices = _prices(rng, sigma, log_price)
    candles = np.stack(
        [prices[..., 0], prices.max(axis=-1), prices.min(axis=-1), prices[..., -1]],
        axis=-1,
    )
    traded = _trades(rng, sigma, phase, volatility, prices)
    return Series(
        values=np.concatenate([candles, traded], axis=-1),
        times=times,
        regimes=tuple(REGIMES[index].name for index in regimes),
        spacings=tuple(SPACINGS[index].name for index in spacings),
    )


def _calendar(
    rng: np.random.Generator, spacing: Spacing, length: int
) -> tuple[Times, Floats, NDArray[np.bool_]]:
    """Stamps, phase of the day (of the week for daily candles) in [0, 1), and whether a pause came before the
    candle."""
    kind = int(rng.integers(len(SESSIONS)))
    if spacing.minutes >= 1440:
        slots = np.zeros(1, dtype=np.int64)
    else:
        slots = np.concatenate([np.arange(a, b, spacing.minutes) for a, b in SESSIONS[kind]])
    last_start = DAYS * len(slots) - length if spacing.minutes < 1440 else DAYS - length
    index = int(rng.integers(max(last_start, 1))) + np.arange(length)
    days = FIRST_DAY + index // len(slots) if kind == 0 else np.busday_offset(FIRST_DAY, index // len(slots))
    times: Times = np.asarray(days, dtype="datetime64[s]")
    times = times + slots[index % len(slots)] * np.timedelta64(60, "s")
    if spacing.minutes >= 1440:
        week = 7 if kind == 0 else 5
        return times, (index % week) / week, np.zeros(length, dtype=np.bool_)
    gaps = np.concatenate([[False], np.diff(times) != np.timedelta64(60 * spacing.minutes, "s")])
    return times, (index % len(slots)) / len(slots), gaps


def _activity(phase: Floats, depth: float) -> Floats:
    """The U shape of trading over the day, mean 1: 1 + depth cos(2 pi u) + depth / 2 cos(4 pi u)."""
    return 1.0 + depth * np.cos(2 * np.pi * phase) + 0.5 * depth * np.cos(4 * np.pi * phase)


def _autoregressive(rng: np.random.Generator, memory: Floats, length: int) -> Floats:
    """AR(1) series of unit variance that keep e^(-1 / memory) per candle: float64[count, length]."""
    keep = np.exp(-1.0 / memory)
    noise = rng.standard_normal((length, len(memory)))
    noise[1:] *= np.sqrt(1.0 - keep**2)
    for step in range(1, length):
        noise[step] += keep * noise[step - 1]
    return noise.T


def _log_volatility(rng: np.random.Generator, count: int, length: int) -> Floats:
    spread = np.asarray(rng.uniform(0.25, 0.6, count))[:, None]
    memory = np.asarray(rng.uniform(15.0, 80.0, count))
    return spread * _autoregressive(rng, memory, length) - spread**2


def _log_price(
    rng: np.random.Generator,
    regimes: list[Regime],
    phase: Floats,
    gaps: NDArray[np.bool_],
    volatility: Floats,
) -> Floats:
    """Log price in units of sigma: float64[count, length, SUBSTEPS + 1]; entry 0 of a candle is the price at
    its open."""
    count, length = phase.shape
    swing_share, momentum_size, season_size = (
        np.array([rng.uniform(*getattr(regime, name)) for regime in regimes])[:, None]
        for name in ("swing", "momentum", "season")
    )
    memory = np.asarray(rng.uniform(10.0, 40.0, count))
    momentum = momentum_size * _autoregressive(rng, memory, length)
    noise = rng.standard_normal((2, count, length, SUBSTEPS)) * (volatility / np.sqrt(SUBSTEPS))[..., None]
    jumps = np.where(gaps, GAP * volatility * rng.standard_normal((count, length)), 0.0)

    steps = momentum[..., None] / SUBSTEPS + np.sqrt(1.0 - swing_share)[..., None] * noise[0]
    closes = np.cumsum(jumps + steps.sum(axis=-1), axis=1)
    opens = closes - steps.sum(axis=-1)
    level = np.concatenate([opens[..., None], opens[..., None] + np.cumsum(steps, axis=-1)], axis=-1)

    reversion = np.asarray(rng.uniform(3.0, 15.0, count))
    swing = _swing(np.sqrt(swing_share)[..., None] * noise[1], reversion)

    following = np.concatenate([phase[:, 1:], 2 * phase[:, -1:] - phase[:, -2:-1]], axis=1)
    following = np.where(following < phase, following + 1.0, following)
    u = phase[..., None] + (following - phase)[..., None] * np.linspace(0.0, 1.0, SUBSTEPS + 1)
    season = season_size[..., None] * (np.sin(2 * np.pi * u) + 0.5 * np.sin(4 * np.pi * u + 1.0))
    return level + swing + season


def _swing(noise: Floats, reversion: Floats) -> Floats:
    """Ornstein-Uhlenbeck in sub-steps, from its stationary spread on: [count, length, SUBSTEPS + 1]."""
    count, length, _ = noise.shape
    keep = 1.0 - 1.0 / (reversion * SUBSTEPS)
    steps = np.ascontiguousarray(noise.reshape(count, -1).T)
    steps[0] *= np.sqrt(reversion * SUBSTEPS / 2.0)
    for step in range(1, len(steps)):
        steps[step] += keep * steps[step - 1]
    swing = steps.T.reshape(count, length, SUBSTEPS)
    before = np.concatenate([swing[:, :1, 0], swing[:, :-1, -1]], axis=1)
    return np.concatenate([before[..., None], swing], axis=-1)


def _prices(rng: np.random.Generator, sigma: Floats, log_price: Floats) -> Floats:
    """Prices on several scales (0.1 to 50,000), part of them on a grid of ticks as coarse as the candles."""
    count = len(sigma)
    scale = np.exp(rng.uniform(np.log(0.1), np.log(5e4), count))[:, None, None]
    prices = scale * np.exp(sigma[:, None, None] * log_price)
    tick = scale * (sigma * np.exp(rng.uniform(np.log(0.05), np.log(1.0), count)))[:, None, None]
    ticked = (rng.random(count) < TICKED)[:, None, None]
    return np.where(ticked, np.maximum(np.round(prices / tick), 1.0) * tick, prices)


def _trades(
    rng: np.random.Generator, sigma: Floats, phase: Floats, volatility: Floats, prices: Floats
) -> Floats:
    """Volume and amount: float64[count, length, 2]."""
    count, length = phase.shape
    move = np.abs(np.log(prices[..., -1] / prices[..., 0])) / sigma[:, None]
    noise = 0.3 * _autoregressive(rng, np.full(count, 5.0), length) + 0.25 * rng.standard_normal(
        (count, length)
    )
    typical = np.exp(rng.uniform(np.log(10.0), np.log(1e6), count))[:, None]
    volume = typical * _activity(phase, 0.5) * volatility * (0.6 + 0.5 * move) * np.exp(noise)
    volume = np.where(rng.random((count, 1)) < UNTRADED, 0.0, np.round(volume, 2))
    lot = rng.choice([1.0, 100.0], size=(count, 1))
    return np.stack([volume, lot * volume * prices.mean(axis=-1)], axis=-1)
