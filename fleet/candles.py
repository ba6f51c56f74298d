"""Candles between a file, a request and an answer.

Knows: CSV columns people use, the request and answer documents of ``/v1/predict/single``, trading hours as they
show in a history. Does not know: HTTP, pictures, the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fleet.errors import BadCandles

PRICES = ("open", "high", "low", "close")
SIZES = ("volume", "amount")
TIME_NAMES = ("timestamps", "timestamp", "time", "date", "datetime", "open_time")
DAYS_TO_SEE_HOURS = 3
"""Distinct days a history must touch before its times of day are taken for the market's hours."""
LONGEST_BREAK_DAYS = 31


def read(path: Path, lookback: int | None = None) -> pd.DataFrame:
    """The last ``lookback`` candles of a CSV or Parquet file: columns open, high, low, close, (volume, amount), index of times.

    Raises BadCandles naming the column or the row (the line in the file, header = 1).
    """
    try:
        table = pd.read_parquet(path).reset_index() if path.suffix == ".parquet" else pd.read_csv(path)
    except FileNotFoundError as error:
        raise BadCandles(f"there is no file {path}", "python -m fleet predict examples/candles-5m.csv") from error
    except (ValueError, OSError) as error:
        raise BadCandles(f"{path} is neither CSV nor Parquet: {error}", "see examples/candles-5m.csv for the columns") from error
    table.columns = [str(name).strip().lower() for name in table.columns]
    times = next((name for name in TIME_NAMES if name in table.columns), None)
    missing = [name for name in PRICES if name not in table.columns]
    if times is None or missing or table.empty:
        lacks = "no rows" if table.empty else f"no column {', '.join([*missing, *([] if times else [TIME_NAMES[0]])])}"
        raise BadCandles(f"{path} has {lacks}", "see examples/candles-5m.csv for the columns")
    columns = [*PRICES, *(name for name in SIZES if name in table.columns)]
    candles = pd.DataFrame({name: _numbers(path, table[name]) for name in columns})
    stamps = pd.to_datetime(table[times], errors="coerce", format="ISO8601")
    _refuse(path, stamps.isna(), table[times], "is not a time such as 2024-06-01 09:35:00")
    _refuse(path, stamps.diff() <= pd.Timedelta(0), table[times], "is not later than the row before")
    candles.index = pd.DatetimeIndex(stamps, name="timestamps")
    return candles.tail(lookback) if lookback else candles


def _numbers(path: Path, column: pd.Series[Any]) -> pd.Series[float]:
    values = pd.to_numeric(column, errors="coerce").astype(float)
    finite = values.notna() & (values.abs() != float("inf"))
    _refuse(path, ~finite, column, "is not a finite number")
    return values


def _refuse(path: Path, bad: pd.Series[bool], column: pd.Series[Any], why: str) -> None:
    if bad.any():
        row = int(bad.to_numpy().argmax())
        more = f" (and {int(bad.sum()) - 1} more rows)" if bad.sum() > 1 else ""
        raise BadCandles(
            f"{path}, line {row + 2}: {column.name} {column.iloc[row]!s} {why}{more}",
            "correct or drop the row, then ask again",
        )


def future_times(times: pd.DatetimeIndex, horizon: int) -> pd.DatetimeIndex:
    """The next ``horizon`` times of the series: its usual spacing, inside the hours it has been seen to trade.

    A uniform history goes on uniformly. With gaps, and at least three days, only the pairs of weekend or
    weekday and time of day that occur in the history are used; public holidays are not known.
    """
    if len(times) < 2:
        raise BadCandles("one candle has no spacing", "give at least two candles")
    spacings = pd.Series(times[1:] - times[:-1])
    step = pd.Timedelta(spacings.mode().iloc[0])
    seen = {_slot(moment) for moment in times}
    has_hours = spacings.nunique() > 1 and step < pd.Timedelta(days=1) and times.normalize().nunique() >= DAYS_TO_SEE_HOURS
    found: list[pd.Timestamp] = []
    moment, end = times[-1], times[-1] + pd.Timedelta(days=LONGEST_BREAK_DAYS) + horizon * pd.Timedelta(days=7)
    while len(found) < horizon and moment < end:
        moment += step
        if not has_hours or _slot(moment) in seen:
            found.append(moment)
    return pd.DatetimeIndex(found)


def _slot(moment: pd.Timestamp) -> tuple[bool, int]:
    return moment.weekday() >= 5, moment.hour * 3600 + moment.minute * 60 + moment.second


@dataclass(frozen=True)
class Question:
    """What to forecast and how. ``quantiles`` are of the sample paths."""

    horizon: int
    samples: int = 1
    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 0.9
    quantiles: Sequence[float] = ()
    series_id: str | None = None


def request_document(candles: pd.DataFrame, question: Question) -> dict[str, Any]:
    """The body of ``POST /v1/predict/single``."""
    overrides = {
        "pred_len": question.horizon, "sample_count": question.samples,
        "temperature": question.temperature, "top_p": question.top_p,
    } | ({} if question.seed is None else {"seed": question.seed})  # fmt: skip
    index = pd.DatetimeIndex(candles.index)
    document: dict[str, Any] = {
        "series_id": question.series_id,
        "candles": candles.to_dict("records"),
        "timestamps": [moment.isoformat() for moment in index],
        "prediction_timestamps": [moment.isoformat() for moment in future_times(index, question.horizon)],
        "overrides": overrides,
    }
    if question.quantiles:
        document["quantiles"] = list(question.quantiles)
    return document


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Forecast candles of an answer as a table with an index of times."""
    table = pd.DataFrame(rows)
    table.index = pd.DatetimeIndex(pd.to_datetime(table.pop("timestamp"), format="ISO8601"), name="timestamps")
    return table


def forecast_table(answer: Mapping[str, Any]) -> pd.DataFrame:
    """The prediction with, for each quantile q, columns such as ``close_q0.1``; for ``--out``."""
    table = frame(answer["prediction"])
    for q, rows in answer.get("quantiles", {}).items():
        table = table.join(frame(rows).add_suffix(f"_q{q}"))
    return table
