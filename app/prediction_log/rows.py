"""What the prediction log takes from a forecast, and the Parquet tables it makes of many.

One row is one forecast of one series. The columns are listed in ``SCHEMA``; ``VERSION`` changes when one goes or changes its
meaning, not when one comes. Lists run over the steps of the forecast; times in lists are the wall clock of the series' own
timestamps, ``utc_offset`` minutes east of UTC (null: the request named none); ``answered`` is an instant.
Knows: records, columns, Parquet. Does not know: when a table is made, where it goes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import UNSET
from numpy.typing import NDArray

from app.api.faults import Faults
from app.api.schema import Candle, ForecastCandle
from app.api.stamps import Stamps, parse
from app.model.frames import COLUMNS, Normalised
from app.records import Record
from app.work import Forecast

VERSION: Final = 1
CANDLE_BYTES: Final = 300
"""About what a forecast candle or a candle of a request weighs in memory, with its numbers and its time."""
ROW_BYTES: Final = 2_000
"""About what everything else of a record weighs."""
AT_ONCE: Final = 16
PAUSE_S: Final = 0.001
"""Rows that are made in one go, in a millisecond or two, and the pause after them."""

LIST: Final = pa.list_(pa.float64())
TIMES: Final = pa.list_(pa.timestamp("us"))
VALUES: Final = [pa.field(name, LIST) for name in COLUMNS]
LEVELS: Final = pa.list_(pa.struct([pa.field("level", pa.float64()), *VALUES]))
INPUT: Final = pa.struct([pa.field("timestamps", TIMES), *VALUES])
TEXTS: Final = ("record_id", "request_id", "endpoint", "worker", "model_version", "tokenizer_version", "series_id", "cache")
REPEATED: Final = ["endpoint", "worker", "model_version", "tokenizer_version", "series_id", "cache"]
"""Columns of few different texts."""
SCHEMA: Final = pa.schema(
    [
        pa.field("schema_version", pa.int16()),
        pa.field("answered", pa.timestamp("us", "UTC")),
        *(pa.field(name, pa.string()) for name in TEXTS),
        pa.field("input_sha256", pa.string()),
        pa.field("input_candles", pa.int32()),
        pa.field("input_until", pa.timestamp("us")),
        pa.field("utc_offset", pa.int16()),
        pa.field("horizon", pa.int32()),
        pa.field("temperature", pa.float64()),
        pa.field("top_k", pa.int32()),
        pa.field("top_p", pa.float64()),
        pa.field("sample_count", pa.int32()),
        pa.field("seed", pa.int64()),
        pa.field("repair", pa.bool_()),
        pa.field("total_ms", pa.float64()),
        pa.field("stages_ms", pa.map_(pa.string(), pa.float64())),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("timestamps", TIMES),
        *VALUES,
        pa.field("quantiles", LEVELS),
        pa.field("input", INPUT),
    ],
    {"kronos.prediction_log": str(VERSION)},
)


@dataclass(frozen=True, slots=True)
class Taken:
    """References to what a row is made of. ``history``: the candles and times that came, where inputs are wanted."""

    record: Mapping[str, Any]
    work: Forecast
    scale: Normalised
    until: str
    timestamps: Sequence[str]
    prediction: Sequence[ForecastCandle]
    quantiles: Mapping[str, Sequence[ForecastCandle]]
    history: tuple[Sequence[Candle], list[str]] | None

    @property
    def bytes(self) -> int:
        """About what this keeps in memory."""
        candles = len(self.prediction) * (1 + len(self.quantiles)) + (len(self.history[0]) if self.history else 0)
        return ROW_BYTES + CANDLE_BYTES * candles + self.work.history.nbytes + self.work.history_stamps.nbytes


def take(record: Record, inputs: bool) -> Taken:
    """Take from ``record`` what its row needs: microseconds, no copies."""
    prepared, result = record.prepared, record.result
    asked = prepared.asked
    kept = {name: getattr(record, name) for name in (*TEXTS, "answered", "stages") if name != "series_id"}
    kept |= {"series_id": asked.series_id, "repair": asked.repair, "warnings": [notice.code for notice in result.warnings]}
    return Taken(
        record=kept,
        work=prepared.work,
        scale=prepared.scale,
        until=asked.timestamps[-1],
        timestamps=prepared.timestamps,
        prediction=result.prediction,
        quantiles={} if result.quantiles is UNSET else result.quantiles,
        history=(asked.candles, asked.timestamps) if inputs else None,
    )


def input_hash(work: Forecast, scale: Normalised) -> str:
    """Names a history as the model gets it: sha256 over normalised candles (float32 [L, 6]), their means and standard
    deviations (float32 [6] each) and time features (int16 [L, 5]), little-endian, row by row, in this order."""
    digest = hashlib.sha256()
    for part, kind in ((work.history, "<f4"), (scale.mean, "<f4"), (scale.std, "<f4"), (work.history_stamps, "<i2")):
        digest.update(np.ascontiguousarray(part, kind).data)
    return digest.hexdigest()


def table(taken: Sequence[Taken]) -> pa.Table:
    """The rows of ``taken``. A few at a time, with pauses: predictions need the interpreter meanwhile."""
    parts = []
    for begin in range(0, len(taken), AT_ONCE):
        rows = [_row(each) for each in taken[begin : begin + AT_ONCE]]
        columns = [pa.array([row[field.name] for row in rows], field.type) for field in SCHEMA]
        parts.append(pa.table(columns, schema=SCHEMA))
        time.sleep(PAUSE_S)
    return pa.concat_tables(parts)


def parquet(rows: pa.Table) -> pa.Buffer:
    """One Parquet file, zstd."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", use_dictionary=REPEATED)
    return sink.getvalue()


