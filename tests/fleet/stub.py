"""A worker without a model: the same gunicorn, uvicorn and HTTP contract, answers that can be known beforehand.

Knows: how to answer, to be slow, to fail when told to. Does not know: torch, ``app``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, float("inf"))
PREDICT = "/v1/predict/single"


def forecast(document: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request: depends on every byte of its meaning, and on nothing else."""
    mark = zlib.crc32(json.dumps(document, sort_keys=True).encode()) / 2**32
    last = document["candles"][-1]["close"]

    def candles(shift: float) -> list[dict[str, Any]]:
        rows = []
        for step, moment in enumerate(document["prediction_timestamps"], 1):
            close = last * (1 + shift * step**0.5 / 1000) + mark * step / 100
            prices = {"open": close, "high": close + mark, "low": close - mark, "close": close}
            rows.append({"timestamp": moment, **prices, "volume": 100.0 * step, "amount": 100.0 * step * close})
        return rows

    answer = {"series_id": document.get("series_id"), "prediction": candles(0.0), "seed": 7, "warnings": []}
    if quantiles := document.get("quantiles"):
        answer["quantiles"] = {f"{q:g}": candles(q - 0.5) for q in quantiles}
    return answer


class Stub:
    """One worker. ``fault`` is what ``POST /stub/fault`` asked for: "", a status such as "500", or "slow:0.5"."""

    def __init__(self) -> None:
        self.name = os.environ.get("KRONOS_WORKER_NAME", "stub")
        self.delay_s = float(os.environ.get("STUB_DELAY_S", "0.02"))
        self.loaded_at = time.monotonic() + float(os.environ.get("STUB_LOAD_S", "0.4"))
        self.fault = ""
        self.in_flight = 0
        self.answered: dict[int, int] = {}
        self.durations: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        self.in_flight += 1
        try:
            status, document = await self.route(scope["path"], await read(receive))
        finally:
            self.in_flight -= 1
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        request_id = dict(scope["headers"]).get(b"x-request-id", b"")
        kind = b"application/json" if status < 400 else b"application/problem+json"
        headers = [(b"content-type", kind), (b"x-served-by", self.name.encode()), (b"x-request-id", request_id)]
        retry = [(b"retry-after", b"3")] if status in {429, 503} else []
        length = (b"content-length", str(len(content)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [*headers, *retry, length]})
        await send({"type": "http.response.body", "body": content})

    async def live(self, receive: Receive, send: Send) -> None:
        """Start slowly or not at all when told to."""
        await receive()
        await asyncio.sleep(float(os.environ.get("STUB_START_S", "0")))
        if sentence := os.environ.get("STUB_FAIL"):
            sys.stdout.write(json.dumps({"level": "error", "message": sentence}) + "\n")
            await send({"type": "lifespan.startup.failed", "message": sentence})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def route(self, path: str, body: bytes) -> tuple[int, dict[str, Any] | bytes]:
        """Status and document of one request."""
        if path == "/readyz" and not self.ready:
            return 503, problem(503)
        if path in {"/healthz", "/readyz"}:
            return 200, {"status": "ok"}
        if path == "/metrics":
            return 200, self.metrics()
        if path == "/stub/fault":
            self.fault = body.decode()
            return 200, {}
        if path not in {PREDICT, "/v1/jobs"}:
            return 404, problem(404)
        began = time.monotonic()
        status, document = await self.predict(body)
        self.answered[status] = self.answered.get(status, 0) + 1
        self.durations.append(time.monotonic() - began)
        return status, document

    @property
    def ready(self) -> bool:
        """It answers while it loads, as the real one does: 503."""
        return time.monotonic() >= self.loaded_at

    async def predict(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """The forecast, after the delay the series_id or the fault asks for."""
        if not self.ready:
            return 503, problem(503)
        if self.fault.isdigit():
            return int(self.fault), problem(int(self.fault))
        document = json.loads(body)
        wish = (document.get("series_id") or "").partition("sleep=")[2]
        slow = float(self.fault.removeprefix("slow:")) if self.fault else 0.0
        await asyncio.sleep(float(wish or self.delay_s) + slow)
        timings = {"total": 1e3 * self.delay_s, "rolled": False}
        return 200, {**forecast(document), "model_version": "stub", "timings": timings}

    def metrics(self) -> bytes:
        """The metrics that the fleet reads, under the workers' names."""
        route = f'route="{PREDICT}"'
        lines = [f"kronos_concurrent_requests {self.in_flight}", 'kronos_queue_depth{priority="interactive"} 0']
        lines += [f'kronos_requests_total{{{route},status="{s}"}} {count}' for s, count in self.answered.items()]
        for bound in BOUNDS:
            count = sum(duration <= bound for duration in self.durations)
            label = "+Inf" if bound == BOUNDS[-1] else f"{bound}"
            lines.append(f'kronos_request_duration_seconds_bucket{{{route},le="{label}"}} {count}')
        return ("\n".join(lines) + "\n").encode()


async def read(receive: Receive) -> bytes:
    """The whole body."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def problem(status: int) -> dict[str, Any]:
    """The stub's own words, to be told apart from nginx's."""
    return {"type": "urn:stub", "title": "the stub refuses", "status": status, "detail": "as told"}


app = Stub()
