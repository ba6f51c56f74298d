"""The worker's named pools, for everything that is not the engine's own step.

| pool | its work |
|---|---|
| io | traffic that waits for others: webhooks, log shipping, what asyncio itself hands to threads |
| cpu | candle frames and JSON too large for the event loop |
| inference | what surrounds the model: loading, prewarming. The thread that owns it is in no pool |
| embedding | the same as cpu, for embeddings |
| db | job and log stores |

Knows: which pools there are, and which are in use in this process. Does not know: how a pool works.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, Literal, ParamSpec, TypeVar, get_args, overload

from app import metrics
from app.errors import PoolSaturated
from app.line import OUTCOMES
from app.logs import context
from app.pool import Pool
from app.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
Name = Literal["io", "cpu", "inference", "embedding", "db"]
Submit = Callable[..., "asyncio.Task[Any]"]

NAMES: Final[tuple[Name, ...]] = get_args(Name)

log = logging.getLogger(__name__)
_installed: list[Pools] = []  # the last one is in use; more than one only where a test has several applications


class Pools:
    """All pools of a process. ``sizes``: threads by name, one where it says nothing."""

    def __init__(
        self, sizes: Mapping[Name, int] | None = None, *, longest: int = 64, patience_s: float = 5.0, verbose: bool = False
    ) -> None:
        sizes = sizes or {}
        if unknown := set(sizes) - set(NAMES):
            raise ValueError(f"no such pools: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
        self._pools: dict[str, Pool] = {
            name: Pool(
                name, sizes.get(name, 1), longest=longest, patience_s=patience_s, verbose=verbose,
                setting=f"performance.thread_pools.{name}_workers",
            )
            for name in NAMES
        }  # fmt: skip

    def __getitem__(self, name: Name) -> Pool:
        """The pool of that name. Raises ValueError that lists the names."""
        pool = self._pools.get(name)
        if pool is None:
            raise ValueError(f"no pool is called {name!r}; there are {', '.join(NAMES)}")
        return pool

    def stats(self) -> dict[str, Any]:
        """``summary`` over all pools, and ``pools`` by name."""
        pools = {name: pool.stats() for name, pool in self._pools.items()}
        summary = {
            key: sum(found[key] for found in pools.values()) for key, value in pools["io"].items() if isinstance(value, int)
        }
        share = round(100 * summary["active_threads"] / summary["max_workers"], 1)
        oldest = max((task["age_seconds"] for found in pools.values() for task in found["active_tasks"]), default=0.0)
        return {"summary": {**summary, "utilization_percent": share, "oldest_task_seconds": oldest}, "pools": pools}

    def log_status(self) -> None:
        """One log line for each pool."""
        for name, found in self.stats()["pools"].items():
            log.info(
                "%s pool: %d of %d threads active, %d tasks queued", name, found["active_threads"], found["max_workers"],
                found["queued_tasks"], **context(pool=name, **found),
            )  # fmt: skip

    def publish(self) -> None:
        """Let the gauges read these pools whenever they are scraped."""
        for name, pool in self._pools.items():
            for outcome in (*OUTCOMES, "refused"):
                metrics.POOL_TASKS.labels(name, outcome)  # there at 0, or Prometheus would not see the first
            metrics.POOL_WORKERS.labels(name).set(pool.line.places)
            metrics.POOL_ACTIVE.labels(name).set_function(partial(getattr, pool.line, "num_active"))
            metrics.POOL_QUEUED.labels(name).set_function(partial(getattr, pool.line, "num_queued"))

    async def close(self, timeout_s: float) -> bool:
        """Finish what is here, for at most ``timeout_s`` seconds in all. False: something still runs, left behind."""
        return all(await asyncio.gather(*(pool.close(timeout_s) for pool in self._pools.values())))


def make_pools(settings: Settings) -> Pools:
    """The pools that the settings want, shown by the gauges from now on."""
    sizes: dict[Name, int] = {name: getattr(settings, f"{name}_workers") for name in NAMES}
    pools = Pools(sizes, longest=settings.pool_queue, patience_s=settings.pool_patience, verbose=settings.pool_verbose)
    pools.publish()
    return pools


@contextmanager
def installed(pools: Pools) -> Iterator[Pools]:
    """Make ``pools`` those of the functions below, for the length of the block."""
    _installed.append(pools)
    try:
        yield pools
    finally:
        _installed.remove(pools)


def in_use() -> Pools | None:
    """The pools in use, if there are any."""
    return _installed[-1] if _installed else None


def current() -> Pools:
    """The pools in use. Raises RuntimeError when there are none."""
    pools = in_use()
    if pools is None:
        raise RuntimeError("this process has no pools: app.main installs them; elsewhere, `with pools.installed(Pools()):`")
    return pools


@overload
async def run_in_pool(name: Name, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
@overload
async def run_in_pool(name: Name, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
async def run_in_pool(name: Name, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Await ``fn`` in a pool: in one of its threads, or on this event loop if it is a coroutine function.

    Raises what ``fn`` raises; PoolSaturated when the pool's line is full or no place was free in time; Draining once
    the worker closes. A cancelled await takes the call out of the line; one that runs in a thread goes on, unheard.
    """
    return await current()[name].run(fn, *args, **kwargs)


def submit_to_pool(name: Name, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Start ``fn`` in a thread of a pool, from any thread. ``asyncio.wrap_future`` makes the future awaitable.

    Raises PoolSaturated when the pool's line is full, Draining once the worker closes.
    """
    return current()[name].submit(fn, *args, **kwargs)


@asynccontextmanager
async def batch_executor(name: Name, max_concurrent: int = 10) -> AsyncIterator[Submit]:
    """Many calls, at most ``max_concurrent`` of them in the pool at a time, the rest waiting here.

    ``submit(fn, *args, **kwargs)`` starts a call and gives a task to await; it raises what the call raises. The block
    ends when all calls have; if it ends with an error, or is cancelled, calls that have not begun never will.
    """
    places = asyncio.Semaphore(max_concurrent)
    tasks: set[asyncio.Task[Any]] = set()

    async def call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async with places:
            return await run_in_pool(name, fn, *args, **kwargs)

    def submit(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(call(fn, *args, **kwargs))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    try:
        yield submit
        while tasks:
            await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()


def get_pool_stats() -> dict[str, Any]:
    """What ``GET /health/thread-pools`` answers."""
    return current().stats()


def log_current_status() -> None:
    """One log line for each pool."""
    current().log_status()


class LoopExecutor(ThreadPoolExecutor):
    """What asyncio itself and its libraries hand to threads, name lookups above all, goes to a pool too.

    asyncio accepts only this class. A refusal is an OSError to them, which they expect where they look up a name.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__(1)  # makes no thread until something is submitted to it, which nothing is
        self._pool = pool

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except PoolSaturated as error:
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
