"""From a body to series that are ready for the engine: parse, then prepare.

A request for one series is a batch of one whose error is the answer.
Knows: which documents a route reads, what one request may ask for. Does not know: HTTP, the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from app.api.aside import LARGE_BODY, MANY_SERIES, aside, thread_for
from app.api.compute import Asked, Entry
from app.api.decode import decode, decode_batch, peek
from app.api.edge import Call
from app.api.faults import LISTED
from app.api.job_schema import EmbedJob, ForecastJob, JobEnvelope
from app.api.prepare import Bounds, prepare_embedding, prepare_forecast
from app.api.schema import BatchEnvelope, EmbedRequest, ForecastItem, PredictRequest, Series
from app.errors import InvalidInput, KronosError, WorkTooLarge
from app.jobs.store import Endpoint

MANY: Final[Mapping[Endpoint, type[ForecastItem | Series]]] = {"batch": ForecastItem, "embeddings": Series}


@dataclass(frozen=True)
class Forms:
    """The documents that are read: for one series, and what surrounds several."""

    one: Mapping[Endpoint, type[PredictRequest | EmbedRequest]]
    envelope: type[BatchEnvelope]


REQUESTS: Final = Forms({"single": PredictRequest, "embeddings": EmbedRequest}, BatchEnvelope)
JOBS: Final = Forms({"single": ForecastJob, "embeddings": EmbedJob}, JobEnvelope)


async def parse(body: bytes, endpoint: Endpoint, bounds: Bounds, forms: Forms = REQUESTS) -> Asked:
    """The series that ``body`` asks for. Raises BadJson, InvalidInput."""
    return await aside(endpoint, len(body) >= LARGE_BODY, _parse, body, endpoint, bounds, forms)


def _parse(body: bytes, endpoint: Endpoint, bounds: Bounds, forms: Forms) -> Asked:
    if endpoint == "batch" or (endpoint == "embeddings" and peek(body)[0]):
        envelope, items = decode_batch(body, MANY[endpoint], forms.envelope)
        if len(items) > bounds.max_items:
            raise InvalidInput([("/items", f"has {len(items)} elements; at most {bounds.max_items} are accepted")])
        entries = [
            Entry(f"/items/{index}", error=item) if isinstance(item, InvalidInput) else Entry(f"/items/{index}", item)
            for index, item in enumerate(items)
        ]
        asked = Asked(entries, envelope, True)
    else:
        one = decode(body, forms.one[endpoint])
        asked = Asked([Entry("", one)], one, False)
    if asked.terms.timeout is not None and asked.terms.timeout > bounds.max_timeout:
        raise InvalidInput([("/timeout", f"is above the limit of {bounds.max_timeout:g} s")])
    return asked


async def prepare(asked: Asked, bounds: Bounds, call: Call, endpoint: Endpoint) -> None:
    """Make work of each series, or note its error. Raises WorkTooLarge."""
    if len(asked.entries) >= MANY_SERIES and (pool := thread_for(endpoint)):
        await pool.run(_prepare, asked.entries, bounds, call)
    else:
        for entry in asked.entries:
            _prepare([entry], bounds, call)
            if asked.batch:
                await asyncio.sleep(0)  # several series must not hold the event loop
    if asked.units > bounds.max_work:
        raise WorkTooLarge(f"series × paths × steps = {asked.units} is above the limit of {bounds.max_work}")


def _prepare(entries: list[Entry], bounds: Bounds, call: Call) -> None:
    with call.timings.stage("prepare_frame"):
        for entry in entries:
            _prepare_entry(entry, bounds)


def _prepare_entry(entry: Entry, bounds: Bounds) -> None:
    try:
        if isinstance(entry.asked, ForecastItem):
            entry.prepared = prepare_forecast(entry.asked, bounds, entry.prefix)
        elif entry.asked:
            entry.prepared = prepare_embedding(entry.asked, bounds, entry.prefix)
    except InvalidInput as error:
        entry.error = error


def worst(errors: list[KronosError]) -> KronosError:
    """The error of a request in which no series succeeded: all that is invalid, else the one of highest status."""
    invalid = [error for error in errors if isinstance(error, InvalidInput)]
    if len(errors) == 1 or len(invalid) < len(errors):
        return max(errors, key=lambda error: error.status)
    faults = [fault for error in invalid for fault in error.errors]
    return InvalidInput(faults[:LISTED], sum(error.total for error in invalid))
