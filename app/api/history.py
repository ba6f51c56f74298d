"""Candles and timestamps of one series: checks what types cannot say, then fills the model's arrays.

Knows: the relations between the elements of a history. Does not know: HTTP, JSON, what is asked of the series.
The arithmetic of normalising and of time features is ``app.model.frames``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.api.faults import Faults
from app.api.schema import Candle, Notice, Series
from app.api.stamps import Stamps, parse
from app.model.frames import PRICES, Normalised, fill_missing, normalise, stamp_features
from app.work import Int16

Column = NDArray[np.float64]

LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class History:
    """One series as the model wants it."""

    scale: Normalised
    stamps: Stamps
    features: Int16  # [L, 5]
    notices: list[Notice]


def read_history(item: Series, max_candles: int, faults: Faults) -> History | None:
    """Check the candles and timestamps of ``item``; None when a fault was noted."""
    count, clean = len(item.candles), faults.total
    if count > max_candles:
        faults.add("/candles", f"has {count} elements; at most {max_candles} are accepted")
        return None
    if len(item.timestamps) != count:
        faults.add("/timestamps", f"has {len(item.timestamps)} elements, candles has {count}; one for each is needed")
    columns = _columns(item.candles, faults)
    _check_candles(columns, faults)
    stamps = parse(item.timestamps, "/timestamps", faults)
    if stamps is not None and len(item.timestamps) == count:
        _check_candle_timestamps(item, stamps, faults)
    if stamps is None or faults.total > clean:
        return None
    try:
        scale = normalise(fill_missing(columns))
    except ValueError as error:  # sums and squares of admissible values that single precision cannot hold
        faults.add("/candles", str(error))
        return None
    return History(scale, stamps, stamp_features(stamps.times), _filling_notices(columns))


def _columns(candles: Sequence[Candle], faults: Faults) -> dict[str, Column | None]:
    """Columns by name, None for a volume or amount that no candle has. Some having it is a fault."""
    columns: dict[str, Column | None] = {
        "open": np.array([candle.open for candle in candles]),
        "high": np.array([candle.high for candle in candles]),
        "low": np.array([candle.low for candle in candles]),
        "close": np.array([candle.close for candle in candles]),
    }
    optional = {
        "volume": [candle.volume for candle in candles],
        "amount": [candle.amount for candle in candles],
    }
    for name, values in optional.items():
        missing = values.count(None)
        if missing == len(values):
            columns[name] = None
            continue
        if missing:
            absent = np.array([value is None for value in values])
            faults.add_where(absent, "/candles", f"/{name}", f"{name} is missing here, but other candles have it")
        columns[name] = np.array([0.0 if value is None else value for value in values] if missing else values)
    return columns


def _check_candles(columns: dict[str, Column | None], faults: Faults) -> None:
    """Order and magnitude, all candles at once; the fault is looked for only when there is one."""
    opened, high, low, close = (columns[name] for name in PRICES)
    if opened is None or high is None or low is None or close is None:
        raise TypeError("prices are never missing here")
    top, bottom = np.maximum(opened, close), np.minimum(opened, close)
    if not ((high >= top).all() and (low <= bottom).all()):
        crossed = high < low
        faults.add_where(crossed, "/candles", "/high", lambda i: f"high {high[i]:g} is below low {low[i]:g}")
        for bad, name, words in (
            ((high < top) & ~crossed, "high", "is below open or close"),
            ((low > bottom) & ~crossed, "low", "is above open or close"),
        ):
            faults.add_where(bad, "/candles", f"/{name}", f"{name} {words}")
    for name, column in columns.items():
        if column is not None and np.abs(column).max() > LARGEST:
            too_large = np.abs(column) > LARGEST
            faults.add_where(too_large, "/candles", f"/{name}", f"is beyond single precision, ±{LARGEST:.4g}")


def _check_candle_timestamps(item: Series, stamps: Stamps, faults: Faults) -> None:
    for index, given in enumerate([candle.timestamp for candle in item.candles]):
        if given is None or given == item.timestamps[index]:
            continue
        own = parse([given], f"/candles/{index}/timestamp", Faults())
        if own is None or own.times[0] != stamps.times[index] or own.offset != stamps.offset:
            faults.add(f"/candles/{index}/timestamp", f"does not agree with timestamps/{index}")


def _filling_notices(columns: dict[str, Column | None]) -> list[Notice]:
    if columns.get("volume") is None:
        ignored = ", and the amounts given were not used" if columns.get("amount") is not None else ""
        return [Notice("volume_missing", f"no volumes: volume and amount were taken as 0{ignored}")]
    if columns.get("amount") is None:
        return [Notice("amount_missing", "no amounts: taken as volume × mean of the four prices")]
    return []
