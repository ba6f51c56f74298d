"""The cache that the workers of a fleet share, against a real server: what they share, and for whom they wait."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app import cache_breaker, cache_shared
from app.cache_store import KEY_BYTES
from app.cache_wire import HEADER, pack, unpack
from app.settings import Settings, SettingsError, load
from app.work import Outcome
from tests.caching import ASKED, BATCH, EMBED, SINGLE, UNSEEDED, WRITTEN_S, computed, lasting, value
from tests.fakes import FakeRunner
from tests.kv_server import WHY_NOT, KeyValueServer, key_value_server
from tests.serving import Json, busy, client, gated, request, until

needs_server = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
KEY = bytes(range(KEY_BYTES))


@pytest.fixture(scope="module")
def kv() -> Iterator[KeyValueServer]:
    with key_value_server() as running:
        yield running


@pytest.fixture
def shared(kv: KeyValueServer, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a worker that shares; the server is empty, and how little it may cost is no question here."""
    for module in (cache_breaker, cache_shared):
        monkeypatch.setattr(module, "PURSE_S", 5.0)
    command(kv, b"FLUSHALL")
    return Settings(prewarm=False, redis_url=kv.url)


def command(kv: KeyValueServer, line: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", kv.port), timeout=5) as connection:
        connection.sendall(line + b"\r\n")
        return connection.recv(65536)


FLOATS = st.floats(width=32, allow_nan=False)
PATHS = arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 4), st.just(6)), elements=FLOATS)
VECTORS = arrays(np.float32, st.integers(1, 40), elements=FLOATS)


@given(st.one_of(PATHS, VECTORS), st.booleans())
def test_an_outcome_is_read_as_it_was_written(numbers: np.ndarray, rolled: bool) -> None:
    """Bit for bit, forecasts and embeddings, without the stages of whoever computed it."""
    is_paths = numbers.ndim == 3
    written = Outcome(numbers if is_paths else None, None if is_paths else numbers, {"decode": 1.0}, rolled)
    read = unpack(KEY, pack(KEY, written))
    assert read is not None
    found = read.paths if is_paths else read.embedding
    assert found is not None and found.dtype == np.float32 and found.shape == numbers.shape
    assert found.tobytes() == numbers.tobytes()
    assert (read.rolled, read.stages) == (rolled, {})


@given(st.binary(max_size=200), st.integers(0, HEADER.size - 1), st.integers(1, 255))
def test_anything_else_is_no_outcome(junk: bytes, place: int, change: int) -> None:
    """Junk, another key's value, another format, half a value or more than one: never numbers, never an error."""
    value = pack(KEY, Outcome(np.ones((1, 2, 6), np.float32), None, {}, False))
    touched = bytearray(value)
    touched[place] ^= change
    rolled = HEADER.unpack_from(touched)[2] and place == 3  # a flag has no wrong value
    assert rolled or unpack(KEY, bytes(touched)) is None
    for other in (junk, value[:-1], value + b"\0", value[: HEADER.size], b""):
        assert unpack(KEY, other) is None
    assert unpack(bytes(KEY_BYTES), value) is None


@needs_server
def test_a_repeat_hits_whichever_worker_serves_it(shared: Settings) -> None:
    """Computed by one, answered by the other, bit for bit; later from its own memory."""
    other = FakeRunner()
    asked = ASKED | {"overrides": {"pred_len": 50, "sample_count": 4, "seed": 3}, "quantiles": [0.1], "return_paths": True}
    with client(shared) as one, client(shared, other) as two:
        miss = one.post(SINGLE, json=asked)
        one_hit = until_hit(two, asked)
        assert re.sub(rb'"request_id".*', b"", miss.content) == re.sub(rb'"request_id".*', b"", one_hit.content)
        vector = one.post(EMBED, json=request(10))
        assert lasting(vector) == lasting(until_hit(two, request(10), EMBED))
        assert computed(other) == 0
        before = value("kronos_cache_shared_total", result="hit")
        assert two.post(SINGLE, json=asked).headers["x-cache"] == "hit"
        assert value("kronos_cache_shared_total", result="hit") == before


def until_hit(http: Any, asked: Json, path: str = SINGLE) -> Any:
    """The answer once the other worker's write, which nobody waits for, has arrived."""
    time.sleep(WRITTEN_S)
    answer = http.post(path, json=asked)
    assert answer.headers["x-cache"] == "hit"
    return answer


