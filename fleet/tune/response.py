"""How latency at one count and rate answers to a host that is faster or slower: the bridge from short runs to a long time.

Knows: what a model says of short runs and of a long time, moods. Does not know: the model.

Three things are unknown, and the runs speak of all of them, so they are weighed together:

- the slowness of the host while they were made, over what the model was calibrated with. Throughput at saturation shows it well;
- the factor by which the model's latency errs (DOUBT). Where latency hardly answers to slowness, runs that differ from the model
  tell this factor; near saturation, where it answers steeply, they tell the slowness. (To take all of the difference for slowness
  would move the saturation that was measured.)
- the size of the host's moods. Throughput shows it, and so does how far the runs scatter: beyond chance, by moods alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from fleet.tune.moods import Moods
from fleet.tune.protocol import Floats

SURE = 0.95
"""A count is enough when it meets the objective in so large a part of a long time."""
SLOWNESS = np.array([-0.3, -0.15, -0.08, -0.04, 0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3])
"""Logarithm of the time that all work takes, over what the model was calibrated with."""
DOUBT = 0.10
"""Standard deviation of a model's error (log of latency), where little else is known of it."""
BELIEVED = 3.0
"""A model that errs by more standard deviations than this does not describe the count."""
SIMULATED = 0.015
"""Standard error (log) of what comes from a model by chance in its simulation."""
MOODS = ndtri((np.arange(60) + 0.5) / 60)
"""Equally likely moods, in standard deviations."""
PLACES = np.linspace(-3.0, 3.0, 41)[:, None]
"""Of the slowness, in standard deviations."""
SIZES = np.geomspace(0.003, 0.2, 28)
"""Of the host's moods (standard deviation of a logarithm)."""


class Runs(NamedTuple):
    """Of ``number`` runs the mean of their logarithms, the variance between them, and that which chance within a run explains."""

    number: int
    mean: float
    between: float
    within: float

    @property
    def variance(self) -> float:
        """Of the mean."""
        return max(self.between, self.within, 1e-12) / self.number


class Outlook(NamedTuple):
    """P(objective met), and the logarithm of the objective over the long-run quantile in a slow hour (the worst 1 − SURE of the
    host's moods) with its standard error: above 0 the count is enough. ``saturates``: it knows of queues that grow slowly."""

    p: float
    spare: float
    error: float
    saturates: bool


@dataclass(frozen=True)
class Response:
    """Log of the objective's quantile at each SLOWNESS: the mean of runs like the measured ones, with the variance that chance
    gives them, and over a long time."""

    short: Floats
    chance: Floats
    long: Floats
    moods: Moods

    def explains(self, runs: Runs) -> bool:
        """Whether these runs are what the model would give, but for the errors it is known to make."""
        found = self._weigh(runs)
        return bool(abs(found.off.flat[found.weight.argmax()]) <= BELIEVED * math.sqrt(DOUBT**2 + found.variance))

    def outlook(self, target: float, runs: Runs | None) -> Outlook:
        """Of the long-run quantile against the target (logarithms), when these runs were seen; None: none that say anything.

        Near saturation the curves are steep: that makes a slow hour worse than a slow run.
        """
        weight, slowness, off, variance = self._weigh(runs) if runs else self._alone()
        part = DOUBT**2 / (DOUBT**2 + variance)
        factor, rest = off * part, DOUBT * math.sqrt(1 - part)
        long = np.interp(_moods(slowness), SLOWNESS, self.long) + factor[..., None]
        slow = np.interp(slowness + ndtri(SURE) * SIZES, SLOWNESS, self.long) + factor
        middle = float((weight * slow).sum())
        spread = float((weight * (slow - middle) ** 2).sum())
        p = min(1.0, float((weight * ndtr((target - long) / rest).mean(axis=-1)).sum()))  # weights add up to 1 but for a last bit
        return Outlook(p, target - middle, math.sqrt(spread + rest**2), saturates=True)

    def _alone(self) -> _Weighed:
        slowness = PLACES * self.moods.known(SIZES)
        weight = np.exp(self.moods.likelihood(SIZES) - self.moods.likelihood(SIZES).max() - 0.5 * PLACES**2)
        return _Weighed(weight / weight.sum(), slowness, np.zeros_like(slowness), math.inf)

    def _weigh(self, runs: Runs) -> _Weighed:
        slowness = PLACES * np.hypot(SIZES / math.sqrt(runs.number), self.moods.known(SIZES))
        short = np.interp(_moods(slowness), SLOWNESS, self.short)
        chance = np.interp(slowness, SLOWNESS, self.chance)
        scatter = short.var(axis=-1) + np.maximum(chance, runs.within) + 1e-12
        off = runs.mean - short.mean(axis=-1)
        variance = (runs.variance + SIMULATED**2) * (runs.number + 1) / (runs.number - 1)  # wider for few, as Student's t is
        log = self.moods.likelihood(SIZES) - 0.5 * PLACES**2 - 0.5 * off**2 / (DOUBT**2 + variance)
        log = log - 0.5 * (runs.number - 1) * (np.log(scatter) + runs.between / scatter)
        weight = np.exp(log - log.max())
        return _Weighed(weight / weight.sum(), slowness, off, variance)


class _Weighed(NamedTuple):
    """For each place of the slowness and size of the moods: how likely they are, the slowness, by how much the runs' mean is off
    what the model would give there; and the variance of that mean."""

    weight: Floats
    slowness: Floats
    off: Floats
    variance: float


def _moods(slowness: Floats) -> Floats:
    """The slowness in each mood (last axis)."""
    return np.asarray(slowness[..., None] + SIZES[:, None] * MOODS)
