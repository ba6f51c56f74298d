"""The documents that jobs are submitted with: those of predictions, with a few terms more.

Knows: names, types, static bounds, words for the docs. Does not know: what is done with them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Protocol, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from app.api.schema import (
    BatchEnvelope,
    EmbedBatchRequest,
    EmbedRequest,
    PredictBatchRequest,
    PredictRequest,
    Priority,
)

S = TypeVar("S", bound=Struct)
Kind = Literal["forecast", "embedding"]
Seconds = Annotated[float, Meta(gt=0, description="Seconds that one attempt may take, once a worker has begun.")]
Ttl = Annotated[float, Meta(gt=0, description="Seconds to the job's end, and then again for which its result is kept.")]
Webhook = Annotated[str, Meta(max_length=2000, description="Called when the job has ended; the operator lists where to.")]


class Terms(Protocol):
    """What is asked of a job besides the prediction."""

    kind: Kind
    timeout: float | None
    priority: Priority
    ttl: float | None
    webhook: str | None


TERMS: Final = (
    ("kind", Kind, "forecast"),
    ("timeout", Seconds | None, None),
    ("priority", Annotated[Priority, Meta(description="Of the work, among all that a worker does.")], "bulk"),
    ("ttl", Ttl | None, None),
    ("webhook", Webhook | None, None),
)


def _job(base: type[S], name: str, text: str) -> type[S]:
    """The document ``base`` of a prediction, with the terms of a job (a Struct has one base only)."""
    made = msgspec.defstruct(
        name, TERMS, bases=(base,), namespace={"__doc__": text}, module=__name__, kw_only=True, forbid_unknown_fields=True
    )
    return cast(type[S], made)


ForecastJob: Final = _job(PredictRequest, "ForecastJob", "One series to forecast, later.")
EmbedJob: Final = _job(EmbedRequest, "EmbedJob", "One series to embed, later: `kind` is `embedding`.")
JobEnvelope: Final = _job(BatchEnvelope, "JobEnvelope", "What surrounds the items of a batch.")
ForecastBatchJob: Final = _job(PredictBatchRequest, "ForecastBatchJob", "Several series to forecast, later.")
EmbedBatchJob: Final = _job(EmbedBatchRequest, "EmbedBatchJob", "Several series to embed, later.")
