"""What the API costs around the model: parse, validate, prepare, restore and serialise 400 candles → 120.

    taskset -c 1 python -m benchmarks.http

The model is a no-op that answers at once. Two measurements, in interleaved rounds, medians over rounds:
in this process, stage by stage; and the processor time of a server process for each request, over real connections.
Beside them the ceilings: JSON alone for the same two documents, and a bare server that echoes as many bytes.
pydantic's parser stands there as the other candidate. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging.config
import multiprocessing
import os
import re
import socket
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Self, cast

import msgspec
import numpy as np
import pydantic
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import answer
from app.api.decode import decode
from app.api.openapi import example_series
from app.api.prepare import Bounds, prepare_forecast
from app.api.schema import PredictRequest, Provenance
from app.api.state import Served
from app.engine import Engine, EngineHealth
from app.logs import dict_config
from app.main import create_app
from app.permit import Ticket
from app.settings import Settings
from app.work import Forecast, Outcome

LOOKBACK, HORIZON = 400, 120
PATH = "/v1/predict/single"
BOUNDS = Bounds(2048, 512, 128, 64, 20_000, 30.0, 512, 1024)
SOURCE = Provenance(model_version="m", tokenizer_version="t", request_id="0" * 32)
STAGE = re.compile(rb"(?:read|parse|prepare_frame|inverse|serialise);dur=([\d.]+)")
TIMINGS = {"total": 1.0, "rolled": False}


class PydanticCandle(pydantic.BaseModel):
    """The other candidate for parsing: the same shape and strictness as the struct in use."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    open: pydantic.FiniteFloat
    high: pydantic.FiniteFloat
    low: pydantic.FiniteFloat
    close: pydantic.FiniteFloat
    volume: pydantic.FiniteFloat | None = None
    amount: pydantic.FiniteFloat | None = None
    timestamp: str | None = None


class PydanticRequest(pydantic.BaseModel):
    """A request, as pydantic would read it."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    series_id: str | None
    candles: list[PydanticCandle]
    timestamps: list[str]
    overrides: dict[str, int]


class InstantEngine:
    """An engine whose model takes no time."""

    priority = "interactive"

    def reserve(self, priority: str) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def start(self) -> None:
        pass

    prewarm = start
    stop = start

    def drain(self, timeout_s: float) -> bool:
        return True

    def health(self) -> EngineHealth:
        return EngineHealth(alive=True, ready=True, draining=False, stuck_s=0.0)

    def submit(self, work: Forecast, deadline: float) -> Ticket:
        future: Future[Outcome] = Future()
        future.set_result(outcome_of(len(work.future_stamps)))
        return Ticket(future, lambda reason: None)


@functools.cache
def outcome_of(horizon: int) -> Outcome:
    """Paths that are arbitrary, and the same for every request."""
    paths = np.random.default_rng(0).standard_normal((1, horizon, 6)).astype(np.float32)
    return Outcome(paths, None, {"queue": 0.0}, rolled=False)


def request_body() -> bytes:
    return json.dumps(example_series(LOOKBACK) | {"overrides": {"pred_len": HORIZON, "seed": 7}}).encode()


def respond(body: bytes) -> bytes:
    """All that happens to one request but HTTP and the model."""
    prepared = prepare_forecast(decode(body, PredictRequest), BOUNDS)
    return answer.with_timings(answer.encode(answer.forecast(prepared, outcome_of(HORIZON)), SOURCE), TIMINGS)


def stages(body: bytes) -> dict[str, Callable[[], Any]]:
    """What is timed in this process, by name."""
    request = decode(body, PredictRequest)
    prepared = prepare_forecast(request, BOUNDS)
    outcome = outcome_of(HORIZON)
    result = answer.forecast(prepared, outcome)
    sent = respond(body)
    document = json.loads(sent)
    return {
        "parse": lambda: decode(body, PredictRequest),
        "prepare_frame": lambda: prepare_forecast(request, BOUNDS),
        "inverse": lambda: answer.forecast(prepared, outcome),
        "serialise": lambda: answer.encode(result, SOURCE),
        "all stages": lambda: respond(body),
        "ceiling: msgspec JSON alone": lambda: (msgspec.json.decode(body), msgspec.json.encode(document)),
        "ceiling: stdlib JSON alone": lambda: (json.loads(body), json.dumps(document)),
        "instead of parse: pydantic": lambda: PydanticRequest.model_validate_json(body),
    }


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """The least that a server does: read the body, send as many bytes as a forecast has."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(ECHOED))]})
    await send({"type": "http.response.body", "body": ECHOED})


