"""The outermost layer: request ids, one log line, one count and one duration for each request, errors as documents.

Pure ASGI. Knows: HTTP and the error table. Does not know: routes' business.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics
from app.errors import PROBLEM_MEDIA_TYPE, Cancelled, EngineFailed, KronosError, Overloaded
from app.logs import context

access = logging.getLogger("app.access")
log = logging.getLogger(__name__)

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)
CALL: Final = "kronos.call"
ROUTE: Final = "kronos.route"
NO_ROUTE: Final = "other"
QUIET: Final = ("/healthz", "/readyz", "/metrics", "/health/thread-pools")  # polled every few seconds: logged at level debug only


@dataclass
class Call:
    """One request in progress: what its routes and this layer tell each other."""

    request_id: str
    arrived: float = field(default_factory=time.monotonic)
    timings: metrics.Timings = field(default_factory=metrics.Timings)
    facts: dict[str, Any] = field(default_factory=dict)  # counts for the log line; never content
    status: int = 0


def call_of(request: Request) -> Call:
    """The call that ``request`` is part of."""
    return cast(Call, request.scope[CALL])


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, worker_name: str) -> None:
        self.app = app
        self.worker_name = worker_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = scope[CALL] = Call(_request_id(scope))

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = call.request_id
                headers["x-served-by"] = self.worker_name
                headers["server-timing"] = call.timings.server_timing()
            await send(message)

        metrics.CONCURRENT_REQUESTS.inc()
        try:
            await self.app(scope, receive, send_named)
        except KronosError as error:
            await _answer(error, call, send_named)
        except Exception as error:
            log.exception("unexpected error", **context(request_id=call.request_id))
            if call.status:
                raise  # an answer was begun: only a closed connection can still tell the client
            await _answer(EngineFailed(str(error)), call, send_named)
        finally:
            metrics.CONCURRENT_REQUESTS.dec()
            _observe(scope, call)


async def _answer(error: KronosError, call: Call, send: Send) -> None:
    if isinstance(error, Cancelled):
        call.status = error.status  # nobody is there to read an answer
        return
    if isinstance(error, Overloaded):
        metrics.REJECTED.labels(error.reason).inc()
    if isinstance(error, EngineFailed):
        log.error("request failed: %s", error, **context(request_id=call.request_id))
    body = msgspec.json.encode(error.problem(call.request_id))
    headers = {"content-type": PROBLEM_MEDIA_TYPE, "content-length": str(len(body)), **error.headers()}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if REQUEST_ID.fullmatch(text):
                return text
    return uuid.uuid4().hex


def _observe(scope: Scope, call: Call) -> None:
    route = scope.get(ROUTE, NO_ROUTE)
    seconds = time.monotonic() - call.arrived
    metrics.REQUESTS.labels(route, str(call.status)).inc()
    metrics.REQUEST_DURATION.labels(route).observe(seconds)
    level = logging.DEBUG if route in QUIET else logging.INFO
    access.log(
        level, "%s %s %d", scope["method"], _shown(scope, route), call.status,
        **context(
            request_id=call.request_id, route=route, status=call.status, duration_ms=round(1e3 * seconds, 3),
            timings=call.timings.milliseconds(), **call.facts,
        ),
    )  # fmt: skip


def _shown(scope: Scope, route: str) -> str:
    """The path as the log may have it: the id of a job is for its owner, like a key."""
    path: str = scope["path"]
    return route if "{" in route else path[:200]
