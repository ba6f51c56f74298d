"""The host's moods: how much faster or slower it is from run to run and from round to round.

Knows: variance components of a table of runs. Does not know: what is measured.

A mood may last for a round, so rounds are what was seen of them, however many runs a round has: the variance between rounds and
the one within are estimated apart, and the degrees of freedom of their sum are Satterthwaite's (1946).
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from fleet.tune.protocol import Floats


class Moods(msgspec.Struct, frozen=True):
    """Standard deviations of a logarithm between runs: all of it, and what one run cannot know by itself (``sampling``), over so
    many ``rounds``. ``freedom`` 0: nothing was repeated."""

    total: float
    sampling: float
    freedom: float
    rounds: int

    @property
    def host(self) -> float:
        """The host's part."""
        return math.sqrt(max(0.0, self.total**2 - self.sampling**2))

    def likelihood(self, host: Floats) -> Floats:
        """Logarithm of the likelihood, but for a constant, of each size of the host's part."""
        total = host**2 + self.sampling**2
        return -0.5 * self.freedom * (np.log(total) + self.total**2 / total)

    def known(self, host: Floats) -> Floats:
        """Standard error of the mean over the rounds, for each size of the host's part."""
        return np.asarray(np.sqrt((host**2 + self.sampling**2) / max(1, self.rounds)))


def moods(table: Floats, sampling: float) -> Moods:
    """From logarithms (rounds, counts), NaN where there is no run; each count has one or more.

    ``sampling`` is the variance of one run by chance.
    """
    known = ~np.isnan(table)
    filled = known.any(axis=1)
    groups, rounds, runs = _groups(known), int(filled.sum()), int(known.sum())
    between_freedom = rounds - groups
    if between_freedom < 1:
        return Moods(0.0, math.sqrt(sampling), 0.0, rounds)
    centred = table[filled] - np.nanmean(table, axis=0)
    shift = np.nanmean(centred, axis=1, keepdims=True)
    within_freedom = max(0, runs - rounds - known.shape[1] + groups)
    within = float(np.nansum((centred - shift) ** 2)) / within_freedom if within_freedom else 0.0
    between = float((shift**2).sum()) / between_freedom  # of means: holds within / runs of the round already
    left = within * (1 - float((1 / known[filled].sum(axis=1)).mean()))
    total = between + left
    spread = between**2 / between_freedom + (left**2 / within_freedom if within_freedom else 0.0)
    freedom = total**2 / spread if spread else float(between_freedom)
    return Moods(math.sqrt(total), math.sqrt(sampling), freedom, rounds)


def _groups(known: npt.NDArray[np.bool_]) -> int:
    """Sets of counts that share no round: each has its own mean, so each costs a degree of freedom."""
    sets: list[set[int]] = []
    for row in known:
        mine = set(np.flatnonzero(row).tolist())
        if mine:
            apart = [other for other in sets if not other & mine]
            sets = [*apart, mine.union(*(other for other in sets if other & mine))]
    return len(sets)
