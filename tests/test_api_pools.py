"""The pools of a worker as its clients, its operators and its end see them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from typing import cast

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from app import pools
from app.api.decode import decode
from app.api.prepare import prepare_forecast
from app.api.schema import PredictRequest
from app.api.state import Served
from app.main import create_app
from app.pools import NAMES
from app.settings import Settings
from benchmarks.http import BOUNDS
from tests.serving import Json, application, client, request, server, until, worker_of

STATS = "/health/thread-pools"


def test_the_statistics_name_every_pool_and_what_runs_in_it() -> None:
    """Sizes come from the settings; a running task has a name and an age; the worker says who it is."""
    gate = threading.Event()
    with client(Settings(io_workers=3, worker_name="worker-7")) as http:
        running = worker_of(cast(FastAPI, http.app)).pools["io"].submit(gate.wait, 20)
        found = http.get(STATS).json()
        assert found["worker"] == "worker-7"
        assert list(found["pools"]) == list(NAMES)
        io = found["pools"]["io"]
        assert (io["max_workers"], io["active_threads"], io["queued_tasks"]) == (3, 1, 0)
        assert io["utilization_percent"] == pytest.approx(33.3)
        (task,) = io["active_tasks"]
        assert task["name"] == "threading.Event.wait" and 0 <= task["age_seconds"] < 20
        assert found["summary"]["active_threads"] == 1
        assert found["summary"]["max_workers"] == sum(pool["max_workers"] for pool in found["pools"].values())
        gate.set()
        assert running.result(20)
        assert until(lambda: http.get(STATS).json()["pools"]["io"]["active_tasks"] == [])


def test_the_status_can_be_asked_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each pool; by POST only, since it writes."""
    with client() as http, caplog.at_level(logging.INFO, logger="app.pools"):
        assert http.get(STATS + "/log-status").status_code == 405
        assert not [record for record in caplog.records if record.name == "app.pools"]
        assert http.post(STATS + "/log-status").json() == {"status": "logged"}
    assert [record.getMessage().split()[0] for record in caplog.records if record.name == "app.pools"] == list(NAMES)


def test_a_refusal_of_a_pool_is_an_answer_that_names_it() -> None:
    """429 with a time to come back (503 would tell nginx that this worker cannot serve); the remedy is for the log."""
    gate = threading.Event()
    with client(Settings(io_workers=1, pool_queue=0)) as http:
        app = cast(FastAPI, http.app)
        worker_of(app).pools["io"].submit(gate.wait, 20)

        async def ask(request: Request) -> Response:
            return await pools.run_in_pool("io", Response)

        app.router.add_route("/ask", ask)
        answer = http.get("/ask")
        gate.set()
    assert answer.status_code == 429
    assert answer.json()["type"] == "urn:kronos-fleet:problem:pool-saturated"
    assert answer.json()["detail"] == "the pool 'io' is full: 1 running, 0 waiting"
    assert int(answer.headers["retry-after"]) == 5


def test_loading_runs_in_the_pool_around_the_model() -> None:
    """Who asks a worker that is not ready sees what it is busy with, and since when."""
    gate = threading.Event()

    def load(_: Settings) -> Served:
        gate.wait(20)
        raise ValueError("this test needs no model")

    app = create_app(Settings(), load, lambda status: None)

    async def live() -> None:
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0.05)
            (task,) = pools.get_pool_stats()["pools"]["inference"]["active_tasks"]
            assert task["name"] == "app.main._bring_up"
            gate.set()

    asyncio.run(live())


def test_pools_full_of_stuck_tasks_do_not_stop_predictions() -> None:
    """Whatever hangs in them, requests of every size are answered as ever."""
    gate = threading.Event()
    with server(Settings(io_workers=1, pool_queue=1, pool_patience=0.2)) as running, httpx.Client(base_url=running.url) as http:
        body = request(600, overrides={"pred_len": 3, "seed": 5})
        batch = {"items": [body] * 16}
        paths = ("/v1/predict/single", "/v1/predict/batch", "/v1/embeddings")
        documents = [body, batch, {"items": [request(600)] * 16}]

        def ask() -> list[str]:
            answers = [http.post(path, json=sent, timeout=20) for path, sent in zip(paths, documents, strict=True)]
            assert [answer.status_code for answer in answers] == [200, 200, 200]
            return [without_what_varies(answer.json()) for answer in answers]

        before = ask()
        for name in NAMES:
            pool = worker_of(running.app).pools[name]
            for _ in range(pool.line.places + pool.line.longest):
                pool.submit(gate.wait, 20)
        began = time.monotonic()
        assert ask() == before
        assert time.monotonic() - began < 10
        gate.set()


