"""The engine: the one thread that owns the model and its cache.

Everything else reserves a permit, submits work and waits for a ticket's future. The thread repeats one step:
obey commands, drop what is overdue, plan, compute, settle. No other place advances a request.
The arithmetic is the runner's, the choosing the scheduler's, the refusing admission's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from app import metrics
from app.admission import Admission, Limits
from app.errors import Cancelled, DeadlinePassed, Draining, EngineFailed, KronosError, NotReady
from app.job import Job
from app.permit import Permit, Ticket
from app.scheduler import PRIORITIES, Errand, Kind, Plan, Priority, Scheduler, Series
from app.work import Embed, Forecast, Runner

log = logging.getLogger(__name__)

IDLE_AUDIT_S = 1.0
"""How often an idle engine audits its pools."""
DRAIN_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class EngineHealth:
    alive: bool
    ready: bool
    draining: bool
    stuck_s: float
    """Seconds since the thread last began a step, if it has work; else 0."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    slots_busy: int
    slots_total: int
    queued_work: int
    pages_free: int
    pages_total: int


class Engine:
    """Serves forecasts from one runner. See the module's text for the division of labour."""

    def __init__(
        self, runner: Runner, *, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._admission = Admission(limits or Limits())
        self._scheduler = Scheduler(num_slots=runner.num_slots, max_context=runner.max_context)
        self._jobs: dict[Series, Job] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._door = threading.Lock()
        self._ended = False
        self._end: Callable[[], KronosError] = Draining
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._step_began = 0.0
        self._backlogged = False
        self._ready = self._draining = self._stopping = False

    # --- from any thread ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread. `prewarm` or `open` makes the engine ready."""
        self._publish()
        self._step_began = self._clock()
        self._thread.start()

    def prewarm(self, timeout_s: float = 120.0) -> None:
        """Make real predictions, short and full-length, so that the first user does not pay for first use;
        then take requests. Raises what a prediction would raise."""
        longest = self._runner.max_context
        for lookback, horizon, paths in ((2, 2, 1), (-(-longest // 2), 2, min(2, self._runner.num_slots)), (longest, 1, 1)):
            stamps = np.tile(np.array([0, 0, 0, 1, 1], np.int16), (lookback + horizon, 1))
            history = np.zeros((lookback, 6), np.float32)
            work = Forecast(history, stamps[:lookback], stamps[lookback:], sample_count=paths)
            self._submit(work, "interactive", self._clock() + timeout_s).future.result(timeout_s)
        self.open()

    def open(self) -> None:
        """Take requests from now on."""
        self._ready = True

    def reserve(self, priority: Priority = "interactive") -> Permit:
        """Reserve the right to submit. Raises NotReady, Draining, or Overloaded with a time to come back."""
        if self._draining:
            raise Draining()
        if not self._ready or not self._thread.is_alive():
            raise NotReady()
        self._admission.enter(priority)
        return Permit(priority, self._submit, self._admission.leave)

    def drain(self, timeout_s: float) -> bool:
        """Refuse new permits, wait for the work in flight. False if some was left after `timeout_s`."""
        self._draining = True
        deadline = time.monotonic() + timeout_s
        while self._admission.waiting_work():
            if time.monotonic() >= deadline or not self._thread.is_alive():
                return False
            time.sleep(DRAIN_POLL_S)
        return True

    def stop(self) -> None:
        """End the thread; work still in flight fails with Draining."""
        self._draining = self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def health(self) -> EngineHealth:
        """What liveness and readiness are made of."""
        busy = bool(self._jobs or self._commands)
        stuck_s = self._clock() - self._step_began if busy else 0.0
        alive = self._thread.is_alive()
        return EngineHealth(alive, alive and self._ready and not self._draining, self._draining, stuck_s)

    def stats(self) -> EngineStats:
        """A snapshot of slots, pages and waiting work; each number is right, their moments may differ."""
        pool = self._scheduler.pool
        return EngineStats(
            slots_busy=self._scheduler.num_running,
            slots_total=self._scheduler.num_slots,
            queued_work=self._admission.waiting_work(),
            pages_free=pool.num_free,
            pages_total=pool.num_pages,
        )

    def idle_slots(self) -> int:
        """Slots that nobody has or is about to get, as of now."""
        waiting = sum(self._scheduler.num_waiting(priority) for priority in PRIORITIES)
        return max(0, self._scheduler.num_slots - self._scheduler.num_running - waiting)

    def _submit(self, work: Forecast | Embed, priority: Priority, deadline: float) -> Ticket:
        if self._stopping:
            raise Draining()
        now = self._clock()
        horizon = len(work.future_stamps) if isinstance(work, Forecast) else 0
        if horizon > self._runner.max_context:
            raise ValueError(f"a horizon of {horizon} does not fit in a context of {self._runner.max_context}")
        sample_count = work.sample_count if isinstance(work, Forecast) else 1
        series = Series(len(work.history), horizon, sample_count, priority, deadline)
        self._admission.add(series.work, priority, deadline - now)
        job = Job(work, series, mark=now)
        if not self._command(lambda: self._admit(job)):
            self._admission.subtract(series.work, priority)
            raise self._end()
        return Ticket(job.future, lambda reason: self._command(lambda: self._cancel(job, reason)), lambda: series.num_steps)

    def _command(self, command: Callable[[], None]) -> bool:
        """Have the thread obey a command; False if it has ended and nobody would."""
        with self._door:
            if self._ended:
                return False
            self._commands.append(command)
        self._wake.set()
        return True

    # --- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                if not self._jobs and not self._commands:
                    self._rest()
                else:
                    self.step()
            self._abandon(Draining)
        except Exception:
            log.exception("the engine thread failed; every request in flight fails with it")
            self._abandon(lambda: EngineFailed("the engine thread failed"))

    def step(self) -> None:
        """Obey, expire, plan, compute, settle."""
        self._step_began = began = self._clock()
        while self._commands:
            self._commands.popleft()()
        for series in self._scheduler.expire(began):
            self._fail(series, DeadlinePassed(), "deadline")
        plan = self._scheduler.plan()
        self._compute(plan)
        for series in self._scheduler.settle(plan):
            self._deliver(series)
        self._observe(plan, began)

    def _compute(self, plan: Plan) -> None:
        for path in plan.opened:
            self._try(path.series, partial(self._jobs[path.series].open, path, self._runner))
        if plan.errand:
            self._try(plan.errand.series, partial(self._run_errand, plan.errand))
        paths = [path for path in plan.paths if path.series.active]
        if paths:
            rows = [self._jobs[path.series].rows[path] for path in paths]
            self._runner.decode(rows, [path.position for path in paths])

    def _run_errand(self, errand: Errand) -> None:
        job = self._jobs[errand.series]
        if errand.kind is Kind.PREFILL:
            job.prefill(self._runner, self._clock)
        elif errand.kind is Kind.EMBED:
            job.embed(self._runner, self._clock)
        elif errand.kind is Kind.DETOKENISE:
            job.detokenise(self._runner, self._clock)
        elif errand.path:
            self._runner.roll(job.rows[errand.path], errand.path.position)

    def _try(self, series: Series, act: Callable[[], None]) -> None:
        """Do something for one series; if it fails, that series fails and no other."""
        if not series.active:
            return
        try:
            act()
        except (RuntimeError, ValueError, ArithmeticError) as error:
            log.exception("work for one series failed")
            self._scheduler.remove(series)
            self._fail(series, EngineFailed(str(error)), "failed")

    # --- bookkeeping --------------------------------------------------------------------------------------

    def _admit(self, job: Job) -> None:
        self._jobs[job.series] = job
        self._scheduler.add(job.series)

    def _cancel(self, job: Job, reason: str) -> None:
        if self._scheduler.remove(job.series):
            self._fail(job.series, Cancelled(reason), reason)

    def _deliver(self, series: Series) -> None:
        job = self._forget(series)
        if job.outcome and job.future.set_running_or_notify_cancel():
            job.future.set_result(job.outcome)

    def _fail(self, series: Series, error: KronosError, reason: str) -> None:
        job = self._forget(series)
        metrics.CANCELLED.labels(reason).inc()
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)

    def _forget(self, series: Series) -> Job:
        self._admission.subtract(series.work, series.priority)
        return self._jobs.pop(series)

    def _abandon(self, error: Callable[[], KronosError]) -> None:
        """Fail all that is left with `error`, and let nothing in behind it."""
        with self._door:
            self._ended, self._end = True, error
        while self._commands:
            self._commands.popleft()()
        for series in list(self._jobs):
            self._scheduler.remove(series)
            self._fail(series, error(), "abandoned")

    def _observe(self, plan: Plan, began: float) -> None:
        now = self._clock()
        if plan.paths:
            metrics.DECODE_STEPS.inc()
            metrics.BATCH_SEQUENCES.observe(len(plan.paths))
        full = len(plan.paths) == self._scheduler.num_slots
        self._backlogged = self._scheduler.queued and (full or self._backlogged)
        if self._backlogged:
            self._admission.measure(len(plan.paths), now - began)
        metrics.ENGINE_BUSY.inc(now - began)

    def _publish(self) -> None:
        """Let the gauges read this engine whenever they are scraped."""
        scheduler = self._scheduler
        metrics.SLOTS.labels("busy").set_function(lambda: scheduler.num_running)
        metrics.SLOTS.labels("available").set_function(lambda: scheduler.num_slots - scheduler.num_running)
        metrics.PAGES.labels("free").set_function(lambda: scheduler.pool.num_free)
        metrics.PAGES.labels("held").set_function(lambda: scheduler.pool.num_pages - scheduler.pool.num_free)
        for priority in PRIORITIES:
            metrics.QUEUE_DEPTH.labels(priority).set_function(partial(scheduler.num_waiting, priority))

    def _rest(self) -> None:
        """Sleep until a command comes; audit the pools, since nothing may be held now."""
        self._scheduler.audit()
        self._wake.wait(IDLE_AUDIT_S)
        self._wake.clear()
        self._step_began = self._clock()
