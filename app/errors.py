"""Every way a request can fail: one class and one row of ``ERROR_TABLE`` for each kind.

Knows: the kinds, their HTTP status and title, the sentence a client may read, when to come back.
Does not know: HTTP frameworks, the engine, logging. It imports nothing from ``app``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:kronos-fleet:problem:"


class ErrorRow(NamedTuple):
    """What a kind of error looks like from outside."""

    status: int
    title: str
    when: str


ERROR_TABLE: Final[Mapping[str, ErrorRow]] = {
    "bad-json": ErrorRow(400, "Not JSON", "the body is not one JSON document in UTF-8"),
    "unauthorized": ErrorRow(401, "Unauthorized", "an API key is needed, and no valid one was shown"),
    "not-found": ErrorRow(404, "Not found", "no route has this path"),
    "method-not-allowed": ErrorRow(405, "Method not allowed", "the route does not answer this method"),
    "body-timeout": ErrorRow(408, "Body too slow", "the body did not arrive in time"),
    "too-large": ErrorRow(413, "Body too large", "the body has more bytes than the limit"),
    "unsupported-media-type": ErrorRow(415, "Unsupported media type", "the body is not application/json"),
    "invalid-input": ErrorRow(422, "Invalid input", "an element is missing, unknown, misshapen or out of bounds"),
    "work-too-large": ErrorRow(422, "Too much work", "series × paths × steps is above the limit of one request"),
    "overloaded": ErrorRow(429, "Overloaded", "the queue is full; come back after Retry-After seconds"),
    "pool-saturated": ErrorRow(429, "Pool saturated", "a pool of threads and the line before it are full"),
    "key-reused": ErrorRow(422, "Idempotency key reused", "this Idempotency-Key came with another request before"),
    "cancelled": ErrorRow(499, "Cancelled", "the client has gone; nobody reads this answer"),
    "engine-failed": ErrorRow(500, "Internal error", "the worker failed; its log has the details"),
    "not-ready": ErrorRow(503, "Not ready", "the worker is still loading or warming up"),
    "draining": ErrorRow(503, "Draining", "the worker finishes what it has and accepts nothing new"),
    "job-abandoned": ErrorRow(500, "Job abandoned", "each worker that ran this job died or fell silent over it"),
    "jobs-off": ErrorRow(501, "No jobs here", "this service has no job store (KRONOS_JOBS_URL)"),
    "jobs-unavailable": ErrorRow(503, "Jobs unavailable", "the job store does not answer; predictions are not affected"),
    "deadline-passed": ErrorRow(504, "Deadline passed", "the timeout passed and the work was stopped"),
}


class FieldError(NamedTuple):
    """One offending element: a JSON pointer (RFC 6901) into the request and what is wrong there."""

    pointer: str
    detail: str


class KronosError(Exception):
    """Base of all expected failures. ``detail`` is for the client; ``str(error)`` is for the log."""

    kind: ClassVar[str]

    def __init__(self, detail: str, *, log: str | None = None) -> None:
        super().__init__(log or detail)
        self.detail = detail

    @property
    def status(self) -> int:
        return ERROR_TABLE[self.kind].status

    @property
    def title(self) -> str:
        return ERROR_TABLE[self.kind].title

    @property
    def type(self) -> str:
        return TYPE_PREFIX + self.kind

    def headers(self) -> dict[str, str]:
        """HTTP headers this error adds to its answer."""
        return {}

    def problem(self, request_id: str) -> dict[str, Any]:
        """The RFC 9457 document of this error."""
        return {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }


class _ComeBack(KronosError):
    """An error that passes by itself: it says after how many seconds to try again."""

    def __init__(self, detail: str, retry_after: float, *, log: str | None = None) -> None:
        super().__init__(detail, log=log)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        # RFC 9110 knows whole seconds only; 0 would invite an immediate stampede.
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}


class BadJson(KronosError):
    kind = "bad-json"


class Unauthorized(KronosError):
    """``fault``: what RFC 6750 calls what is wrong with the key that was shown; none when none was."""

    kind = "unauthorized"

    def __init__(self, detail: str, fault: str = "") -> None:
        super().__init__(detail)
        self.fault = fault

    def headers(self) -> dict[str, str]:
        return {"www-authenticate": 'Bearer realm="kronos"' + (f', error="{self.fault}"' if self.fault else "")}


class NotFound(KronosError):
    kind = "not-found"


class MethodNotAllowed(KronosError):
    kind = "method-not-allowed"

    def __init__(self, detail: str, allow: str = "") -> None:
        super().__init__(detail)
        self.allow = allow

    def headers(self) -> dict[str, str]:
        return {"allow": self.allow} if self.allow else {}


class BodyTimeout(KronosError):
    kind = "body-timeout"


class TooLarge(KronosError):
    kind = "too-large"


class UnsupportedMediaType(KronosError):
    kind = "unsupported-media-type"


class InvalidInput(KronosError):
    """Elements of the request that cannot be used, each named by its JSON pointer.

    ``total`` counts them all; ``errors`` may hold fewer when there are very many.
    """

    kind = "invalid-input"

    def __init__(self, errors: Sequence[FieldError | tuple[str, str]], total: int | None = None) -> None:
        self.errors = [FieldError(*error) for error in errors]
        self.total = len(self.errors) if total is None else total
        noun = "element is" if self.total == 1 else "elements are"
        shown = f" (the first {len(self.errors)} are listed)" if self.total > len(self.errors) else ""
        super().__init__(f"{self.total} {noun} invalid{shown}; see errors")

    def problem(self, request_id: str) -> dict[str, Any]:
        listed = [{"pointer": error.pointer, "detail": error.detail} for error in self.errors]
        return {**super().problem(request_id), "errors": listed}


class WorkTooLarge(KronosError):
    kind = "work-too-large"


class KeyReused(KronosError):
    kind = "key-reused"

    def __init__(self) -> None:
        super().__init__("this Idempotency-Key came with another request before; use a new key for a new job")


class Overloaded(_ComeBack):
    """Refused at the door. ``reason`` is the label of ``kronos_rejected_total``."""

    kind = "overloaded"

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(f"too much is waiting already ({reason})", retry_after)
        self.reason = reason


class NotReady(_ComeBack):
    kind = "not-ready"

    def __init__(self, retry_after: float = 1.0, detail: str = "the model is not ready yet") -> None:
        super().__init__(detail, retry_after)


class PoolSaturated(_ComeBack):
    """``pool`` has no thread for this in time. ``setting`` makes it larger; that is for the log, not for clients."""

    kind = "pool-saturated"

    def __init__(self, pool: str, why: str, setting: str, retry_after: float) -> None:
        remedy = f"raise {setting}, or find in GET /health/thread-pools what holds its threads"
        super().__init__(f"the pool {pool!r} {why}", retry_after, log=f"the pool {pool!r} {why}: {remedy}")
        self.pool = pool


class JobAbandoned(KronosError):
    kind = "job-abandoned"

    def __init__(self, attempts: int) -> None:
        super().__init__(f"given up after {attempts} attempts: each worker that ran this job died or fell silent over it")


class JobsOff(KronosError):
    kind = "jobs-off"

    def __init__(self) -> None:
        super().__init__("this service keeps no jobs: its operator sets KRONOS_JOBS_URL to change that")


class JobsUnavailable(_ComeBack):
    kind = "jobs-unavailable"

    def __init__(self, log: str, retry_after: float = 2.0) -> None:
        super().__init__("the job store does not answer now", retry_after, log=log)


class Draining(_ComeBack):
    kind = "draining"

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__("this worker is shutting down", retry_after)


class DeadlinePassed(KronosError):
    kind = "deadline-passed"

    def __init__(self, detail: str = "the answer was not ready before the deadline; the work was stopped") -> None:
        super().__init__(detail)


class Cancelled(KronosError):
    """Given up before it was finished. ``reason`` is the label of ``kronos_cancelled_total``."""

    kind = "cancelled"

    def __init__(self, reason: str) -> None:
        super().__init__(f"cancelled ({reason})")
        self.reason = reason


class EngineFailed(KronosError):
    """The worker's own fault. ``log`` goes to the log only: a client sees no internals."""

    kind = "engine-failed"

    def __init__(self, log: str = "the engine failed") -> None:
        super().__init__("an internal error occurred; quote the request_id when you report it", log=log)
