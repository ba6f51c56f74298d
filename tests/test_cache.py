"""The result cache as clients see it: what an answer from it is, who gets one, what it costs, and what it never does."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.api.door import MOST_LOOKING
from app.main import create_app
from app.permit import Permit
from app.scheduler import Priority
from app.settings import Settings
from tests.caching import ASKED, BATCH, EMBED, SINGLE, UNSEEDED, computed, lasting, value
from tests.fakes import FakeRunner
from tests.serving import busy, client, engine_of, gated, idle, raw_post, request, server, until, worker_of


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def http(runner: FakeRunner) -> Iterator[TestClient]:
    with client(Settings(prewarm=False), runner) as ready:
        yield ready


def test_a_hit_is_the_miss_bit_for_bit(http: TestClient, runner: FakeRunner) -> None:
    """Only id, timings and X-Cache differ; the bytes of everything else are the same, and the model was not asked."""
    asked = ASKED | {"quantiles": [0.1, 0.9], "return_paths": True, "overrides": {"pred_len": 40, "sample_count": 5, "seed": 3}}
    miss, hit = http.post(SINGLE, json=asked), http.post(SINGLE, json=asked)
    assert (miss.headers["x-cache"], hit.headers["x-cache"]) == ("miss", "hit")
    assert re.sub(rb'"request_id".*', b"", miss.content) == re.sub(rb'"request_id".*', b"", hit.content)
    assert lasting(miss) == lasting(hit)
    assert computed(runner) == 1


def test_so_it_is_with_the_demo_model() -> None:
    """Computed, from the cache, computed again: the same bytes from the real kernel."""
    app = create_app(Settings(prewarm=False))
    asked = request(40, overrides={"pred_len": 6, "sample_count": 3, "seed": 5}) | {"quantiles": [0.5], "return_paths": True}
    with TestClient(app) as http:
        assert until(lambda: worker_of(app).served is not None)
        answers = [http.post(SINGLE, json=asked, headers={"cache-control": control}) for control in ("", "", "no-cache")]
        assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit", "bypass"]
        assert len({re.sub(rb'"request_id".*', b"", answer.content) for answer in answers}) == 1
        assert ".so" in worker_of(app).require().build, "the kernel's build is part of what names the model"


def test_id_and_timings_of_a_hit_are_its_own(http: TestClient) -> None:
    """Its log line can be found by its id, and its times say that no model was asked."""
    http.post(SINGLE, json=ASKED)
    hit = http.post(SINGLE, json=ASKED, headers={"x-request-id": "mine"})
    assert hit.json()["request_id"] == hit.headers["x-request-id"] == "mine"
    stages = hit.json()["timings"]
    assert "cache" in stages and not {"queue", "encode", "prefill", "decode", "detokenise"} & set(stages)
    assert "cache;dur=" in hit.headers["server-timing"] and "decode" not in hit.headers["server-timing"]


def test_the_same_forecast_shown_otherwise_is_a_hit(http: TestClient, runner: FakeRunner) -> None:
    """Another name, quantiles, paths or patience: answered from the same forecast, as if it had been computed."""
    http.post(SINGLE, json=ASKED)
    other = ASKED | {"series_id": "B", "quantiles": [0.5], "return_paths": True, "repair": True, "timeout": 5}
    hit = http.post(SINGLE, json=other)
    fresh = http.post(SINGLE, json=other, headers={"cache-control": "no-cache"})
    assert (hit.headers["x-cache"], fresh.headers["x-cache"]) == ("hit", "bypass")
    assert lasting(hit) == lasting(fresh) and hit.json()["series_id"] == "B"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[TestClient, TestClient]]:
    """One application with a cache, one without."""
    with client(Settings(prewarm=False)) as with_cache, client(Settings(prewarm=False, cache_ttl=0)) as without:
        yield with_cache, without


ANY = st.fixed_dictionaries({
    "count": st.integers(2, 4), "seed": st.integers(0, 1), "pred_len": st.integers(1, 2), "sample_count": st.integers(1, 2),
    "times": st.sampled_from([1.0, 2.0]), "series_id": st.sampled_from(["A", "B"]), "repair": st.booleans(),
    "quantiles": st.sampled_from([None, [0.5], [0.1, 0.9]]), "return_paths": st.booleans(),
})  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.lists(ANY, min_size=2, max_size=6))
def test_no_answer_depends_on_the_cache(pair: tuple[TestClient, TestClient], asked: list[dict[str, Any]]) -> None:
    """Whatever was asked before, each request gets exactly what a worker without a cache answers."""
    with_cache, without = pair
    for each in asked:
        sampling = {name: each[name] for name in ("seed", "pred_len", "sample_count")}
        shown = {name: each[name] for name in ("series_id", "repair", "quantiles", "return_paths")}
        body = request(each["count"], overrides=sampling) | shown
        body["candles"] = [{name: number * each["times"] for name, number in candle.items()} for candle in body["candles"]]
        plain = without.post(SINGLE, json=body)
        assert plain.headers["x-cache"] == "bypass"
        assert lasting(with_cache.post(SINGLE, json=body)) == lasting(plain)


def test_without_a_seed_every_answer_is_drawn_anew(http: TestClient) -> None:
    """Nobody gets another's random forecast: unseeded sampling bypasses the cache. Its seed repeats it."""
    first, second = http.post(SINGLE, json=UNSEEDED), http.post(SINGLE, json=UNSEEDED)
    assert [answer.headers["x-cache"] for answer in (first, second)] == ["bypass", "bypass"]
    assert first.json()["seed"] != second.json()["seed"]
    again = ASKED | {"overrides": {"pred_len": 4, "seed": first.json()["seed"]}}
    assert http.post(SINGLE, json=again).json()["prediction"] == first.json()["prediction"]