@needs_server
def test_items_of_a_batch_are_shared_one_by_one(shared: Settings) -> None:
    """Each is looked for by itself; unseeded ones are nobody's."""
    other = FakeRunner()
    with client(shared) as one, client(shared, other) as two:
        one.post(BATCH, json={"items": [ASKED, UNSEEDED]})
        time.sleep(WRITTEN_S)
        answer = two.post(BATCH, json={"items": [ASKED, UNSEEDED, request(12, overrides={"pred_len": 2, "seed": 1})]})
        assert answer.headers["x-cache"] == "hit, miss, bypass"
        assert computed(other) == 2


def looks() -> float:
    """How often the shared cache was asked, by all workers of this process."""
    return sum(value("kronos_cache_shared_total", result=result) for result in ("hit", "miss", "coalesced", "error"))


@needs_server
def test_cache_control_holds_for_the_fleet(shared: Settings) -> None:
    """no-store leaves nothing anywhere; no-cache renews what others find."""
    other = FakeRunner()
    with client(shared) as one, client(shared, other) as two:
        one.post(SINGLE, json=ASKED, headers={"cache-control": "no-store"})
        time.sleep(WRITTEN_S)
        before = looks()
        assert two.post(SINGLE, json=ASKED, headers={"cache-control": "no-store"}).headers["x-cache"] == "bypass"
        one.post(SINGLE, json=ASKED, headers={"cache-control": "no-cache"})
        assert looks() == before
        until_hit(two, ASKED)


