"""Who gets in, who is stopped, and how a worker leaves: over a real server where sockets matter."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app import metrics
from app.api.decode import decode
from app.api.prepare import prepare_forecast
from app.api.schema import PredictRequest
from app.api.state import Served
from app.errors import EngineFailed
from app.main import STATUS_STUCK, STATUS_UNUSABLE, Application, create_app
from app.settings import Settings
from tests.fakes import FakeRunner
from tests.serving import Server, application, engine_of, raw_post, request, server, until, worker_of

SINGLE, BATCH = "/v1/predict/single", "/v1/predict/batch"


class Gate:
    """A fake model whose steps wait until it is opened, or take a given time."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.delay_s = 0.0
        self.runner = FakeRunner(on_step=self._step)

    def _step(self, _: int) -> None:
        self.open.wait(20)
        time.sleep(self.delay_s)


@contextmanager
def gated(settings: Settings | None = None) -> Iterator[tuple[Server, Gate]]:
    gate = Gate()
    with server(settings, gate.runner) as running:
        try:
            yield running, gate
        finally:
            gate.open.set()


def long_request(steps: int = 400, **fields: Any) -> bytes:
    return json.dumps(request(overrides={"pred_len": steps, "seed": 1}, **fields)).encode()


def idle(running: Server) -> Callable[[], bool]:
    def check() -> bool:
        stats = engine_of(running.app).stats()
        return (stats.slots_busy, stats.queued_work, stats.pages_free) == (0, 0, stats.pages_total)

    return check


def busy(running: Server) -> Callable[[], bool]:
    return lambda: engine_of(running.app).stats().slots_busy > 0


