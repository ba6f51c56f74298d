"""The job store on a real Valkey or Redis: crashes, restarts, no memory, and what no such server may do to jobs.

What every store promises is in test_store.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from redis import Redis

from app.jobs import redis_store
from app.jobs.redis_store import RedisStore
from app.jobs.store import Beat, Limits, NewJob, StoreFailed
from tests.kv_server import WHY_NOT, KeyValueServer, black_hole, free_port, key_value_server

T = TypeVar("T")

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
BODY = b"\x00\xff" + b"x" * 500
LIMITS = Limits(visibility=30.0)


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[KeyValueServer]:
    """A server that keeps what it holds in a file."""
    with key_value_server("--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path)) as running:
        yield running


def new(number: int) -> NewJob:
    return NewJob(
        id=f"job-{number}", owner="me", endpoint="single", body=BODY, priority="bulk", steps=4, ttl=600.0, request_id="r",
        webhook="https://hooks.example.com/", idempotency_key=f"key-{number}",
    )  # fmt: skip


def use(url: str, what: Callable[[RedisStore], Awaitable[T]], limits: Limits = LIMITS) -> T:
    """What comes of ``what`` with a store on ``url``, as a worker that has just been started."""

    async def run() -> T:
        store = RedisStore(url, limits)
        try:
            return await what(store)
        finally:
            await store.close()

    return asyncio.run(run())


async def begin(store: RedisStore) -> dict[str, str]:
    """20 jobs: 15 wait, 3 run, 2 have ended. The tokens of those that run."""
    for number in range(20):
        await store.submit(new(number))
    claims = await store.claim(5)
    for claim in claims[:2]:
        assert await store.finish(claim.id, claim.token, "succeeded", b"result of " + claim.id.encode())
    return {claim.id: claim.token for claim in claims[2:]}


def test_nothing_is_lost_when_the_server_crashes(durable: KeyValueServer) -> None:
    """Killed and started again: what waits waits, who runs goes on, results, idempotency keys and webhooks are there."""
    tokens = use(durable.url, begin)
    durable.kill()
    durable.start()

    async def check(store: RedisStore) -> None:
        counts = await store.counts()
        assert (counts.by_state["queued"], counts.by_state["running"], counts.by_state["succeeded"]) == (15, 3, 2)
        assert counts.deliveries == 2
        job = await store.get("job-0")
        assert job is not None and job.result == b"result of job-0"
        same, fresh = await store.submit(new(7))
        assert (same.id, fresh) == ("job-7", False)
        words = await store.heartbeat([Beat(id, token, 1) for id, token in tokens.items()])
        assert set(words.values()) == {"go on"}
        for id, token in tokens.items():
            assert await store.finish(id, token, "succeeded", b"1")
        rest = await store.claim(50)
        assert [claim.id for claim in rest] == [f"job-{number}" for number in range(5, 20)]
        assert all(claim.body == BODY and claim.attempt == 1 for claim in rest)

    use(durable.url, check)


def test_without_a_file_all_is_lost_and_a_worker_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The control of the test above; and the warning of a worker that meets such a server, once."""
    with key_value_server() as forgetful:
        use(forgetful.url, begin)
        forgetful.kill()
        forgetful.start()
        assert sum(use(forgetful.url, lambda store: store.counts()).by_state.values()) == 0
    assert [record.getMessage() for record in caplog.records].count(redis_store.FORGETFUL) == 1


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_server_that_would_evict_jobs_gets_none(policy: str) -> None:
    """A cache that throws away what was not used for a while is no place for promises; without a limit it never does."""
    with key_value_server("--maxmemory", "100mb", "--maxmemory-policy", policy) as cache:
        with pytest.raises(StoreFailed, match=policy):
            use(cache.url, lambda store: store.submit(new(1)))
        with Redis(port=cache.port) as client:
            client.config_set("maxmemory", 0)
        assert use(cache.url, lambda store: store.submit(new(1)))[1]


def test_cached_answers_go_before_jobs_do() -> None:
    """One server can hold both: with volatile-lru the result cache, whose keys expire, makes room; jobs stay."""
    with key_value_server("--maxmemory", "8mb", "--maxmemory-policy", "volatile-lru") as both:
        use(both.url, begin)
        with Redis(port=both.port) as client:
            for number in range(2000):
                client.set(f"answer-{number}", b"x" * 10_000, px=60_000)
            assert client.info("stats")["evicted_keys"] > 500
        counts = use(both.url, lambda store: store.counts())
        assert (counts.by_state["queued"], counts.by_state["running"], counts.by_state["succeeded"]) == (15, 3, 2)