def without_what_varies(document: Json) -> str:
    for item in [document, *document.get("items", [])]:
        item.pop("timings", None)
        item.pop("request_id", None)
    return json.dumps(document)


@pytest.mark.slow
def test_a_worker_ends_in_time_with_pools_full_of_stuck_tasks() -> None:
    """Leaving has threads of its own, waits a stated time for the pools, and says what it left behind."""
    gate = threading.Event()
    app = application(Settings(io_workers=1, pool_queue=1))

    async def live() -> float:
        async with app.router.lifespan_context(app):
            assert await asyncio.to_thread(until, lambda: worker_of(app).served is not None)
            for name in NAMES:
                worker_of(app).pools[name].submit(gate.wait, 20)
            began = time.monotonic()
        return time.monotonic() - began

    try:
        assert 2.0 <= asyncio.run(live()) < 6
        assert not worker_of(app).require().engine.health().alive
    finally:
        gate.set()


def test_a_quiet_worker_ends_at_once() -> None:
    """The patience is for stuck tasks only: the negative control of the test above."""
    app = application()

    async def live() -> float:
        async with app.router.lifespan_context(app):
            assert await asyncio.to_thread(until, lambda: worker_of(app).served is not None)
            began = time.monotonic()
        return time.monotonic() - began

    assert asyncio.run(live()) < 1.5
    with pytest.raises(RuntimeError, match="no pools"):
        pools.current()


LARGE = {"items": [request(600, overrides={"pred_len": 1})] * 10}
MANY = {"pred_len": 100, "sample_count": 40, "seed": 1}


@pytest.mark.parametrize(
    ("path", "document", "pool", "tasks"),
    [
        ("/v1/predict/single", request(400), "cpu", 0),
        ("/v1/predict/batch", {"items": [request(24)] * 3}, "cpu", 0),
        ("/v1/embeddings", request(400), "embedding", 0),
        ("/v1/predict/batch", LARGE, "cpu", 1),
        ("/v1/predict/batch", {"items": [request(24, overrides={"pred_len": 1})] * 16}, "cpu", 1),
        ("/v1/embeddings", {"items": [request(600)] * 10}, "embedding", 1),
        ("/v1/embeddings", {"items": [request(600)] * 20}, "embedding", 3),
        ("/v1/predict/single", request(24, overrides=MANY), "cpu", 0),
        ("/v1/predict/single", request(24, overrides=MANY, return_paths=True), "cpu", 1),
    ],
)
def test_only_what_is_large_goes_to_a_thread(path: str, document: Json, pool: str, tasks: int) -> None:
    """Large bodies, many series and large answers in the pool of their route; the rest stays on the event loop."""
    with client() as http:
        assert http.post(path, json=document).status_code == 200
        found = http.get(STATS).json()
        assert found["pools"][pool]["done"] == tasks
        assert found["summary"]["done"] == tasks + 1  # and the loading


def test_what_is_wrong_with_a_large_body_is_said_as_ever() -> None:
    """Errors come back from a thread as they do from the event loop."""
    body = request(5000)
    body["candles"][-1]["open"] = "x"
    with client() as http:
        answer = http.post("/v1/predict/single", json=body)
        assert http.get(STATS).json()["pools"]["cpu"]["failed"] == 1
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/candles/4999/open")


@pytest.mark.parametrize("fields", [{}, {"quantiles": [0.1, 0.9]}, {"quantiles": [0.5], "return_paths": True}])
def test_the_size_of_an_answer_is_known_before_it_is_written(fields: Json) -> None:
    """It decides where that is done."""

    def count(value: object) -> int:
        if isinstance(value, dict):
            return sum(count(member) for member in value.values())
        return sum(map(count, value)) if isinstance(value, list) else isinstance(value, float)

    asked = request(24, overrides={"pred_len": 7, "sample_count": 3, "seed": 1}, **fields)
    prepared = prepare_forecast(decode(json.dumps(asked).encode(), PredictRequest), BOUNDS)
    with client() as http:
        answer = http.post("/v1/predict/single", json=asked).json()
    shown = {name: answer[name] for name in ("prediction", "quantiles", "paths") if answer.get(name)}
    assert prepared.numbers == count(shown)
