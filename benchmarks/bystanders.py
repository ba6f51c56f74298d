"""Work on an event loop, in several ways, and what a small request and an engine beside it notice of that.

Knows: bodies and answers of all sizes, ways to do them, two bystanders. Does not know: what is compared with what.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from app.api import answer
from app.api.decode import decode, decode_batch
from app.api.openapi import example_series
from app.api.prepare import prepare_embedding, prepare_forecast
from app.api.schema import BatchEnvelope, EmbedRequest, ForecastItem, PredictRequest
from app.errors import InvalidInput
from app.pools import run_in_pool
from app.work import Outcome
from benchmarks.http import BOUNDS, SOURCE

Pieces = Sequence[Callable[[], Any]]
Way = Callable[[Pieces], Awaitable[None]]
Figures = dict[str, float]

SPAN_S = 0.4
EVERY_S = 0.003
HORIZON = 120


def body_of(candles: int, **fields: Any) -> dict[str, Any]:
    return example_series(candles) | {"overrides": {"pred_len": HORIZON, "seed": 7}} | fields


def request(candles: int) -> Pieces:
    """Decode and prepare one series."""
    body = json.dumps(body_of(candles)).encode()
    return [lambda: prepare_forecast(decode(body, PredictRequest), BOUNDS)]


def batch(series: int, candles: int) -> Pieces:
    """The same of a batch, in the pieces between which its way may do something else."""
    body = json.dumps({"items": [body_of(candles)] * series}).encode()
    found: list[Any] = []

    def read() -> None:
        found[:] = decode_batch(body, ForecastItem, BatchEnvelope)[1]

    return [read, *(partial(lambda index: prepare_forecast(found[index], BOUNDS), index) for index in range(series))]


def refusal(candles: int) -> Pieces:
    """Read a body with one bad candle, at its end, thoroughly."""
    series = body_of(candles)
    series["candles"][-1] = {"open": "x"}
    body = json.dumps(series).encode()

    def read() -> None:
        try:
            decode(body, PredictRequest)
        except InvalidInput:
            return
        raise AssertionError("this body is not valid")

    return [read]


def reply(paths: int) -> Pieces:
    """Write an answer: the mean, or also all its paths."""
    fields: dict[str, Any] = {"return_paths": True, "quantiles": [0.1, 0.5, 0.9]} if paths > 1 else {}
    prepared = prepare_forecast(decode(json.dumps(body_of(400, **fields)).encode(), PredictRequest), BOUNDS)
    values = np.random.default_rng(0).standard_normal((paths, HORIZON, 6)).astype(np.float32)
    outcome = Outcome(values, None, {"queue": 0.0}, rolled=False)
    return [lambda: answer.encode(answer.forecast(prepared, outcome), SOURCE)]


def embeddings(series: int, width: int) -> Pieces:
    """Write the answer to a batch of embeddings."""
    prepared = prepare_embedding(decode(json.dumps(example_series(24)).encode(), EmbedRequest), BOUNDS)
    vector = np.random.default_rng(0).standard_normal(width).astype(np.float32)
    outcome = Outcome(None, vector, {"queue": 0.0}, rolled=False)
    return [lambda: answer.encode_item(answer.embedding(prepared, outcome), outcome)] * series


CASES: dict[str, Pieces] = {
    "50 candles": request(50),
    "400 candles": request(400),
    "2048 candles": request(2048),
    "batch of 64 × 50": batch(64, 50),
    "batch of 64 × 400": batch(64, 400),
    "refusal of 400": refusal(400),
    "refusal of 2048": refusal(2048),
    "answer": reply(1),
    "answer with 16 paths": reply(16),
    "answer with 128 paths": reply(128),
    "64 embeddings of 832": embeddings(64, 832),
}


def whole(pieces: Pieces) -> None:
    for piece in pieces:
        piece()


async def inline(pieces: Pieces) -> None:
    whole(pieces)


async def yielding(pieces: Pieces) -> None:
    for piece in pieces:
        piece()
        await asyncio.sleep(0)


async def pool(pieces: Pieces) -> None:
    await run_in_pool("cpu", whole, pieces)


async def both(pieces: Pieces) -> None:
    await run_in_pool("cpu", whole, pieces[:1])
    await yielding(pieces[1:])


async def executor(pieces: Pieces) -> None:
    await asyncio.get_running_loop().run_in_executor(None, whole, pieces)


WAYS: dict[str, Way] = {"inline": inline, "yielding": yielding, "both": both, "pool": pool, "executor": executor}


class Engine:
    """A thread that steps like an engine: mostly without the interpreter's lock, and briefly with it."""

    def __init__(self) -> None:
        self.steps = 0
        self._data = bytes(2 << 20)
        self._end = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._end:
            hashlib.sha256(self._data)
            sum(range(1000))
            self.steps += 1

    def stop(self) -> None:
        self._end = True


async def bystander(laps: list[float]) -> None:
    """A small request every few milliseconds, which passes the event loop four times; seconds since it was due."""
    small = CASES["50 candles"]
    while True:
        due = time.perf_counter() + EVERY_S
        await asyncio.sleep(EVERY_S)
        for _ in range(3):
            await asyncio.sleep(0)
        await yielding(small)
        laps.append(time.perf_counter() - due)


async def beside(work: Callable[[], Awaitable[None]], engine: Engine, span_s: float = SPAN_S) -> Figures:
    """Do ``work`` over and over for a span; milliseconds of it and of the bystander, steps of the engine in a second."""
    laps: list[float] = []
    own: list[float] = []
    other = asyncio.create_task(bystander(laps))
    began, steps = time.perf_counter(), engine.steps
    while time.perf_counter() - began < span_s:
        start = time.perf_counter()
        await work()
        own.append(time.perf_counter() - start)
        await asyncio.sleep(0.001)
    seconds = time.perf_counter() - began
    other.cancel()
    return {
        "own ms": 1e3 * statistics.median(own),
        "bystander p50 ms": 1e3 * statistics.median(laps),
        "bystander p99 ms": 1e3 * sorted(laps)[int(0.99 * len(laps))],
        "steps per s": (engine.steps - steps) / seconds,
    }
