"""Candles ↔ arrays: missing columns, the scale of a series, time features.

Knows numpy and the reference's arithmetic to the last bit; knows no torch, no pandas, no request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("open", "high", "low", "close", "volume", "amount")
PRICES = COLUMNS[:4]
STAMP_FIELDS = ("minute", "hour", "weekday", "day", "month")
EPSILON = 1e-5  # added to the standard deviation on the way in and on the way out
CLIP = 5.0  # standard deviations


class Normalised(NamedTuple):
    """A series on its own scale."""

    x: NDArray[np.float32]  # [L, 6], C-contiguous, within ±clip
    mean: NDArray[np.float32]  # [6], original units
    std: NDArray[np.float32]  # [6], original units, without EPSILON


def fill_missing(columns: Mapping[str, NDArray[np.floating] | None]) -> NDArray[np.float32]:
    """Columns by name, [L] each → float32 [L, 6] in the order of COLUMNS, column-major (see ``normalise``).

    As the reference: without volume, volume and amount become 0 (an amount given is not used); volume without
    amount gives amount = volume · mean of the four prices, in float64. Other names are ignored.
    Raises ValueError for a price column that is missing, columns of different length, no rows, or a value
    that is NaN, infinite or beyond float32.
    """
    prices = [_column(columns, name) for name in PRICES]
    length = len(prices[0])
    if columns.get("volume") is None:
        volume = amount = np.zeros(length)
    else:
        volume = _column(columns, "volume")
        if columns.get("amount") is not None:
            amount = _column(columns, "amount")
        elif len(volume) == length:
            amount = volume * (sum(prices[1:], start=prices[0]) / len(PRICES))
        else:
            amount = volume
    filled = [*prices, volume, amount]
    if {len(column) for column in filled} != {length} or length == 0:
        raise ValueError(f"columns need one length, at least 1; got {[len(column) for column in filled]}")
    values = np.empty((length, len(COLUMNS)), dtype=np.float32, order="F")
    with np.errstate(over="ignore"):  # what overflows is refused below, by name
        for index, column in enumerate(filled):
            values[:, index] = column
    _require_finite(values, "values that are NaN, infinite or beyond float32")
    return values


def normalise(values: NDArray[np.float32], clip: float = CLIP) -> Normalised:
    """Scale float32 [L, 6] by its own mean and population standard deviation, then clip to ±clip.

    Statistics are float32 and each column is summed pairwise, which numpy does for column-major arrays
    only: another order gives means some units in the last place away, and other tokens for a constant
    price. Raises ValueError when a column's squares are beyond float32.
    """
    columns = np.asfortranarray(values, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, by name
        mean, std = columns.mean(0), columns.std(0)
    _require_finite(np.stack((mean, std)), "values too large for statistics in float32")
    scaled = (columns - mean) / (std + np.float32(EPSILON))
    return Normalised(np.ascontiguousarray(scaled.clip(-clip, clip)), mean, std)


def restore(
    x: NDArray[np.float32], mean: NDArray[np.float32], std: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Back to original units: float32 [..., 6] on the scale ``normalise`` returned. Nothing is clipped."""
    restored: NDArray[np.float32] = x * (std + np.float32(EPSILON)) + mean
    return restored


def stamp_features(times: NDArray[np.datetime64]) -> NDArray[np.int16]:
    """Wall-clock times [L] → int16 [L, 5] in the order of STAMP_FIELDS.

    Weekday counts from Monday 0, day and month from 1; seconds are ignored. Raises ValueError for NaT.
    """
    if np.isnat(times).any():
        raise ValueError("stamps must be times, got NaT")
    minutes = times.astype("datetime64[m]").astype(np.int64)
    days = times.astype("datetime64[D]")
    months = times.astype("datetime64[M]")
    weekday = (days.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
    day_of_month = (days - months.astype("datetime64[D]")).astype(np.int64) + 1
    month = months.astype(np.int64) % 12 + 1
    fields = (minutes % 60, minutes // 60 % 24, weekday, day_of_month, month)
    return np.stack(fields, axis=-1).astype(np.int16)


def _column(columns: Mapping[str, NDArray[np.floating] | None], name: str) -> NDArray[np.float64]:
    column = columns.get(name)
    if column is None:
        raise ValueError(f"price column {name!r} is missing")
    return np.asarray(column, dtype=np.float64)


def _require_finite(rows: NDArray[np.float32], problem: str) -> None:
    bad = [name for name, column in zip(COLUMNS, rows.T, strict=True) if not np.isfinite(column).all()]
    if bad:
        raise ValueError(f"{', '.join(bad)}: {problem}")
