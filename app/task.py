"""What has a place in a pool: a call that runs in a thread, or a turn of a coroutine on its event loop.

Knows: futures, event loops, context variables. Does not know: lines and threads; its pool gives it a place.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from app.line import Outcome

T = TypeVar("T")


class Work(Generic[T]):
    """A call that runs in a thread. ``hand_over`` finds it one. It sees the context variables of who made it."""

    def __init__(self, name: str, asked: float, call: Callable[[], T], hand_over: Callable[[Work[T]], None]) -> None:
        self.name = name
        self.asked = asked
        self.began: float | None = None
        self.future: Future[T] = Future()
        self._call = call
        self._hand_over = hand_over
        self._context = contextvars.copy_context()

    def begin(self) -> None:
        self._hand_over(self)

    def refuse(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def run(self) -> tuple[Outcome, Callable[[], None]]:
        """Make the call, in the thread: what came of it, and how to tell those who wait for it."""
        if not self.future.set_running_or_notify_cancel():
            return "cancelled", lambda: None
        try:
            result = self._context.run(self._call)
        except BaseException as error:  # it belongs to whoever waits for it
            return "failed", functools.partial(self.future.set_exception, error)
        return "done", functools.partial(self.future.set_result, result)


class Turn:
    """A place for a coroutine, which runs on the event loop that awaits it."""

    def __init__(self, name: str, asked: float) -> None:
        self.name = name
        self.asked = asked
        self.began: float | None = None
        self.place: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        self.place.get_loop().call_soon_threadsafe(self._settle, None)

    def refuse(self, error: Exception) -> None:
        with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody waits any more
            self.place.get_loop().call_soon_threadsafe(self._settle, error)

    def _settle(self, error: Exception | None) -> None:
        if self.place.done():
            return
        if error:
            self.place.set_exception(error)
        else:
            self.place.set_result(None)


def name_of(fn: Callable[..., Any]) -> str:
    """What a task is called: the function's own name, with its module's."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{named.__module__}.{named.__qualname__}"
