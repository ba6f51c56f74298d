"""The scheduler told event histories: what it plans, whom it prefers, and that it loses nothing.

`World` does with each plan what the engine would do, on a cache that remembers who wrote each position.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.pages import PAGE_SIZE
from app.scheduler import PRIORITIES, Errand, Kind, Path, Plan, Priority, Scheduler, Series

FOREVER = 1e9
MAX_CONTEXT = 3 * PAGE_SIZE
Writer = tuple[Series, int | None, int]
"""Who wrote a position of the cache: series, path (None: the history) and position."""


class World:
    """A scheduler, a clock that stands until told, and a cache that records writers."""

    def __init__(self, num_slots: int = 2, max_context: int = MAX_CONTEXT) -> None:
        self.scheduler = Scheduler(num_slots=num_slots, max_context=max_context)
        self.now = 0.0
        self.cache: dict[tuple[int, int], Writer] = {}
        self.candles: dict[Path, int] = {}
        self.plans: list[Plan] = []
        self.prefilled: list[Series] = []
        self.opened: list[Path] = []
        self.done: list[Series] = []

    def add(
        self, lookback: int = 10, horizon: int = 3, count: int = 1, priority: Priority = "interactive",
        deadline: float = FOREVER,
    ) -> Series:  # fmt: skip
        series = Series(lookback, horizon, count, priority, deadline)
        self.scheduler.add(series)
        return series

    def step(self) -> Plan:
        """One step of the engine, with every promise of a plan checked on the way."""
        plan = self.scheduler.plan()
        self.check(plan)
        for path in plan.opened:
            self.open(path)
        if plan.errand:
            self.run(plan.errand)
        for path in plan.paths:
            self.decode(path)
        complete = self.scheduler.settle(plan)
        for series in complete:
            assert not series.active
        self.done += complete
        self.plans.append(plan)
        self.scheduler.audit()
        return plan

    def finish(self) -> None:
        """Step until nothing is left; idle steps would be a deadlock."""
        while not self.scheduler.idle:
            self.step()

    def check(self, plan: Plan) -> None:
        assert plan.errand or plan.paths or self.scheduler.idle, "work is waiting, yet the step is empty"
        assert len(plan.paths) <= self.scheduler.num_slots
        assert len(set(plan.paths)) == len(plan.paths)
        acting = [path.series for path in plan.paths + plan.opened]
        assert all(series.active for series in acting + ([plan.errand.series] if plan.errand else []))
        if any(path.series.priority == "bulk" for path in plan.paths):
            waiting = {path for path in self.unfinished("interactive") if path not in plan.paths}
            assert all(path.position >= self.scheduler.max_context for path in waiting), "bulk delays interactive"
        begun = {*self.opened, *plan.opened}
        for priority in PRIORITIES:
            in_progress = [path for path in self.unfinished(priority) if path in begun]
            assert len(in_progress) <= self.scheduler.num_slots, "a path was begun before a paused one went on"
        for series in self.prefilled:
            assert not series.paths or series in {path.series for path in begun}, "a history waits in the cache"

    def unfinished(self, priority: Priority) -> list[Path]:
        return [path for s in self.prefilled if s.active and s.priority == priority for path in s.paths]

    def run(self, errand: Errand) -> None:
        series = errand.series
        if errand.kind is Kind.PREFILL:
            self.prefilled.append(series)
            for position in range(series.window - 1):
                self.write(series.shared + series.partial, (series, None, position))
        elif errand.kind is Kind.ROLL:
            path = errand.path
            assert path
            assert path.position >= self.scheduler.max_context
            assert path in self.scheduler._running, "a path without a slot goes on"
            assert path.position == series.window - 1 + self.candles[path], "a path lost or repeated a step"
            self.candles[path] += 1
        elif errand.kind is Kind.DETOKENISE:
            assert [self.candles[path] for path in self.paths_of(series)] == [series.horizon] * series.sample_count

    def open(self, path: Path) -> None:
        series = path.series
        assert path not in self.opened, "a path was opened twice"
        self.opened.append(path)
        self.candles[path] = 0
        own = path.pages[len(series.shared) :]
        assert path.pages[: len(series.shared)] == series.shared
        for source, target in zip(series.partial, own, strict=False):
            for slot in range(PAGE_SIZE):
                if (source, slot) in self.cache:
                    self.cache[target, slot] = self.cache[source, slot]

    def decode(self, path: Path) -> None:
        """Read every position before the path's own, then write that."""
        series = path.series
        assert path.position == series.window - 1 + self.candles[path], "a path lost or repeated a step"
        for position in range(path.position):
            page, slot = path.pages[position // PAGE_SIZE], position % PAGE_SIZE
            writer = None if position < series.window - 1 else path.index
            assert self.cache[page, slot] == (series, writer, position), "a cached position was overwritten"
        self.write(path.pages, (series, path.index, path.position))
        self.candles[path] += 1

    def write(self, pages: list[int], writer: Writer) -> None:
        position = writer[2]
        self.cache[pages[position // PAGE_SIZE], position % PAGE_SIZE] = writer

    def paths_of(self, series: Series) -> list[Path]:
        return [path for path in self.opened if path.series is series]

    def errands(self, kind: Kind) -> list[Series]:
        return [plan.errand.series for plan in self.plans if plan.errand and plan.errand.kind is kind]


def test_scheduler_and_pages_import_no_torch() -> None:
    """The scheduler is pure Python: importing it loads neither torch nor numpy."""
    script = "import sys, app.scheduler, app.pages; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_scheduler_needs_a_slot() -> None:
    """Without slots nothing could ever run: refused at once."""
    with pytest.raises(ValueError, match="num_slots is 0"):
        Scheduler(num_slots=0, max_context=MAX_CONTEXT)


def test_one_series_from_queue_to_answer() -> None:
    """Prefill, then a candle a step, then detokenise; and everything is free again."""
    world = World()
    series = world.add(lookback=10, horizon=3)
    world.finish()
    kinds = [plan.errand.kind if plan.errand else None for plan in world.plans]
    assert kinds == [Kind.PREFILL, None, None, None, Kind.DETOKENISE]
    assert [len(plan.paths) for plan in world.plans] == [0, 1, 1, 1, 0]
    assert world.done == [series]
    assert world.scheduler.pool.num_free == world.scheduler.pool.num_pages


def test_an_embedding_is_one_errand() -> None:
    """A series without a horizon takes one step, no slot and no page."""
    world = World()
    series = world.add(horizon=0)
    plan = world.step()
    assert plan.errand
    assert plan.errand.kind is Kind.EMBED
    assert world.done == [series]
    assert world.scheduler.idle


def test_one_errand_a_step() -> None:
    """However many series arrive at once, a step holds one prefill, and those in flight go on meanwhile."""
    world = World(num_slots=4)
    world.add(horizon=20)
    world.step()
    for _ in range(3):
        world.add(horizon=20)
    for started in (1, 2, 3):
        assert len(world.step().paths) == started
    assert len(world.errands(Kind.PREFILL)) == 4


@pytest.mark.parametrize("priority", PRIORITIES)
def test_first_come_first_served_within_a_class(priority: Priority) -> None:
    """Series of a class start, open their paths and (alike in length) end in the order they came."""
    world = World(num_slots=2)
    wanted = [world.add(count=count, priority=priority) for count in (1, 3, 1, 2, 1)]
    world.finish()
    assert world.errands(Kind.PREFILL) == wanted
    assert [path.series for path in world.opened] == [s for s in wanted for _ in range(s.sample_count)]
    assert world.done == wanted


def test_more_paths_than_slots() -> None:
    """Paths that find no slot wait for one; the answer comes when the last has its candles."""
    world = World(num_slots=2)
    series = world.add(horizon=4, count=5)
    world.finish()
    assert [path.index for path in world.opened] == [0, 1, 2, 3, 4]
    assert {len(plan.paths) for plan in world.plans} == {0, 1, 2}
    assert world.done == [series]


@pytest.mark.parametrize("lookback", [1, 2, 31, 32, 33, 64, 65, 96, 97])
def test_paths_share_no_page_that_they_write(lookback: int) -> None:
    """However the history ends within a page, no path's candles overwrite another's; `World.decode` looks."""
    world = World(num_slots=3)
    series = world.add(lookback=lookback, horizon=30, count=5)
    world.finish()
    assert world.done == [series]


def test_pages_suffice_for_the_most_that_can_be_held() -> None:
    """Every slot interactive, as many bulk paths paused, each with a full context of its own: pages suffice."""
    world = World(num_slots=4)
    for priority in reversed(PRIORITIES):
        for _ in range(4):
            world.add(lookback=MAX_CONTEXT - 20, horizon=21, priority=priority)
        for _ in range(5):
            world.step()
    assert [path.series.priority for path in world.plans[-1].paths] == ["interactive"] * 4
    assert len(world.unfinished("bulk")) == 4
    world.finish()


def test_slots_are_taken_up_as_they_fall_free() -> None:
    """Continuous batching: a path that ends is replaced at the very next step."""
    world = World(num_slots=2)
    world.add(horizon=2, count=2)
    world.add(horizon=6, count=2)
    world.finish()
    full = [len(plan.paths) == 2 for plan in world.plans]
    assert full == [False, True, True, False, True, True, True, True, True, True, False]


def test_interactive_takes_slots_from_bulk_within_a_step() -> None:
    """With every slot bulk's, an interactive series is prefilled at once and decoded in the next step."""
    world = World(num_slots=2)
    bulk = world.add(horizon=30, count=2, priority="bulk")
    for _ in range(5):
        world.step()
    urgent = world.add(horizon=3, count=2)
    first = world.step()
    assert first.errand
    assert first.errand.series is urgent
    assert {path.series for path in first.paths} == {bulk}
    assert {path.series for path in world.step().paths} == {urgent}


def test_bulk_goes_on_where_it_stopped() -> None:
    """Paused bulk paths keep pages and position; `World.decode` would notice a lost or repeated step."""
    world = World(num_slots=2)
    bulk = world.add(lookback=40, horizon=30, count=2, priority="bulk")
    for _ in range(6):
        world.step()
    paused = {path: (path.position, list(path.pages)) for path in bulk.paths}
    world.add(horizon=4, count=2)
    world.step()
    while bulk not in {path.series for path in world.step().paths} or world.errands(Kind.DETOKENISE) == []:
        pass
    resumed = world.plans[-1].paths
    assert set(resumed) == set(paused)
    # one step was made while the interactive history was prefilled, one after the pause
    assert all(path.position == paused[path][0] + 2 for path in resumed)
    assert all(path.pages == paused[path][1] for path in resumed)
    world.finish()
    assert bulk in world.done


def test_paused_bulk_goes_on_before_other_bulk_begins() -> None:
    """A path that lost its slot stands before those that never had one."""
    world = World(num_slots=2)
    world.add(horizon=20, count=4, priority="bulk")
    for _ in range(4):
        world.step()
    world.add(horizon=2)
    world.finish()
    assert [len(plan.opened) for plan in world.plans if plan.opened] == [2, 1, 1, 1]
    assert [path.index for path in world.opened if path.series.priority == "bulk"] == [0, 1, 2, 3]


def test_only_as_much_bulk_is_paused_as_needed() -> None:
    """One interactive path takes one slot, that of the bulk path that started last."""
    world = World(num_slots=3)
    bulk = world.add(horizon=30, count=3, priority="bulk")
    world.step()
    world.step()
    urgent = world.add(horizon=2)
    world.step()
    paths = world.step().paths
    assert [(path.series, path.index) for path in paths] == [(bulk, 0), (bulk, 1), (urgent, 0)]


@pytest.mark.parametrize("rolls", [1, 2, 3])
def test_a_paused_path_that_rolls_waits_and_finishes(rolls: int) -> None:
    """A bulk path past its context makes no step while its slot is taken, then goes on to its end."""
    world = World(num_slots=1)
    bulk = world.add(lookback=MAX_CONTEXT, horizon=5, priority="bulk")
    while len(world.errands(Kind.ROLL)) < rolls:
        world.step()
    urgent = world.add(lookback=10, horizon=30)
    world.finish()
    assert world.done == [urgent, bulk]
    assert len(world.errands(Kind.ROLL)) == 4
    assert world.scheduler.pool.num_free == world.scheduler.pool.num_pages


def test_errands_go_by_turn() -> None:
    """Paths past their context do not keep a newcomer from its prefill, nor it them from their turn."""
    world = World(num_slots=4)
    world.add(lookback=MAX_CONTEXT, horizon=20, count=2)
    for _ in range(6):
        world.step()
    newcomer = world.add()
    kinds = []
    while newcomer not in world.done:
        errand = world.step().errand
        kinds.append(errand.kind if errand else None)
    assert kinds[:3] == [Kind.ROLL, Kind.ROLL, Kind.PREFILL]
    assert set(kinds[3:]) == {Kind.ROLL, Kind.DETOKENISE}


def test_paths_past_the_context_roll_one_a_step() -> None:
    """The first candle of a full context is decoded, each later one is an errand of its own."""
    world = World(num_slots=2)
    series = world.add(lookback=MAX_CONTEXT + 50, horizon=5, count=2)
    world.finish()
    assert series.window == MAX_CONTEXT
    assert len(world.errands(Kind.ROLL)) == 2 * 4
    assert sum(len(plan.paths) for plan in world.plans) == 2


def test_the_last_position_of_the_context_does_not_roll() -> None:
    """A series that just fits is decoded to its end; one candle more is one roll."""
    for excess in (0, 1):
        world = World()
        world.add(lookback=50, horizon=MAX_CONTEXT - 49 + excess)
        world.finish()
        assert len(world.errands(Kind.ROLL)) == excess


def _queued(world: World) -> Series:
    world.add(count=2, horizon=50)
    world.step()
    world.step()
    return world.add()


def _prefilled(world: World) -> Series:
    series = world.add(lookback=40, count=3)
    world.step()
    return series


def _decoding(world: World) -> Series:
    series = _prefilled(world)
    world.step()
    return series


def _paused(world: World) -> Series:
    series = world.add(lookback=40, horizon=20, count=3, priority="bulk")
    world.step()
    world.step()
    world.add(horizon=10, count=2)
    world.step()
    world.step()
    return series


def _rolling(world: World) -> Series:
    series = world.add(lookback=MAX_CONTEXT, horizon=5, count=2)
    for _ in range(3):
        world.step()
    return series


def _to_detokenise(world: World) -> Series:
    series = world.add(horizon=2)
    for _ in range(3):
        world.step()
    return series


def _embedding(world: World) -> Series:
    return world.add(horizon=0)


STATES = (_queued, _prefilled, _decoding, _paused, _rolling, _to_detokenise, _embedding)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", ["remove", "expire"])
def test_leaving_in_every_state_frees_everything(state: Callable[[World], Series], way: str) -> None:
    """Cancelled or overdue, a series is in no later plan, its pages are free, and the others end well."""
    world = World()
    series = state(world)
    others = world.scheduler._series - {series}
    if way == "remove":
        assert world.scheduler.remove(series)
    else:
        series.deadline = world.now = 5.0
        world.scheduler._deadlines = [(5.0, 0, series)]
        assert world.scheduler.expire(world.now) == [series]
    world.scheduler.audit()
    assert not world.scheduler.remove(series)
    if not others:
        assert world.scheduler.pool.num_free == world.scheduler.pool.num_pages
        assert world.scheduler.num_running == 0
    seen = len(world.plans)
    world.finish()
    acted = [path.series for plan in world.plans[seen:] for path in plan.paths]
    acted += [plan.errand.series for plan in world.plans[seen:] if plan.errand]
    assert series not in acted
    assert set(world.done) == others


def test_only_the_overdue_expire() -> None:
    """At its deadline a series is dropped; not before, and no other; one that is done is not reported."""
    world = World()
    early, late = world.add(deadline=10.0), world.add(deadline=20.0)
    done = world.add(horizon=0, deadline=15.0)
    assert world.scheduler.expire(9.99) == []
    assert world.scheduler.expire(10.0) == [early]
    while done not in world.done:
        world.step()
    assert world.scheduler.expire(30.0) == [late]
    assert world.scheduler.idle


@pytest.mark.parametrize(("steps", "horizon"), [(0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 2)])
def test_a_series_removed_during_its_step_is_not_settled(steps: int, horizon: int) -> None:
    """What fails while its prefill, decode, roll or detokenising is computed leaves no trace in the books."""
    world = World()
    series = world.add(lookback=MAX_CONTEXT, horizon=horizon)
    for _ in range(steps):
        world.step()
    plan = world.scheduler.plan()
    world.scheduler.remove(series)
    assert world.scheduler.settle(plan) == []
    world.scheduler.audit()
    assert world.scheduler.idle


def test_the_queue_is_counted_by_class() -> None:
    """Waiting are the active series without a history in the cache."""
    world = World(num_slots=1)
    interactive = [world.add() for _ in range(3)]
    world.add(priority="bulk")
    world.scheduler.remove(interactive[1])
    assert [world.scheduler.num_waiting(priority) for priority in PRIORITIES] == [2, 1]
    world.step()
    assert [world.scheduler.num_waiting(priority) for priority in PRIORITIES] == [1, 1]


def test_the_queue_is_read_while_it_changes() -> None:
    """A scrape from another thread counts the queue in the midst of steps and gets a number, never an error."""
    world = World()
    for _ in range(500):
        world.add(horizon=1)
    over = threading.Event()

    def scrape() -> list[int]:
        counts = []
        while not over.is_set():
            counts.append(world.scheduler.num_waiting("interactive"))
        return counts

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            counts = pool.submit(scrape)
            while not world.scheduler.idle:
                world.scheduler.settle(world.scheduler.plan())
            over.set()
            assert counts.result() == sorted(counts.result(), reverse=True)
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("damage", ["leak", "slot", "queue"])
def test_the_audit_finds_what_is_lost(damage: str) -> None:
    """A page held by nobody, a slot too many, a path without a series: each is reported."""
    world = World()
    world.add()
    world.step()
    world.step()
    scheduler = world.scheduler
    match damage:
        case "leak":
            scheduler.pool.allocate(1)
        case "slot":
            scheduler._running *= 3
        case "queue":
            scheduler._series.clear()
            scheduler.pool = type(scheduler.pool)(scheduler.pool.num_pages)
    with pytest.raises(RuntimeError, match="active" if damage != "slot" else "3 paths run in 2 slots"):
        scheduler.audit()


def test_work_is_paths_times_steps() -> None:
    """The unit of admission: one step of one path; an embedding counts as one."""
    assert Series(10, 7, 3, "bulk", FOREVER).work == 21
    assert Series(10, 0, 1, "bulk", FOREVER).work == 1


class SchedulerMachine(RuleBasedStateMachine):
    """Any history of arrivals, departures, deadlines and steps: no promise of `World` is broken, pages never
    run out, and whatever is not dropped finishes."""

    @initialize(num_slots=st.integers(1, 5), pages=st.integers(1, 3), over=st.integers(-3, 3))
    def start(self, num_slots: int, pages: int, over: int) -> None:
        self.world = World(num_slots, pages * PAGE_SIZE + over)
        self.live: list[Series] = []
        self.added: dict[Priority, list[Series]] = {priority: [] for priority in PRIORITIES}
        self.dropped: set[Series] = set()

    @rule(
        lookback=st.sampled_from([1, 31, 32, 33, 64, 65]) | st.integers(1, MAX_CONTEXT + 40),
        horizon=st.integers(0, 40), count=st.integers(1, 7),
        priority=st.sampled_from(PRIORITIES), patience=st.sampled_from([0.0, 5.0, 60.0, FOREVER, FOREVER]),
    )  # fmt: skip
    def add(self, lookback: int, horizon: int, count: int, priority: Priority, patience: float) -> None:
        series = self.world.add(lookback, horizon, count if horizon else 1, priority, deadline=self.world.now + patience)
        self.live.append(series)
        self.added[priority].append(series)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        series = data.draw(st.sampled_from(self.live))
        assert self.world.scheduler.remove(series)
        self.drop([series])

    @rule(seconds=st.sampled_from([0.0, 1.0, 30.0]))
    def expire(self, seconds: float) -> None:
        self.world.now += seconds
        overdue = {series for series in self.live if series.deadline <= self.world.now}
        expired = self.world.scheduler.expire(self.world.now)
        assert set(expired) == overdue
        self.drop(expired)

    @rule(steps=st.integers(1, 30))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()
            self.live = [series for series in self.live if series.active]

    @invariant()
    def sound(self) -> None:
        self.world.scheduler.audit()
        assert self.world.scheduler.idle == (not self.live)

    def drop(self, series: list[Series]) -> None:
        self.dropped.update(series)
        self.live = [other for other in self.live if other not in self.dropped]

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        bound = sum(2 + series.sample_count * series.horizon for series in self.live)
        before = len(world.plans)
        world.finish()
        assert len(world.plans) - before <= bound, "a step made no progress"
        everything = set(self.added["interactive"] + self.added["bulk"])
        assert set(world.done) == everything - self.dropped
        assert len(world.done) == len(set(world.done))
        assert world.scheduler.pool.num_free == world.scheduler.pool.num_pages
        assert world.scheduler.num_running == 0
        for added in self.added.values():
            started = [series for series in world.prefilled if series in added]
            assert started == sorted(started, key=added.index), "not first come, first served"


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
