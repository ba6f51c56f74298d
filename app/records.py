"""What is told of each prediction to those who keep it: the prediction log, an event stream.

Knows: one prediction as it was answered, and what a keeper of it must be like. Does not know: where it is kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from app.api.prepare import PreparedForecast
from app.api.schema import ForecastResult


@dataclass(frozen=True, slots=True)
class Record:
    """One forecast of one series, as it was answered."""

    request_id: str
    answered: float  # seconds since 1970, UTC
    endpoint: str  # "single" or "batch"
    worker: str
    model_version: str
    tokenizer_version: str
    cache: str  # hit, miss, coalesced or bypass
    stages: Mapping[str, float]  # seconds of each stage of this series
    prepared: PreparedForecast  # what was asked; large: a keeper takes from it what it needs, and lets go of it
    result: ForecastResult
    record_id: str = field(default_factory=lambda: secrets.token_hex(16))  # one's own: request ids are the clients'


class Sink(Protocol):
    """Keeps records, beside the predictions and never in their way."""

    def offer(self, record: Record) -> None:
        """Take a record, or drop and count it. Called on the event loop: microseconds, never blocks, never raises."""

    def close(self, timeout_s: float) -> None:
        """Write what is still held, for at most ``timeout_s`` seconds; what is left then is dropped and counted."""
