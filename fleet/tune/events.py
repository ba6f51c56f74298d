"""The few things that can happen to a fleet: a request is sent, time passes, a request is done.

Knows: queues, slots, how fast k busy workers go together, refusals. Does not know: when requests come (queueing.py).

Every busy worker goes at the same speed, which depends on how many are busy. So work is counted on one common clock of
*effort* that advances at that speed; a request is done when the clock has advanced by its work. With several slots a
worker has a second clock that advances at the speed of a batch of that size, relative to the common one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fleet.tune.shape import Shape, Trace

NEVER = float("inf")


@dataclass
class _Worker:
    """``running`` holds (end on the worker's own clock, request); ``own`` is that clock when the common one showed ``common``."""

    running: list[tuple[float, int]] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    own: float = 0.0
    common: float = 0.0
    version: int = 0


class Simulation:
    """The state of one run, and the few things that can happen to it."""

    def __init__(self, shape: Shape, work: Sequence[float], slowness: Callable[[float], float] | None) -> None:
        self.shape, self.work, self.slowness = shape, work, slowness
        self.now = self.effort = self.sendable = 0.0
        self.busy = self.in_flight = self.dropped = self.turn = 0
        self.loads = [0] * shape.workers
        self.workers = [_Worker() for _ in range(shape.workers)]
        self.ends: list[tuple[float, int, int]] = []
        self.busy_s = [0.0] * (shape.workers + 1)
        self.due: list[float] = []
        self.done: list[float] = []
        self.ok: list[bool] = []
        self.by: list[int] = []

    def next_end(self) -> float:
        """When the next request is done, if nothing arrives before."""
        ends, workers = self.ends, self.workers
        while ends and ends[0][2] != workers[ends[0][1]].version:
            heapq.heappop(ends)
        return self.now + (ends[0][0] - self.effort) / self.shape.speeds[self.busy] if ends else NEVER

    def advance(self, to: float) -> None:
        """Let time pass in which nothing happens."""
        passed = to - self.now
        self.busy_s[self.busy] += passed
        self.effort += passed * self.shape.speeds[self.busy]
        self.now = to

    def send(self) -> bool:
        """A request goes to the worker that holds the fewest; False when it was refused."""
        shape, number, index = self.shape, len(self.due), self._least()
        self.due.append(self.now)
        self.by.append(index)
        if shape.queue_limit is not None and self.loads[index] >= shape.queue_limit:
            self.done.append(self.now + shape.refusal_s)
            self.ok.append(False)
            return False
        self.done.append(NEVER)
        self.ok.append(True)
        self.in_flight += 1
        self.busy += self.loads[index] == 0
        self.loads[index] += 1
        worker = self.workers[index]
        if len(worker.running) < shape.slots:
            self._settle(worker)
            self._begin(worker, number)
            self._schedule(worker, index)
        else:
            worker.waiting.append(number)
        return True

    def end(self) -> int:
        """The next request is done (time has advanced to it); its worker takes another."""
        _, index, _ = heapq.heappop(self.ends)
        worker = self.workers[index]
        self._settle(worker)
        _, number = heapq.heappop(worker.running)
        self.done[number] = self.now
        self.in_flight -= 1
        self.loads[index] -= 1
        self.busy -= self.loads[index] == 0
        if worker.waiting:
            self._begin(worker, worker.waiting.popleft())
        if worker.running:
            self._schedule(worker, index)
        return number

    def trace(self) -> Trace:
        """All requests that were sent."""
        due = np.array(self.due)
        latency = np.array(self.done) - due + self.shape.overhead_s
        return Trace(due, latency, np.array(self.ok, bool), np.array(self.by, np.int64), self.dropped, np.array(self.busy_s))

    def _least(self) -> int:
        """Among those that hold equally few, the next in turn, as nginx does it."""
        loads, count = self.loads, len(self.loads)
        fewest, index = min(loads), (self.turn + 1) % count
        while loads[index] != fewest:
            index = (index + 1) % count
        self.turn = index
        return index

    def _pace(self, worker: _Worker) -> float:
        return 1.0 / (1.0 + self.shape.batch_cost * (len(worker.running) - 1))

    def _settle(self, worker: _Worker) -> None:
        """Bring the worker's own clock up to the common one."""
        if worker.running:
            worker.own += (self.effort - worker.common) * self._pace(worker)
        worker.common = self.effort

    def _begin(self, worker: _Worker, number: int) -> None:
        work = self.work[number % len(self.work)]
        if self.slowness is not None:
            work *= self.slowness(self.now)
        heapq.heappush(worker.running, (worker.own + work, number))

    def _schedule(self, worker: _Worker, index: int) -> None:
        """Say when the worker's next end is; what was said before is void."""
        worker.version += 1
        end = worker.common + (worker.running[0][0] - worker.own) / self._pace(worker)
        heapq.heappush(self.ends, (end, index, worker.version))
