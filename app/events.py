"""One prediction as a document for others: the value of a Kafka message, the row of a table.

``SCHEMA`` names the document's version. New members may come within a version; a member that goes or changes its meaning
makes a new one.
Knows: what a document says of a prediction, its JSON, about how many bytes it holds. Does not know: where it goes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from app.api.schema import ForecastCandle
from app.records import Record

SCHEMA: Final = "kronos.forecast.v1"
CANDLE_BYTES: Final = 300
"""Of memory for one forecast candle; about twice its JSON."""
OTHER_BYTES: Final = 2_000
"""Of memory for everything else in a document."""


class Parameters(Struct, kw_only=True):
    """What was asked of the model. The same history, parameters and versions give the same forecast."""

    pred_len: int
    temperature: float
    top_k: int
    top_p: float
    sample_count: int
    seed: int
    repair: bool


class History(Struct, kw_only=True):
    """What the forecast continues."""

    candles: int
    until: Annotated[str, Meta(description="The timestamp of the last candle.")]


class Event(Struct, kw_only=True):
    """One series' forecast: candles as in the API's answer, without sample paths."""

    schema: str = SCHEMA
    record_id: Annotated[str, Meta(description="Unique: a copy that came twice has the same.")]
    request_id: str
    series_id: str | None
    answered: datetime
    endpoint: str
    worker: str
    model_version: str
    tokenizer_version: str
    cache: str
    stages: Annotated[dict[str, float], Meta(description="Seconds of each stage of this series.")]
    parameters: Parameters
    history: History
    forecast: list[ForecastCandle]
    quantiles: dict[str, list[ForecastCandle]] | UnsetType = UNSET


def event_of(record: Record) -> Event:
    """Take references to what is told of a record, and let go of the rest. Microseconds: no copy, no JSON."""
    work, asked, result = record.prepared.work, record.prepared.asked, record.result
    return Event(
        record_id=record.record_id,
        request_id=record.request_id,
        series_id=result.series_id,
        answered=datetime.fromtimestamp(record.answered, UTC),
        endpoint=record.endpoint,
        worker=record.worker,
        model_version=record.model_version,
        tokenizer_version=record.tokenizer_version,
        cache=record.cache,
        stages=dict(record.stages),
        parameters=Parameters(
            pred_len=len(result.prediction),
            temperature=work.temperature,
            top_k=work.top_k,
            top_p=work.top_p,
            sample_count=work.sample_count,
            seed=work.seed,
            repair=asked.repair,
        ),
        history=History(candles=len(asked.candles), until=asked.timestamps[-1]),
        forecast=result.prediction,
        quantiles=result.quantiles,
    )


def weight(event: Event) -> int:
    """About how many bytes of memory an event holds."""
    curves = 1 + (len(event.quantiles) if isinstance(event.quantiles, dict) else 0)
    return OTHER_BYTES + CANDLE_BYTES * len(event.forecast) * curves


def encode(event: Event) -> bytes:
    """The document in JSON."""
    return msgspec.json.encode(event)
