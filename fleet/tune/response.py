"""How latency at one count and rate answers to a host that is faster or slower: the bridge from short runs to a long time.

Knows: two curves from a model, Student's t. Does not know: the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fleet.tune.protocol import Floats

SLOWNESS = np.array([-0.3, -0.15, -0.08, -0.04, 0.0, 0.04, 0.08, 0.15, 0.3])
"""Logarithm of the time that all work takes, over what the model was calibrated with."""
TRUSTED = 0.1
"""A model that needs more slowness than this to explain the runs at a count does not describe that count."""
EQUALLY_LIKELY = (np.arange(60) + 0.5) / 60
MANY = 10_000
"""Degrees of freedom that make Student's t the normal distribution."""


@dataclass(frozen=True)
class Response:
    """Log of the objective's quantile at each SLOWNESS: mean of runs like the measured ones, and over a long time.

    ``noise`` is the standard deviation of the host's moods (log), known with ``freedom`` degrees.
    """

    short: Floats
    long: Floats
    noise: float
    freedom: float

    def explains(self, mean: float) -> bool:
        """Whether runs with this mean are what the model would give on a host about as fast as it was calibrated with."""
        low, high = np.interp([-TRUSTED, TRUSTED], SLOWNESS, self._runs_like())
        return bool(low <= mean <= high)

    def met(self, target: float, mean: float, error: float, runs: int) -> float:
        """P(long-run quantile ≤ target), when ``runs`` runs had this mean with this standard error (logarithms).

        The slowness that explains the mean is read from the first curve (with the moods that the runs had), a mood of the host is
        added, and the second curve says what a long time is like. Near saturation both curves are steep: that is what makes a
        slow hour worse than a slow run.
        """
        runs_like = self._runs_like()
        means = mean + error * stdtrit(runs - 1, EQUALLY_LIKELY)
        slowness = np.interp(means, runs_like, SLOWNESS)
        left = means - np.interp(slowness, SLOWNESS, runs_like)  # what no slowness of the grid explains
        moods = slowness[:, None] + self.noise * stdtrit(self.freedom, EQUALLY_LIKELY)
        return float((np.interp(moods, SLOWNESS, self.long) + left[:, None] <= target).mean())

    def _runs_like(self) -> Floats:
        """The mean of runs at each SLOWNESS, over the moods that they had; it never falls."""
        seen = SLOWNESS[:, None] + self.noise * stdtrit(MANY, EQUALLY_LIKELY)
        return np.asarray(np.maximum.accumulate(np.interp(seen, SLOWNESS, self.short).mean(axis=1)))
