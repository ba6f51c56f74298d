"""What one run says, over its steady window: from the end of the warm-up to the end of the run.

Knows: throughput, latency quantiles, goodput, how sure one run is of its quantile. Does not know: other runs; a percentile is
never averaged without being called a run-level statistic.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from fleet.tune.objective import Objective
from fleet.tune.protocol import Floats, Points
from fleet.tune.raw import Record

BLOCKS = 12
"""Pieces of the window whose scatter says how sure the quantile is: requests near each other in time are alike."""
FARTHEST = 20.0
"""Times the objective: a quantile beyond it (or infinite, when too many failed) counts as this."""


class RunStats(msgspec.Struct, frozen=True):
    """Rates per second (``throughput_error``: of its logarithm), latencies in seconds.

    ``quantile`` is the objective's, failures counted as never ending, and
    ``log_error`` the standard error of its logarithm within the run. ``answered`` is the share that was right. ``moved``:
    logarithm of mean latency in the last quarter over that in the third (0 when one of them is empty)."""

    throughput: float
    throughput_error: float
    goodput: float
    answered: float
    mean: float
    p50: float
    p95: float
    p99: float
    quantile: float
    log_error: float
    met: bool
    moved: float


def summarise(record: Record, cut_s: float, objective: Objective) -> RunStats:
    """Raises ValueError when the record holds no run."""
    points, end = record.points, record.end
    if points is None or end is None:
        raise ValueError(f"{record.slot.id} holds no run")
    window = end.duration_s - cut_s
    inside = (points.due >= cut_s) & (points.due < end.duration_s)
    done = points.due + points.latency
    ended = points.ok & (done >= cut_s) & (done < end.duration_s)
    fast = ended & (points.latency <= objective.seconds)
    latency, ok = points.latency[inside], points.ok[inside]
    effective = np.where(ok, latency, math.inf)
    lost = round(end.dropped * window / end.duration_s)
    if lost:
        effective = np.append(effective, np.full(lost, math.inf))
    value = quantile(effective, objective.share)
    farthest = FARTHEST * objective.seconds
    return RunStats(
        throughput=float(ended.sum()) / window,
        throughput_error=_count_error(done[ended], cut_s, end.duration_s),
        goodput=float(fast.sum()) / window,
        answered=float(ok.mean()) if len(ok) else 0.0,
        mean=float(latency.mean()) if len(latency) else 0.0,
        p50=quantile(latency, 0.5),
        p95=quantile(latency, 0.95),
        p99=quantile(latency, 0.99),
        quantile=min(value, farthest),
        log_error=log_error(effective[: len(latency)], objective.share, value, farthest),
        met=value <= objective.seconds,
        moved=_moved(points, end.duration_s),
    )


def quantile(values: Floats, share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    return float(np.quantile(values, share, method="inverted_cdf")) if len(values) else math.inf


def log_error(values: Floats, share: float, value: float, farthest: float) -> float:
    """Standard error of log quantile: the scatter between blocks of time of the share above it, turned into seconds by the
    slope of the run's own quantile function."""
    if len(values) < 2 * BLOCKS or not math.isfinite(value):
        return 1.0
    above = values > value
    pieces: list[npt.NDArray[np.bool_]] = np.array_split(above, BLOCKS)
    shares = np.array([piece.mean() for piece in pieces])
    error = float(shares.std(ddof=1)) / math.sqrt(BLOCKS)
    error = max(error, 1.0 / len(values))
    high, low = quantile(values, min(share + error, 1.0)), quantile(values, max(share - error, 0.0))
    return max(0.0, math.log(min(high, farthest) / max(min(low, farthest), 1e-9)) / 2)


def _moved(points: Points, duration_s: float) -> float:
    quarter = np.floor(4 * points.due / duration_s)
    third, last = points.latency[quarter == 2], points.latency[quarter == 3]
    if not len(third) or not len(last):
        return 0.0
    return math.log(max(float(last.mean()), 1e-9) / max(float(third.mean()), 1e-9))


def _count_error(done: Floats, begin: float, end: float) -> float:
    """Standard error of the logarithm of how many ended, from the scatter between blocks of time."""
    numbers, _ = np.histogram(done, np.linspace(begin, end, BLOCKS + 1))
    return float(numbers.std(ddof=1) / max(numbers.mean(), 1e-9)) / math.sqrt(BLOCKS)
