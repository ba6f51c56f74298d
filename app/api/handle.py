"""The way of one prediction: permit, body, parse, prepare, submit, wait, answer.

A permit is reserved before the body is read, so that a burst is refused before it costs anything. A request for one
series is a batch of one whose error is the answer.
Knows: the order of these steps, deadlines, leaving clients. Does not know: how any step is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from app import metrics
from app.api import answer
from app.api.decode import decode, decode_batch, is_batch
from app.api.edge import Call, call_of
from app.api.faults import LISTED
from app.api.incoming import GONE, MEDIA_TYPE, check_headers, read_body, wait_until_gone
from app.api.prepare import Bounds, PreparedEmbedding, PreparedForecast, prepare_embedding, prepare_forecast
from app.api.schema import EmbedRequest, ForecastItem, PredictRequest, Priority, Provenance, Series
from app.api.state import Served, Worker
from app.errors import Cancelled, DeadlinePassed, EngineFailed, InvalidInput, KronosError, WorkTooLarge
from app.permit import Permit, Ticket
from app.work import Outcome

Endpoint = Literal["single", "batch", "embeddings"]

ONE: Final[dict[Endpoint, type[PredictRequest | EmbedRequest]]] = {"single": PredictRequest, "embeddings": EmbedRequest}
MANY: Final[dict[Endpoint, type[ForecastItem | Series]]] = {"batch": ForecastItem, "embeddings": Series}


@dataclass
class Entry:
    """One series on its way through a request. An error ends its way, and no other's."""

    prefix: str  # its JSON pointer
    asked: Series | None = None
    prepared: PreparedForecast | PreparedEmbedding | None = None
    ticket: Ticket | None = None
    outcome: Outcome | None = None
    result: answer.Result | None = None
    error: KronosError | None = None


@dataclass(frozen=True)
class Asked:
    """A parsed request."""

    entries: list[Entry]
    batch: bool
    timeout: float | None
    priority: Priority


async def handle(worker: Worker, request: Request, endpoint: Endpoint) -> Response:
    """Answer one request for forecasts or embeddings. Raises the KronosError that is the answer otherwise."""
    call, settings = call_of(request), worker.settings
    served, bounds = await worker.loaded(), worker.bounds()
    with ExitStack() as permits:
        permit = permits.enter_context(served.engine.reserve(check_headers(request, settings.max_body)))
        with call.timings.stage("read"):
            body = await read_body(request.receive, settings.max_body, settings.body_timeout)
        received = time.monotonic()
        with call.timings.stage("parse"):
            asked = _parse(body, endpoint, bounds)
        if asked.priority == "bulk" and permit.priority != "bulk":
            permit.release()
            permit = permits.enter_context(served.engine.reserve("bulk"))
        await _prepare(asked, bounds, call)
        _note(asked, endpoint, call)
        deadline = min(received + (asked.timeout or bounds.max_timeout), call.arrived + settings.request_timeout)
        await _compute(permit, asked.entries, deadline, request.receive)
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


async def _compute(permit: Permit, entries: list[Entry], deadline: float, receive: Receive) -> None:
    """Fill in outcomes or errors. Work that is not done by ``deadline``, or that nobody awaits, is stopped."""
    reason = "refused"
    try:
        for entry in entries:
            if entry.prepared and time.monotonic() >= deadline:
                entry.error = DeadlinePassed()
            elif entry.prepared:
                entry.ticket = permit.submit(entry.prepared.work, deadline)
        reason = "shutdown"  # should this task be cancelled from outside
        if await _left_before_end(_tickets(entries), deadline, receive):
            reason = GONE
            raise Cancelled(GONE)
        reason = "deadline"
        for entry in entries:
            _settle(entry)
    finally:
        for ticket in _tickets(entries):
            if not ticket.future.done():
                ticket.cancel(reason)


def _tickets(entries: Iterable[Entry]) -> list[Ticket]:
    return [entry.ticket for entry in entries if entry.ticket]


async def _left_before_end(tickets: list[Ticket], deadline: float, receive: Receive) -> bool:
    """Wait until all tickets are settled, the deadline passes or the client leaves; True in the last case."""
    if not tickets:
        return False
    settled = asyncio.gather(*(asyncio.wrap_future(ticket.future) for ticket in tickets), return_exceptions=True)
    gone = asyncio.ensure_future(wait_until_gone(receive))
    try:
        await asyncio.wait((settled, gone), timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        return gone.done() and not settled.done()
    finally:
        gone.cancel()


def _settle(entry: Entry) -> None:
    if entry.ticket is None:
        return
    if not entry.ticket.future.done():
        entry.error = DeadlinePassed()
        return
    error = entry.ticket.future.exception()
    if error is None:
        entry.outcome = entry.ticket.future.result()
    elif isinstance(error, KronosError):
        entry.error = error
    else:
        raise error


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
    return Response(answer.with_timings(body, timings), media_type=MEDIA_TYPE)


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