def test_without_memory_nothing_new_is_taken_and_the_rest_goes_on() -> None:
    """A full server refuses submissions; claims, signs of life and ends, which make room, still pass."""
    with key_value_server("--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as full, Redis(port=full.port) as client:
        tokens = use(full.url, begin)
        client.config_set("maxmemory", 1)

        async def check(store: RedisStore) -> None:
            with pytest.raises(StoreFailed, match="OutOfMemory"):
                await store.submit(new(99))
            assert await store.get("job-99") is None and (await store.counts()).by_state["queued"] == 15
            words = await store.heartbeat([Beat(id, token, 1) for id, token in tokens.items()])
            assert set(words.values()) == {"go on"}
            (claim,) = await store.claim(1)
            assert await store.release(claim.id, claim.token)
            (again,) = await store.claim(1)
            assert again.id == claim.id
            assert await store.finish(again.id, again.token, "succeeded", b"1")
            delivery = await store.claim_delivery(5.0)
            assert delivery and await store.settle_delivery(delivery.id, delivery.tries, 5.0)
            await store.sweep()

        use(full.url, check)


def test_a_server_that_is_away_is_no_wait(durable: KeyValueServer) -> None:
    """Refused connections tell at once; the same store goes on when it is back, though its connections are gone."""

    async def check(store: RedisStore) -> None:
        await store.submit(new(1))
        durable.kill()
        for _ in range(20):
            began = time.monotonic()
            with pytest.raises(StoreFailed):
                await store.submit(new(2))
            assert time.monotonic() - began < 1.5  # a silent server is given two
        durable.start()
        assert (await store.submit(new(2)))[1]
        assert await store.get("job-1")

    use(durable.url, check)


def test_a_silent_server_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accepts and says nothing, also when many ask at once."""

    async def check(store: RedisStore) -> None:
        monkeypatch.setattr(redis_store, "ANSWER_S", 0.3)  # the client's own patience is 2 s: it does not count
        async with asyncio.timeout(50 * 0.3):  # one after the other would take longer
            asked = (store.get(f"job-{number}") for number in range(50))
            assert all(isinstance(found, StoreFailed) for found in await asyncio.gather(*asked, return_exceptions=True))

    with black_hole() as hole:
        use(hole.url, check)


@pytest.mark.slow
def test_a_stalled_server_loses_no_claim(durable: KeyValueServer) -> None:
    """Stopped for a moment and woken: whoever asked meanwhile was told, whoever runs a job still holds it."""

    async def check(store: RedisStore) -> None:
        tokens = await begin(store)
        durable.stall()
        with pytest.raises(StoreFailed):
            await store.counts()
        durable.resume()
        words = await store.heartbeat([Beat(id, token, 1) for id, token in tokens.items()])
        assert set(words.values()) == {"go on"}

    use(durable.url, check)


def test_an_address_where_nobody_is() -> None:
    """Wrong settings are a StoreFailed like any other, without the password of the address."""
    with pytest.raises(StoreFailed) as caught:
        use(f"redis://me:password@127.0.0.1:{free_port()}", lambda store: store.submit(new(1)))
    assert "password" not in str(caught.value)


def test_scripts_are_loaded_again_after_they_were_flushed(durable: KeyValueServer) -> None:
    """A server that was replaced knows no script; nobody notices."""

    async def check(store: RedisStore) -> None:
        await store.submit(new(1))
        with Redis(port=durable.port) as client:
            client.script_flush()
        assert await store.get("job-1")

    use(durable.url, check)


def test_keys_share_one_slot_of_a_cluster(durable: KeyValueServer) -> None:
    """Every key has the same braces, or a script could not touch them together; none of them expires by itself."""
    use(durable.url, begin)
    with Redis(port=durable.port) as client:
        keys = client.keys("*")
        assert keys and all(key.startswith(redis_store.PREFIX.encode()) for key in keys)
        assert {client.ttl(key) for key in keys} == {-1}


def test_what_is_forgotten_leaves_nothing(durable: KeyValueServer) -> None:
    """After the last job's time only the counters are left, at zero."""

    async def check() -> None:
        ahead = 0.0
        store = RedisStore(durable.url, LIMITS, skew=lambda: ahead)
        await begin(store)
        for ahead in (700.0, 1400.0):  # noqa: B007  # read by the store
            while await store.sweep():
                pass
        counts = await store.counts()
        assert (sum(counts.by_state.values()), counts.deliveries) == (0, 0)
        await store.close()

    asyncio.run(check())
    with Redis(port=durable.port) as client:
        left = {key.removeprefix(redis_store.PREFIX.encode()) for key in client.keys("*")}
        assert left == {b"counts", b"bytes", b"seq"}
        assert client.get(redis_store.PREFIX + "bytes") == b"0"
