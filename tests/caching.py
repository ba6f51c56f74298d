"""What the tests of the result cache ask, and how they read answers."""

from __future__ import annotations

from typing import Any

from app import metrics
from tests.fakes import FakeRunner
from tests.serving import Json, request

SINGLE, BATCH, EMBED = "/v1/predict/single", "/v1/predict/batch", "/v1/embeddings"
ASKED = request(10, overrides={"pred_len": 4, "seed": 3})
UNSEEDED = request(10, overrides={"pred_len": 4})
OWN = ("request_id", "timings")
"""Members of an answer that are of its own request."""
WRITTEN_S = 0.3
"""By then what nobody waits for has been written to the shared cache, and its lock is gone."""


def computed(runner: FakeRunner) -> int:
    """Series that the model has computed."""
    return runner.errands.count("detokenise") + runner.errands.count("embed")


def lasting(answer: Any) -> Json:
    """The document of a response without what is its own request's."""
    assert answer.status_code == 200
    return {name: value for name, value in answer.json().items() if name not in OWN}


def value(name: str, **labels: str) -> float:
    """A metric now; 0 before its first sample."""
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0
