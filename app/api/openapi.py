"""The OpenAPI document, made from the structs, the error table and the settings.

Knows: how the contract is told. Does not know: how it is kept; tests compare the two.
"""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Final

import msgspec

from app.api import schema
from app.api.job_openapi import job_paths
from app.api.job_schema import EmbedBatchJob, EmbedJob, ForecastBatchJob, ForecastJob
from app.api.keys import BEHIND, HEADER
from app.api.openapi_parts import Json, any_of, problems, responses
from app.api.schema import REFERENCE
from app.jobs.document import JobDoc
from app.settings import Settings

CONTRACT: Final = "1.0.0"  # version of the contract, not of the code
REQUEST_KINDS: Final = (
    "bad-json", "body-timeout", "too-large", "unsupported-media-type", "invalid-input", "work-too-large",
    "overloaded", "engine-failed", "not-ready", "draining", "deadline-passed",
)  # fmt: skip
EXAMPLE_START: Final = datetime(2024, 6, 1)
READY_KINDS: Final = ("engine-failed", "not-ready", "draining")
LIVE_KINDS: Final = ("engine-failed", "not-ready")
KEY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": HEADER},
}

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
- **Jobs** are predictions that are asked for now and fetched later: `/v1/jobs` takes the same documents, checks them at
  once, and runs them where slots are idle. The same `Idempotency-Key` with the same body is the same job.
- **Errors** are `application/problem+json`; `errors` names the offending elements, the first {listed} of them.

The page `/docs` loads its script and style from a public CDN; `/openapi.json` needs no network.
"""

def make_openapi(settings: Settings, listed: int) -> Json:
    """The OpenAPI 3.1 document. ``listed``: most offending elements in one error."""
    kinds = (
        schema.PredictRequest, schema.PredictBatchRequest, schema.EmbedRequest, schema.EmbedBatchRequest,
        schema.ForecastResult, schema.PredictBatchResult, schema.EmbedResult, schema.EmbedBatchResult,
        schema.ItemError, schema.Problem, ForecastJob, ForecastBatchJob, EmbedJob, EmbedBatchJob, JobDoc,
    )  # fmt: skip
    _, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    document: Json = {
        "openapi": "3.1.0",
        "info": {"title": "Kronos Fleet", "version": CONTRACT, "description": ABOUT.format(listed=listed)},
        "paths": _prediction_paths(settings) | job_paths(settings, example_series()) | _state_paths(),
        "components": {"schemas": components},
    }
    return _behind_keys(document) if settings.api_keys else document


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
    answers = responses("application/json", any_of(gives), REQUEST_KINDS)
    answers["200"]["headers"]["X-Cache"] = {
        "description": "hit, miss, coalesced or bypass; of a batch, each that occurred", "schema": {"type": "string"},
    }  # fmt: skip
    return {
        "operationId": name,
        "summary": summary,
        "tags": ["predictions"],
        "parameters": [priority, caching],
        "requestBody": {"required": True, "content": {"application/json": {"schema": any_of(takes), "examples": shown}}},
        "responses": answers,
    }


def _state_paths() -> Json:
    status = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    told = (
        ("/healthz", "live", "The process works: the event loop turns, the engine steps or is idle", LIVE_KINDS),
        ("/readyz", "ready", "New requests are welcome: loaded, warmed up, not draining", READY_KINDS),
    )
    paths = {
        path: {"get": {"operationId": name, "summary": summary, "tags": ["state"],
                       "responses": responses("application/json", status, kinds)}}
        for path, name, summary, kinds in told
    }  # fmt: skip
    text = {"type": "string"}
    metrics = {"operationId": "metrics", "summary": "Prometheus metrics", "tags": ["state"],
               "responses": responses("text/plain", text, ("engine-failed",))}  # fmt: skip
    return paths | {"/metrics": {"get": metrics}} | _pool_paths()


def _pool_paths() -> Json:
    said = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    told: Json = {"type": "object", "additionalProperties": True}
    stats: Json = {
        "type": "object",
        "properties": {"worker": {"type": "string"}, "summary": told, "pools": {"type": "object", "additionalProperties": told}},
        "required": ["worker", "summary", "pools"],
    }
    return {
        "/health/thread-pools": {"get": {
            "operationId": "thread_pools", "summary": "The thread pools of the worker that answers", "tags": ["state"],
            "responses": responses("application/json", stats, ("engine-failed",)),
        }},
        "/health/thread-pools/log-status": {"post": {
            "operationId": "log_thread_pools", "summary": "Write them into its log", "tags": ["state"],
            "responses": responses("application/json", said, ("engine-failed",)),
        }},
    }  # fmt: skip


def _behind_keys(document: Json) -> Json:
    """Say of everything that needs an API key that it does."""
    for path, operations in document["paths"].items():
        if path.startswith(BEHIND):
            for operation in operations.values():
                operation["security"] = [{name: []} for name in KEY_SCHEMES]
                operation["responses"] |= problems(("unauthorized",))
                operation["responses"]["401"]["headers"]["WWW-Authenticate"] = {
                    "description": "Bearer, and what was wrong with the key", "schema": {"type": "string"},
                }  # fmt: skip
    document["components"]["securitySchemes"] = KEY_SCHEMES
    return document
