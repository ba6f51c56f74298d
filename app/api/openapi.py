"""The OpenAPI document, made from the structs, the error table and the settings.

Knows: how the contract is told. Does not know: how it is kept; tests compare the two.
"""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from app.api import schema
from app.api.schema import REFERENCE
from app.errors import ERROR_TABLE, PROBLEM_MEDIA_TYPE
from app.settings import Settings

CONTRACT: Final = "1.0.0"  # version of the contract, not of the code
REQUEST_KINDS: Final = (
    "bad-json", "body-timeout", "too-large", "unsupported-media-type", "invalid-input", "work-too-large",
    "overloaded", "engine-failed", "not-ready", "draining", "deadline-passed",
)  # fmt: skip
EXAMPLE_START: Final = datetime(2024, 6, 1)
READY_KINDS: Final = ("engine-failed", "not-ready", "draining")
LIVE_KINDS: Final = ("engine-failed", "not-ready")
COME_BACK: Final = (429, 503)

ABOUT: Final = """
Candles in, forecast out. Send a history of K-lines with their timestamps, get the next ones, with sample quantiles
and sample paths when asked.

- **Numbers** are finite JSON numbers; NaN and Infinity are refused and never sent. In an object with a key twice, the
  last one counts. Unknown fields are refused by name.
- **Times** are ISO 8601, ascending, all with one offset or none; the answer is written in the same form. The model
  reads the wall clock of that offset. Without `prediction_timestamps` the forecast goes on at the series' own spacing,
  which must then be uniform. The last of `prediction_timestamps` only labels its candle: the model never reads it.
- **Prices** may be any finite number as long as low ≤ open, close ≤ high. `volume` and `amount` may be left out of all
  candles (or be null); they are then filled as the reference does, and `warnings` says so.
- **Quantiles** are quantiles of the sample paths, not confidence intervals; for probabilities take `top_p` = 1.
- **A batch** answers 200 when at least one item succeeded; each failed item has its `error` in its place. When all
  fail, the answer is an error: all that is invalid, or else the error of highest status. Overload refuses a batch whole.
- **Priority**: `bulk` waits for, and is refused before, `interactive`. The header `X-Priority: bulk` says it before the
  body is read; the body's `priority` says it too, and bulk in either place counts.
- **Cache**: an identical request within a few seconds is answered from memory, and identical ones under way are computed
  once; `X-Cache` says so. Forecasts without a `seed` are always drawn anew. `Cache-Control: no-cache` has an answer
  computed, `no-store` also leaves nothing behind.
- **Errors** are `application/problem+json`; `errors` names the offending elements, the first {listed} of them.

The page `/docs` loads its script and style from a public CDN; `/openapi.json` needs no network.
"""

Json = dict[str, Any]


def make_openapi(settings: Settings, listed: int) -> Json:
    """The OpenAPI 3.1 document. ``listed``: most offending elements in one error."""
    kinds = (
        schema.PredictRequest, schema.PredictBatchRequest, schema.EmbedRequest, schema.EmbedBatchRequest,
        schema.ForecastResult, schema.PredictBatchResult, schema.EmbedResult, schema.EmbedBatchResult,
        schema.ItemError, schema.Problem,
    )  # fmt: skip
    _, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Kronos Fleet", "version": CONTRACT, "description": ABOUT.format(listed=listed)},
        "paths": _prediction_paths(settings) | _state_paths(),
        "components": {"schemas": components},
    }


def example_series(count: int = 24) -> Json:
    """A small hourly series that can be sent as it is."""
    closes = [round(100 + 2 * ((index * 7) % 11) / 11, 2) for index in range(count + 1)]
    candles = [
        {
            "open": opened, "high": round(max(opened, close) + 0.25, 2), "low": round(min(opened, close) - 0.25, 2),
            "close": close, "volume": 1000 + 10 * index, "amount": round((1000 + 10 * index) * close, 2),
        }
        for index, (opened, close) in enumerate(itertools.pairwise(closes))
    ]  # fmt: skip
    stamps = [(EXAMPLE_START + timedelta(hours=index)).isoformat() + "Z" for index in range(count)]
    return {"series_id": "EXAMPLE-1h", "candles": candles, "timestamps": stamps}


