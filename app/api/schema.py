"""The documents that go in and out, as msgspec structs: names, types, static bounds, words for the docs.

Knows: the shape of one document. Does not know: bounds that depend on settings or model, relations between
elements (see ``prepare``), how bytes become structs (see ``decode``).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Priority = Literal["interactive", "bulk"]

MAX_SEED: Final = 2**63 - 1
DEFAULT_HORIZON: Final = 120
REFERENCE: Final = "#/components/schemas/{name}"

Text = Annotated[str, Meta(max_length=200)]
Stamps = Annotated[list[str], Meta(min_length=1, examples=[["2024-06-01T00:00:00Z"]])]
Timeout = Annotated[float, Meta(gt=0, description="Seconds to the answer, counted from the last byte of the request.")]
Horizon = Annotated[int, Meta(ge=1, description="Candles to forecast; default: as many as prediction_timestamps, else 120.")]
Seed = Annotated[int, Meta(ge=0, le=MAX_SEED, description="Same seed, same input: same answer. Drawn if absent.")]
Quantile = Annotated[float, Meta(ge=0, le=1)]


def _each(*names: str) -> Meta:
    """The schema of a list of documents of several kinds, which msgspec's types cannot say."""
    return Meta(extra_json_schema={"items": {"anyOf": [{"$ref": REFERENCE.format(name=name)} for name in names]}})


class Candle(Struct, forbid_unknown_fields=True, gc=False):
    """One K-line. Any finite price is accepted (spreads can be negative) as long as low ≤ open, close ≤ high."""

    open: float
    high: float
    low: float
    close: float
    volume: Annotated[float, Meta(ge=0, description="Leave it out of all candles or of none.")] | None = None
    amount: Annotated[float, Meta(ge=0, description="Leave it out of all candles or of none.")] | None = None
    timestamp: Annotated[str, Meta(description="Not needed; must agree with timestamps.")] | None = None


class Overrides(Struct, forbid_unknown_fields=True, kw_only=True):
    """How to sample. With ``top_k`` > 0, ``top_p`` is not used, as in the reference."""

    pred_len: Horizon | None = None
    temperature: Annotated[float, Meta(ge=0.001, le=10)] = 1.0
    top_k: Annotated[int, Meta(ge=0, description="0 = off; at most the vocabulary.")] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.9
    sample_count: Annotated[int, Meta(ge=1, description="Sample paths; their mean is the prediction.")] = 1
    seed: Seed | None = None


class Series(Struct, forbid_unknown_fields=True, kw_only=True):
    """The history of one series."""

    series_id: Text | None = None
    candles: Annotated[list[Candle], Meta(min_length=1)]
    timestamps: Annotated[Stamps, Meta(description="ISO 8601, ascending, one offset; one for each candle.")]


class ForecastItem(Series, kw_only=True):
    """One series to forecast."""

    prediction_timestamps: Annotated[Stamps, Meta(description="Default: on at the series' uniform spacing.")] | None = None
    overrides: Overrides = msgspec.field(default_factory=Overrides)
    quantiles: Annotated[list[Quantile], Meta(max_length=99, description="Ascending; of the sample paths.")] | None = None
    return_paths: bool = False
    repair: Annotated[bool, Meta(description="Mend low ≤ open, close ≤ high and volume, amount ≥ 0.")] = False


class PredictRequest(ForecastItem, kw_only=True):
    """One series to forecast, and how long and how urgently."""

    timeout: Timeout | None = None
    priority: Priority = "interactive"


class EmbedRequest(Series, kw_only=True):
    """One series to embed, and how long and how urgently."""

    timeout: Timeout | None = None
    priority: Priority = "interactive"


class BatchEnvelope(Struct, forbid_unknown_fields=True, kw_only=True):
    """What surrounds the items of a batch; the items stay undecoded so that each can fail alone."""

    items: Annotated[list[msgspec.Raw], Meta(min_length=1)]
    timeout: Timeout | None = None
    priority: Priority = "interactive"


class PredictBatchRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Series of different lengths, horizons and sampling; each succeeds or fails alone."""

    items: Annotated[list[ForecastItem], Meta(min_length=1)]
    timeout: Timeout | None = None
    priority: Priority = "interactive"


class EmbedBatchRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Several series to embed; each succeeds or fails alone."""

    items: Annotated[list[Series], Meta(min_length=1)]
    timeout: Timeout | None = None
    priority: Priority = "interactive"


class ForecastCandle(Struct, gc=False):
    """One forecast K-line, in the units of the history."""

    timestamp: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    amount: float


class Notice(Struct):
    """Something the reader should know about this answer."""

    code: str
    detail: str
    count: int | UnsetType = UNSET


class TimingsDoc(Struct, kw_only=True, forbid_unknown_fields=True):
    """Milliseconds of each stage. ``rolled``: the window passed the model's context and was recomputed."""

    read: float | UnsetType = UNSET
    parse: float | UnsetType = UNSET
    prepare_frame: float | UnsetType = UNSET
    cache: float | UnsetType = UNSET
    queue: float | UnsetType = UNSET
    encode: float | UnsetType = UNSET
    prefill: float | UnsetType = UNSET
    decode: float | UnsetType = UNSET
    detokenise: float | UnsetType = UNSET
    inverse: float | UnsetType = UNSET
    serialise: float | UnsetType = UNSET
    total: float
    rolled: bool


class Provenance(Struct, kw_only=True):
    """What made an answer."""

    model_version: str | UnsetType = UNSET
    tokenizer_version: str | UnsetType = UNSET
    request_id: str | UnsetType = UNSET


class ForecastResult(Provenance, kw_only=True):
    """The mean over the sample paths and, when asked for, sample quantiles of each column and the paths."""

    series_id: str | None
    prediction: list[ForecastCandle]
    quantiles: dict[str, list[ForecastCandle]] | UnsetType = UNSET
    paths: list[list[ForecastCandle]] | UnsetType = UNSET
    seed: int
    warnings: list[Notice]
    timings: TimingsDoc | UnsetType = UNSET


class EmbedResult(Provenance, kw_only=True):
    """The mean of the model's last hidden states over the history."""

    series_id: str | None
    embedding: list[float]
    warnings: list[Notice]
    timings: TimingsDoc | UnsetType = UNSET


class FieldErrorDoc(Struct):
    """One offending element of the request."""

    pointer: Annotated[str, Meta(description="JSON pointer (RFC 6901).", examples=["/candles/3/high"])]
    detail: str


class Problem(Struct, kw_only=True):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldErrorDoc] | UnsetType = UNSET


class ItemError(Struct):
    """Stands in the place of an item that failed."""

    error: Problem


class PredictBatchResult(Provenance, kw_only=True):
    """In the order of the request: a forecast, or the error of that item."""

    items: Annotated[list[Any], _each("ForecastResult", "ItemError")]
    timings: TimingsDoc | UnsetType = UNSET


class EmbedBatchResult(Provenance, kw_only=True):
    """In the order of the request: an embedding, or the error of that item."""

    items: Annotated[list[Any], _each("EmbedResult", "ItemError")]
    timings: TimingsDoc | UnsetType = UNSET
