"""The way in of one request: a permit or, when there is no room, a look at what the cache has already.

An answer from the cache takes no slot and no place in the queue, so a full worker still gives it. To know whether there
is one, the body must be read: a full worker reads a few at a time, and none while the cache is empty, so that a burst is
still refused before it costs anything.
Knows: permits, refusals, who looks. Does not know: what is in a request.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from app.api.state import Worker
from app.cache import Policy
from app.engine import Engine
from app.errors import Overloaded
from app.permit import Permit, Ticket
from app.scheduler import Priority
from app.work import Embed, Forecast

MOST_LOOKING: Final = 16
"""Requests without a permit whose bodies one worker reads at once: bounds the memory and the time they take."""


class Door:
    """Open for one request as a context manager."""

    def __init__(self, worker: Worker, engine: Engine, priority: Priority, policy: Policy) -> None:
        """Raises what ``Engine.reserve`` raises, unless it is Overloaded and a look at the cache is allowed."""
        self.priority = priority
        self._worker = worker
        self._engine = engine
        self._way = self._reserve(priority)
        can_look = policy.look and len(worker.cache.store) and worker.looking < MOST_LOOKING
        if isinstance(self._way, Overloaded) and not can_look:
            raise self._way

    @property
    def refusal(self) -> Overloaded | None:
        """Why nothing may be submitted; None if something may."""
        return self._way if isinstance(self._way, Overloaded) else None

    def change(self, priority: Priority) -> None:
        """Go in as ``priority`` instead."""
        if isinstance(self._way, Permit) and priority != self.priority:
            self._way.release()
            self._way = self._reserve(priority)
        self.priority = priority

    def submit(self, work: Forecast | Embed, deadline: float) -> Ticket:
        """As ``Permit.submit``. Raises the refusal when there was no room."""
        if isinstance(self._way, Overloaded):
            raise self._way
        return self._way.submit(work, deadline)

    def _reserve(self, priority: Priority) -> Permit | Overloaded:
        try:
            return self._engine.reserve(priority)
        except Overloaded as refusal:
            return refusal

    def __enter__(self) -> Self:
        self._looks = self.refusal is not None
        self._worker.looking += self._looks
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._worker.looking -= self._looks
        if isinstance(self._way, Permit):
            self._way.release()
