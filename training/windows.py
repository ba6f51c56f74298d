"""Windows of candles as the model meets them: a lookback, its statistics, and what followed.

Knows how candle series (synthetic or real) become normalised arrays and time features, exactly as the service
makes them (app.model.frames). Does not know models or losses.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.model import frames
from training import synthetic

REAL_CANDLES = Path(__file__).parent.parent / "tests" / "data" / "candles.csv"
REAL_TRAINING_SHARE = 0.8  # of the real candles, by time; the rest is seen in the evaluation only


@dataclass(frozen=True)
class Windows:
    """Equal windows: x float32[count, lookback + ahead, 6], normalised by the first `lookback` candles' mean
    and std (float32[count, 6], original unit) and clipped; stamps int16[count, lookback + ahead, 5]; values
    as given."""

    lookback: int
    x: NDArray[np.float32]
    stamps: NDArray[np.int16]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    values: NDArray[np.float64]


def cut(values: NDArray[np.float64], times: NDArray[np.datetime64], lookback: int) -> Windows:
    """Normalise each window by its lookback. values [count, length, 6], times [count, length]; lookback <=
    length."""
    count, length, width = values.shape
    x = np.empty((count, length, width), dtype=np.float32)
    mean, std = np.empty((2, count, width), dtype=np.float32)
    for row in range(count):
        columns = dict(zip(frames.COLUMNS, values[row, :lookback].T, strict=True))
        history = frames.normalise(frames.fill_missing(columns))
        future = (values[row, lookback:].astype(np.float32) - history.mean) / (
            history.std + np.float32(frames.EPSILON)
        )
        x[row, :lookback], x[row, lookback:] = history.x, np.clip(future, -frames.CLIP, frames.CLIP)
        mean[row], std[row] = history.mean, history.std
    stamps = frames.stamp_features(times.reshape(-1)).reshape(count, length, -1)
    return Windows(lookback, x, stamps, mean, std, values)


@dataclass(frozen=True)
class RealCandles:
    """The bundled real candles: values float64[n, 6], times datetime64[s][n], in time order."""

    values: NDArray[np.float64]
    times: NDArray[np.datetime64]

    @property
    def held_out_from(self) -> int:
        """Index of the first candle that training never sees."""
        return int(len(self.values) * REAL_TRAINING_SHARE)

    def at(self, starts: NDArray[np.int64], length: int, lookback: int) -> Windows:
        """Windows that begin at the given candles."""
        rows = starts[:, None] + np.arange(length)
        return cut(self.values[rows], self.times[rows], lookback)


def read_real(path: Path = REAL_CANDLES) -> RealCandles:
    """Read a CSV with the columns timestamps, open, high, low, close, volume, amount."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = np.array([[float(row[column]) for column in frames.COLUMNS] for row in rows])
    return RealCandles(values, np.array([row["timestamps"] for row in rows], dtype="datetime64[s]"))


def draw(
    seed: tuple[int, ...], lookback: int, ahead: int, count: int, real: int, candles: RealCandles
) -> Windows:
    """`count` windows, the last `real` of them from the training part of the real candles, the others
    synthetic."""
    length = lookback + ahead
    drawn = synthetic.generate(seed, count - real, length)
    starts = np.random.default_rng((*seed, 1)).integers(candles.held_out_from - length + 1, size=real)
    rows = starts[:, None] + np.arange(length)
    return cut(
        np.concatenate([drawn.values, candles.values[rows]]),
        np.concatenate([drawn.times, candles.times[rows]]),
        lookback,
    )
