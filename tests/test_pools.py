"""The pools: bounded, patient for a stated time, honest about what they hold, and no obstacle when a process ends."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app import metrics, pools
from app.errors import Draining, PoolSaturated
from app.line import OUTCOMES
from app.pool import Pool
from app.pools import NAMES, LoopExecutor, Pools, batch_executor, get_pool_stats, run_in_pool, submit_to_pool
from tests.serving import until

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="outside")


@pytest.fixture(name="gate")
def gate_() -> Iterator[threading.Event]:
    """Tasks wait for it; it opens when the test ends, so that no thread is left waiting."""
    gate = threading.Event()
    yield gate
    gate.set()


def run(test: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


@asynccontextmanager
async def full(pool: Pool, gate: threading.Event) -> AsyncIterator[list[Future[bool]]]:
    """Every place of ``pool`` taken by a task that waits for the gate."""
    futures = [pool.submit(gate.wait, 20) for _ in range(pool.line.places)]
    yield futures
    gate.set()
    await asyncio.gather(*map(asyncio.wrap_future, futures))


def add(left: int, right: int = 0) -> int:
    return left + right


async def add_later(left: int, right: int = 0) -> int:
    await asyncio.sleep(0)
    return left + right


def fail() -> None:
    raise LookupError("not there")


async def fail_later() -> None:
    raise LookupError("not there")


def test_functions_and_coroutine_functions_are_awaited_alike() -> None:
    """Arguments arrive, results come back, from a thread of the pool or from this event loop."""

    async def here() -> str:
        return threading.current_thread().name

    async def test() -> None:
        with pools.installed(Pools()):
            assert await run_in_pool("cpu", add, 2, right=3) == 5
            assert await run_in_pool("cpu", add_later, 2, right=3) == 5
            assert await run_in_pool("cpu", functools.partial(add_later, 2), 4) == 6
            assert (await run_in_pool("db", lambda: threading.current_thread().name)).startswith("db-")
            assert await run_in_pool("db", here) == threading.current_thread().name
            assert await asyncio.wrap_future(submit_to_pool("io", add, 1, 1)) == 2
            assert get_pool_stats()["summary"]["done"] == 6

    run(test())


def test_a_thread_may_submit_and_wait() -> None:
    """The future is for code without an event loop too."""
    with pools.installed(Pools()):
        assert submit_to_pool("io", add, 2, 2).result(20) == 4


@pytest.mark.parametrize("fn", [fail, fail_later])
def test_what_a_task_raises_reaches_who_awaits_it(fn: Callable[[], Any]) -> None:
    """And is counted as failed."""

    async def test() -> None:
        pool = Pool("io", 1)
        with pytest.raises(LookupError, match="not there"):
            await pool.run(fn)
        assert (pool.stats()["failed"], pool.stats()["done"]) == (1, 0)

    run(test())


@pytest.mark.parametrize("later", [False, True])
def test_context_variables_are_kept(later: bool) -> None:
    """A task sees what was set where it was submitted, and does not change it there."""

    def read() -> str:
        seen = VARIABLE.get()
        VARIABLE.set("changed")
        return seen

    async def read_later() -> str:
        return VARIABLE.get()

    async def test() -> None:
        VARIABLE.set("inside")
        assert await Pool("io", 1).run(read_later if later else read) == "inside"
        assert VARIABLE.get() == "inside"

    run(test())


def test_a_pool_never_runs_more_than_its_places_nor_holds_more_than_its_line(gate: threading.Event) -> None:
    """What does not fit is refused at once, by an error that names the pool and says what to do."""

    async def test() -> None:
        pool = Pool("io", 2, longest=3, setting="performance.thread_pools.io_workers")
        async with full(pool, gate):
            queued = [pool.submit(add, 1) for _ in range(3)]
            began = time.monotonic()
            with pytest.raises(PoolSaturated, match=r"raise performance\.thread_pools\.io_workers"):
                pool.submit(add, 1)
            with pytest.raises(PoolSaturated) as refused:
                await pool.run(add, 1)
            assert time.monotonic() - began < 4  # its patience is five
            assert refused.value.detail == "the pool 'io' is full: 2 running, 3 waiting"
            assert (refused.value.status, refused.value.headers()) == (429, {"retry-after": "5"})
            found = pool.stats()
            assert (found["active_threads"], found["queued_tasks"], found["refused"]) == (2, 3, 2)
            assert found["utilization_percent"] == 100
            assert all(not future.done() for future in queued)
        assert [future.result(20) for future in queued] == [1, 1, 1]
        assert len({thread for thread in threading.enumerate() if thread.name.startswith("io-")}) >= 2

    run(test())


def test_a_pool_makes_threads_when_it_needs_them_and_never_more_than_its_places() -> None:
    """A hundred tasks one after the other need one thread; at once, as many as there are places."""

    async def test() -> None:
        pool = Pool("few", 3, longest=100)
        assert pool._threads == []
        for _ in range(100):
            await pool.run(add, 1)
        assert len(pool._threads) == 1
        await asyncio.gather(*(pool.run(time.sleep, 0.001) for _ in range(100)))
        assert len(pool._threads) == 3
        await pool.close(1)
        assert until(lambda: not any(thread.is_alive() for thread in pool._threads))

    run(test())


@pytest.mark.parametrize("fn", [add, add_later])
def test_who_waits_in_vain_is_told_after_a_while(fn: Callable[..., Any], gate: threading.Event) -> None:
    """The wait in the line has a deadline, and the call is never made afterwards."""
    calls: list[int] = []

    def note() -> None:
        calls.append(1)

    async def note_later() -> None:
        calls.append(1)

    async def test() -> None:
        pool = Pool("db", 1, patience_s=0.05)
        async with full(pool, gate):
            with pytest.raises(PoolSaturated, match=r"had no place free for 0\.05 s"):
                await pool.run(note if fn is add else note_later)
            assert (pool.stats()["expired"], pool.stats()["queued_tasks"]) == (1, 0)
        assert await pool.run(fn, 1) == 1
        assert not calls

    run(test())


def test_who_got_a_place_in_time_may_take_long(gate: threading.Event) -> None:
    """Patience is for the line, not for the work: the negative control of the test above."""

    async def test() -> None:
        pool = Pool("db", 1, patience_s=0.5)
        asyncio.get_running_loop().call_later(0.02, gate.set)
        async with full(pool, gate):
            await pool.run(time.sleep, 0.7)
        assert pool.stats()["expired"] == 0

    run(test())


@pytest.mark.parametrize("fn", [add, add_later])
def test_a_cancelled_await_takes_its_task_out_of_the_line(fn: Callable[..., Any], gate: threading.Event) -> None:
    """It frees its stand in the line at once, and is never run."""

    async def test() -> None:
        pool = Pool("io", 1, longest=1)
        async with full(pool, gate):
            waiting = asyncio.create_task(pool.run(fn, 1))
            await asyncio.sleep(0)
            assert pool.stats()["queued_tasks"] == 1
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            found = pool.stats()
            assert (found["queued_tasks"], found["cancelled"], found["submitted"]) == (0, 1, 2)
            again = asyncio.create_task(pool.run(fn, 2))
            await asyncio.sleep(0)
        assert await again == 2

    run(test())


def test_a_cancelled_coroutine_gives_its_place_back() -> None:
    """Unlike a call in a thread it is really stopped."""

    async def test() -> None:
        pool = Pool("io", 1)
        running = asyncio.create_task(pool.run(asyncio.sleep, 60))
        await asyncio.sleep(0.01)
        assert pool.stats()["active_threads"] == 1
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (pool.stats()["active_threads"], pool.stats()["cancelled"]) == (0, 1)

    run(test())


def test_a_call_that_runs_is_left_behind_and_still_holds_its_place(gate: threading.Event) -> None:
    """Nothing can stop a thread: the statistics say so instead of hiding it."""

    async def test() -> None:
        pool = Pool("io", 1)
        running = asyncio.create_task(pool.run(gate.wait, 20))
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert pool.stats()["active_threads"] == 1
        gate.set()
        assert until(lambda: pool.stats()["active_threads"] == 0)

    run(test())


def test_tasks_have_names_and_ages(gate: threading.Event) -> None:
    """Who looks for what holds a pool finds the function and for how long."""

    async def test() -> None:
        pool = Pool("io", 2)
        async with full(pool, gate):
            await asyncio.sleep(0.05)
            names = {task["name"] for task in pool.stats()["active_tasks"]}
            assert names == {"threading.Event.wait"}
            assert all(0.04 < task["age_seconds"] < 20 for task in pool.stats()["active_tasks"])
        assert pool.stats()["active_tasks"] == []

    run(test())


def test_nothing_of_a_task_stays_behind() -> None:
    """A body of megabytes goes when its task has ended: neither an idle thread nor a cycle of references holds it."""

    class Large:
        pass

    def work(thing: Large) -> None:
        pass

    async def test() -> None:
        pool = Pool("cpu", 1)
        for way in ("awaited", "submitted"):
            large = Large()
            watched = weakref.ref(large)
            if way == "awaited":
                await pool.run(work, large)
            else:
                await asyncio.wrap_future(pool.submit(work, large))
            del large
            assert until(lambda: watched() is None, 2), way  # noqa: B023  # called in this turn of the loop

    gc.disable()  # what waits for the collector counts as held
    try:
        run(test())
    finally:
        gc.enable()


def test_a_batch_has_at_most_so_many_calls_in_the_pool() -> None:
    """The rest waits outside, so that a batch of any length fits into a pool with a short line."""
    seen: list[int] = []
    lock = threading.Lock()

    async def test() -> None:
        with pools.installed(Pools({"cpu": 8}, longest=0)) as installed:

            def work(index: int) -> int:
                with lock:
                    seen.append(installed["cpu"].stats()["active_threads"])
                time.sleep(0.005)
                return index

            async with batch_executor("cpu", max_concurrent=3) as submit:
                calls = [submit(work, index) for index in range(20)]
            assert [call.result() for call in calls] == list(range(20))
            async with batch_executor("cpu") as submit:
                assert await submit(add_later, 1, right=1) == 2
                with pytest.raises(LookupError):
                    await submit(fail)

    run(test())
    assert 2 <= max(seen) <= 3


def test_a_batch_that_ends_with_an_error_begins_nothing_more(gate: threading.Event) -> None:
    """Calls that have no place yet never get one."""

    async def test() -> None:
        with pools.installed(Pools()) as installed:
            with pytest.raises(ZeroDivisionError):
                async with batch_executor("io", max_concurrent=2) as submit:
                    for _ in range(5):
                        submit(gate.wait, 20)
                    await asyncio.sleep(0.02)
                    raise ZeroDivisionError
            gate.set()
            await asyncio.sleep(0.2)
            assert installed["io"].stats()["active_threads"] == 0
            assert installed["io"].stats()["submitted"] == 2

    run(test())


def test_closing_finishes_what_is_here_and_lets_nothing_in() -> None:
    """Queued work is done within the patience of the drain."""

    async def test() -> None:
        pool = Pool("db", 1)
        futures = [pool.submit(time.sleep, 0.02) for _ in range(5)]
        closing = asyncio.create_task(pool.close(10))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await pool.run(add, 1)
        assert await closing
        assert all(future.done() for future in futures)

    run(test())


def test_closing_leaves_a_stuck_task_behind_and_says_which(gate: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    """It waits as long as it was told, not longer; what was queued behind it fails with Draining."""

    async def test() -> None:
        pool = Pool("io", 1)
        pool.submit(gate.wait, 20)
        queued = pool.submit(add, 1)
        began = time.monotonic()
        assert not await pool.close(0.1)
        assert 0.1 <= time.monotonic() - began < 2
        with pytest.raises(Draining):
            queued.result(0)

    run(test())
    assert "io pool: left behind threading.Event.wait" in caplog.text


STUCK = """
import asyncio, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from app.pools import LoopExecutor, Pools
pool = Pools()["io"]
async def main():
    executor = LoopExecutor(pool) if sys.argv[1] == "pool" else ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(executor)
    asyncio.create_task(asyncio.to_thread(time.sleep, 3.0))
    await asyncio.sleep(0.1)
