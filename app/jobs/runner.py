"""The jobs that one worker runs: claimed one by one while slots are idle, kept alive, ended or given back.

Knows: attempts, claims, what follows from how an attempt ended. Does not know: what a job asks for (``work`` does), where
jobs are kept, HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from app import metrics
from app.errors import Cancelled, DeadlinePassed, Draining, EngineFailed, JobAbandoned, KronosError, NotReady, Overloaded
from app.jobs.store import ENDED, Beat, Claim, Ending, Store, StoreFailed
from app.logs import context

LOOK_S: Final = 0.25
"""Pause between looks into an empty queue, or at full slots."""
TURN_S: Final = 0.03
"""Pause before the next claim, for each job that runs here: workers with fewer come first, so that jobs spread. A job that
ends is replaced at once."""
BEAT_S: Final = 0.5
"""Between heartbeats: bounds how long a cancelled job runs on."""
SWEEP_S: Final = 5.0
AGAIN_S: Final = 1.0
"""Pause after the engine or the store refused."""
QUIET_S: Final = 30.0
"""A store that stays away is mentioned so often."""

CANCELLED, LOST, LEAVING = "job-cancelled", "job-lost", "job-released"
"""Why an attempt is stopped: labels of kronos_cancelled_total."""

OUTCOMES: Final = (*ENDED, "released", "lost", "retry", "dead")

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Running:
    """One job that runs here."""

    claim: Claim
    steps_done: Callable[[], int] = int  # 0 until there is something to count
    deadline: float = math.inf
    """When this attempt ends in any case (monotonic)."""
    reason: str = ""
    began: float = field(default_factory=time.monotonic)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def expires(self) -> float:
        """When the job ends in any case (monotonic)."""
        return self.began + self.claim.remaining

    def stop(self, reason: str) -> None:
        """Stop this attempt; the first reason counts."""
        self.reason = self.reason or reason
        self._stop.set()

    async def stopped(self) -> str:
        """Return, with the reason, when this attempt is to stop."""
        await self._stop.wait()
        return self.reason


Work = Callable[[Running], Awaitable[bytes]]
"""Answers a job's request. Raises Cancelled with the reason when it was stopped, else the KronosError that is the answer."""


