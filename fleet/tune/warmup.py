"""How much of the beginning of a run does not count.

Knows: bins, Welch's averaging over runs, MSER-5. Does not know: validity, percentiles.

The warm-up belongs to the fleet, not to a run: one run's early burst must not be cut away as warm-up (that would flatter the
tail), so the series of all runs of a mode are put together before the cut is looked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fleet.tune.protocol import Floats, Points

BATCH = 5
"""The 5 of MSER-5: observations per batch."""
FEWEST_BINS = 50
"""A run shorter than so many seconds gets shorter bins than one second."""
CLEARLY = 3.0
"""Standard errors between the means of what is dropped and what is kept."""
MOST = 0.5
"""Of a run; what is not steady by then is judged by the gates."""


def bin_s(duration_s: float) -> float:
    """Width of a bin in seconds."""
    return min(1.0, duration_s / FEWEST_BINS)


def latency_series(points: Points, duration_s: float) -> Floats:
    """Mean latency (s) of the requests due in each bin; an empty bin repeats the one before."""
    edges = _edges(duration_s)
    counts, _ = np.histogram(points.due, edges)
    sums, _ = np.histogram(points.due, edges, weights=points.latency)
    means = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return _filled(means)


def throughput_series(points: Points, duration_s: float) -> Floats:
    """Answers a second that ended in each bin."""
    edges = _edges(duration_s)
    counts, _ = np.histogram(points.due + points.latency, edges)
    return counts / np.diff(edges)


def cut_s(series: Sequence[Floats], duration_s: float) -> float:
    """Seconds at the beginning of every run of a mode that are warm-up: MSER-5 of the runs' common series."""
    usable = [values / np.median(values) for values in series if np.median(values) > 0]
    if not usable:
        return 0.0
    return mser(np.median(usable, axis=0)) * bin_s(duration_s)


def mser(values: Floats, batch: int = BATCH) -> int:
    """Observations to drop (White 1997; batches: White, Cobb and Spratt 2000): the cut with the least standard error of what is
    left, at most half. None when what would be dropped is not clearly different from the rest: on noise alone the rule drops
    a third."""
    count = len(values) // batch
    if count < 2:
        return 0
    means = values[: count * batch].reshape(count, batch).mean(axis=1)
    errors = [means[cut:].var() / (count - cut) for cut in range(int(count * MOST) + 1)]
    cut = int(np.argmin(errors))
    return cut * batch if cut and _different(means[:cut], means[cut:]) else 0


def _different(head: Floats, tail: Floats) -> bool:
    error = float(tail.std(ddof=1)) * math.sqrt(1 / len(head) + 1 / len(tail))
    return abs(float(head.mean() - tail.mean())) > CLEARLY * error


def _edges(duration_s: float) -> Floats:
    return np.linspace(0.0, duration_s, round(duration_s / bin_s(duration_s)) + 1)


def _filled(values: Floats) -> Floats:
    known = np.flatnonzero(~np.isnan(values))
    if len(known) == 0:
        return np.zeros(len(values))
    place = np.searchsorted(known, np.arange(len(values)), side="right") - 1
    filled: Floats = values[known[np.maximum(place, 0)]]
    return filled
