"""The composition root: settings → weights → runner → engine → application, and the life of the process.

Knows: who needs what, in which order things start and stop. Does not know: how anything works.
Nothing happens at import: ``app`` reads the settings when its server starts it.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import metrics, quota
from app.api.edge import Edge
from app.api.faults import LISTED
from app.api.job_work import work
from app.api.keys import RequireKey
from app.api.openapi import make_openapi
from app.api.routes import make_routes
from app.api.state import Served, Worker
from app.cache import Cache
from app.errors import KronosError, MethodNotAllowed, NotFound
from app.jobs.desk import Desk, make_store
from app.logs import dict_config
from app.pool import Pool
from app.pools import LoopExecutor, installed, make_pools
from app.records import Sink
from app.settings import Settings, load

log = logging.getLogger(__name__)

STATUS_UNUSABLE: Final = 3  # gunicorn stops, instead of trying again, when a worker exits with this status
STATUS_STUCK: Final = 70
WATCH_PERIOD_S: Final = 0.5
SINK_PATIENCE_S: Final = 3.0
POOLS_PATIENCE_S: Final = 2.0

Loader = Callable[[Settings], Served]
Exit = Callable[[int], Any]


def load_model(settings: Settings) -> Served:
    """Load the checkpoint and build an engine that is not started yet. Raises CheckpointError."""
    settings.set_thread_environment()
    # Imported here, since the native libraries read the thread settings when they are first imported.
    from app.engine import Engine
    from app.model import weights
    from app.model.runner import build_of, build_runner

    checkpoint = weights.load(settings.model, settings.tokenizer, sha256=settings.model_sha256, max_context=settings.max_context)
    runner = build_runner(checkpoint, num_slots=settings.slots, device=settings.device, dtype=settings.dtype)
    return Served(
        engine=Engine(runner, limits=settings.limits),
        model_version=checkpoint.model_version,
        tokenizer_version=checkpoint.tokenizer_version,
        max_context=checkpoint.max_context,
        vocabulary=2**checkpoint.model_config.s1_bits,
        device=runner.device,
        dtype=settings.dtype,
        build=f"{build_of(runner)} {checkpoint.model_config} {checkpoint.tokenizer_config}",
    )


def make_cache(settings: Settings) -> Cache:
    """The result cache, shared with the fleet when there is a server for it."""
    if settings.redis_url and settings.cache_ttl:
        from app.cache_shared import Shared  # its client is loaded only where there is something to ask

        cache = Cache(settings.cache_ttl, settings.cache_bytes, Shared(settings.redis_url, settings.cache_ttl))
    else:
        cache = Cache(settings.cache_ttl, settings.cache_bytes)
    cache.publish()
    return cache


def make_sinks(settings: Settings) -> tuple[Sink, ...]:
    """Those who keep a record of predictions."""
    sinks: list[Sink] = []
    if settings.prediction_log:
        from app.prediction_log.sink import PredictionLog  # Arrow is loaded only where there is something to write

        sinks.append(PredictionLog.of(settings.prediction_log, settings))
    if settings.kafka_servers:
        from app.events_kafka import make_events  # nor librdkafka

        sinks.append(make_events(settings))
    if settings.postgres_url:
        from app.table import make_table  # nor libpq

        sinks.append(make_table(settings))
    return tuple(sinks)


def make_desk(worker: Worker) -> Desk | None:
    """What the worker has for jobs, where the settings say that there are any."""
    store = make_store(worker.settings)
    if store is None:
        return None

    def idle() -> int:
        served = worker.served
        return served.engine.idle_slots() if served else 0

    return Desk(store, worker.settings, partial(work, worker), idle, lambda: worker.leaving)


def create_app(settings: Settings, loader: Loader = load_model, leave: Exit = os._exit) -> FastAPI:
    """The application of one worker. ``leave`` ends the process when it is beyond help."""
    worker = Worker(settings, make_cache(settings), make_sinks(settings), pools=make_pools(settings))
    worker.desk = make_desk(worker)
    quota.publish()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(LoopExecutor(worker.pools["io"]))
        stopped = threading.Event()
        with installed(worker.pools):
            worker.pools["inference"].submit(_bring_up, worker, loader, leave)
            threading.Thread(target=_watch, args=(worker, leave, stopped), name="watch", daemon=True).start()
            _announce_leaving(worker)
            if worker.desk:
                worker.desk.open()
            yield
            worker.leaving = True
            stopped.set()
            if worker.desk:
                await worker.desk.close()
            # The named pools may be full of what is stuck; leaving must not wait for that.
            last = Pool("leaving", 1 + len(worker.sinks))
            await last.run(_take_down, worker)
            await worker.cache.close()
            await asyncio.gather(*(last.run(sink.close, SINK_PATIENCE_S) for sink in worker.sinks))
            await worker.pools.close(POOLS_PATIENCE_S)

    app = FastAPI(title="Kronos Fleet", lifespan=lifespan, redoc_url=None, swagger_ui_oauth2_redirect_url=None)
    app.router.routes.extend(make_routes(worker))
    app.router.redirect_slashes = False
    document = make_openapi(settings, LISTED)
    app.openapi = lambda: document  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _as_kronos_error)
    if settings.api_keys:
        app.add_middleware(RequireKey, hashes=settings.api_keys)
    app.add_middleware(Edge, worker_name=settings.worker_name)
    app.state.worker = worker
    return app


async def _as_kronos_error(request: Request, error: Exception) -> Response:
    """The router's own refusals, in the house's form."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        raise MethodNotAllowed(f"this path answers {allow}", allow) from error
    if isinstance(error, HTTPException) and error.status_code == 404:
        raise NotFound("no such path; /docs lists them") from error
    raise error


