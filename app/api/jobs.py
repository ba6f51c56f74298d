"""The routes of jobs: submit, look at, cancel. Whose job it is decides whether it is there at all.

Knows: headers and parameters, what is checked before a job is kept. Does not know: how jobs are kept or run.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections.abc import Awaitable
from typing import Final, TypeVar, cast

from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api.ask import JOBS, parse, prepare, worst
from app.api.compute import Asked
from app.api.decode import peek
from app.api.edge import call_of
from app.api.incoming import MEDIA_TYPE, check_headers, read_body, wait_until_gone
from app.api.job_schema import Terms
from app.api.job_work import job_bounds
from app.api.keys import owner_of
from app.api.state import Worker
from app.errors import InvalidInput, JobsOff, JobsUnavailable, KeyReused, NotFound, Overloaded
from app.jobs import store
from app.jobs.desk import Desk
from app.jobs.document import document
from app.jobs.runner import CANCELLED
from app.jobs.store import ENDED, WAITING, Endpoint, Job, NewJob

T = TypeVar("T")

PATH: Final = "/v1/jobs"
ID_BYTES: Final = 24  # 192 random bits: nobody guesses one
MOST_SUBMITTING: Final = 64
"""Submissions whose bodies one worker reads at once."""
FULL_S: Final = 10.0
"""When to come back to a full queue."""
KEY_HEADER: Final = "idempotency-key"
KEY: Final = re.compile(r'"?([!#-~]{1,255})"?', re.ASCII)  # the draft's quoted string, or the bare text that many send


async def submit(worker: Worker, request: Request) -> Response:
    """Check a job as its own route would, then keep it: 202, or 200 when its Idempotency-Key is known."""
    desk = _desk(worker)
    if desk.num_submitting >= MOST_SUBMITTING:
        raise Overloaded("submissions", 1.0)
    desk.num_submitting += 1
    try:
        job, fresh = await _keep(desk, await _read(worker, desk, request))
    finally:
        desk.num_submitting -= 1
    desk.runner.wake()
    return await _tell(desk, job, 202 if fresh else 200)


async def show(worker: Worker, request: Request) -> Response:
    """The job as it stands; with ``?wait=SECONDS`` as soon as it has ended, or then."""
    desk, wait = _desk(worker), _wait(worker, request)
    job = await _mine(desk, request)
    if wait and job.state in WAITING:
        await _first(desk.watch.wait(job.id, wait), wait_until_gone(request.receive))
        job = await _mine(desk, request)
    return await _tell(desk, job, 200)


async def cancel(worker: Worker, request: Request) -> Response:
    """Stop the job: 200 when it has ended by now, 202 when its worker is still to stop. An end stays what it was."""
    desk = _desk(worker)
    id = (await _mine(desk, request)).id
    job = await _ask(desk.store.cancel(id))
    if job is None:
        raise NotFound("no such job")
    if job.cancelling and id in desk.runner.running:
        desk.runner.running[id].stop(CANCELLED)
    if job.state in ENDED:
        desk.watch.tell(id)
        desk.webhooks.wake()
    return await _tell(desk, job, 200 if job.state in ENDED else 202)


async def _read(worker: Worker, desk: Desk, request: Request) -> NewJob:
    """The job that ``request`` submits, if it would not be refused by its own route."""
    call, settings = call_of(request), worker.settings
    await worker.loaded()
    bounds = job_bounds(worker)
    header_priority = check_headers(request, settings.max_body)
    key = _idempotency_key(request)
    body = await read_body(request.receive, settings.max_body, settings.body_timeout)
    with call.timings.stage("parse"):
        endpoint = _endpoint(body)
        asked = await parse(body, endpoint, bounds, JOBS)
    terms = cast(Terms, asked.terms)
    if terms.webhook is not None:
        desk.webhooks.check(terms.webhook)
    if terms.ttl is not None and terms.ttl > settings.jobs_ttl:
        raise InvalidInput([("/ttl", f"is above the limit of {settings.jobs_ttl:g} s")])
    await prepare(asked, bounds, call, endpoint)
    _refuse_if_nothing_is_left(asked)
    call.facts.update(series=len(asked.entries), units=asked.units, priority=terms.priority)
    return NewJob(
        id=secrets.token_urlsafe(ID_BYTES),
        owner=owner_of(request),
        endpoint=endpoint,
        body=body,
        priority="bulk" if header_priority == "bulk" else terms.priority,
        steps=asked.units,
        ttl=terms.ttl or settings.jobs_ttl,
        request_id=call.request_id,
        webhook=terms.webhook,
        idempotency_key=key,
    )


def _refuse_if_nothing_is_left(asked: Asked) -> None:
    errors = [entry.error for entry in asked.entries if entry.error]
    if len(errors) == len(asked.entries):
        raise worst(errors)


async def _keep(desk: Desk, new: NewJob) -> tuple[Job, bool]:
    outcome = "refused"
    try:
        job, fresh = await _ask(desk.store.submit(new))
        outcome = "new" if fresh else "known"
        return job, fresh
    except store.KeyReused as error:
        raise KeyReused from error
    except store.QueueFull as error:
        raise Overloaded("jobs", FULL_S) from error
    finally:
        metrics.JOBS_SUBMITTED.labels(outcome).inc()


async def _mine(desk: Desk, request: Request) -> Job:
    """The job that the path names. Raises NotFound, also when it is somebody else's."""
    job = await _ask(desk.store.get(request.path_params["task_id"]))
    if job is None or not hmac.compare_digest(job.owner, owner_of(request)):
        raise NotFound("no such job: its id is not known here, its time has passed, or it was made with another key")
    return job


async def _tell(desk: Desk, job: Job, status: int) -> Response:
    position = await _ask(desk.store.position(job.id)) if job.state == "queued" else None
    headers = {"location": f"{PATH}/{job.id}"} if status == 202 else {}
    return Response(document(job, position), status, headers | {"cache-control": "no-store"}, MEDIA_TYPE)


async def _ask(call: Awaitable[T]) -> T:
    """What the store answers. Raises JobsUnavailable when it does not."""
    try:
        return await call
    except store.StoreFailed as error:
        metrics.JOBS_STORE_ERRORS.inc()
        raise JobsUnavailable(str(error)) from error


async def _first(*waits: Awaitable[object]) -> None:
    """Wait for one of these, and give up the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _desk(worker: Worker) -> Desk:
    if worker.desk is None:
        raise JobsOff
    return worker.desk


def _endpoint(body: bytes) -> Endpoint:
    """Whose document this is."""
    batch, kind = peek(body)
    return "embeddings" if kind == "embedding" else "batch" if batch else "single"


def _idempotency_key(request: Request) -> str | None:
    text = request.headers.get(KEY_HEADER)
    if text is None:
        return None
    if found := KEY.fullmatch(text):
        return found[1]
    raise InvalidInput([("", "the header Idempotency-Key must be 1 to 255 printable characters without blanks")])


def _wait(worker: Worker, request: Request) -> float:
    text, longest = request.query_params.get("wait", "0"), worker.settings.inference_timeout
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text, re.ASCII) and float(text) <= longest:
        return float(text)
    raise InvalidInput([("", f"the parameter wait must be seconds, at most {longest:g}")])
