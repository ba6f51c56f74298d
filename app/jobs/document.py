"""The document that is told of a job. Knows: names and types of its members. Does not know: who may read it, HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from app.api.schema import REFERENCE, Priority
from app.jobs.store import WAITING, Job, State

Moment = Annotated[str, Meta(examples=["2024-06-01T12:00:00.000Z"])]
PROBLEM: Final = {"$ref": REFERENCE.format(name="Problem")}


class Progress(Struct):
    """Steps of all sample paths together."""

    done: int
    total: int


class JobDoc(Struct, kw_only=True):
    """A job as it stands. ``result``: what the prediction's own route would have answered."""

    task_id: str
    state: State
    priority: Priority
    request_id: Annotated[str, Meta(description="Of the submission; the result and the log have it too.")]
    position: Annotated[int, Meta(description="Queued jobs that come before this one.")] | UnsetType = UNSET
    progress: Progress
    attempts: Annotated[int, Meta(description="Times that a worker took it up.")]
    cancelling: Annotated[bool, Meta(description="It is being stopped.")] | UnsetType = UNSET
    created_at: Moment
    started_at: Moment | UnsetType = UNSET
    ended_at: Moment | UnsetType = UNSET
    expires_at: Annotated[Moment, Meta(description="A job that waits ends then, one that has ended is forgotten.")]
    webhook: str | UnsetType = UNSET
    result: Any = UNSET
    error: Annotated[Any, Meta(extra_json_schema=PROBLEM)] = UNSET


def document(job: Job, position: int | None = None, *, result: bool = True) -> bytes:
    """JSON of ``job``. ``result``: with the answer or the problem, as far as there is one."""
    told = JobDoc(
        task_id=job.id,
        state=job.state,
        priority=job.priority,
        request_id=job.request_id,
        position=UNSET if position is None else position,
        progress=Progress(min(job.steps_done, job.steps), job.steps),
        attempts=job.attempts,
        cancelling=True if job.cancelling and job.state in WAITING else UNSET,
        created_at=moment(job.created),
        started_at=UNSET if job.started is None else moment(job.started),
        ended_at=UNSET if job.ended is None else moment(job.ended),
        expires_at=moment(job.expires),
        webhook=UNSET if job.webhook is None else job.webhook,
    )
    if job.result and result:
        ended = msgspec.Raw(job.result)
        told.result, told.error = (ended, UNSET) if job.state == "succeeded" else (UNSET, ended)
    return msgspec.json.encode(told)


def moment(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
