"""Outcome → answer: back to the units of the history, summarised over the sample paths, and into JSON.

Knows: the answer's documents and how numbers are written. Does not know: HTTP, the engine.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.api.prepare import PreparedEmbedding, PreparedForecast
from app.api.schema import EmbedResult, ForecastCandle, ForecastResult, Notice, Provenance
from app.errors import EngineFailed, KronosError
from app.model.frames import COLUMNS, PRICES, restore
from app.work import Outcome

Float32 = NDArray[np.float32]
Result = ForecastResult | EmbedResult

OPEN, HIGH, LOW, CLOSE = (COLUMNS.index(name) for name in PRICES)
SIZES: Final = [COLUMNS.index("volume"), COLUMNS.index("amount")]
SINGLE_DIGITS: Final = range(6, 9)  # significant digits tried; nine always suffice for single precision
LARGEST_POWER: Final = 22  # 10^22 is the largest power of ten that a double holds exactly


def forecast(prepared: PreparedForecast, outcome: Outcome) -> ForecastResult:
    """The answer to one series. Raises EngineFailed when the model gave a number that JSON cannot hold."""
    if outcome.paths is None:
        raise EngineFailed("the engine gave no paths for a forecast")
    scale = prepared.scale
    mean = restore(outcome.paths.mean(axis=0), scale.mean, scale.std)
    warnings = [*prepared.warnings, *_order_notices(mean, prepared.asked.repair)]
    result = ForecastResult(
        series_id=prepared.asked.series_id,
        prediction=_candles(prepared, mean),
        seed=prepared.work.seed,
        warnings=warnings,
    )
    if prepared.asked.quantiles is not None or prepared.asked.return_paths:
        paths = restore(outcome.paths, scale.mean, scale.std)
        if prepared.asked.quantiles:
            cuts = np.quantile(paths, prepared.asked.quantiles, axis=0).astype(np.float32)
            named = zip(prepared.asked.quantiles, cuts, strict=True)
            result.quantiles = {str(quantile): _candles(prepared, cut) for quantile, cut in named}
        if prepared.asked.return_paths:
            result.paths = [_candles(prepared, path) for path in paths]
    return result


def embedding(prepared: PreparedEmbedding, outcome: Outcome) -> EmbedResult:
    """The answer to one series. Raises EngineFailed when the model gave a number that JSON cannot hold."""
    if outcome.embedding is None:
        raise EngineFailed("the engine gave no vector for an embedding")
    vector = shortest(_finite(outcome.embedding)).tolist()
    return EmbedResult(series_id=prepared.series_id, embedding=vector, warnings=prepared.warnings)


def encode(result: Result, source: Provenance) -> bytes:
    """JSON of the answer to one series."""
    result.model_version, result.tokenizer_version = source.model_version, source.tokenizer_version
    result.request_id = source.request_id
    return msgspec.json.encode(result)


def encode_item(result: Result, outcome: Outcome) -> bytes:
    """JSON of one series in the answer to a batch, with the milliseconds of its own stages."""
    stages = {name: round(1e3 * seconds, 3) for name, seconds in outcome.stages.items()}
    total = round(1e3 * sum(outcome.stages.values()), 3)
    return with_timings(msgspec.json.encode(result), {**stages, "total": total, "rolled": outcome.rolled})


def encode_error(error: KronosError, request_id: str) -> bytes:
    """JSON of what stands in the place of a failed item."""
    return msgspec.json.encode({"error": error.problem(request_id)})


def encode_batch(members: list[bytes], source: Provenance) -> bytes:
    """JSON of the answer to a batch, from the JSON of its members."""
    return b'{"items":[' + b",".join(members) + b"]," + msgspec.json.encode(source)[1:]


def with_timings(body: bytes, timings: dict[str, Any]) -> bytes:
    """``body`` with the last member ``timings``: added when all else is in JSON, so that they can include that."""
    return body[:-1] + b',"timings":' + msgspec.json.encode(timings) + b"}"


def _candles(prepared: PreparedForecast, values: Float32) -> list[ForecastCandle]:
    if prepared.asked.repair:
        values = mend(values)
    rows = zip(prepared.timestamps, shortest(_finite(values)).tolist(), strict=True)
    return [ForecastCandle(text, *row) for text, row in rows]


def mend(values: Float32) -> Float32:
    """Candles [..., 6] with high and low stretched to hold all prices, volume and amount not negative."""
    mended = values.copy()
    prices = values[..., : len(PRICES)]
    mended[..., HIGH], mended[..., LOW] = prices.max(axis=-1), prices.min(axis=-1)
    mended[..., SIZES] = np.maximum(values[..., SIZES], 0)
    return mended


def _order_notices(mean: Float32, repaired: bool) -> list[Notice]:
    done = "; they were mended" if repaired else ""
    body = mean[:, [OPEN, CLOSE]]
    disordered = (mean[:, HIGH] < body.max(axis=1)) | (mean[:, LOW] > body.min(axis=1))
    negative = (mean[:, SIZES] < 0).any(axis=1)
    found = (
        ("order_broken", "candles whose mean breaks low ≤ open, close ≤ high", int(disordered.sum())),
        ("size_negative", "candles whose mean volume or amount is below 0", int(negative.sum())),
    )
    return [Notice(code, detail + done, count) for code, detail, count in found if count]


def _finite(values: Float32) -> Float32:
    if not np.isfinite(values).all():
        raise EngineFailed("the model gave a number that is not finite")
    return values


def shortest(values: Float32) -> NDArray[np.float64]:
    """Doubles that print as the shortest decimals which read back as ``values`` in single precision.

    A decimal n · 10^-k with n < 2^53 and k ≤ 22 is the correctly rounded quotient of two doubles, and a double prints
    as the shortest decimal that reads back as itself. Values too small for that are left as they are.
    """
    exact = values.astype(np.float64)
    magnitude = np.abs(exact)
    exponent = np.floor(np.log10(np.where(magnitude > 0, magnitude, 1.0)))
    result = exact.copy()
    todo = magnitude > 0
    for digits in (*SINGLE_DIGITS, 9):
        places = digits - 1 - exponent
        factor = 10.0 ** np.abs(places)
        rounded = np.where(places >= 0, np.rint(exact * factor) / factor, np.rint(exact / factor) * factor)
        fits = todo & (rounded.astype(np.float32) == values) & (np.abs(places) <= LARGEST_POWER)
        result = np.where(fits, rounded, result)
        todo &= ~fits
        if not todo.any():
            break
    return result