def test_no_cache_computes_and_renews_and_no_store_leaves_nothing(http: TestClient, runner: FakeRunner) -> None:
    """The request's Cache-Control counts."""
    told = []
    for directives in ("no-store", "no-cache", "", "no-cache", "no-store"):
        answer = http.post(SINGLE, json=ASKED, headers={"cache-control": directives})
        told.append(answer.headers["x-cache"])
    assert told == ["bypass", "bypass", "hit", "bypass", "bypass"]
    assert computed(runner) == 4


def test_an_entry_grows_old() -> None:
    """After the TTL the same request is computed again."""
    with client(Settings(cache_ttl=1.0)) as http:
        told = [http.post(SINGLE, json=ASKED).headers["x-cache"] for _ in range(2)]
        time.sleep(1.1)
        assert [*told, http.post(SINGLE, json=ASKED).headers["x-cache"]] == ["miss", "hit", "miss"]


def test_items_of_a_batch_are_looked_up_one_by_one(http: TestClient, runner: FakeRunner) -> None:
    """Only what is new is computed; the header names each result once, the answers are those of single requests."""
    single = http.post(SINGLE, json=ASKED).json()
    other = request(12, overrides={"pred_len": 3, "seed": 1})
    broken = ASKED | {"overrides": {"pred_len": 0}}
    answer = http.post(BATCH, json={"items": [ASKED, other, other, UNSEEDED, broken]})
    assert answer.headers["x-cache"] == "hit, miss, coalesced, bypass"
    assert computed(runner) == 3
    known, first, second, _, failed = answer.json()["items"]
    assert known["prediction"] == single["prediction"] and first["prediction"] == second["prediction"]
    assert failed["error"]["status"] == 422
    assert http.post(BATCH, json={"items": [ASKED, other]}).headers["x-cache"] == "hit"


