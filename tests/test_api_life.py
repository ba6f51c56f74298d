"""How a worker comes and goes: warming up, SIGTERM, a stuck engine, a checkpoint that cannot be loaded."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api.decode import decode
from app.api.prepare import prepare_forecast
from app.api.schema import PredictRequest
from app.api.state import Served
from app.errors import EngineFailed
from app.main import STATUS_STUCK, STATUS_UNUSABLE, Application, create_app
from app.settings import Settings
from tests.fakes import FakeRunner
from tests.serving import Gate, application, busy, engine_of, gated, long_request, request, server, until, worker_of

SINGLE = "/v1/predict/single"


def test_a_leaving_worker_finishes_what_it_has() -> None:
    """When the server stops, requests in flight are answered, new connections are not accepted."""
    with gated() as (running, gate), ThreadPoolExecutor(1) as pool:
        gate.open.clear()
        post = {"json": request(overrides={"pred_len": 5}), "timeout": 20}
        in_flight = pool.submit(httpx.post, running.url + SINGLE, **post)  # type: ignore[arg-type]
        assert until(busy(running))
        running.uvicorn.should_exit = True
        assert until(lambda: not running.uvicorn.servers or not running.uvicorn.servers[0].is_serving())
        with pytest.raises(httpx.TransportError):
            httpx.get(running.url + "/readyz")
        gate.open.set()
        assert in_flight.result().status_code == 200
        running.thread.join(20)
        assert not worker_of(running.app).require().engine.health().alive


def test_a_worker_that_was_told_to_leave_is_not_ready_and_serves_on() -> None:
    """Between SIGTERM and the closing of the socket: /readyz says draining, predictions still work."""
    with server() as running, httpx.Client(base_url=running.url) as http:
        worker_of(running.app).leaving = True
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["type"].rpartition(":")[2]) == (503, "draining")
        assert http.get("/healthz").status_code == 200
        assert http.post(SINGLE, json=request(overrides={"pred_len": 1})).status_code == 200


PROCESS = """
import socket, sys, uvicorn
from app.settings import Settings
from tests.serving import application
listener = socket.socket(fileno=int(sys.argv[1]))
uvicorn.Server(uvicorn.Config(application(Settings(drain_delay=1.5)), log_config=None)).run(sockets=[listener])
"""


def test_sigterm_first_turns_readiness_off_and_then_stops() -> None:
    """For KRONOS_DRAIN_DELAY seconds balancers see a worker that is not ready and still serves; then it is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-c", PROCESS, str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
    try:
        with httpx.Client(base_url=url, timeout=20) as http:
            assert until(lambda: http.get("/readyz").status_code == 200)
            process.send_signal(signal.SIGTERM)
            assert until(lambda: http.get("/readyz").status_code == 503)
            assert http.get("/readyz").json()["title"] == "Draining"
            assert http.post(SINGLE, json=request(overrides={"pred_len": 1})).status_code == 200
        process.wait(20)
        with pytest.raises(httpx.TransportError):
            httpx.get(url + "/readyz")
    finally:
        process.kill()
        process.wait()


def status_left_with(app: FastAPI, left: list[int]) -> int:
    """Run the application's life until it wants to end the process, and tell with which status."""

    async def live() -> None:
        async with app.router.lifespan_context(app):
            await asyncio.to_thread(until, lambda: bool(left))

    asyncio.run(live())
    return left[0]


def test_a_stuck_engine_ends_the_process() -> None:
    """Work in flight and no step for KRONOS_WATCHDOG seconds: the process leaves so that another can start."""
    gate = Gate()
    left: list[int] = []
    app = application(Settings(watchdog=0.3), gate.runner, left.append)

    def hang() -> None:
        if until(lambda: worker_of(app).served is not None):
            gate.open.clear()
            work = prepare_forecast(decode(long_request(), PredictRequest), worker_of(app).bounds()).work
            with engine_of(app).reserve("interactive") as permit:
                permit.submit(work, time.monotonic() + 60)
            until(lambda: bool(left))
            gate.open.set()

    thread = threading.Thread(target=hang)
    thread.start()
    assert status_left_with(app, left) == STATUS_STUCK
    thread.join(20)


def test_an_idle_engine_is_not_stuck() -> None:
    """Silence without work is no reason to leave."""
    with server(Settings(watchdog=0.2)) as running:
        time.sleep(1.2)  # twice the period of the watch and more; `leave` would raise in it
        assert httpx.get(running.url + "/healthz").status_code == 200
        assert worker_of(running.app).stuck() is None


def test_a_worker_that_cannot_load_leaves_for_good() -> None:
    """A bad checkpoint ends gunicorn, instead of a restart for ever."""

    def load(_: Settings) -> Served:
        raise ValueError("no such folder")

    left: list[int] = []
    assert status_left_with(create_app(Settings(), load, left.append), left) == STATUS_UNUSABLE


@pytest.mark.slow
def test_a_worker_that_loads_too_long_leaves() -> None:
    """Not ready within KRONOS_STARTUP_TIMEOUT: another one may have more luck."""
    release = threading.Event()

    def load(_: Settings) -> Served:
        release.wait(20)
        raise EngineFailed("released")

    left: list[int] = []
    assert status_left_with(create_app(Settings(startup_timeout=0.1), load, left.append), left) == STATUS_STUCK
    release.set()


@pytest.mark.parametrize(("prewarm", "predictions"), [(True, 3), (False, 0)])
def test_warming_up_makes_real_predictions_and_can_be_left_out(prewarm: bool, predictions: int) -> None:
    """Ready either way; with ENABLE_PREWARM=0 the first user pays for first use."""
    runner = FakeRunner()
    with server(Settings(prewarm=prewarm), runner) as running:
        assert httpx.get(running.url + "/readyz").status_code == 200
        assert runner.errands.count("detokenise") == predictions


def test_importing_the_application_does_nothing() -> None:
    """The ASGI object is made when its server starts it, not before."""
    made: list[str] = []

    def make() -> Any:
        made.append("made")
        raise ValueError("stop here")

    lazy = Application(make)
    assert not made
    with pytest.raises(ValueError):
        asyncio.run(lazy({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert made == ["made"]
