"""The scheduler: which series and sample paths take part in the next step.

Pure Python, no torch, no clock of its own, no arrays: it knows lengths, priorities, deadlines, slots and
pages. One *series* is one forecast (or embedding) asked for; it becomes `sample_count` *paths* once its
history stands in the cache. A path that generates holds one *slot* of the decode batch.

A step is at most one *errand* (something that is costly and for one series alone) plus one decode of every
path in a slot. So a long history delays the others by one errand, never by a queue of them.

Two classes share the slots. An interactive path that finds none takes the slot of the bulk path that started
last; that path keeps its pages, waits, and goes on where it stopped. Hence bulk work delays interactive work
by at most one step.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, get_args

from app.pages import PAGE_SIZE, PagePool, pages_for

Priority = Literal["interactive", "bulk"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)


@dataclass(eq=False, slots=True)
class Series:
    """One piece of work: `horizon` candles for each of `sample_count` paths, or (horizon 0) an embedding."""

    lookback: int
    horizon: int
    sample_count: int
    priority: Priority
    deadline: float
    window: int = 0
    """Positions of history that the model sees: the last `max_context` candles at most."""
    shared: list[int] = field(default_factory=list)
    """Full pages of history, common to all paths."""
    partial: list[int] = field(default_factory=list)
    """The page (none or one) that the history fills in part; each path copies it."""
    paths: set[Path] = field(default_factory=set)
    """Paths that exist and have not finished."""
    num_finished: int = 0
    num_steps: int = 0
    """Steps that its paths have made; of `work`. Other threads may read it."""
    active: bool = True

    @property
    def work(self) -> int:
        """Units of work: sequences × steps. An embedding counts as one step."""
        return self.sample_count * max(self.horizon, 1)


@dataclass(eq=False, slots=True)
class Path:
    """One sample path. `position` is the index, in the series' window, of the token to feed next."""

    series: Series
    index: int
    position: int
    pages: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The position at which the path has all its candles."""
        return self.series.window - 1 + self.series.horizon


class Kind(Enum):
    EMBED = "embed"
    PREFILL = "prefill"
    ROLL = "roll"
    DETOKENISE = "detokenise"


@dataclass(eq=False, slots=True)
class Errand:
    """Work for one series alone; `path` is set for ROLL: one step of a path past the end of its context."""

    kind: Kind
    series: Series
    path: Path | None = None
    turn: int = 0


@dataclass(slots=True)
class Plan:
    """What to do in one step."""

    errand: Errand | None
    paths: list[Path]
    """Paths to decode one step further, all in one batch."""
    opened: list[Path]
    """Paths that got their slot and pages just now; their first own page starts as a copy of `series.partial`."""


class Scheduler:
    """Event-driven and single-threaded; its owner calls `plan`, does the work, then `settle`."""

    def __init__(self, *, num_slots: int, max_context: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}; at least 1 slot is needed")
        self.num_slots = num_slots
        self.max_context = max_context
        self.pool = PagePool(self.pages_needed(num_slots, max_context))
        self._turns = itertools.count()
        self._expiry = itertools.count()
        self._waiting: dict[Priority, deque[Errand]] = {p: deque() for p in PRIORITIES}
        self._errands: dict[Priority, deque[Errand]] = {p: deque() for p in PRIORITIES}
        self._ready: dict[Priority, deque[Path]] = {p: deque() for p in PRIORITIES}
        self._running: list[Path] = []
        self._deadlines: list[tuple[float, int, Series]] = []
        self._series: set[Series] = set()

    @staticmethod
    def pages_needed(num_slots: int, max_context: int) -> int:
        """Pages with which no allocation can fail: every slot a full context for interactive paths, as many
        for paused bulk paths, and in each class one series with history in place whose paths still wait."""
        return (2 * num_slots + len(PRIORITIES)) * (pages_for(max_context) + 1)

    # --- what the owner tells the scheduler ---------------------------------------------------------------

    def add(self, series: Series) -> None:
        """Queue a series."""
        series.window = min(series.lookback, self.max_context)
        self._series.add(series)
        heapq.heappush(self._deadlines, (series.deadline, next(self._expiry), series))
        kind = Kind.PREFILL if series.horizon else Kind.EMBED
        queue = self._waiting if series.horizon else self._errands
        queue[series.priority].append(Errand(kind, series, turn=next(self._turns)))

    def remove(self, series: Series) -> bool:
        """Drop a series, free all it holds; False if it was gone already."""
        if not series.active:
            return False
        series.active = False
        self._series.discard(series)
        self._running = [path for path in self._running if path.series is not series]
        queue = self._ready[series.priority]
        if any(path.series is series for path in queue):
            self._ready[series.priority] = deque(path for path in queue if path.series is not series)
        for path in series.paths:
            self.pool.release(path.pages)
        series.paths.clear()
        self._release_history(series)
        return True

    def expire(self, now: float) -> list[Series]:
        """Drop and return the series whose deadline has passed."""
        expired = []
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].active):
            series = heapq.heappop(self._deadlines)[2]
            if self.remove(series):
                expired.append(series)
        return expired

    # --- the step -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Choose the next step: fill the slots, then at most one errand."""
        opened = self._fill_slots()
        errand = self._next_errand()
        if errand and errand.kind is Kind.PREFILL:
            self._lay_out(errand.series)
        return Plan(errand, [path for path in self._running if path.position < self.max_context], opened)

    def settle(self, plan: Plan) -> list[Series]:
        """Book the step just done. Returns the series that are complete and no longer known here."""
        complete = []
        errand = plan.errand
        if errand and errand.series.active:
            if errand.kind is Kind.PREFILL:
                self._fork(errand.series)
            elif errand.kind is Kind.ROLL and errand.path:
                self._advance(errand.path)
            else:
                self.remove(errand.series)
                complete.append(errand.series)
        for path in plan.paths:
            if path.series.active:
                self._advance(path)
        return complete

    # --- reading ------------------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> bool:
        return not self._series

    @property
    def queued(self) -> bool:
        """Whether a series waits for its turn, or a path for a slot."""
        return any(self._waiting.values()) or any(self._ready.values())

    def num_waiting(self, priority: Priority) -> int:
        """Series of a class whose history is not in the cache yet. Safe to call from any thread."""
        return sum(1 for errand in self._waiting[priority].copy() if errand.series.active)

    def audit(self) -> None:
        """Check the pools: free + held = total; every slot, queue and page belongs to an active series.
        Raises RuntimeError naming what is wrong."""
        self.pool.audit()
        if len(self._running) > self.num_slots:
            raise RuntimeError(f"{len(self._running)} paths run in {self.num_slots} slots")
        holders = [path.pages for series in self._series for path in series.paths]
        holders += [series.shared + series.partial for series in self._series]
        held = len({page for pages in holders for page in pages})
        if held + self.pool.num_free != self.pool.num_pages:
            raise RuntimeError(f"{self.pool.num_pages - self.pool.num_free} pages held, {held} of them by active series")
        if self.idle and (self._running or any(self._ready.values())):
            raise RuntimeError("no series is active, yet paths are")

    # --- inside -------------------------------------------------------------------------------------------

    def _fill_slots(self) -> list[Path]:
        opened = []
        for priority in PRIORITIES:
            ready = self._ready[priority]
            while ready and (len(self._running) < self.num_slots or self._pause_bulk(priority)):
                path = ready.popleft()
                self._running.append(path)
                if not path.pages:
                    self._open(path)
                    opened.append(path)
                elif path.position >= self.max_context:
                    self._add_errand(Errand(Kind.ROLL, path.series, path))
        return opened

    def _open(self, path: Path) -> None:
        """Give a path all the pages it will ever need, the history's full pages among them."""
        shared = path.series.shared
        self.pool.share(shared)
        num_own = pages_for(min(path.end, self.max_context)) - len(shared)
        path.pages = shared + self.pool.allocate(num_own)

    def _pause_bulk(self, priority: Priority) -> bool:
        """Free one slot for an interactive path, with the errand that waits for its holder; False if there is
        none to free."""
        if priority != "interactive":
            return False
        for path in reversed(self._running):
            if path.series.priority == "bulk":
                self._running.remove(path)
                self._ready["bulk"].appendleft(path)
                self._errands["bulk"] = deque(e for e in self._errands["bulk"] if e.path is not path)
                return True
        return False

    def _next_errand(self) -> Errand | None:
        for priority in PRIORITIES:
            waiting, errands = self._waiting[priority], self._errands[priority]
            for queue in (waiting, errands):
                while queue and not queue[0].series.active:
                    queue.popleft()
            first_of = [errands] if errands else []
            if waiting and self._may_start(priority):
                first_of.append(waiting)
            if first_of:
                return min(first_of, key=lambda queue: queue[0].turn).popleft()
        return None

    def _may_start(self, priority: Priority) -> bool:
        """A series starts when no earlier path of its class waits and its first path will find a slot."""
        if self._ready[priority]:
            return False
        if len(self._running) < self.num_slots:
            return True
        return priority == "interactive" and any(path.series.priority == "bulk" for path in self._running)

    def _lay_out(self, series: Series) -> None:
        """Give a series pages for all of its history but the last token, which its paths feed themselves."""
        num_full, num_over = divmod(series.window - 1, PAGE_SIZE)
        series.shared = self.pool.allocate(num_full)
        series.partial = self.pool.allocate(1 if num_over else 0)

    def _fork(self, series: Series) -> None:
        """Make the paths, each holding the shared pages; their own pages come when they first get a slot."""
        for index in range(series.sample_count):
            path = Path(series, index, series.window - 1)
            series.paths.add(path)
            self._ready[series.priority].append(path)

    def _advance(self, path: Path) -> None:
        path.position += 1
        path.series.num_steps += 1
        if path.position == path.end:
            self._finish(path)
        elif path.position >= self.max_context:
            self._add_errand(Errand(Kind.ROLL, path.series, path))

    def _finish(self, path: Path) -> None:
        series = path.series
        self._running.remove(path)
        self.pool.release(path.pages)
        series.paths.discard(path)
        series.num_finished += 1
        if series.num_finished == series.sample_count:
            self._release_history(series)
            self._add_errand(Errand(Kind.DETOKENISE, series))

    def _add_errand(self, errand: Errand) -> None:
        errand.turn = next(self._turns)
        self._errands[errand.series.priority].append(errand)

    def _release_history(self, series: Series) -> None:
        self.pool.release(series.shared + series.partial)
        series.shared, series.partial = [], []