def _row(taken: Taken) -> dict[str, Any]:
    """Values by column: lists as arrays, times as datetime64[us]."""
    record, work = taken.record, taken.work
    stages = {name: 1e3 * seconds for name, seconds in record["stages"].items()}
    until, future = _parse([taken.until]), _parse(list(taken.timestamps))
    return {
        **record,
        "schema_version": VERSION,
        "answered": datetime.fromtimestamp(record["answered"], UTC),
        "input_sha256": input_hash(work, taken.scale),
        "input_candles": len(work.history),
        "input_until": until.times[0].astype("datetime64[us]"),
        "utc_offset": until.offset,
        "horizon": len(taken.prediction),
        "temperature": work.temperature,
        "top_k": work.top_k,
        "top_p": work.top_p,
        "sample_count": work.sample_count,
        "seed": work.seed,
        "total_ms": sum(stages.values()),
        "stages_ms": list(stages.items()),
        "timestamps": _moments(future),
        **_lists(taken.prediction),
        "quantiles": [{"level": float(level), **_lists(candles)} for level, candles in taken.quantiles.items()],
        "input": taken.history and {"timestamps": _moments(_parse(taken.history[1])), **_lists(taken.history[0])},
    }


def _parse(texts: list[str]) -> Stamps:
    stamps = parse(texts, "", Faults())
    if stamps is None:
        raise ValueError(f"these are no ascending times: {texts[0]} …")
    return stamps


def _moments(stamps: Stamps) -> NDArray[np.datetime64]:
    return stamps.times.astype("datetime64[us]")


def _lists(candles: Sequence[ForecastCandle] | Sequence[Candle]) -> dict[str, NDArray[np.float64] | None]:
    """A list by column; None for a volume or amount that no candle has."""
    rows = [(each.open, each.high, each.low, each.close, each.volume, each.amount) for each in candles]
    lacking = [rows[0][column] is None for column in range(len(COLUMNS))]
    matrix = np.array(rows, np.float64)
    return {name: None if lacks else matrix[:, index] for index, (name, lacks) in enumerate(zip(COLUMNS, lacking, strict=True))}
