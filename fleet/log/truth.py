"""What came true: the candles of one series, to hold forecasts against.

Knows: CSV and Parquet files of candles. Does not know: forecasts.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa

from fleet import candles
from fleet.log.questions import COLUMNS


def read(path: Path, series: str) -> pa.Table:
    """series_id, time (wall clock, as written) and the six columns, null where the file has none. Raises BadCandles."""
    table = candles.read(path)
    times = pd.DatetimeIndex(table.index)
    times = times.tz_localize(None) if times.tz is not None else times
    columns = {name: pa.array(table[name]) if name in table else pa.nulls(len(table), pa.float64()) for name in COLUMNS}
    stamps = pa.array(times.astype("datetime64[us]"), pa.timestamp("us"))
    return pa.table({"series_id": pa.array([series] * len(table), pa.string()), "time": stamps, **columns})
