"""One attempt at a job: the way of a prediction, without a client.

Knows: the order of the steps. Does not know: how any is done, what becomes of the answer.
"""

from __future__ import annotations

import time
from dataclasses import replace

from app.api.ask import JOBS, parse, prepare
from app.api.compute import compute, steps_done
from app.api.door import Door
from app.api.edge import Call
from app.api.handle import record, respond
from app.api.prepare import Bounds
from app.api.state import Worker
from app.cache import NOTHING
from app.jobs.runner import Running


def job_bounds(worker: Worker) -> Bounds:
    """What one job may ask for: as one request, but with more time."""
    return replace(worker.bounds(), max_timeout=worker.settings.jobs_timeout)


async def work(worker: Worker, running: Running) -> bytes:
    """The document that the job's own route would have answered; raises the KronosError that is the answer otherwise.

    The result cache is left alone: a queue of jobs would only push out what interactive requests may ask for again.
    """
    claim, call = running.claim, Call(running.claim.request_id)
    served, bounds = worker.require(), job_bounds(worker)
    with call.timings.stage("parse"):
        asked = await parse(claim.body, claim.endpoint, bounds, JOBS)
    await prepare(asked, bounds, call, claim.endpoint)
    running.steps_done = lambda: steps_done(asked.entries)
    running.deadline = min(time.monotonic() + (asked.terms.timeout or bounds.max_timeout), running.expires)
    with Door(worker, served.engine, claim.priority, NOTHING) as door:
        await compute(door, worker.cache, NOTHING, asked, running.deadline, running.stopped)
    body = await respond(asked, served, call, claim.endpoint)
    record(worker, asked, served, call, claim.endpoint)
    return body