class Runner:
    """Runs jobs of ``store``, at most ``most`` at once and only where ``idle`` says that slots are idle.

    ``leaving``: true once this worker is to go. ``on_end`` hears of each job that ended here.
    """

    def __init__(
        self, store: Store, work: Work, idle: Callable[[], int], most: int, attempts: int,
        leaving: Callable[[], bool], on_end: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._store = store
        self._work = work
        self._idle = idle
        self._most = most
        self._attempts = attempts
        self._leaving = leaving
        self._on_end = on_end
        self.running: dict[str, Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._claiming = asyncio.Lock()
        self._woken = asyncio.Event()
        self._not_before = self._silent_until = 0.0

    def wake(self) -> None:
        """A job was submitted here: look at once, unless others may be quicker."""
        if not self.running:
            self._woken.set()

    async def run(self) -> None:
        """Claim, keep alive and sweep, until cancelled."""
        for outcome in OUTCOMES:
            metrics.JOBS_ATTEMPTS.labels(outcome)  # Prometheus sees no increase of a counter from nothing to one
        await asyncio.gather(self._claim_forever(), self._beat_forever(), self._sweep_forever())

    async def leave(self, patience_s: float) -> None:
        """Give back what runs here, for others to begin again; what takes longer than that is left to them as it is."""
        deadline = time.monotonic() + patience_s
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s), self._claiming:
                pass  # a claim under way is heard of, or its job would be nobody's until the claim runs out
        self._give_back()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, deadline - time.monotonic()))
        for task in list(self._tasks):
            task.cancel()

    def _give_back(self) -> None:
        for running in self.running.values():
            running.stop(LEAVING)

    # --- for ever -------------------------------------------------------------------------------------------

    async def _claim_forever(self) -> None:
        while True:
            async with self._claiming:
                claims = await self._ask(self._store.claim(1), []) if self._has_room() else []
                for claim in claims:
                    self._begin(Running(claim))
            await self._pause(TURN_S * len(self.running) if claims else LOOK_S)

    async def _beat_forever(self) -> None:
        words = {"cancel": CANCELLED, "lost": LOST}
        while True:
            await asyncio.sleep(BEAT_S)
            if self._leaving():
                self._give_back()
            beats = [Beat(id, running.claim.token, running.steps_done()) for id, running in self.running.items()]
            for id, word in (await self._ask(self._store.heartbeat(beats), {})).items():
                if word in words and id in self.running:
                    self.running[id].stop(words[word])

    async def _sweep_forever(self) -> None:
        while True:
            for job in await self._ask(self._store.sweep(), []):
                self._on_end(job.id)
            if counts := await self._ask(self._store.counts(), None):
                for state, number in counts.by_state.items():
                    metrics.JOBS.labels(state).set(number)
                metrics.JOBS_OLDEST.set(counts.oldest_queued_s)
                metrics.JOBS_DELIVERIES.set(counts.deliveries)
            await asyncio.sleep(SWEEP_S)

    def _has_room(self) -> bool:
        welcome = not self._leaving() and time.monotonic() >= self._not_before
        return welcome and len(self.running) < self._most and self._idle() > 0

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    async def _ask(self, call: Awaitable[T], otherwise: T) -> T:
        """What the store answers; ``otherwise`` while it does not."""
        try:
            found = await call
        except StoreFailed as error:
            self._note(error)
            return otherwise
        metrics.JOBS_STORE_UP.set(1)
        return found

    def _note(self, error: StoreFailed) -> None:
        metrics.JOBS_STORE_ERRORS.inc()
        metrics.JOBS_STORE_UP.set(0)
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + QUIET_S
            log.warning("the job store does not answer, jobs wait: %s", error)

    # --- one attempt ----------------------------------------------------------------------------------------

    def _begin(self, running: Running) -> None:
        if former := self.running.get(running.claim.id):
            former.stop(LOST)  # its claim ran out, and this worker was the first to take the job up again
        self.running[running.claim.id] = running
        metrics.JOBS_RUNNING.inc()
        task = asyncio.get_running_loop().create_task(self._run(running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, running: Running) -> None:
        claim = running.claim
        if claim.attempt == 1:
            metrics.JOBS_SECONDS.labels("waiting").observe(max(time.time() - claim.created, 0.0))
        outcome = "lost"
        try:
            outcome = await self._attempt(running)
        finally:
            if self.running.get(claim.id) is running:
                del self.running[claim.id]
            metrics.JOBS_RUNNING.dec()
            seconds = time.monotonic() - running.began
            metrics.JOBS_ATTEMPTS.labels(outcome).inc()
            metrics.JOBS_SECONDS.labels("running").observe(seconds)
            facts = {"endpoint": claim.endpoint, "attempt": claim.attempt, "steps": claim.steps}
            log.info("job %s", outcome, **context(request_id=claim.request_id, seconds=round(seconds, 3), **facts))
            self._on_end(claim.id)
            self._woken.set()

    async def _attempt(self, running: Running) -> str:
        """Do the job, and settle it with the store; what came of it, as the metric calls it."""
        claim = running.claim
        if claim.attempt > self._attempts:
            return await self._finish(running, "failed", _problem(JobAbandoned(self._attempts), claim), "dead")
        try:
            return await self._finish(running, "succeeded", await self._work(running))
        except Cancelled as stopped:
            if stopped.reason == CANCELLED:
                return await self._finish(running, "cancelled", b"")
            return await self._release(running) if stopped.reason == LEAVING else "lost"
        except (Overloaded, Draining, NotReady):
            self._not_before = time.monotonic() + AGAIN_S
            return await self._release(running)
        except EngineFailed as error:
            return await self._retry(running, error)
        except KronosError as error:
            late = isinstance(error, DeadlinePassed) and running.deadline == running.expires
            return await self._finish(running, "expired" if late else "failed", _problem(error, claim))
        except Exception as error:
            log.exception("a job failed unexpectedly", **context(request_id=claim.request_id))
            return await self._retry(running, EngineFailed(str(error)))

    async def _retry(self, running: Running, error: EngineFailed) -> str:
        """This worker's own fault: without another sign of life the job is another's when the claim has run out."""
        if running.claim.attempt < self._attempts:
            log.warning("a job will be tried again: %s", error, **context(request_id=running.claim.request_id))
            return "retry"
        return await self._finish(running, "failed", _problem(error, running.claim))

    async def _finish(self, running: Running, state: Ending, result: bytes, outcome: str = "") -> str:
        """End the job, as soon as the store answers; meanwhile it is kept alive."""
        claim = running.claim
        while running.reason != LOST:
            try:
                mine = await self._store.finish(claim.id, claim.token, state, b"" if state == "expired" else result)
                return (outcome or state) if mine else "lost"
            except StoreFailed as error:
                self._note(error)
                await asyncio.sleep(AGAIN_S)
        return "lost"

    async def _release(self, running: Running) -> str:
        return "released" if await self._ask(self._store.release(running.claim.id, running.claim.token), False) else "lost"


def _problem(error: KronosError, claim: Claim) -> bytes:
    document: dict[str, Any] = error.problem(claim.request_id)
    return msgspec.json.encode(document)
