"""Records for the tests of the prediction log: forecasts as the worker would answer them, without a worker."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from app.api import answer
from app.api.decode import decode
from app.api.openapi import example_series
from app.api.prepare import Bounds, prepare_forecast
from app.api.schema import ForecastItem
from app.records import Record
from app.work import Outcome

BOUNDS = Bounds(
    max_candles=2048, max_horizon=512, max_samples=128, max_items=64, max_work=10**6, max_timeout=30.0, max_context=512,
    vocabulary=1024,
)  # fmt: skip
STAGES = {"cache": 0.001, "queue": 0.002, "encode": 0.003, "prefill": 0.004, "decode": 0.05, "detokenise": 0.006}


def record(count: int = 24, horizon: int = 4, answered: float | None = None, **changes: Any) -> Record:
    """A forecast of ``horizon`` hours after ``count``; ``changes`` are members of the request, or fields of the record."""
    fields = {name: changes.pop(name) for name in list(changes) if name in Record.__dataclass_fields__}
    request = example_series(count) | {"overrides": {"pred_len": horizon, "seed": 7, "sample_count": 8}} | changes
    prepared = prepare_forecast(decode(json.dumps(request).encode(), ForecastItem), BOUNDS)
    random = np.random.default_rng(prepared.work.seed)
    paths = random.standard_normal((prepared.work.sample_count, horizon, 6)).astype(np.float32)
    result = answer.forecast(prepared, Outcome(paths, None, STAGES, False))
    given: dict[str, Any] = {
        "request_id": "request-1", "answered": time.time() if answered is None else answered, "endpoint": "single",
        "worker": "worker-1", "model_version": "demo@main+0123456789ab", "tokenizer_version": "tokenizer@main+ab",
        "cache": "miss", "stages": STAGES, "prepared": prepared, "result": result,
    }  # fmt: skip
    return Record(**given | fields)
