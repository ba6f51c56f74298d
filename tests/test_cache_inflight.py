"""Identical requests in flight over real connections: computed once, and whose going stops what."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor

import httpx

from app.admission import Limits
from app.settings import Settings
from tests.caching import ASKED, BATCH, SINGLE, computed, lasting, value
from tests.serving import Gate, Json, Server, busy, engine_of, gated, idle, raw_post, request, until


def burst(running: Server, pool: ThreadPoolExecutor, bodies: list[Json], gate: Gate) -> list[Future[httpx.Response]]:
    """Send all while the model stands still, the first one first, and return when all are under way."""
    gate.open.clear()

    def post(body: Json) -> httpx.Response:
        return httpx.post(running.url + SINGLE, json=body, timeout=20)

    first = pool.submit(post, bodies[0])
    assert until(busy(running))
    rest = [pool.submit(post, body) for body in bodies[1:]]
    assert until(lambda: value("kronos_concurrent_requests") == len(bodies))
    time.sleep(0.1)  # the last of them is read and waits
    return [first, *rest]


def test_identical_requests_in_flight_are_computed_once() -> None:
    """Eight at once: one computation, eight equal answers, and each tells what it waited for."""
    with gated(Settings(prewarm=False)) as (running, gate), ThreadPoolExecutor(8) as pool:
        sent = burst(running, pool, [ASKED] * 8, gate)
        gate.open.set()
        answers = [each.result() for each in sent]
        assert [answer.headers["x-cache"] for answer in answers] == ["miss"] + 7 * ["coalesced"]
        assert all(lasting(answer) == lasting(answers[0]) for answer in answers)
        assert computed(gate.runner) == 1
        assert len({answer.json()["request_id"] for answer in answers}) == 8
        assert all(answer.json()["timings"]["cache"] > 50 for answer in answers[1:])


def test_the_first_one_leaving_does_not_hurt_the_others() -> None:
    """Its client is gone; the work it began goes on for those who wait, without beginning again."""
    with gated(Settings(prewarm=False)) as (running, gate), ThreadPoolExecutor(2) as pool:
        gate.open.clear()
        with running.connect() as first:
            first.sendall(raw_post(SINGLE, json.dumps(ASKED).encode()))
            assert until(busy(running))
            rest = [pool.submit(httpx.post, running.url + SINGLE, json=ASKED, timeout=20) for _ in range(2)]
            assert until(lambda: value("kronos_concurrent_requests") == 3)
            time.sleep(0.1)
        assert until(lambda: value("kronos_concurrent_requests") == 2)
        gate.open.set()
        assert [each.result().status_code for each in rest] == [200, 200]
        assert (computed(gate.runner), gate.runner.errands.count("prefill")) == (1, 1)
        assert until(idle(running))


def test_each_keeps_its_own_deadline() -> None:
    """The first one's passing fails nobody behind it; the passing of one behind fails nobody else."""
    with gated(Settings(prewarm=False)) as (running, gate), ThreadPoolExecutor(3) as pool:
        sent = burst(running, pool, [ASKED | {"timeout": 1.5}, ASKED, ASKED | {"timeout": 1.2}], gate)
        assert [sent[0].result().status_code, sent[2].result().status_code] == [504, 504]
        gate.open.set()
        assert sent[1].result().status_code == 200
        assert until(idle(running))


def test_a_batch_that_must_begin_anew_is_refused_whole() -> None:
    """As one that finds no room at once: 429, though other items of it are known."""
    with gated(Settings(prewarm=False)) as (running, gate), ThreadPoolExecutor(3) as pool:
        known, steps = request(12, overrides={"pred_len": 4, "seed": 3}), ASKED["overrides"]["pred_len"]
        assert httpx.post(running.url + SINGLE, json=known).status_code == 200
        sent = burst(running, pool, [request(overrides={"pred_len": 100}), ASKED | {"timeout": 1.5}], gate)
        batch = pool.submit(httpx.post, running.url + BATCH, json={"items": [known, ASKED]}, timeout=20)
        assert until(lambda: value("kronos_concurrent_requests") == 3)
        engine_of(running.app)._admission.limits = Limits(max_work=100 + steps - 1)
        gate.delay_s = 0.003  # so that the first one's work is still there
        assert until(sent[1].done) and sent[1].result().status_code == 504
        gate.open.set()
        assert batch.result().status_code == 429
        assert sent[0].result().status_code == 200


def test_work_that_nobody_awaits_is_stopped() -> None:
    """When all who wanted it have left, its slot and pages come back."""
    with gated() as (running, gate):
        gate.delay_s = 0.005
        with running.connect() as first, running.connect() as second:
            for connection in (first, second):
                connection.sendall(raw_post(SINGLE, json.dumps(request(overrides={"pred_len": 400, "seed": 1})).encode()))
            assert until(lambda: busy(running)() and value("kronos_concurrent_requests") == 2)
        began = time.monotonic()
        assert until(idle(running)) and time.monotonic() - began < 1.0
