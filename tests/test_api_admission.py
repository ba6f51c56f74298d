"""Who gets in, who is refused and who is stopped: over a real server, since sockets matter."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app import metrics
from app.settings import Settings
from tests.fakes import FakeRunner
from tests.serving import busy, engine_of, gated, idle, long_request, raw_post, request, server, until

SINGLE, BATCH = "/v1/predict/single", "/v1/predict/batch"


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
