"""One pool: a bounded number of threads with a bounded line before them, for work that is not the engine's step.

Knows: threads, futures, event loops, patience. Does not know: what the work is, which pools there are.

It is not the standard library's ThreadPoolExecutor, whose line has no end, whose tasks have neither names nor ages, and
whose threads are joined when the interpreter ends: one stuck call would keep the process alive. The threads here are
daemons, and come when they are first needed.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

from app import metrics
from app.errors import Draining, PoolSaturated
from app.line import Closed, Full, Line, Outcome, Task
from app.logs import context
from app.task import Turn, Work, name_of

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

CLOSE_POLL_S: Final = 0.005


class Pool:
    """``workers`` places and at most ``longest`` waiting; who awaits a place in vain for ``patience_s`` seconds is told.

    ``setting``: the setting that makes it larger, for its errors. A task must not wait for another task of its own pool.
    """

    def __init__(
        self, name: str, workers: int, *, longest: int = 64, patience_s: float = 5.0, verbose: bool = False, setting: str = ""
    ) -> None:
        self.name = name
        self.patience_s = patience_s
        self.line = Line(workers, longest)
        self._setting = setting or f"{name}_workers"
        self._level = logging.INFO if verbose else logging.DEBUG
        self._placed: SimpleQueue[Work[Any] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` in a thread; cancelling the future takes it out of the line. From any thread.

        Raises PoolSaturated when the line is full, Draining after ``close``, TypeError for a coroutine function.
        """
        if inspect.iscoroutinefunction(fn):
            raise TypeError(f"{name_of(fn)} is a coroutine function, which only an event loop can run: use run_in_pool")
        return self._submit(fn, functools.partial(fn, *args, **kwargs)).future

    async def run(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Await ``fn``: in a thread, or on this event loop if it is a coroutine function, which then holds a place.

        A cancelled await takes it out of the line; a call that runs in a thread cannot be stopped, only left behind.
        Raises what ``fn`` raises; PoolSaturated when the line is full or no place was free for ``patience_s`` seconds;
        Draining after ``close``.
        """
        if inspect.iscoroutinefunction(fn):
            return await self._run_here(fn, functools.partial(fn, *args, **kwargs))
        work = self._submit(fn, functools.partial(fn, *args, **kwargs))
        timer = self._be_patient(work)
        try:
            return await asyncio.wrap_future(work.future)
        finally:
            timer.cancel()

    def stats(self) -> dict[str, Any]:
        """This moment, for people: see the README. Ages in seconds; a place counts as a thread, whoever holds it."""
        counts = self.line.counts()
        active, queued = counts.pop("active"), counts.pop("queued")
        return {
            "max_workers": self.line.places,
            "active_threads": active,
            "utilization_percent": round(100 * active / self.line.places, 1),
            "max_queued": self.line.longest,
            "queued_tasks": queued,
            "active_tasks": [{"name": name, "age_seconds": round(age, 3)} for name, age in self.line.ages()],
            **counts,
        }

    async def close(self, timeout_s: float) -> bool:
        """Let nothing in, wait for what is here, then take the line away. False: something still runs, left behind."""
        self.line.close()
        deadline = self.line.clock() + timeout_s
        while not self.line.empty and self.line.clock() < deadline:
            await asyncio.sleep(CLOSE_POLL_S)
        for task in self.line.clear():
            task.refuse(Draining())
        for _ in self._threads:
            self._placed.put(None)
        if stuck := self.line.ages():
            log.warning("%s pool: left behind %s", self.name, ", ".join(f"{name} ({age:.1f} s)" for name, age in stuck))
        return not stuck

    # --- a task's way -------------------------------------------------------------------------------------

    def _submit(self, fn: Callable[..., Any], call: Callable[[], T]) -> Work[T]:
        work = Work(name_of(fn), self.line.clock(), call, self._hand_over)
        self._enter(work)
        work.future.add_done_callback(functools.partial(self._given_up, weakref.ref(work)))
        return work

    async def _run_here(self, fn: Callable[..., Any], call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        turn = Turn(name_of(fn), self.line.clock())
        self._enter(turn)
        timer = self._be_patient(turn)
        outcome: Outcome = "failed"
        try:
            await turn.place
            result = await call()
            outcome = "done"
            return result
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            timer.cancel()
            if not self._withdraw(turn, "cancelled"):
                self._leave(turn, outcome)

    def _enter(self, task: Task) -> None:
        try:
            placed = self.line.enter(task)
        except Full:
            metrics.POOL_TASKS.labels(self.name, "refused").inc()
            raise self._saturated(f"is full: {self.line.num_active} running, {self.line.num_queued} waiting") from None
        except Closed:
            raise Draining() from None
        log.log(self._level, "%s pool: submitted %s", self.name, task.name, **context(pool=self.name, task=task.name))
        if placed:
            self._begin(task)

    def _begin(self, task: Task) -> None:
        metrics.POOL_WAIT.labels(self.name).observe((task.began or task.asked) - task.asked)
        try:
            task.begin()
        except RuntimeError as error:  # no thread can be started, or the task's event loop is closed
            task.refuse(error)
            self._leave(task, "failed")

    def _leave(self, task: Task, outcome: Outcome) -> None:
        """The end of a task that had a place, which the next one gets."""
        if task.began is not None:
            self._tell(task, outcome, self.line.clock() - task.began)
        if after := self.line.leave(task, outcome):
            self._begin(after)

    def _withdraw(self, task: Task, outcome: Outcome) -> bool:
        waited = self.line.withdraw(task, outcome)
        if waited:
            self._tell(task, outcome, self.line.clock() - task.asked)
        return waited

    def _given_up(self, work: Callable[[], Task | None], future: Future[Any]) -> None:
        if future.cancelled() and (task := work()):
            self._withdraw(task, "cancelled")

    def _be_patient(self, task: Task) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self.patience_s, self._expire, task)

    def _expire(self, task: Task) -> None:
        if self._withdraw(task, "expired"):
            task.refuse(self._saturated(f"had no place free for {self.patience_s:g} s"))

    def _saturated(self, why: str) -> PoolSaturated:
        return PoolSaturated(self.name, why, self._setting, retry_after=self.patience_s)

    def _tell(self, task: Task, outcome: Outcome, seconds: float) -> None:
        metrics.POOL_TASKS.labels(self.name, outcome).inc()
        log.log(
            self._level, "%s pool: %s %s after %.3f s", self.name, task.name, outcome, seconds,
            **context(pool=self.name, task=task.name, outcome=outcome, seconds=round(seconds, 6)),
        )  # fmt: skip

    # --- the threads --------------------------------------------------------------------------------------

    def _hand_over(self, work: Work[Any]) -> None:
        """Give work that has a place to an idle thread, or to a new one. Raises RuntimeError where none can be had."""
        # Whoever has a place finds a thread: there are never more threads than places.
        if not self._idle.acquire(blocking=False):
            thread = threading.Thread(target=self._live, name=f"{self.name}-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._placed.put(work)

    def _live(self) -> None:
        while work := self._placed.get():
            outcome, tell = work.run()
            self._idle.release()
            self._leave(work, outcome)
            tell()
            del work, tell  # or an idle thread would hold on to what its last task was given
