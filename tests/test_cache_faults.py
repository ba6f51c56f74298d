"""A shared cache that is dead, silent, slow or wrong: no prediction fails, and what it costs is bounded (F12)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from app import cache_breaker
from app.cache_breaker import PURSE_S, SWIFT_S, Breaker
from app.settings import Settings
from tests.caching import ASKED, SINGLE, WRITTEN_S, computed, value
from tests.fakes import FakeRunner
from tests.kv_server import WHY_NOT, black_hole, free_port, key_value_server, slowed
from tests.serving import client, request, until, worker_of

needs_server = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
SLACK_S = 0.4
"""For a machine that is busy with something else."""


@contextmanager
def faulty(fault: str) -> Iterator[str]:
    """The URL of a server with a fault."""
    if fault == "dead":
        yield f"redis://127.0.0.1:{free_port()}"
    elif fault == "silent":
        with black_hole() as hole:
            yield hole.url
    elif fault == "slow":
        with key_value_server() as kv, slowed(kv.port, 0.03) as url:
            yield url
    elif fault == "stalled":
        with key_value_server() as kv:
            kv.stall()
            yield kv.url
    else:
        with key_value_server("--requirepass", "secret") as kv:
            yield kv.url


def spent_s(http: TestClient, seed: int) -> float:
    """What looking around took of one prediction, which succeeds."""
    answer = http.post(SINGLE, json=request(10, overrides={"pred_len": 2, "seed": seed}))
    assert answer.status_code == 200 and answer.headers["x-cache"] == "miss"
    found: float = answer.json()["timings"]["cache"] / 1e3
    return found


@pytest.mark.parametrize("fault", ["dead", "silent", *(
    pytest.param(each, marks=needs_server) for each in ("slow", "stalled", "refusing")
)])  # fmt: skip
def test_a_faulty_server_costs_a_little_once(fault: str) -> None:
    """All predictions succeed; together they lose at most the purse, and none loses anything once it is spent."""
    with faulty(fault) as url, client(Settings(prewarm=False, redis_url=url)) as http:
        costs = [spent_s(http, seed) for seed in range(30)]
        assert sum(costs) < PURSE_S + SLACK_S
        assert sum(costs[5:]) < SLACK_S
        assert value("kronos_cache_shared_up") == 0
        assert http.post(SINGLE, json=request(10, overrides={"pred_len": 2, "seed": 0})).headers["x-cache"] == "hit"


def test_a_burst_pays_side_by_side() -> None:
    """Requests that meet the silence together wait together: the purse once each, not one after the other."""
    with black_hole() as hole, client(Settings(prewarm=False, redis_url=hole.url)) as http, ThreadPoolExecutor(16) as pool:
        assert max(pool.map(lambda seed: spent_s(http, seed), range(16))) < PURSE_S + SLACK_S
        accepted = hole.accepted
        assert max(pool.map(lambda seed: spent_s(http, seed), range(16, 48))) < SWIFT_S + SLACK_S
        assert hole.accepted == accepted, "nobody even connects while the breaker is open"


@needs_server
def test_a_server_that_comes_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe in the background finds out; no prediction pays for it, and the fleet shares again."""
    monkeypatch.setattr(cache_breaker, "FIRST_PROBE_S", 0.1)
    other = FakeRunner()
    with key_value_server() as kv:
        settings = Settings(prewarm=False, redis_url=kv.url)
        with client(settings) as one, client(settings, other) as two:
            assert [spent_s(one, 1), spent_s(two, 2)]
            kv.stall()
            assert spent_s(one, 3) + spent_s(two, 4) < 2 * PURSE_S + SLACK_S
            assert value("kronos_cache_shared_up") == 0
            assert sum(spent_s(one, seed) for seed in range(5, 15)) < SLACK_S
            kv.resume()
            assert until(lambda: value("kronos_cache_shared_up") == 1)
            breakers = [worker_of(each.app).cache.shared.breaker for each in (one, two)]  # type: ignore[arg-type, union-attr]
            assert until(lambda: not any(breaker.open for breaker in breakers))  # the gauge is of one worker
            one.post(SINGLE, json=ASKED)
            time.sleep(WRITTEN_S)
            before = computed(other)
            assert two.post(SINGLE, json=ASKED).headers["x-cache"] == "hit"
            assert computed(other) == before


@needs_server
def test_a_server_that_dies_under_way_fails_nothing() -> None:
    """Killed between and during predictions: all are answered."""
    with key_value_server() as kv, client(Settings(prewarm=False, redis_url=kv.url)) as http, ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(spent_s, http, seed) for seed in range(60)]
        time.sleep(0.05)
        kv.process.kill()
        assert sum(each.result() for each in sent) < 4 * PURSE_S + 60 * SWIFT_S


def play(story: Any) -> None:
    async def run() -> None:
        asked: list[float] = []

        async def probe() -> None:
            asked.append(time.monotonic())

        breaker = Breaker(probe, "test")
        await story(breaker, asked)
        await breaker.close()

    asyncio.run(run())


def test_slow_answers_empty_the_purse_and_swift_ones_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single slow answer is forgiven; slow ones in a row are not. All ten times as slow, for a machine that is busy."""
    monkeypatch.setattr(cache_breaker, "PURSE_S", 10 * PURSE_S)
    monkeypatch.setattr(cache_breaker, "SWIFT_S", 10 * SWIFT_S)

    async def answer(after_s: float) -> str:
        await asyncio.sleep(after_s)
        return "answer"

    async def story(breaker: Breaker, asked: list[float]) -> None:
        for _ in range(4):
            assert await breaker.ask(lambda: answer(0.3)) == "answer"
            assert await breaker.ask(lambda: answer(0)) == "answer"
        began = time.monotonic()
        while not breaker.open:
            await breaker.ask(lambda: answer(0.3))
        assert time.monotonic() - began < 10 * PURSE_S + SLACK_S
        assert await breaker.ask(lambda: answer(0)) is None

    play(story)


@pytest.mark.parametrize("error", [OSError("gone"), EOFError(), ValueError("not a protocol"), KeyError("a bug")])
def test_no_error_passes_the_breaker(error: Exception) -> None:
    """Whatever goes wrong there, the prediction does not hear of it."""

    async def fail() -> str:
        raise error

    async def story(breaker: Breaker, asked: list[float]) -> None:
        assert await breaker.ask(fail) is None
        assert breaker.open

    play(story)


def test_the_probe_waits_and_then_closes_the_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once, and not by a prediction."""
    monkeypatch.setattr(cache_breaker, "FIRST_PROBE_S", 0.05)

    async def story(breaker: Breaker, asked: list[float]) -> None:
        began = time.monotonic()
        breaker.trip(OSError())
        breaker.trip(OSError())
        while breaker.open:
            await asyncio.sleep(0.005)
        assert len(asked) == 2 and asked[0] - began >= 0.05

    play(story)