def test_embeddings_are_kept_too(http: TestClient, runner: FakeRunner) -> None:
    """They need no seed, and share nothing with forecasts of the same history."""
    http.post(SINGLE, json=ASKED)
    asked = request(10)
    answers = [http.post(EMBED, json=asked) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit"]
    assert lasting(answers[0]) == lasting(answers[1])
    assert computed(runner) == 2


def test_a_failure_is_not_kept(runner: FakeRunner) -> None:
    """The next one who asks is answered by the model."""
    broken = iter([True])

    def fail_once(errand: str) -> None:
        if errand == "detokenise" and next(broken, False):
            raise RuntimeError("broken")

    runner.on_errand = fail_once
    with client(Settings(prewarm=False), runner) as http:
        told = [http.post(SINGLE, json=ASKED) for _ in range(3)]
        assert [answer.status_code for answer in told] == [500, 200, 200]
        assert [answer.headers.get("x-cache") for answer in told] == [None, "miss", "hit"]


def test_results_are_counted(http: TestClient) -> None:
    """kronos_cache_requests_total counts series, the gauges what is kept."""
    results = ("hit", "miss", "coalesced", "bypass")
    before = {result: value("kronos_cache_requests_total", result=result) for result in results}
    http.post(SINGLE, json=ASKED)
    http.post(BATCH, json={"items": [ASKED, UNSEEDED, ASKED]})
    after = {result: value("kronos_cache_requests_total", result=result) for result in results}
    assert {result: after[result] - before[result] for result in results} == {"hit": 2, "miss": 1, "coalesced": 0, "bypass": 1}
    assert value("kronos_cache_entries") == 1
    assert value("kronos_cache_bytes") > 4 * 6 * 4


def test_a_full_worker_still_answers_what_it_knows() -> None:
    """No slot, no place, no refusal counted: a hit, or a batch of hits; whatever needs the model is refused."""
    with gated(Settings(max_concurrency=1)) as (running, gate), httpx.Client(base_url=running.url, timeout=20) as http:
        assert http.post(SINGLE, json=ASKED).headers["x-cache"] == "miss"
        gate.open.clear()
        with ThreadPoolExecutor(1) as pool:
            coming = request(12, overrides={"pred_len": 4, "seed": 3})
            first = pool.submit(http.post, SINGLE, json=coming)
            assert until(busy(running))
            refused, work = value("kronos_rejected_total", reason="requests"), engine_of(running.app).stats().queued_work
            assert http.post(SINGLE, json=ASKED).headers["x-cache"] == "hit"
            assert http.post(BATCH, json={"items": [ASKED, ASKED]}).headers["x-cache"] == "hit"
            assert http.post(SINGLE, json=ASKED | {"priority": "bulk"}).headers["x-cache"] == "hit"
            assert engine_of(running.app).stats().queued_work == work
            assert value("kronos_rejected_total", reason="requests") == refused
            for asked in (UNSEEDED, request(11, overrides={"seed": 1}), coming):
                answer = http.post(SINGLE, json=asked)
                assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert http.post(BATCH, json={"items": [ASKED, UNSEEDED]}).status_code == 429
            assert value("kronos_rejected_total", reason="requests") == refused + 4
            gate.open.set()
            assert first.result().status_code == 200


@pytest.mark.parametrize("why", ["too many look", "no-cache"])
def test_a_full_worker_reads_few_bodies(why: str) -> None:
    """Where no hit can come, or enough bodies are being read already, the refusal still comes before the body."""
    with gated(Settings(max_concurrency=1)) as (running, gate):
        assert httpx.post(running.url + SINGLE, json=ASKED).status_code == 200
        worker_of(running.app).looking = MOST_LOOKING if why == "too many look" else 0
        gate.open.clear()
        with running.connect() as first, running.connect() as second:
            first.sendall(raw_post(SINGLE, json.dumps(UNSEEDED).encode()))
            assert until(busy(running))
            second.sendall(raw_post(SINGLE, b"", f"cache-control: {why}\r\n", length=50_000))
            assert second.recv(4096).startswith(b"HTTP/1.1 429 ")
            gate.open.set()
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_whoever_looks_is_counted_out_again() -> None:
    """After hits, refusals and broken connections at a full worker, nobody is taken to be looking."""
    with gated(Settings(max_concurrency=1)) as (running, gate), httpx.Client(base_url=running.url, timeout=20) as http:
        assert http.post(SINGLE, json=ASKED).status_code == 200
        gate.open.clear()
        with running.connect() as first:
            first.sendall(raw_post(SINGLE, json.dumps(UNSEEDED).encode()))
            assert until(busy(running))
            assert http.post(SINGLE, json=ASKED).status_code == 200
            assert http.post(SINGLE, json=UNSEEDED).status_code == 429
            assert http.post(SINGLE, json={}).status_code == 422
            with running.connect() as broken:
                broken.sendall(raw_post(SINGLE, b"{", length=100))
                assert until(lambda: worker_of(running.app).looking == 1)
            assert until(lambda: worker_of(running.app).looking == 0)
            gate.open.set()
        assert until(idle(running))


def test_bulk_said_twice_is_reserved_once(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the header and in the body: the place that the header got is kept."""
    engine = engine_of(http.app)  # type: ignore[arg-type]
    asked: list[str] = []
    reserve = engine.reserve

    def noted(priority: Priority) -> Permit:
        asked.append(priority)
        return reserve(priority)

    monkeypatch.setattr(engine, "reserve", noted)
    http.post(SINGLE, json=ASKED | {"priority": "bulk"}, headers={"x-priority": "bulk"})
    http.post(SINGLE, json=ASKED | {"priority": "bulk"})
    assert asked == ["bulk", "interactive", "bulk"]


def test_a_restart_of_the_world_forgets_everything() -> None:
    """The cache is the process's own: a new worker begins without it."""
    for _ in range(2):
        with server() as running:
            assert httpx.post(running.url + SINGLE, json=ASKED).headers["x-cache"] == "miss"
