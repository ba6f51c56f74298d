"""Places, and a bounded line before them: who may begin, who waits, who is refused.

Knows: counts, ages, the order of arrival. Does not know: threads, event loops, what a task does.
Whatever happens, submitted = queued + active + done + failed + cancelled + expired.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol, get_args

Outcome = Literal["done", "failed", "cancelled", "expired"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)


class Full(Exception):
    """No place is free and the line is full."""


class Closed(Exception):
    """Nobody is let in any more."""


class Task(Protocol):
    """Something that wants a place. Times are seconds of the line's clock."""

    name: str
    asked: float
    began: float | None  # when it got its place

    def begin(self) -> None:
        """It has a place now, until its owner says ``leave``."""

    def refuse(self, error: Exception) -> None:
        """It will never have a place."""


class Line:
    """Thread-safe. Its owner calls ``begin`` and ``refuse`` of the tasks it is given back, outside of the lock."""

    def __init__(self, places: int, longest: int, clock: Callable[[], float] = time.monotonic) -> None:
        if places < 1 or longest < 0:
            raise ValueError(f"{places} places and a line of {longest}: at least 1 and 0 are needed")
        self.places = places
        self.longest = longest
        self.clock = clock
        self._lock = threading.Lock()
        self._active: dict[Task, None] = {}  # ordered sets: the first is the oldest
        self._waiting: dict[Task, None] = {}
        self._counts = dict.fromkeys(("submitted", *OUTCOMES, "refused"), 0)
        self._closed = False

    def enter(self, task: Task) -> bool:
        """True: it has a place. False: it waits in the line. Raises Full or Closed."""
        with self._lock:
            if self._closed:
                raise Closed
            if len(self._active) >= self.places and len(self._waiting) >= self.longest:
                self._counts["refused"] += 1
                raise Full
            self._counts["submitted"] += 1
            if len(self._active) < self.places:
                self._place(task)
                return True
            self._waiting[task] = None
            return False

    def leave(self, task: Task, outcome: Outcome) -> Task | None:
        """Give the place of ``task`` back; the task that has it now, if one waited."""
        with self._lock:
            if task not in self._active:
                return None
            del self._active[task]
            self._counts[outcome] += 1
            if not self._waiting:
                return None
            first = next(iter(self._waiting))
            del self._waiting[first]
            self._place(first)
            return first

    def withdraw(self, task: Task, outcome: Outcome) -> bool:
        """Take ``task`` out of the line; False if it does not wait there (any more)."""
        with self._lock:
            if task not in self._waiting:
                return False
            del self._waiting[task]
            self._counts[outcome] += 1
            return True

    def close(self) -> None:
        """Let nobody in any more. Those inside and in the line stay."""
        with self._lock:
            self._closed = True

    def clear(self) -> list[Task]:
        """Take everybody out of the line."""
        with self._lock:
            left = list(self._waiting)
            self._waiting.clear()
            self._counts["cancelled"] += len(left)
            return left

    @property
    def empty(self) -> bool:
        return not self._active and not self._waiting

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_queued(self) -> int:
        return len(self._waiting)

    def counts(self) -> dict[str, int]:
        """``active``, ``queued``, ``submitted``, each outcome and ``refused``, all of one moment."""
        with self._lock:
            return {"active": len(self._active), "queued": len(self._waiting), **self._counts}

    def ages(self) -> list[tuple[str, float]]:
        """Name and seconds in their place of those that have one, the oldest first."""
        with self._lock:
            now = self.clock()
            return [(task.name, now - (task.began or now)) for task in self._active]

    def _place(self, task: Task) -> None:
        task.began = self.clock()
        self._active[task] = None
