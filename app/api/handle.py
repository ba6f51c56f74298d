"""The way of one prediction: door, body, parse, prepare, compute, answer.

A permit is reserved before the body is read, so that a burst is refused before it costs anything. A request for one
series is a batch of one whose error is the answer.
Knows: the order of these steps. Does not know: how any step is done.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api import answer
from app.api.compute import Asked, Entry, compute, look_around, name, results
from app.api.decode import decode, decode_batch, is_batch
from app.api.door import Door
from app.api.edge import Call, call_of
from app.api.faults import LISTED
from app.api.incoming import MEDIA_TYPE, check_headers, read_body
from app.api.prepare import Bounds, PreparedEmbedding, PreparedForecast, prepare_embedding, prepare_forecast
from app.api.schema import EmbedRequest, ForecastItem, PredictRequest, Provenance, Series
from app.api.state import Served, Worker
from app.errors import DeadlinePassed, EngineFailed, InvalidInput, KronosError, WorkTooLarge

Endpoint = Literal["single", "batch", "embeddings"]

ONE: Final[dict[Endpoint, type[PredictRequest | EmbedRequest]]] = {"single": PredictRequest, "embeddings": EmbedRequest}
MANY: Final[dict[Endpoint, type[ForecastItem | Series]]] = {"batch": ForecastItem, "embeddings": Series}


async def handle(worker: Worker, request: Request, endpoint: Endpoint) -> Response:
    """Answer one request for forecasts or embeddings. Raises the KronosError that is the answer otherwise."""
    call, settings = call_of(request), worker.settings
    served, bounds = await worker.loaded(), worker.bounds()
    priority = check_headers(request, settings.max_body)
    policy = worker.cache.policy(request.headers.get("cache-control", ""))
    with Door(worker, served.engine, priority, policy) as door:
        with call.timings.stage("read"):
            body = await read_body(request.receive, settings.max_body, settings.body_timeout)
        received = time.monotonic()
        with call.timings.stage("parse"):
            asked = _parse(body, endpoint, bounds)
        if asked.priority == "bulk":
            door.change("bulk")
        await _prepare(asked, bounds, call)
        _note(asked, endpoint, call)
        deadline = min(received + (asked.timeout or bounds.max_timeout), call.arrived + settings.request_timeout)
        with call.timings.stage("cache"):
            name(asked.entries, served, policy)
            if door.refusal and not worker.cache.covers([entry.key for entry in asked.entries if entry.prepared]):
                raise door.refusal
            await look_around(asked.entries, worker.cache, policy, door.priority, deadline)
        await compute(door, worker.cache, policy, asked, deadline, request.receive)
    return _respond(asked, served, call, endpoint)


def _parse(body: bytes, endpoint: Endpoint, bounds: Bounds) -> Asked:
    if endpoint == "batch" or (endpoint == "embeddings" and is_batch(body)):
        envelope, items = decode_batch(body, MANY[endpoint])
        if len(items) > bounds.max_items:
            raise InvalidInput([("/items", f"has {len(items)} elements; at most {bounds.max_items} are accepted")])
        entries = [
            Entry(f"/items/{index}", error=item) if isinstance(item, InvalidInput) else Entry(f"/items/{index}", item)
            for index, item in enumerate(items)
        ]
        asked = Asked(entries, True, envelope.timeout, envelope.priority)
    else:
        one = decode(body, ONE[endpoint])
        asked = Asked([Entry("", one)], False, one.timeout, one.priority)
    if asked.timeout is not None and asked.timeout > bounds.max_timeout:
        raise InvalidInput([("/timeout", f"is above the limit of {bounds.max_timeout:g} s")])
    return asked


async def _prepare(asked: Asked, bounds: Bounds, call: Call) -> None:
    for entry in asked.entries:
        with call.timings.stage("prepare_frame"):
            _prepare_entry(entry, bounds)
        if asked.batch:
            await asyncio.sleep(0)  # a large batch must not hold the event loop
    units = sum(entry.prepared.units for entry in asked.entries if entry.prepared)
    if units > bounds.max_work:
        raise WorkTooLarge(f"series × paths × steps = {units} is above the limit of {bounds.max_work}")


def _prepare_entry(entry: Entry, bounds: Bounds) -> None:
    try:
        if isinstance(entry.asked, ForecastItem):
            entry.prepared = prepare_forecast(entry.asked, bounds, entry.prefix)
        elif entry.asked:
            entry.prepared = prepare_embedding(entry.asked, bounds, entry.prefix)
    except InvalidInput as error:
        entry.error = error


def _note(asked: Asked, endpoint: Endpoint, call: Call) -> None:
    """Sizes for the metric and the log line."""
    lengths = [len(entry.asked.candles) for entry in asked.entries if entry.asked]
    for length in lengths:
        metrics.INPUT_SIZE.labels(endpoint).observe(length)
    units = sum(entry.prepared.units for entry in asked.entries if entry.prepared)
    call.facts.update(series=len(asked.entries), candles=sum(lengths), units=units, priority=asked.priority)


def _respond(asked: Asked, served: Served, call: Call, endpoint: Endpoint) -> Response:
    with call.timings.stage("inverse"):
        for entry in asked.entries:
            _finish(entry)
    errors = [entry.error for entry in asked.entries if entry.error]
    if any(isinstance(error, DeadlinePassed) for error in errors):
        metrics.TIMEOUTS.labels(endpoint).inc()
    outcomes = [entry.outcome for entry in asked.entries if entry.outcome]
    if not outcomes:
        raise _worst(errors)
    slowest = max(outcomes, key=lambda outcome: sum(outcome.stages.values()))
    call.timings.include(slowest.stages)
    source = Provenance(
        model_version=served.model_version, tokenizer_version=served.tokenizer_version, request_id=call.request_id
    )
    with call.timings.stage("serialise"):
        body = _encode_batch(asked.entries, source) if asked.batch else _encode_one(asked.entries[0], source)
    call.timings.observe(endpoint)
    timings = {**call.timings.milliseconds(), "rolled": any(outcome.rolled for outcome in outcomes)}
    call.facts["cache"] = ", ".join(results(asked.entries))
    return Response(answer.with_timings(body, timings), media_type=MEDIA_TYPE, headers={"x-cache": call.facts["cache"]})


def _encode_one(entry: Entry, source: Provenance) -> bytes:
    if entry.result is None:
        raise EngineFailed("an answer without a result")
    return answer.encode(entry.result, source)


def _encode_batch(entries: list[Entry], source: Provenance) -> bytes:
    members = [
        answer.encode_item(entry.result, entry.outcome)
        if entry.result and entry.outcome
        else answer.encode_error(entry.error or EngineFailed("an item without a result"), str(source.request_id))
        for entry in entries
    ]
    return answer.encode_batch(members, source)


def _finish(entry: Entry) -> None:
    try:
        if isinstance(entry.prepared, PreparedForecast) and entry.outcome:
            entry.result = answer.forecast(entry.prepared, entry.outcome)
        elif isinstance(entry.prepared, PreparedEmbedding) and entry.outcome:
            entry.result = answer.embedding(entry.prepared, entry.outcome)
    except EngineFailed as error:
        entry.error, entry.outcome = error, None


def _worst(errors: list[KronosError]) -> KronosError:
    """The error of a request in which no series succeeded: all that is invalid, else the one of highest status."""
    invalid = [error for error in errors if isinstance(error, InvalidInput)]
    if len(errors) == 1 or len(invalid) < len(errors):
        return max(errors, key=lambda error: error.status)
    faults = [fault for error in invalid for fault in error.errors]
    return InvalidInput(faults[:LISTED], sum(error.total for error in invalid))
