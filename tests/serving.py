"""The worker's application around the fake model: in this process, or behind a real server on a free port."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.api.openapi import example_series
from app.api.state import Served, Worker
from app.engine import Engine
from app.main import create_app
from app.settings import Settings
from tests.fakes import FakeRunner

PATIENCE_S = 20.0
VOCABULARY = 1024

Json = dict[str, Any]


def never(status: int) -> None:
    raise AssertionError(f"the process would have left with status {status}")


def application(
    settings: Settings | None = None, runner: FakeRunner | None = None, leave: Callable[[int], Any] = never
) -> FastAPI:
    """The application with a real engine and a fake model."""
    settings, runner = settings or Settings(), runner or FakeRunner()

    def load(_: Settings) -> Served:
        engine = Engine(runner, limits=settings.limits)
        return Served(engine, "model@1", "tokenizer@1", runner.max_context, VOCABULARY, "cpu", "float32")

    return create_app(settings, load, leave)


def until(true: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    """Wait until ``true()``; False when it has not come true in time."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.002)
    return False


def worker_of(app: FastAPI) -> Worker:
    worker: Worker = app.state.worker
    return worker


def engine_of(app: FastAPI) -> Engine:
    return worker_of(app).require().engine


@contextmanager
def client(settings: Settings | None = None, runner: FakeRunner | None = None) -> Iterator[TestClient]:
    """A ready application in this process. Unexpected errors are answered, not raised."""
    app = application(settings, runner)
    with TestClient(app, raise_server_exceptions=False) as test_client:
        assert until(lambda: worker_of(app).served is not None)
        yield test_client


@dataclass
class Server:
    """A ready application behind uvicorn, as gunicorn would run it."""

    app: FastAPI
    port: int
    uvicorn: uvicorn.Server
    thread: threading.Thread = field(repr=False)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def server(settings: Settings | None = None, runner: FakeRunner | None = None) -> Iterator[Server]:
    """Serve on a free port of 127.0.0.1 until the block ends."""
    app = application(settings, runner)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False, ws="none")
    inner = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=inner.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert until(lambda: inner.started and worker_of(app).served is not None)
        yield Server(app, listener.getsockname()[1], inner, thread)
    finally:
        inner.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"


def request(count: int = 24, **fields: Any) -> Json:
    """A request for one series of ``count`` hourly candles."""
    return example_series(count) | fields


def raw_post(path: str, body: bytes, headers: str = "", length: int | None = None) -> bytes:
    """An HTTP/1.1 request, as bytes."""
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n"
    return (head + headers + "\r\n").encode() + body


def fake_paths(history: np.ndarray[Any, Any], minutes: list[int], horizon: int, seed: int, count: int) -> Any:
    """What the fake model answers, by its description: float32[count, horizon, 6], normalised."""
    paths = np.zeros((count, horizon, 6), np.float32)
    for path in range(count):
        draws = np.random.Generator(np.random.Philox(key=[seed, path])).random((horizon, 2))
        token = int(np.rint(history[-1, 0]))
        for step in range(horizon):
            token += 1 + int(draws[step, 0] * 10)
            paths[path, step] = token
            paths[path, step, 4] = minutes[step]
    return paths


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