asyncio.run(main())
"""


@pytest.mark.slow
def test_a_stuck_task_cannot_keep_a_process_from_ending() -> None:
    """A process with a hanging call ends at once; with the standard library's executor it waits for it."""
    took = {}
    for kind in ("pool", "standard library"):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", STUCK, kind], check=True, timeout=20)
        took[kind] = time.monotonic() - began
    assert took["standard library"] >= 3.0
    assert took["pool"] < took["standard library"] - 1.5


def test_what_asyncio_hands_to_threads_is_bounded_too(gate: threading.Event) -> None:
    """A refusal there is an OSError, which libraries expect of a name lookup."""

    async def test() -> None:
        pool = Pool("io", 1, longest=0)
        asyncio.get_running_loop().set_default_executor(LoopExecutor(pool))
        assert await asyncio.to_thread(add, 1, 1) == 2
        async with full(pool, gate):
            with pytest.raises(BlockingIOError, match="'io'"):
                await asyncio.to_thread(add, 1)

    run(test())


def test_a_slow_pool_does_not_delay_another() -> None:
    """What named pools are for: hanging webhooks hold up io, not db. One shared executor is the negative control."""

    async def asked_while_io_hangs(first: Pool, second: Pool) -> float:
        hanging = [first.submit(time.sleep, 0.3) for _ in range(4)]
        began = time.monotonic()
        await second.run(add, 1)
        waited = time.monotonic() - began
        await asyncio.gather(*map(asyncio.wrap_future, hanging))
        return waited

    async def test() -> None:
        both = Pools({"io": 2, "db": 2})
        shared = Pool("shared", 2)
        assert await asked_while_io_hangs(both["io"], both["db"]) < 0.2
        assert await asked_while_io_hangs(shared, shared) > 0.4

    run(test())