@needs_server
def test_identical_requests_of_the_fleet_are_computed_once(shared: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, seven requests under way at once: one computation, seven equal answers."""
    monkeypatch.setattr(cache_shared, "LOCK_S", 10.0)  # however busy this machine is
    with gated(shared) as (one, gate), gated(shared) as (two, other), ThreadPoolExecutor(8) as pool:
        gate.open.clear()
        first = pool.submit(httpx.post, one.url + SINGLE, json=ASKED, timeout=20)
        assert until(busy(one))
        rest = [pool.submit(httpx.post, url + SINGLE, json=ASKED, timeout=20) for url in [one.url, two.url] * 3]
        assert until(lambda: value("kronos_concurrent_requests") == 7)
        gate.open.set()
        answers = [each.result() for each in [first, *rest]]
        assert [answer.headers["x-cache"] for answer in answers] == ["miss"] + 6 * ["coalesced"]
        assert all(lasting(answer) == lasting(answers[0]) for answer in answers)
        assert (computed(gate.runner), computed(other.runner)) == (1, 0)


@needs_server
def test_interactive_does_not_wait_for_another_workers_bulk(shared: Settings) -> None:
    """The same work at a lower priority may take its time."""
    with gated(shared) as (one, gate), client(shared) as two, ThreadPoolExecutor(1) as pool:
        gate.open.clear()
        bulk = pool.submit(httpx.post, one.url + SINGLE, json=ASKED | {"priority": "bulk"}, timeout=20)
        assert until(busy(one))
        began = time.monotonic()
        assert two.post(SINGLE, json=ASKED).headers["x-cache"] == "miss"
        assert time.monotonic() - began < 0.5 * cache_shared.LOCK_S
        gate.open.set()
        assert bulk.result().status_code == 200


@needs_server
def test_a_worker_that_takes_too_long_or_died_is_waited_for_briefly(
    kv: KeyValueServer, shared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock ends by itself; and should it not, whoever waits computes all the same."""
    monkeypatch.setattr(cache_shared, "LOCK_S", 0.5)
    with gated(shared) as (one, gate), client(shared) as two, ThreadPoolExecutor(1) as pool:
        gate.open.clear()
        stuck = pool.submit(httpx.post, one.url + SINGLE, json=ASKED, timeout=20)
        assert until(busy(one))
        [lock] = re.findall(rb"kronos:\S+", command(kv, b"KEYS *"))
        assert 0 < int(command(kv, b"PTTL " + lock)[1:]) <= 1e3 * cache_shared.LOCK_S
        command(kv, b"PERSIST " + lock)
        began = time.monotonic()
        assert two.post(SINGLE, json=ASKED).headers["x-cache"] == "miss"
        assert 0.5 * cache_shared.LOCK_S < time.monotonic() - began < cache_shared.LOCK_S + 0.5
        gate.open.set()
        stuck.result()


@needs_server
def test_the_deadline_holds_while_another_worker_is_awaited(shared: Settings) -> None:
    """504 in time, not when the lock ends."""
    with gated(shared) as (one, gate), client(shared) as two, ThreadPoolExecutor(1) as pool:
        gate.open.clear()
        stuck = pool.submit(httpx.post, one.url + SINGLE, json=ASKED, timeout=20)
        assert until(busy(one))
        began = time.monotonic()
        assert two.post(SINGLE, json=ASKED | {"timeout": 0.2}).status_code == 504
        assert time.monotonic() - began < 0.6
        gate.open.set()
        stuck.result()


@needs_server
def test_a_failure_frees_those_who_wait_elsewhere(shared: Settings) -> None:
    """The lock of a worker whose work failed is given back: the other computes at once."""
    with gated(shared) as (one, gate), client(shared) as two, ThreadPoolExecutor(2) as pool:
        gate.open.clear()
        late = pool.submit(httpx.post, one.url + SINGLE, json=ASKED | {"timeout": 0.2}, timeout=20)
        assert until(busy(one))
        began = time.monotonic()
        waits = pool.submit(two.post, SINGLE, json=ASKED)
        time.sleep(0.25)
        gate.open.set()
        assert late.result().status_code == 504
        assert waits.result().headers["x-cache"] == "miss"
        assert time.monotonic() - began < 0.8 * cache_shared.LOCK_S


@needs_server
def test_a_refused_worker_keeps_no_lock(kv: KeyValueServer, shared: Settings) -> None:
    """It found no room for the work that it had announced: others need not wait for it."""
    with gated(shared.model_copy(update={"max_queue_work": 102})) as (one, gate), ThreadPoolExecutor(1) as pool:
        gate.open.clear()
        long = pool.submit(httpx.post, one.url + SINGLE, json=request(overrides={"pred_len": 100, "seed": 1}), timeout=20)
        assert until(busy(one))
        assert httpx.post(one.url + SINGLE, json=ASKED).status_code == 429
        assert until(lambda: command(kv, b"DBSIZE").startswith(b":1")), "the lock of the long one only"
        gate.open.set()
        assert long.result().status_code == 200


@needs_server
def test_what_is_too_large_is_not_shared(kv: KeyValueServer, shared: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor waited for: its lock is gone when it is computed."""
    monkeypatch.setattr(cache_shared, "MOST_BYTES", 100)
    with client(shared) as one:
        assert one.post(SINGLE, json=ASKED).headers["x-cache"] == "miss"
        assert until(lambda: command(kv, b"DBSIZE").startswith(b":0"), 0.5 * cache_shared.LOCK_S)


@pytest.mark.slow
@needs_server
def test_a_copy_is_not_kept_longer_than_its_original(kv: KeyValueServer, shared: Settings) -> None:
    """The TTL counts from the computation, whoever keeps it."""
    short = shared.model_copy(update={"cache_ttl": 2.0})
    with client(short) as one, client(short) as two:
        one.post(SINGLE, json=ASKED)
        time.sleep(1.2)
        assert two.post(SINGLE, json=ASKED).headers["x-cache"] == "hit"
        time.sleep(1.2)
        assert two.post(SINGLE, json=ASKED).headers["x-cache"] == "miss"
    assert command(kv, b"DBSIZE").startswith(b":1"), "and no lock is left"


@needs_server
def test_what_no_worker_wrote_is_ignored(kv: KeyValueServer, shared: Settings) -> None:
    """Junk under a forecast's name costs a computation, nothing else."""
    other = FakeRunner()
    with client(shared) as one, client(shared, other) as two:
        right = one.post(SINGLE, json=ASKED)
        time.sleep(WRITTEN_S)
        [name] = re.findall(rb"kronos:\S+", command(kv, b"KEYS *"))
        command(kv, b"SET " + name + b" junk PX 10000")
        answer = two.post(SINGLE, json=ASKED)
        assert answer.headers["x-cache"] == "miss" and lasting(answer) == lasting(right)
        assert computed(other) == 1


def test_without_a_url_its_client_is_not_even_loaded() -> None:
    """Who does not share pays nothing for it."""
    code = "import sys; from app.main import create_app, load; create_app(load({})); assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "http://127.0.0.1", "redis:// x"])
def test_a_url_of_something_else_is_refused_by_name(url: str) -> None:
    """At the start, not at the first request."""
    with pytest.raises(SettingsError, match="KRONOS_REDIS_URL"):
        load({"KRONOS_REDIS_URL": url})
