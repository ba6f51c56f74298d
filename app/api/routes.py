"""The routes of a worker: which path does what.

Knows: paths and methods. Does not know: how a prediction is made (``handle``), what the documents look like.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from app import metrics
from app.api import jobs
from app.api.edge import ROUTE
from app.api.handle import handle
from app.api.state import Worker
from app.errors import NotReady
from app.jobs.store import Endpoint

PREDICTIONS: Final[dict[str, Endpoint]] = {
    "/v1/predict/single": "single",
    "/v1/predict/batch": "batch",
    "/v1/embeddings": "embeddings",
}


class NamedRoute(Route):
    """A route that tells the outer layer its path: the label of metrics and log lines."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return match, {**child_scope, ROUTE: self.path}


def make_routes(worker: Worker) -> list[NamedRoute]:
    """The routes, bound to ``worker``."""
    read: dict[str, Callable[[Worker, Request], Awaitable[Response]]] = {
        "/healthz": _live,
        "/readyz": _ready,
        "/metrics": _metrics,
        "/health/thread-pools": _pools,
    }
    write: dict[str, Callable[[Worker, Request], Awaitable[Response]]] = {"/health/thread-pools/log-status": _log_pools}
    predictions = [NamedRoute(path, _bind(handle, worker, endpoint), methods=["POST"]) for path, endpoint in PREDICTIONS.items()]
    reads = [NamedRoute(path, _bind(answer, worker), methods=["GET"]) for path, answer in read.items()]
    writes = [NamedRoute(path, _bind(answer, worker), methods=["POST"]) for path, answer in write.items()]
    tasks = [
        NamedRoute(jobs.PATH, _bind(jobs.submit, worker), methods=["POST"]),
        NamedRoute(f"{jobs.PATH}/{{task_id}}", _bind(jobs.show, worker), methods=["GET"]),
        NamedRoute(f"{jobs.PATH}/{{task_id}}", _bind(jobs.cancel, worker), methods=["DELETE"]),
    ]
    return predictions + tasks + reads + writes


def _bind(answer: Callable[..., Awaitable[Response]], worker: Worker, *rest: Any) -> Callable[..., Any]:
    async def endpoint(request: Request) -> Response:
        return await answer(worker, request, *rest)

    return endpoint


async def _live(worker: Worker, request: Request) -> Response:
    """Live: the event loop turns, since this is answered, and the engine thread steps or is idle."""
    if trouble := worker.stuck():
        raise NotReady(detail=trouble)
    served = worker.served
    engine = "loading" if served is None else "busy" if served.engine.health().stuck_s else "idle"
    return JSONResponse({"status": "live", "engine": engine})


async def _ready(worker: Worker, request: Request) -> Response:
    worker.check_ready()
    served = worker.require()
    return JSONResponse({
        "status": "ready", "model_version": served.model_version, "tokenizer_version": served.tokenizer_version,
        "max_context": served.max_context, "device": served.device, "dtype": served.dtype,
    })  # fmt: skip


async def _pools(worker: Worker, request: Request) -> Response:
    return JSONResponse({"worker": worker.settings.worker_name, **worker.pools.stats()})


async def _log_pools(worker: Worker, request: Request) -> Response:
    worker.pools.log_status()
    return JSONResponse({"status": "logged"})


async def _metrics(worker: Worker, request: Request) -> Response:
    return Response(metrics.render(), headers={"content-type": metrics.CONTENT_TYPE})