def cancelled(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("kronos_cancelled_total", {"reason": reason}) or 0.0


def test_a_refusal_comes_before_the_body() -> None:
    """A full worker answers 429 with Retry-After to the headers alone: the body is never waited for."""
    with gated(Settings(max_concurrency=1)) as (running, gate):
        gate.open.clear()
        with running.connect() as first, running.connect() as second:
            first.sendall(raw_post(SINGLE, long_request()))
            assert until(busy(running))
            second.sendall(raw_post(SINGLE, b"", length=50_000))
            answer = second.recv(4096).decode()
            assert answer.startswith("HTTP/1.1 429 ")
            assert "retry-after: " in answer.lower()
            gate.open.set()
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_permit_is_held_while_the_body_comes_and_free_afterwards() -> None:
    """A request counts from its headers to its answer, also when it fails."""
    with server(Settings(max_concurrency=1)) as running, httpx.Client(base_url=running.url) as http:
        with running.connect() as slow:
            body = long_request(1)
            slow.sendall(raw_post(SINGLE, body[:10], length=len(body)))
            assert until(lambda: http.post(SINGLE, json={}).status_code == 429)
            slow.sendall(body[10:])
            assert slow.recv(4096).startswith(b"HTTP/1.1 200 ")
        for _ in range(3):
            assert http.post(SINGLE, json={}).status_code == 422


@pytest.mark.parametrize("where", ["header", "body"])
def test_bulk_is_refused_before_interactive(where: str) -> None:
    """With its share of the queue taken, bulk is told to come back while interactive still gets in."""
    headers = {"x-priority": "bulk"} if where == "header" else {}
    fields: dict[str, Any] = {} if where == "header" else {"priority": "bulk"}
    with gated(Settings(max_concurrency=4, bulk_share=0.25)) as (running, gate), httpx.Client(base_url=running.url) as http:
        gate.open.clear()
        with running.connect() as first:
            first.sendall(raw_post(SINGLE, long_request()))
            assert until(busy(running))
            assert http.post(SINGLE, json=request(**fields), headers=headers).status_code == 429
            with ThreadPoolExecutor(1) as pool:
                interactive = pool.submit(http.post, SINGLE, json=request(overrides={"pred_len": 1}))
                assert until(lambda: engine_of(running.app).stats().queued_work > 400)
                gate.open.set()
                assert interactive.result().status_code == 200


def test_a_client_that_leaves_frees_its_slots() -> None:
    """The work of a broken connection stops at the next step, and is counted."""
    before = cancelled("disconnected")
    with gated() as (running, gate):
        gate.delay_s = 0.005
        with running.connect() as connection:
            connection.sendall(raw_post(SINGLE, long_request()))
            assert until(busy(running))
            began = time.monotonic()
        assert until(idle(running))
        assert time.monotonic() - began < 400 * gate.delay_s / 2, "the work was not cut short"
        assert until(lambda: cancelled("disconnected") == before + 1)


def test_many_clients_that_leave_disturb_nobody() -> None:
    """Others are served while many abort, and every slot and page comes back."""
    with gated() as (running, gate), httpx.Client(base_url=running.url, timeout=20) as http:
        gate.delay_s = 0.001
        for _ in range(4):
            connections = [running.connect() for _ in range(10)]
            for connection in connections:
                connection.sendall(raw_post(SINGLE, long_request(100)))
            assert until(busy(running))
            for connection in connections:
                connection.close()
            assert http.post(SINGLE, json=request(overrides={"pred_len": 2})).status_code == 200
        assert until(idle(running))


def test_a_client_that_leaves_during_its_body_costs_nothing() -> None:
    """Half a request leaves no permit behind."""
    with server(Settings(max_concurrency=1)) as running, httpx.Client(base_url=running.url) as http:
        for _ in range(3):
            with running.connect() as connection:
                connection.sendall(raw_post(SINGLE, b'{"cand', length=1000))
        assert until(lambda: http.post(SINGLE, json={}).status_code == 422)


def test_the_deadline_is_kept_and_the_work_stops() -> None:
    """504 at the timeout, within a tenth of it, and nothing goes on behind it."""
    timeout = 2.0
    with gated() as (running, gate), httpx.Client(base_url=running.url, timeout=20) as http:
        gate.delay_s = 0.02
        before = metrics.REGISTRY.get_sample_value("kronos_timeouts_total", {"endpoint": "single"}) or 0.0
        answer = http.post(SINGLE, content=long_request(timeout=timeout), headers={"content-type": "application/json"})
        assert answer.status_code == 504
        total = re.search(r"total;dur=([\d.]+)", answer.headers["server-timing"])
        assert total and float(total[1]) / 1e3 == pytest.approx(timeout, rel=0.1)
        assert until(idle(running), timeout)
        assert metrics.REGISTRY.get_sample_value("kronos_timeouts_total", {"endpoint": "single"}) == before + 1


def test_a_deadline_that_has_passed_already_starts_no_work() -> None:
    """A timeout too short for anything is a 504, not a refusal."""
    with server() as running, httpx.Client(base_url=running.url) as http:
        steps = metrics.REGISTRY.get_sample_value("kronos_decode_steps_total")
        assert http.post(SINGLE, json=request(timeout=1e-9)).status_code == 504
        assert metrics.REGISTRY.get_sample_value("kronos_decode_steps_total") == steps


def test_a_step_that_hangs_does_not_hold_the_answer() -> None:
    """504 in time although the engine cannot stop; it stops when it can."""
    with gated() as (running, gate), httpx.Client(base_url=running.url, timeout=20) as http:
        gate.open.clear()
        answer = http.post(SINGLE, content=long_request(timeout=0.3), headers={"content-type": "application/json"})
        assert answer.status_code == 504
        gate.open.set()
        assert until(idle(running))


def test_an_item_that_misses_the_deadline_fails_alone() -> None:
    """What is ready in time is delivered; the rest of the batch is 504 in its place."""
    with gated() as (running, gate), httpx.Client(base_url=running.url, timeout=20) as http:
        gate.delay_s = 0.01
        items = [request(overrides={"pred_len": 2}), request(overrides={"pred_len": 500})]
        answer = http.post(BATCH, json={"items": items, "timeout": 1.0})
        assert answer.status_code == 200
        quick, slow = answer.json()["items"]
        assert len(quick["prediction"]) == 2
        assert slow["error"]["status"] == 504
        assert until(idle(running))


def test_the_whole_request_has_a_limit_too() -> None:
    """KRONOS_REQUEST_TIMEOUT counts from the first byte, so a slow body shortens the time that is left."""
    settings = Settings(inference_timeout=1.0, request_timeout=1.0, body_timeout=1.0)
    with gated(settings) as (running, gate), running.connect() as connection:
        gate.open.clear()
        body = long_request()
        began = time.monotonic()
        connection.sendall(raw_post(SINGLE, body[:100], length=len(body)))
        time.sleep(0.5)
        connection.sendall(body[100:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 504 ")
        assert 1.0 <= time.monotonic() - began < 1.5, "counted from the last byte it would be 1.5 s"


def test_an_engine_that_fails_is_a_500_and_the_others_go_on() -> None:
    """A failing errand is its own request's error."""
    runner = FakeRunner()

    def fail(history: Any, generated: Any) -> Any:
        if generated.shape[1] == 3:
            raise RuntimeError("a secret")
        return FakeRunner.detokenise(runner, history, generated)

    runner.detokenise = fail  # type: ignore[method-assign]
    with server(None, runner) as running, httpx.Client(base_url=running.url) as http:
        bad = http.post(SINGLE, json=request(overrides={"pred_len": 3}))
        assert bad.status_code == 500 and "secret" not in bad.text
        assert http.post(SINGLE, json=request(overrides={"pred_len": 2})).status_code == 200


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