def test_without_pools_the_error_says_what_to_do() -> None:
    """Nothing happens at import, so there may be none; and a wrong name lists the right ones."""
    with pytest.raises(RuntimeError, match=r"no pools: app\.main installs them"):
        submit_to_pool("io", add, 1)
    with pools.installed(Pools()), pytest.raises(ValueError, match="'gpu'; there are io, cpu, inference, embedding, db"):
        submit_to_pool("gpu", add, 1)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ValueError, match="no such pools: gpu"):
        Pools({"gpu": 1})  # type: ignore[dict-item]  # as above
    with pools.installed(Pools()), pytest.raises(TypeError, match="use run_in_pool"):
        submit_to_pool("io", add_later, 1)


def test_the_last_installed_pools_are_in_use_until_their_block_ends() -> None:
    """Several applications in one process (only tests have that) do not take each other's pools away."""
    with pools.installed(Pools()) as first:
        with pools.installed(Pools()) as second:
            assert pools.current() is second
        assert pools.current() is first


def test_verbose_logs_each_task_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Submission, time and outcome; without it nothing of that is at level info."""

    async def test(pool: Pool) -> None:
        await pool.run(add, 1)
        with pytest.raises(LookupError):
            await pool.run(fail)

    with caplog.at_level(logging.INFO):
        run(test(Pool("io", 1)))
        assert not caplog.records
        run(test(Pool("io", 1, verbose=True)))
    words = [record.getMessage() for record in caplog.records]
    assert words[0] == "io pool: submitted test_pools.add"
    assert words[1].startswith("io pool: test_pools.add done after 0.")
    assert words[3].startswith("io pool: test_pools.fail failed after 0.")
    assert caplog.records[1].context.keys() == {"pool", "task", "outcome", "seconds"}  # type: ignore[attr-defined]


def test_the_status_is_one_line_for_each_pool(caplog: pytest.LogCaptureFixture) -> None:
    """With the numbers beside the words."""
    with caplog.at_level(logging.INFO), pools.installed(Pools({"io": 3})):
        pools.log_current_status()
    assert [record.getMessage().split(" ")[0] for record in caplog.records] == list(NAMES)
    assert caplog.records[0].context["max_workers"] == 3  # type: ignore[attr-defined]


def test_the_metrics_count_and_show_the_pools(gate: threading.Event) -> None:
    """Gauges read the published pools; each outcome is counted once, by pool."""

    def count(outcome: str) -> float:
        return metrics.REGISTRY.get_sample_value("kronos_pool_tasks_total", {"pool": "io", "outcome": outcome}) or 0.0

    def gauge(name: str) -> float | None:
        return metrics.REGISTRY.get_sample_value(f"kronos_pool_{name}", {"pool": "io"})

    async def test() -> None:
        kept = Pools({"io": 2}, longest=1)
        kept.publish()
        labels = {"pool": "embedding", "outcome": "expired"}
        assert metrics.REGISTRY.get_sample_value("kronos_pool_tasks_total", labels) == 0, "there before its first count"
        before = {outcome: count(outcome) for outcome in ("done", "failed", "refused")}
        async with full(kept["io"], gate):
            kept["io"].submit(fail)
            with pytest.raises(PoolSaturated):
                kept["io"].submit(add, 1)
            assert (gauge("workers"), gauge("active"), gauge("queued")) == (2, 2, 1)
        assert until(lambda: kept["io"].line.empty)
        after = {outcome: count(outcome) - before[outcome] for outcome in before}
        assert after == {"done": 2, "failed": 1, "refused": 1}

    run(test())


@examples(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(["call", "coroutine", "failing", "cancelled", "late"]), min_size=1, max_size=40),
    st.integers(1, 4), st.integers(0, 8),
)  # fmt: skip
def test_whatever_is_submitted_is_accounted_for(kinds: list[str], workers: int, longest: int) -> None:
    """With real threads, in any mixture: no task is lost, none is counted twice, no bound is passed."""
    most = [0, 0]

    async def test() -> None:
        pool = Pool("mixed", workers, longest=longest, patience_s=0.004)

        def work() -> None:
            counts = pool.line.counts()
            most[:] = max(most[0], counts["active"]), max(most[1], counts["queued"])
            time.sleep(0.001)

        async def work_here() -> None:
            work()
            await asyncio.sleep(0.001)

        fns = {"call": work, "coroutine": work_here, "failing": fail, "cancelled": work, "late": work_here}
        tasks = [asyncio.create_task(pool.run(fns[kind])) for kind in kinds]
        await asyncio.sleep(0)
        for kind, task in zip(kinds, tasks, strict=True):
            if kind == "cancelled":
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert until(lambda: pool.line.empty, 5)
        counts = pool.line.counts()
        never_asked = sum(1 for task in tasks if task.cancelled()) - counts["cancelled"]
        saturated = sum(1 for result in results if isinstance(result, PoolSaturated))
        assert counts["submitted"] == sum(counts[outcome] for outcome in OUTCOMES)
        assert saturated == counts["refused"] + counts["expired"]
        assert counts["failed"] == sum(1 for result in results if isinstance(result, LookupError))
        assert counts["submitted"] + counts["refused"] + max(never_asked, 0) >= len(kinds)
        assert await pool.close(1)

    run(test())
    assert most[0] <= workers and most[1] <= longest
