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
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np

from app import metrics
from app.admission import Admission, Limits
from app.errors import Cancelled, DeadlinePassed, Draining, EngineFailed, KronosError, NotReady
from app.scheduler import PRIORITIES, Errand, Kind, Path, Plan, Priority, Scheduler, Series
from app.work import Embed, Forecast, Int32, Outcome, Row, Runner, Sampling

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


@dataclass(eq=False, slots=True)
class _Job:
    """The engine's own notes on one series."""

    work: Forecast | Embed
    series: Series
    submitted: float
    future: Future[Outcome] = field(default_factory=Future)
    tokens: Int32 | None = None
    rows: dict[Path, Row] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    mark: float = 0.0
    outcome: Outcome | None = None

    def lap(self, stage: str, now: float) -> None:
        """Book the time since the last mark on a stage."""
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self.mark
        self.mark = now


class Ticket:
    """A claim on an `Outcome`. The future raises DeadlinePassed, Cancelled, Draining or EngineFailed."""

    def __init__(self, future: Future[Outcome], cancel: Callable[[str], object]) -> None:
        self.future = future
        self._cancel = cancel

    def cancel(self, reason: str) -> None:
        """Give the work up; it leaves the batch at the next step. Harmless when it is done already."""
        self._cancel(reason)


class Permit:
    """The right to submit, reserved before a request's body is read. Releases itself as a context manager."""

    def __init__(self, engine: Engine, priority: Priority) -> None:
        self._engine = engine
        self._held: Priority | None = priority
        self.priority = priority

    def submit(self, work: Forecast | Embed, deadline: float) -> Ticket:
        """Queue work that must be done by `deadline` (the engine's clock, seconds). One permit may submit
        several items. Raises Overloaded when the work does not fit, Draining or EngineFailed when the engine
        has come to its end."""
        if self._held is None:
            raise RuntimeError("this permit was released already")
        return self._engine._submit(work, self.priority, deadline)

    def release(self) -> None:
        """Give the permit back; a second call does nothing."""
        if self._held is not None:
            self._engine._admission.leave(self._held)
            self._held = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Engine:
    """Serves forecasts from one runner. See the module's text for the division of labour."""

    def __init__(
        self, runner: Runner, *, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._admission = Admission(limits or Limits())
        self._scheduler = Scheduler(num_slots=runner.num_slots, max_context=runner.max_context)
        self._jobs: dict[Series, _Job] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._door = threading.Lock()
        self._ended = False
        self._end: Callable[[], KronosError] = Draining
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._step_began = 0.0
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
        return Permit(self, priority)

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
        job = _Job(work, series, now, mark=now)
        if not self._command(lambda: self._admit(job)):
            self._admission.subtract(series.work, priority)
            raise self._end()
        return Ticket(job.future, lambda reason: self._command(lambda: self._cancel(job, reason)))

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
            self._open(path)
        if plan.errand:
            self._do(plan.errand)
        paths = [path for path in plan.paths if path.series.active]
        if paths:
            rows = [self._jobs[path.series].rows[path] for path in paths]
            self._runner.decode(rows, [path.position for path in paths])

    def _do(self, errand: Errand) -> None:
        """Run an errand; if it fails, its series fails and no other."""
        job = self._jobs[errand.series]
        try:
            if errand.kind is Kind.PREFILL:
                self._prefill(job)
            elif errand.kind is Kind.EMBED:
                self._embed(job)
            elif errand.kind is Kind.DETOKENISE:
                self._detokenise(job)
            elif errand.path:
                self._runner.roll(job.rows[errand.path], errand.path.position)
        except (RuntimeError, ValueError, ArithmeticError) as error:
            log.exception("errand %s failed", errand.kind.value)
            self._scheduler.remove(errand.series)
            self._fail(errand.series, EngineFailed(str(error)), "failed")

    def _prefill(self, job: _Job) -> None:
        series, work = job.series, job.work
        job.lap("queue", self._clock())
        job.tokens = self._runner.encode(work.history)
        job.lap("encode", self._clock())
        cached = series.window - 1
        stamps = work.history_stamps[len(work.history_stamps) - series.window :]
        self._runner.prefill(job.tokens[-series.window :][:cached], stamps[:cached], series.shared + series.partial)
        job.lap("prefill", self._clock())

    def _open(self, path: Path) -> None:
        """Make the path's row, and its own copy of the page that the history fills in part."""
        series = path.series
        job = self._jobs[series]
        work = job.work
        if not isinstance(work, Forecast) or job.tokens is None:
            raise RuntimeError("a path was opened for a series that has no tokens")
        if series.partial:
            self._runner.copy_page(series.partial[0], path.pages[len(series.shared)])
        tokens = np.zeros((series.window + series.horizon, 2), np.int32)
        tokens[: series.window] = job.tokens[-series.window :]
        stamps = np.concatenate((work.history_stamps[len(work.history_stamps) - series.window :], work.future_stamps))
        draws = self._runner.draws(work.seed, path.index, series.horizon)
        pages = np.array(path.pages, np.int32)
        sampling = Sampling(work.temperature, work.top_k, work.top_p)
        job.rows[path] = Row(tokens, stamps, draws, pages, series.window - 1, sampling)

    def _detokenise(self, job: _Job) -> None:
        job.lap("decode", self._clock())
        generated = np.stack([row.tokens[job.series.window :] for row in self._rows_by_index(job)])
        if job.tokens is None:
            raise RuntimeError("a series without tokens cannot be detokenised")
        paths = self._runner.detokenise(job.tokens, generated)
        job.lap("detokenise", self._clock())
        rolled = job.series.window - 1 + job.series.horizon > self._scheduler.max_context
        job.outcome = Outcome(paths, None, job.stages, rolled)

    def _embed(self, job: _Job) -> None:
        job.lap("queue", self._clock())
        vector = self._runner.embed(job.work.history, job.work.history_stamps)
        job.lap("prefill", self._clock())
        job.outcome = Outcome(None, vector, job.stages, rolled=False)

    def _rows_by_index(self, job: _Job) -> list[Row]:
        return [row for _, row in sorted(job.rows.items(), key=lambda item: item[0].index)]

    # --- bookkeeping --------------------------------------------------------------------------------------

    def _admit(self, job: _Job) -> None:
        self._jobs[job.series] = job
        self._scheduler.add(job.series)

    def _cancel(self, job: _Job, reason: str) -> None:
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

    def _forget(self, series: Series) -> _Job:
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
        if len(plan.paths) == self._scheduler.num_slots:
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