def examples() -> dict[str, dict[str, Json]]:
    """Requests that succeed as they are, by path and name."""
    series = example_series()
    forecast = series | {"overrides": {"pred_len": 4, "seed": 7}}
    cone = series | {"overrides": {"pred_len": 4, "sample_count": 5, "top_p": 1.0, "seed": 7}, "quantiles": [0.1, 0.9]}
    return {
        "/v1/predict/single": {"forecast": forecast, "quantiles": cone},
        "/v1/predict/batch": {"two": {"items": [forecast, example_series(12) | {"overrides": {"pred_len": 2}}]}},
        "/v1/embeddings": {"one": series, "several": {"items": [series, example_series(12)]}},
    }


def _prediction_paths(settings: Settings) -> Json:
    single = _operation("forecast_series", "Forecast one series", "/v1/predict/single", ["PredictRequest"], ["ForecastResult"])
    batch = _operation("forecast_batch", "Forecast several series", "/v1/predict/batch", ["PredictBatchRequest"],
                       ["PredictBatchResult"])  # fmt: skip
    embeddings = _operation("embed_series", "Embed one series or several", "/v1/embeddings",
                            ["EmbedRequest", "EmbedBatchRequest"], ["EmbedResult", "EmbedBatchResult"])  # fmt: skip
    limits = (
        f"At most {settings.max_candles} candles, {settings.max_horizon} steps (and the model's context), "
        f"{settings.max_samples} sample paths; series × paths × steps ≤ {settings.max_work}; `timeout` ≤ "
        f"{settings.inference_timeout:g} s; {settings.max_items} items; {settings.max_body} bytes."
    )
    paths = {"/v1/predict/single": single, "/v1/predict/batch": batch, "/v1/embeddings": embeddings}
    return {path: {"post": operation | {"description": limits}} for path, operation in paths.items()}


def _operation(name: str, summary: str, path: str, takes: list[str], gives: list[str]) -> Json:
    shown = {key: {"value": value} for key, value in examples()[path].items()}
    priority = {
        "name": "X-Priority", "in": "header", "required": False,
        "schema": {"type": "string", "enum": ["interactive", "bulk"]},
    }  # fmt: skip
    caching = {
        "name": "Cache-Control", "in": "header", "required": False, "schema": {"type": "string"},
        "description": "no-cache: compute; no-store: compute and keep nothing; others are ignored",
    }  # fmt: skip
    responses = _responses("application/json", _any_of(gives), REQUEST_KINDS)
    responses["200"]["headers"]["X-Cache"] = {
        "description": "hit, miss, coalesced or bypass; of a batch, each that occurred", "schema": {"type": "string"},
    }  # fmt: skip
    return {
        "operationId": name,
        "summary": summary,
        "tags": ["predictions"],
        "parameters": [priority, caching],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _any_of(takes), "examples": shown}}},
        "responses": responses,
    }


def _state_paths() -> Json:
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    told = (
        ("/healthz", "live", "The process works: the event loop turns, the engine steps or is idle", LIVE_KINDS),
        ("/readyz", "ready", "New requests are welcome: loaded, warmed up, not draining", READY_KINDS),
    )
    paths = {
        path: {"get": {"operationId": name, "summary": summary, "tags": ["state"],
                       "responses": _responses("application/json", status, kinds)}}
        for path, name, summary, kinds in told
    }  # fmt: skip
    text = {"type": "string"}
    metrics = {"operationId": "metrics", "summary": "Prometheus metrics", "tags": ["state"],
               "responses": _responses("text/plain", text, ("engine-failed",))}  # fmt: skip
    return paths | {"/metrics": {"get": metrics}}


def _any_of(names: list[str]) -> Json:
    references = [{"$ref": REFERENCE.format(name=name)} for name in names]
    return references[0] if len(references) == 1 else {"anyOf": references}


def _responses(media_type: str, content: Json, kinds: tuple[str, ...]) -> Json:
    found: Json = {"200": {"description": "Done", "headers": _headers(200), "content": {media_type: {"schema": content}}}}
    for status in sorted({ERROR_TABLE[kind].status for kind in kinds}):
        rows = [ERROR_TABLE[kind] for kind in kinds if ERROR_TABLE[kind].status == status]
        found[str(status)] = {
            "description": "; ".join(f"{row.title}: {row.when}" for row in rows),
            "headers": _headers(status),
            "content": {PROBLEM_MEDIA_TYPE: {"schema": _any_of(["Problem"])}},
        }
    return found


def _headers(status: int) -> Json:
    texts = {
        "X-Request-ID": "As sent, or made here",
        "X-Served-By": "The worker that answered",
        "Server-Timing": "Milliseconds of each stage",
    }
    headers: Json = {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}
    if status in COME_BACK:
        headers["Retry-After"] = {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
    return headers
