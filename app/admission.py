"""Admission: how much may wait, counted in units of work, and when a refused client should come back.

Knows counters and the measured drain rate; not what the work is. Safe to call from any thread.
One unit of work is one step of one sample path.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from app.errors import Overloaded
from app.scheduler import PRIORITIES, Priority

RATE_WINDOW_S = 5.0
"""Busy seconds over which the drain rate is averaged (exponentially)."""
RATE_SAMPLE_S = 1.0
"""Busy seconds below which the rate is not believed: a few odd steps say little."""
MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a worker takes on before it refuses."""

    max_requests: int = 256
    """Requests between the reserving of a permit and their answer."""
    max_work: int = 20_000
    """Units of work waiting or running. One request may exceed it alone when nothing else is there."""
    bulk_share: float = 0.5
    """The part of both limits that bulk requests may fill, so that they are refused first."""
    max_wait_s: float = 30.0
    """Longest that anything may stand in the queue, by the measured drain rate."""


class Admission:
    """Counts of requests and work by priority, checked against `Limits`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._requests: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self._work: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self._units = 0.0
        self._seconds = 0.0

    def enter(self, priority: Priority) -> None:
        """Count a request in. Raises Overloaded when the queue of its class is full already."""
        with self._lock:
            if self._ahead(self._requests, priority) >= self._share(priority) * self.limits.max_requests:
                raise self._refusal("requests", priority)
            ahead = self._ahead(self._work, priority)
            if ahead >= self._share(priority) * self.limits.max_work:
                raise self._refusal("work", priority)
            if self._wait_s(ahead) > self.limits.max_wait_s:
                raise self._refusal("wait", priority)
            self._requests[priority] += 1

    def leave(self, priority: Priority) -> None:
        """Count a request out."""
        with self._lock:
            self._requests[priority] -= 1

    def add(self, work: int, priority: Priority, patience_s: float) -> None:
        """Count `work` units in. Raises Overloaded when they do not fit, or when what is ahead of them would,
        at the measured rate, take longer than `patience_s` seconds or than anything may wait."""
        with self._lock:
            ahead = self._ahead(self._work, priority)
            if ahead and ahead + work > self._share(priority) * self.limits.max_work:
                raise self._refusal("work", priority)
            wait_s = self._wait_s(ahead)
            if wait_s > self.limits.max_wait_s:
                raise self._refusal("wait", priority)
            if wait_s > max(patience_s, 0.0):
                raise self._refusal("deadline", priority)
            self._work[priority] += work

    def subtract(self, work: int, priority: Priority) -> None:
        """Count `work` units out: done or given up."""
        with self._lock:
            self._work[priority] -= work

    def measure(self, units: int, seconds: float) -> None:
        """Tell the drain rate that `units` were done in `seconds` of engine time while a queue drained: whatever a request takes
        besides its steps is part of that, and a batch that is half empty because nobody waits says nothing of it."""
        with self._lock:
            keep = math.exp(-seconds / RATE_WINDOW_S)
            self._units = keep * self._units + units
            self._seconds = keep * self._seconds + seconds

    def waiting_work(self) -> int:
        """Units of work waiting or running, all classes."""
        with self._lock:
            return sum(self._work.values())

    def _share(self, priority: Priority) -> float:
        return self.limits.bulk_share if priority == "bulk" else 1.0

    def _ahead(self, counts: dict[Priority, int], priority: Priority) -> int:
        """What a newcomer stands behind: interactive behind its own class only, bulk behind everything."""
        return counts["interactive"] if priority == "interactive" else sum(counts.values())

    def _wait_s(self, work: int) -> float:
        believable = self._units and self._seconds >= RATE_SAMPLE_S
        return work * self._seconds / self._units if believable else 0.0

    def _refusal(self, reason: str, priority: Priority) -> Overloaded:
        wait_s = self._wait_s(self._ahead(self._work, priority))
        return Overloaded(reason, min(max(wait_s, 1.0), MAX_RETRY_AFTER_S))