def _bring_up(worker: Worker, loader: Loader, leave: Exit) -> None:
    """Load, start and warm up; then the worker is ready."""
    began = time.monotonic()
    try:
        served = loader(worker.settings)
        served.engine.start()
        served.engine.prewarm() if worker.settings.prewarm else served.engine.open()
    except Exception as error:
        # A bad checkpoint explains itself; anything else is a bug and shows where.
        log.critical("cannot start: %s", error, exc_info=not isinstance(error, ValueError | OSError | KronosError))
        leave(STATUS_UNUSABLE)
        return
    versions = {"model_version": served.model_version, "tokenizer_version": served.tokenizer_version}
    metrics.MODEL_INFO.labels(**versions, device=served.device, dtype=served.dtype).set(1)
    worker.served = served
    log.info("ready after %.1f s: %s", time.monotonic() - began, served.model_version)


def _watch(worker: Worker, leave: Exit, stopped: threading.Event) -> None:
    """End the process when it is beyond help, so that its supervisor starts another."""
    deadline = time.monotonic() + worker.settings.startup_timeout
    while not stopped.wait(WATCH_PERIOD_S):
        trouble = worker.stuck()
        if worker.served is None and time.monotonic() > deadline:
            trouble = f"not ready after {worker.settings.startup_timeout:g} s"
        if trouble:
            log.critical("ending this process: %s", trouble)
            leave(STATUS_STUCK)
            return


def _announce_leaving(worker: Worker) -> None:
    """Make SIGTERM first turn readiness off, and the server's own handler run ``drain_delay`` later."""
    if threading.current_thread() is not threading.main_thread():
        return
    stop = signal.getsignal(signal.SIGTERM)
    if not callable(stop):
        return
    loop = asyncio.get_running_loop()

    def begin(number: int, frame: Any) -> None:
        worker.leaving = True
        loop.call_soon_threadsafe(loop.call_later, worker.settings.drain_delay, stop, number, frame)

    signal.signal(signal.SIGTERM, begin)


def _take_down(worker: Worker) -> None:
    """Finish what is in flight, then end the engine thread. By now the server has sent its answers."""
    if worker.served is None:
        return
    engine = worker.served.engine
    if not engine.drain(worker.settings.inference_timeout):
        log.warning("work was left after %.0f s of draining", worker.settings.inference_timeout)
    engine.stop()


class Application:
    """An ASGI application that is made when its server starts it, so that importing this module does nothing."""

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            self._app = self._make()
        await self._app(scope, receive, send)


def make_app() -> ASGIApp:
    """The application as the environment and config.yaml want it, logging included. Raises SettingsError."""
    settings = load()
    logging.config.dictConfig(dict_config(settings.log_level))
    return create_app(settings)


app = Application(make_app)
