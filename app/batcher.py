"""From the event loop to a slow writer: a bounded buffer, and a thread that writes it in batches.

Whatever the writer does, ``put`` costs microseconds and no memory beyond the bounds. What cannot be written now is tried
again, for as long as the buffer has room; when it is full the newest is dropped and counted, so that an outage leaves one gap.
Knows: items, their sizes, when a batch is due, how often to try. Does not know: what items are, where they go.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from app import metrics

FIRST_PAUSE_S: Final = 0.5
LAST_PAUSE_S: Final = 15.0

T = TypeVar("T")
Settled = Literal["written", "failed", "dropped"]

log = logging.getLogger(__name__)


class Refused(Exception):
    """What can never be written: trying again is of no use."""


@dataclass(frozen=True)
class Bounds:
    """Of the buffer, with what is being written; and when a batch is due: any of its bounds reached."""

    most_items: int
    most_bytes: int
    batch_items: int
    batch_bytes: int
    age_s: float


class Tally:
    """Counts what became of the records offered to one sink: offered = written + failed + dropped + held, always."""

    def __init__(self, sink: str) -> None:
        self._offered = metrics.SINK_OFFERED.labels(sink)
        outcomes: tuple[Settled, ...] = ("written", "failed", "dropped")
        self._settled = {outcome: metrics.SINK_RECORDS.labels(sink, outcome) for outcome in outcomes}
        self._up = metrics.SINK_UP.labels(sink)
        self._up.set(1)
        self.handed_over = 0

    def offer(self, count: int = 1) -> None:
        self._offered.inc(count)

    def settle(self, outcome: Settled, count: int) -> None:
        """``written``: where it belongs; ``failed``: can never be written; ``dropped``: no room, or no time at the end."""
        self._settled[outcome].inc(count)

    def hold(self, count: int) -> None:
        """How many records have been handed over and are not settled."""
        self.handed_over = count

    def up(self, is_up: bool) -> None:
        self._up.set(is_up)


class Batcher(Generic[T]):
    """Takes items from one thread and gives them to ``write`` in another, in order.

    ``write`` gets a list and returns when it is written. It raises Refused to have it dropped; after any other exception
    it gets the same list object again, later. With ``settles=False`` it takes the items over instead: it raises nothing, and
    tells ``tally`` how many it holds, what becomes of each, and whether it is up.
    """

    def __init__(self, name: str, write: Callable[[list[T]], None], bounds: Bounds, *, settles: bool = True) -> None:
        self.tally = Tally(name)
        self._name = name
        self._write = write
        self._bounds = bounds
        self._settles = settles
        self._items: deque[tuple[T, int, float]] = deque()  # with bytes, and when it came
        self._waiting_bytes = 0
        self._held = self._held_bytes = 0  # with the batch that is being written
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = self._ended = self._awaiting = False
        self._down = False
        metrics.SINK_HELD_RECORDS.labels(name).set_function(lambda: self._held + self.tally.handed_over)
        metrics.SINK_HELD_BYTES.labels(name).set_function(lambda: self._held_bytes)

    @property
    def held(self) -> int:
        """Items in the buffer, with those being written."""
        return self._held

    @property
    def held_bytes(self) -> int:
        """Their sizes as they were put."""
        return self._held_bytes

    def put(self, item: T, size: int) -> bool:
        """Take an item of about ``size`` bytes; False, and counted as dropped, when there is no room or it is too late."""
        bounds = self._bounds
        with self._change:
            self.tally.offer()
            room = self._held < bounds.most_items and self._held_bytes + size <= bounds.most_bytes
            if self._closing or not room:
                self.tally.settle("dropped", 1)
                return False
            self._items.append((item, size, time.monotonic()))
            self._waiting_bytes += size
            self._held += 1
            self._held_bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"sink-{self._name}", daemon=True)
                self._thread.start()
            elif self._awaiting and (len(self._items) == 1 or self._is_full()):
                self._change.notify()
        return True

    def close(self, timeout_s: float) -> int:
        """Write what is held, for at most ``timeout_s`` seconds; drop the rest and return its number."""
        with self._change:
            self._closing = True
            self._change.notify()
            thread = self._thread
        if thread:
            thread.join(timeout_s)
        with self._change:
            self._ended = True  # a write that comes back later changes no count
            left = self._held
            self.tally.settle("dropped", left)
            self._items.clear()
            self._held = self._held_bytes = self._waiting_bytes = 0
            self._change.notify()
        if left:
            log.warning("%s: %d records were dropped at the end", self._name, left)
        return left

    def _is_full(self) -> bool:
        """A batch is due by its size."""
        return len(self._items) >= self._bounds.batch_items or self._waiting_bytes >= self._bounds.batch_bytes

    def _run(self) -> None:
        while batch := self._next():
            items, size = [item for item, _ in batch], sum(size for _, size in batch)
            if self._settles:
                self._write_some_day(items, size)
            else:
                self._hand_over(items, size)
            del batch, items  # not held while the next is awaited

    def _next(self) -> list[tuple[T, int]]:
        """The next batch, when it is due; empty at the end."""
        with self._change:
            while not self._closing and not self._is_full():
                due_s = self._items[0][2] + self._bounds.age_s - time.monotonic() if self._items else None
                if due_s is not None and due_s <= 0:
                    break
                self._awaiting = True
                self._change.wait(due_s)
                self._awaiting = False
            batch: list[tuple[T, int]] = []
            size = 0
            while self._items and len(batch) < self._bounds.batch_items and (not batch or size < self._bounds.batch_bytes):
                item, each, _ = self._items.popleft()
                batch.append((item, each))
                size += each
            self._waiting_bytes -= size
            return batch

    def _hand_over(self, items: list[T], size: int) -> None:
        """From here on the items are ``write``'s."""
        with self._change:
            if self._ended:
                return
            self._held -= len(items)
            self._held_bytes -= size
        with metrics.SINK_WRITE_SECONDS.labels(self._name).time():
            self._write(items)

    def _write_some_day(self, items: list[T], size: int) -> None:
        pause = FIRST_PAUSE_S
        while not self._ended:
            try:
                with metrics.SINK_WRITE_SECONDS.labels(self._name).time():
                    self._write(items)
            except Refused as refused:
                log.error("%s: %d records can never be written: %s", self._name, len(items), refused)
                self._let_go("failed", len(items), size)
                return
            except Exception as error:  # whatever it is, it is no prediction's business
                self._note(error)
                self._rest(pause)
                pause = min(2 * pause, LAST_PAUSE_S)
            else:
                self._note(None)
                self._let_go("written", len(items), size)
                return

    def _rest(self, pause_s: float) -> None:
        """Wait before the next try; the end is no time for long pauses."""
        with self._change:
            was_closing = self._closing
            pause_s = FIRST_PAUSE_S if was_closing else pause_s
            self._change.wait_for(lambda: self._ended or self._closing != was_closing, pause_s)

    def _let_go(self, outcome: Settled, count: int, size: int) -> None:
        with self._change:
            if self._ended:
                return
            self._held -= count
            self._held_bytes -= size
            self.tally.settle(outcome, count)

    def _note(self, error: Exception | None) -> None:
        """One line when writing begins to fail, one when it works again."""
        if error and not self._down:
            log.warning("%s: cannot write, trying on: %s", self._name, first_line(error))
        elif self._down and not error:
            log.info("%s: writes again", self._name)
        self._down = error is not None
        self.tally.up(not self._down)


def first_line(error: Exception) -> str:
    """What is wrong, without a library's pages of details."""
    return (str(error).strip().splitlines() or [""])[0] or repr(error)
