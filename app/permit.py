"""What a client of the engine holds: a permit, reserved before anything else, and a ticket for each piece of work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Self

from app.scheduler import Priority
from app.work import Embed, Forecast, Outcome


class Ticket:
    """A claim on an `Outcome`. The future raises DeadlinePassed, Cancelled, Draining or EngineFailed."""

    def __init__(
        self, future: Future[Outcome], cancel: Callable[[str], object], steps_done: Callable[[], int] = lambda: 0
    ) -> None:
        self.future = future
        self._cancel = cancel
        self._steps_done = steps_done

    @property
    def steps_done(self) -> int:
        """Steps that the sample paths have made so far, all together."""
        return self._steps_done()

    def cancel(self, reason: str) -> None:
        """Give the work up; it leaves the batch at the next step. Harmless when it is done already."""
        self._cancel(reason)


class Permit:
    """The right to submit, reserved before a request's body is read. Releases itself as a context manager."""

    def __init__(
        self,
        priority: Priority,
        submit: Callable[[Forecast | Embed, Priority, float], Ticket],
        leave: Callable[[Priority], None],
    ) -> None:
        self.priority = priority
        self._submit = submit
        self._leave = leave
        self._held = True

    def submit(self, work: Forecast | Embed, deadline: float) -> Ticket:
        """Queue work that must be done by `deadline` (the engine's clock, seconds). One permit may submit
        several items. Raises Overloaded when the work does not fit, Draining or EngineFailed when the engine
        has come to its end."""
        if not self._held:
            raise RuntimeError("this permit was released already")
        return self._submit(work, self.priority, deadline)

    def release(self) -> None:
        """Give the permit back; a second call does nothing."""
        if self._held:
            self._held = False
            self._leave(self.priority)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()