ECHOED = b" " * 18_000  # about what 120 candles take


def serve(listener: socket.socket, bare: bool, handler: str) -> None:
    """The life of a server process."""
    app: ASGIApp = echo
    if not bare:
        served = Served(cast(Engine, InstantEngine()), "m", "t", 512, 1024, "cpu", "float32")
        app = create_app(Settings(cache_ttl=0), lambda settings: served)
    lifespan: Literal["on", "off"] = "off" if bare else "on"
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False, lifespan=lifespan)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        logs = dict_config(Settings().log_level)  # log lines are made and written as in service
        logs["handlers"]["out"]["class"] = handler
        logging.config.dictConfig(logs)
        uvicorn.Server(config).run(sockets=[listener])


class Target:
    """A server process and one kept-alive connection to it. ``handler``: the class that writes its log."""

    def __init__(self, bare: bool, handler: str = "app.outlet.Outlet") -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=(listener, bare, handler), daemon=True)
        self.process.start()
        # Linux's clock of the processor time of another process, in nanoseconds (clock_getcpuclockid).
        self.clock = (~(self.process.pid or 0) << 3) | 2
        self.connection = socket.create_connection(listener.getsockname(), timeout=60)
        listener.close()

    def ask(self, message: bytes) -> bytes:
        """Send one request, read its answer."""
        self.connection.sendall(message)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._receive()
        return head

    def _receive(self) -> bytes:
        chunk = self.connection.recv(65536)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        return chunk

    def measure(self, message: bytes, count: int) -> dict[str, float]:
        """Microseconds for one request: the server's processor, the median until the answer, and the median sum of
        the stages that the server itself reports."""
        latencies, stages = [], []
        before = time.clock_gettime_ns(self.clock)
        for _ in range(count):
            began = time.perf_counter()
            head = self.ask(message)
            latencies.append(time.perf_counter() - began)
            stages.append(sum(float(duration) for duration in STAGE.findall(head)))
        spent = time.clock_gettime_ns(self.clock) - before
        return {
            "own stages": 1e3 * statistics.median(stages),
            "processor": spent / 1e3 / count,
            "latency": 1e6 * statistics.median(latencies),
        }

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def time_stage(run: Callable[[], Any], count: int) -> float:
    """Median microseconds of one run."""
    laps = []
    for _ in range(count):
        began = time.perf_counter_ns()
        run()
        laps.append((time.perf_counter_ns() - began) / 1e3)
    return statistics.median(laps)


def main() -> None:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=400, help="requests of one round")
    options = parser.parse_args()
    body = request_body()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    message = head.encode() + body
    targets = {"worker": Target(bare=False), "ceiling: bare server": Target(bare=True)}
    while b" 200 " not in targets["worker"].ask(message)[:20]:
        time.sleep(0.05)
    measured: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, run in stages(body).items():
            measured.setdefault(name, []).append(time_stage(run, options.count))
        for name, target in targets.items():
            for figure, microseconds in target.measure(message, options.count).items():
                measured.setdefault(f"{name}, {figure}", []).append(microseconds)
    for target in targets.values():
        target.stop()
    report(body, {name: statistics.median(rounds) for name, rounds in measured.items()})


def report(body: bytes, figures: dict[str, float]) -> None:
    """A table for people, a line for machines."""
    print(f"{LOOKBACK} candles in ({len(body)} bytes), {HORIZON} out ({len(respond(body))} bytes); microseconds, p50")
    figures.pop("ceiling: bare server, own stages")  # it reports none
    for name, figure in figures.items():
        print(f"  {name:<34}{figure:10.1f}")
    around = figures["worker, processor"] - figures["ceiling: bare server, processor"]
    ratio = figures["all stages"] / figures["ceiling: stdlib JSON alone"]
    print(f"  all stages / stdlib JSON alone    {ratio:10.2f}")
    print(f"  worker − bare server, processor   {around:10.1f}")
    print(json.dumps({"microseconds": {name: round(figure, 1) for name, figure in figures.items()}, "ratio": ratio}))


if __name__ == "__main__":
    main()
