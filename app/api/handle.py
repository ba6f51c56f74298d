"""The way of one prediction: door, body, parse, prepare, compute, answer.

A permit is reserved before the body is read, so that a burst is refused before it costs anything.
Knows: the order of these steps. Does not know: how any step is done.
"""

from __future__ import annotations

import time
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api import answer
from app.api.aside import LARGE_ANSWER, aside
from app.api.ask import parse, prepare, worst
from app.api.compute import Asked, Entry, compute, look_around, name, results
from app.api.door import Door
from app.api.edge import Call, call_of
from app.api.incoming import MEDIA_TYPE, check_headers, read_body, wait_until_gone
from app.api.prepare import PreparedEmbedding, PreparedForecast
from app.api.schema import ForecastResult, Provenance
from app.api.state import Served, Worker
from app.errors import DeadlinePassed, EngineFailed
from app.jobs.store import Endpoint
from app.records import Record


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
            asked = await parse(body, endpoint, bounds)
        if asked.terms.priority == "bulk":
            door.change("bulk")
        await prepare(asked, bounds, call, endpoint)
        _note(asked, endpoint, call)
        deadline = min(received + (asked.terms.timeout or bounds.max_timeout), call.arrived + settings.request_timeout)
        with call.timings.stage("cache"):
            name(asked.entries, served, policy)
            if door.refusal and not worker.cache.covers([entry.key for entry in asked.entries if entry.prepared]):
                raise door.refusal
            await look_around(asked.entries, worker.cache, policy, door.priority, deadline)
        await compute(door, worker.cache, policy, asked, deadline, partial(wait_until_gone, request.receive))
    _count_timeout(asked, endpoint)
    body = await respond(asked, served, call, endpoint)
    call.timings.observe(endpoint)
    call.facts["cache"] = ", ".join(results(asked.entries))
    record(worker, asked, served, call, endpoint)
    return Response(body, media_type=MEDIA_TYPE, headers={"x-cache": call.facts["cache"]})


def _note(asked: Asked, endpoint: Endpoint, call: Call) -> None:
    """Sizes for the metric and the log line."""
    lengths = [len(entry.asked.candles) for entry in asked.entries if entry.asked]
    for length in lengths:
        metrics.INPUT_SIZE.labels(endpoint).observe(length)
    call.facts.update(series=len(asked.entries), candles=sum(lengths), units=asked.units, priority=asked.terms.priority)


def _count_timeout(asked: Asked, endpoint: Endpoint) -> None:
    if any(isinstance(entry.error, DeadlinePassed) for entry in asked.entries):
        metrics.TIMEOUTS.labels(endpoint).inc()


async def respond(asked: Asked, served: Served, call: Call, endpoint: Endpoint) -> bytes:
    """The answer's document. Raises the error that is the answer when no series succeeded."""
    numbers = sum(entry.prepared.numbers for entry in asked.entries if entry.prepared and entry.outcome)
    return await aside(endpoint, numbers >= LARGE_ANSWER, _write, asked, served, call)


def _write(asked: Asked, served: Served, call: Call) -> bytes:
    with call.timings.stage("inverse"):
        for entry in asked.entries:
            _finish(entry)
    outcomes = [entry.outcome for entry in asked.entries if entry.outcome]
    if not outcomes:
        raise worst([entry.error for entry in asked.entries if entry.error])
    slowest = max(outcomes, key=lambda outcome: sum(outcome.stages.values()))
    call.timings.include(slowest.stages)
    source = Provenance(
        model_version=served.model_version, tokenizer_version=served.tokenizer_version, request_id=call.request_id
    )
    with call.timings.stage("serialise"):
        body = _encode_batch(asked.entries, source) if asked.batch else _encode_one(asked.entries[0], source)
    timings = {**call.timings.milliseconds(), "rolled": any(outcome.rolled for outcome in outcomes)}
    return answer.with_timings(body, timings)


def record(worker: Worker, asked: Asked, served: Served, call: Call, endpoint: Endpoint) -> None:
    """Tell the sinks of every forecast in this answer."""
    for entry in asked.entries if worker.sinks else ():
        prepared, result = entry.prepared, entry.result
        if isinstance(prepared, PreparedForecast) and isinstance(result, ForecastResult) and entry.claim and entry.outcome:
            told = Record(
                request_id=call.request_id,
                answered=time.time(),
                endpoint=endpoint,
                worker=worker.settings.worker_name,
                model_version=served.model_version,
                tokenizer_version=served.tokenizer_version,
                cache=entry.claim.result,
                stages=entry.outcome.stages,
                prepared=prepared,
                result=result,
            )
            for sink in worker.sinks:
                sink.offer(told)


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
