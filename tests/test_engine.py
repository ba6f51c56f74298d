"""The engine with a model known by heart: results by hand, and how work ends early, late or not at all."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from app import metrics
from app.admission import Limits
from app.engine import Engine
from app.errors import Cancelled, DeadlinePassed, Draining, EngineFailed, NotReady, Overloaded
from app.permit import Permit, Ticket
from app.scheduler import PRIORITIES, Priority
from app.work import Embed, Float32, Forecast, Outcome
from tests.fakes import FakeRunner

PATIENCE_S = 20.0
AMPLE = Limits(max_requests=10_000, max_work=10_000_000, bulk_share=1.0)


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Stops the engine thread inside the model until it is let on."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)
        self._opened = False

    def __call__(self, _: object) -> None:
        if not self._opened:
            self._arrived.release()
            assert self._passes.acquire(timeout=PATIENCE_S), "nobody let the engine on"

    def wait(self) -> None:
        """Until the engine stands in the gate."""
        assert self._arrived.acquire(timeout=PATIENCE_S), "the engine never came to the gate"

    def step(self) -> None:
        """Let the engine on and wait until it stands here again: one whole step."""
        self._passes.release()
        self.wait()

    def open(self) -> None:
        """Let the engine run from now on."""
        self._opened = True
        self._passes.release()


@contextmanager
def serving(
    runner: FakeRunner | None = None, *, limits: Limits = AMPLE, clock: Callable[[], float] = time.monotonic
) -> Iterator[Engine]:
    """A ready engine whose runner has seen nothing yet. At the end it is stopped, and its pools must be sound."""
    runner = runner or FakeRunner()
    hooks = runner.on_step, runner.on_errand
    runner.on_step = runner.on_errand = None  # not for the warm-up
    engine = Engine(runner, limits=limits, clock=clock)
    engine.start()
    engine.prewarm()
    runner.on_step, runner.on_errand = hooks
    runner.batches.clear()
    runner.errands.clear()
    try:
        yield engine
    finally:
        for hook in (runner.on_step, runner.on_errand):
            if isinstance(hook, Gate):
                hook.open()
        engine.stop()
    engine._scheduler.audit()


def forecast(lookback: int = 10, horizon: int = 4, sample_count: int = 1, seed: int = 0, level: float = 100.0) -> Forecast:
    """A history that rises to `level`, with stamps whose minutes count round from 0: a result shows what was seen."""
    stamps = np.zeros((lookback + horizon, 5), np.int16)
    stamps[:, 0] = np.arange(lookback + horizon) % 60
    history = np.repeat(np.arange(level - lookback + 1, level + 1, dtype=np.float32)[:, None], 6, axis=1)
    return Forecast(history, stamps[:lookback], stamps[lookback:], sample_count=sample_count, seed=seed)


def by_hand(work: Forecast) -> Float32:
    """What FakeRunner's arithmetic makes of a forecast."""
    horizon, minutes = len(work.future_stamps), np.concatenate((work.history_stamps, work.future_stamps))[:, 0]
    paths = np.empty((work.sample_count, horizon, 6), np.float32)
    for index in range(work.sample_count):
        noise = (FakeRunner().draws(work.seed, index, horizon)[:, 0] * 10).astype(int)
        paths[index] = (np.rint(work.history[-1, 0]) + (1 + noise).cumsum())[:, None]
        # the stamp of the candle itself is not seen yet: that of the one before
        paths[index, :, 4] = minutes[len(work.history) - 1 :][:horizon]
    return paths


def submit(engine: Engine, work: Forecast | Embed, *, priority: Priority = "interactive", deadline: float = 1e12) -> Ticket:
    with engine.reserve(priority) as permit:
        return permit.submit(work, deadline)


def result(ticket: Ticket) -> Outcome:
    return ticket.future.result(PATIENCE_S)


def paths(ticket: Ticket) -> Float32:
    made = result(ticket).paths
    assert made is not None
    return made


def until(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def sample(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def all_free(engine: Engine) -> bool:
    stats = engine.stats()
    return (stats.slots_busy, stats.queued_work, stats.pages_free) == (0, 0, stats.pages_total)


# --- results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookback", [1, 2, 31, 32, 33, 64, 65, 200])
def test_a_forecast_is_what_the_model_says(lookback: int) -> None:
    """Tokens, stamps and draws reach the model in their places, for any alignment of history and pages."""
    work = forecast(lookback, horizon=5, sample_count=3, seed=7)
    with serving() as engine:
        ticket = submit(engine, work)
        np.testing.assert_array_equal(paths(ticket), by_hand(work))
        assert result(ticket).embedding is None
        assert not result(ticket).rolled


def test_an_embedding_is_what_the_model_says() -> None:
    """An embedding comes back as a vector, without paths."""
    history = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    with serving() as engine:
        outcome = result(submit(engine, Embed(history, np.zeros((20, 5), np.int16))))
    assert outcome.paths is None
    assert outcome.embedding is not None
    np.testing.assert_array_equal(outcome.embedding, history.mean(0))


@pytest.mark.parametrize(("lookback", "horizon", "rolled"), [(30, 3, False), (30, 4, True), (32, 1, False), (90, 8, True)])
def test_a_window_past_the_context_rolls_and_says_so(lookback: int, horizon: int, rolled: bool) -> None:
    """The last `max_context` candles are the window; steps beyond it are rolled, and counted candle by candle."""
    runner = FakeRunner(max_context=32)
    work = forecast(lookback, horizon, sample_count=2)
    with serving(runner) as engine:
        ticket = submit(engine, work)
        np.testing.assert_array_equal(paths(ticket), by_hand(work))
        assert result(ticket).rolled == rolled
    assert runner.errands.count("roll") == 2 * max(0, min(lookback, 32) - 1 + horizon - 32)


def test_a_ragged_mix_gives_each_its_own() -> None:
    """Sixty forecasts of every length, horizon, count and class in flight at once: each as if alone."""
    rng = np.random.default_rng(1)
    works = [
        forecast(int(rng.integers(1, 150)), int(rng.integers(1, 60)), int(rng.integers(1, 6)), seed=n, level=n) for n in range(60)
    ]
    runner = FakeRunner(max_context=128)
    with serving(runner) as engine:
        tickets = [submit(engine, work, priority=PRIORITIES[n % 2]) for n, work in enumerate(works)]
        for work, ticket in zip(works, tickets, strict=True):
            np.testing.assert_array_equal(paths(ticket), by_hand(work))
        assert until(lambda: all_free(engine))
    assert max(runner.batches) == runner.num_slots


def test_submitters_in_many_threads() -> None:
    """Eight threads submit at once; nobody gets another's answer."""
    wrong: list[int] = []

    def client(number: int) -> None:
        for turn in range(25):
            work = forecast(5 + number, 1 + turn % 5, seed=turn, level=1000.0 * number + turn)
            if not np.array_equal(paths(submit(engine, work)), by_hand(work)):
                wrong.append(number)

    with serving() as engine:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert until(lambda: all_free(engine))
    assert not wrong


def test_history_is_prefilled_once_for_all_paths() -> None:
    """`sample_count` paths share one encode and one prefill."""
    runner = FakeRunner()
    with serving(runner) as engine:
        result(submit(engine, forecast(sample_count=4)))
    assert runner.errands.count("prefill") == 1
    assert runner.batches == [4, 4, 4, 4]


def test_stages_add_up_to_the_whole_time() -> None:
    """Each second between submission and answer is booked on exactly one stage."""
    clock = Clock()

    def pass_time(_: object) -> None:
        clock.now += 1.0

    runner = FakeRunner(on_step=pass_time, on_errand=pass_time)
    with serving(runner, clock=clock) as engine:
        began = clock.now
        outcome = result(submit(engine, forecast(lookback=40, horizon=4)))
        assert outcome.stages == {"queue": 0, "encode": 0, "prefill": 1, "decode": 5, "detokenise": 1}
        assert sum(outcome.stages.values()) == clock.now - began
        outcome = result(submit(engine, Embed(np.zeros((3, 6), np.float32), np.zeros((3, 5), np.int16))))
        assert outcome.stages == {"queue": 0, "prefill": 1}


# --- permits ------------------------------------------------------------------------------------------------


def test_nobody_is_served_before_the_engine_is_ready() -> None:
    """Until prewarm is through, reserving raises NotReady."""
    engine = Engine(FakeRunner())
    with pytest.raises(NotReady):
        engine.reserve()
    engine.start()
    with pytest.raises(NotReady):
        engine.reserve()
    assert not engine.health().ready
    engine.prewarm()
    assert engine.health().ready
    engine.reserve().release()
    engine.stop()


@pytest.mark.parametrize("max_context", [2, 3, 512])
def test_prewarm_predicts_short_and_full_length(max_context: int) -> None:
    """The warm-up runs every kind of step, up to the longest history."""
    runner = FakeRunner(max_context=max_context)
    engine = Engine(runner)
    engine.start()
    engine.prewarm()
    engine.stop()
    assert runner.errands.count("detokenise") == 3
    assert max(runner.batches) == 2


def test_a_failing_prewarm_is_raised_and_nothing_is_served() -> None:
    """A model that cannot predict makes no ready engine."""

    def fail(_: str) -> None:
        raise RuntimeError("bad weights")

    engine = Engine(FakeRunner(on_errand=fail))
    engine.start()
    with pytest.raises(EngineFailed, match="bad weights"):
        engine.prewarm()
    assert not engine.health().ready
    engine.stop()


def test_one_permit_serves_a_batch() -> None:
    """A batch request reserves once and submits each of its items."""
    works = [forecast(seed=n, level=n) for n in range(10)]
    with serving(limits=Limits(max_requests=1)) as engine:
        with engine.reserve() as permit:
            tickets = [permit.submit(work, deadline=1e12) for work in works]
            with pytest.raises(Overloaded):
                engine.reserve()
            for work, ticket in zip(works, tickets, strict=True):
                np.testing.assert_array_equal(paths(ticket), by_hand(work))
        engine.reserve().release()


def test_a_permit_is_given_back_once() -> None:
    """Releasing twice frees one place, not two; a released permit submits nothing."""
    with serving(limits=Limits(max_requests=2)) as engine:
        first, second = engine.reserve(), engine.reserve()
        first.release()
        first.release()
        third = engine.reserve()
        with pytest.raises(Overloaded):
            engine.reserve()
        with pytest.raises(RuntimeError, match="released already"):
            first.submit(forecast(), deadline=1e12)
        second.release()
        third.release()


def test_work_refused_leaves_the_queue_as_it_was() -> None:
    """Overloaded at submission: no work is counted, and the permit still submits what fits."""
    gate = Gate()
    with serving(FakeRunner(on_step=gate), limits=Limits(max_work=20)) as engine, engine.reserve() as permit:
        running = permit.submit(forecast(horizon=10), deadline=1e12)
        gate.wait()
        with pytest.raises(Overloaded):
            permit.submit(forecast(horizon=11), deadline=1e12)
        fits = permit.submit(forecast(horizon=10), deadline=1e12)
        assert engine.stats().queued_work == 20
        gate.open()
        result(running)
        result(fits)


# --- deadlines ----------------------------------------------------------------------------------------------


def test_an_overdue_forecast_is_gone_at_the_next_step() -> None:
    """At its deadline work fails with DeadlinePassed and leaves the batch; its neighbour goes on undisturbed."""
    clock, gate = Clock(), Gate()
    runner, neighbour = FakeRunner(on_step=gate), forecast(horizon=8)
    with serving(runner, clock=clock) as engine:
        patient = submit(engine, neighbour)
        late = submit(engine, forecast(horizon=50, sample_count=2), deadline=clock.now + 10)
        gate.wait()
        while runner.batches[-1] < 3:
            gate.step()
        clock.now += 9.9
        gate.step()
        assert runner.batches[-1] == 3
        clock.now += 0.2
        gate.step()
        assert runner.batches[-1] == 1
        with pytest.raises(DeadlinePassed):
            late.future.result(0)
        gate.open()
        np.testing.assert_array_equal(paths(patient), by_hand(neighbour))
        assert until(lambda: all_free(engine))


def test_an_overdue_forecast_in_the_queue_is_never_started() -> None:
    """What waits for a slot past its deadline costs the model nothing."""
    clock, gate = Clock(), Gate()
    runner = FakeRunner(num_slots=1, on_step=gate)
    with serving(runner, clock=clock) as engine:
        running = submit(engine, forecast(horizon=5))
        gate.wait()
        late = submit(engine, forecast(), deadline=clock.now + 1)
        clock.now += 2
        gate.open()
        with pytest.raises(DeadlinePassed):
            result(late)
        result(running)
    assert runner.errands.count("prefill") == 1


def test_work_submitted_too_late_is_overdue_not_refused() -> None:
    """A deadline that has passed before submission is DeadlinePassed, and nothing is computed."""
    runner = FakeRunner()
    with serving(runner) as engine, pytest.raises(DeadlinePassed):
        result(submit(engine, forecast(), deadline=time.monotonic() - 1))
    assert not runner.batches


# --- cancelling ---------------------------------------------------------------------------------------------


def test_cancel_in_the_queue() -> None:
    """Work given up before its turn is never started."""
    gate = Gate()
    runner = FakeRunner(num_slots=1, on_step=gate)
    with serving(runner) as engine:
        running = submit(engine, forecast(horizon=5))
        gate.wait()
        waiting = submit(engine, forecast())
        waiting.cancel("client gone")
        gate.open()
        with pytest.raises(Cancelled, match="client gone"):
            result(waiting)
        result(running)
    assert runner.errands.count("prefill") == 1


def test_cancel_while_decoding() -> None:
    """Given up mid-way, work leaves the batch at the next step and its slots are taken up in it."""
    gate = Gate()
    runner = FakeRunner(num_slots=2, on_step=gate)
    with serving(runner) as engine:
        dropped = submit(engine, forecast(horizon=50, sample_count=2))
        gate.wait()
        follower = forecast(horizon=3)
        waiting = submit(engine, follower)
        dropped.cancel("client gone")
        gate.step()
        assert runner.batches[-1] == 1
        with pytest.raises(Cancelled):
            dropped.future.result(0)
        gate.open()
        np.testing.assert_array_equal(paths(waiting), by_hand(follower))


def test_cancel_while_waiting_to_be_detokenised() -> None:
    """A forecast whose candles are all there, but whose turn to be detokenised is not, is dropped."""
    gate = Gate()
    runner = FakeRunner()
    with serving(runner) as engine:
        runner.on_errand = gate
        tickets = [submit(engine, forecast(horizon=1)) for _ in range(3)]
        gate.wait()  # the first prefill; both others and three detokenisings follow
        while "detokenise" not in runner.errands:
            gate.step()
        done_or_waiting = [ticket for ticket in tickets if not ticket.future.done()]
        done_or_waiting[-1].cancel("client gone")
        gate.open()
        with pytest.raises(Cancelled):
            result(done_or_waiting[-1])
        for ticket in tickets[:2]:
            result(ticket)
        assert until(lambda: all_free(engine))
    assert runner.errands.count("detokenise") == 2


def test_cancel_while_detokenising_comes_too_late() -> None:
    """Work that is done when the cancellation is read is delivered; nothing breaks."""
    gate = Gate()
    runner, work = FakeRunner(), forecast(horizon=1)
    with serving(runner) as engine:
        runner.on_errand = gate
        ticket = submit(engine, work)
        gate.wait()
        while runner.errands[-1] != "detokenise":
            gate.step()
        ticket.cancel("client gone")
        gate.open()
        np.testing.assert_array_equal(paths(ticket), by_hand(work))
        ticket.cancel("client gone")
        result(submit(engine, forecast()))
        assert until(lambda: all_free(engine))


def test_a_future_given_up_by_its_owner_harms_nobody() -> None:
    """Future.cancel, as asyncio does it, leaves the engine able to finish, to drop and to serve on."""
    gate = Gate()
    with serving(FakeRunner(on_step=gate)) as engine:
        finished, dropped = submit(engine, forecast(horizon=3)), submit(engine, forecast(horizon=3))
        gate.wait()
        assert finished.future.cancel()
        assert dropped.future.cancel()
        dropped.cancel("client gone")
        gate.open()
        assert until(lambda: all_free(engine))
        result(submit(engine, forecast()))


def test_five_hundred_cancellations_free_everything() -> None:
    """Clients that leave in every state: all slots, pages and work are free at once, and the next is served."""
    gate = Gate()
    runner = FakeRunner(num_slots=8, max_context=64, on_step=gate)
    rng = np.random.default_rng(2)
    before = sample("kronos_cancelled_total", reason="client gone")
    with serving(runner) as engine:
        tickets = []
        for number in range(500):
            size = int(rng.integers(1, 60)), int(rng.integers(40, 64)), int(rng.integers(1, 6))
            tickets.append(submit(engine, forecast(*size), priority=PRIORITIES[number % 2]))
        gate.wait()
        for _ in range(30):
            gate.step()
        for number in rng.permutation(500):
            tickets[number].cancel("client gone")
        gate.open()
        assert until(lambda: all_free(engine))
        given_up = [t for t in tickets if isinstance(t.future.exception(PATIENCE_S), Cancelled)]
        assert len(given_up) > 490
        assert sample("kronos_cancelled_total", reason="client gone") - before == len(given_up)
        work = forecast()
        np.testing.assert_array_equal(paths(submit(engine, work)), by_hand(work))


# --- the end ------------------------------------------------------------------------------------------------


def test_drain_refuses_the_new_and_finishes_the_old() -> None:
    """While draining nothing is let in, and what is in flight, or holds a permit, gets its answer."""
    gate, work = Gate(), forecast(horizon=5)
    with serving(FakeRunner(on_step=gate)) as engine:
        permit = engine.reserve()
        old = submit(engine, work)
        gate.wait()
        assert not engine.drain(0.02)
        with pytest.raises(Draining):
            engine.reserve()
        assert engine.health().draining
        assert not engine.health().ready
        reserved = permit.submit(work, deadline=1e12)
        gate.open()
        assert engine.drain(PATIENCE_S)
        for ticket in (old, reserved):
            np.testing.assert_array_equal(paths(ticket), by_hand(work))


def test_stop_fails_what_is_left() -> None:
    """Work in flight when the engine stops fails with Draining, queued or running; afterwards nothing gets in."""
    gate = Gate()
    with serving(FakeRunner(num_slots=1, on_step=gate)) as engine:
        permit = engine.reserve()
        tickets = [permit.submit(forecast(horizon=10), deadline=1e12) for _ in range(3)]
        gate.wait()
        stopper = threading.Thread(target=engine.stop)
        stopper.start()
        assert until(lambda: engine.health().draining)
        gate.open()
        stopper.join(PATIENCE_S)
        for ticket in tickets:
            with pytest.raises(Draining):
                ticket.future.result(0)
        assert all_free(engine)
        assert not engine.health().alive
        with pytest.raises(Draining):
            engine.reserve()
        with pytest.raises(Draining):
            permit.submit(forecast(), deadline=1e12)
        tickets[0].cancel("too late")


def test_a_failing_errand_fails_its_series_only() -> None:
    """A prefill, roll, detokenise or embed that raises is that request's EngineFailed; neighbours are served."""
    for kind in ("prefill", "roll", "detokenise", "embed"):
        failures = iter([RuntimeError("boom")])

        def fail_once(name: str, kind: str = kind, failures: Iterator[Exception] = failures) -> None:
            if name == kind and (error := next(failures, None)):
                raise error

        runner, neighbour = FakeRunner(max_context=32, on_errand=fail_once), forecast(10, 10, 2)
        before = sample("kronos_cancelled_total", reason="failed")
        with serving(runner) as engine:
            doomed: Forecast | Embed = forecast(30, 8, sample_count=3)
            if kind == "embed":
                doomed = Embed(np.zeros((3, 6), np.float32), np.zeros((3, 5), np.int16))
            unlucky = submit(engine, doomed)
            lucky = submit(engine, neighbour)
            with pytest.raises(EngineFailed):
                result(unlucky)
            np.testing.assert_array_equal(paths(lucky), by_hand(neighbour))
            assert until(partial(all_free, engine))
            assert engine.health().alive
        assert sample("kronos_cancelled_total", reason="failed") - before == 1


def test_a_failing_errand_takes_its_paths_out_of_the_same_step() -> None:
    """A roll that fails while another path of the same series is due to decode: that path is not decoded."""
    rolls = iter(range(1, 100))

    def fail_last(name: str) -> None:
        # two paths roll 5 times each; when the first is done the third takes its slot, beside the second's last
        if name == "roll" and next(rolls) == 10:
            raise RuntimeError("boom")

    runner = FakeRunner(num_slots=2, max_context=32, on_errand=fail_last)
    with serving(runner) as engine:
        with pytest.raises(EngineFailed, match="boom"):
            result(submit(engine, forecast(30, 8, sample_count=3)))
        result(submit(engine, forecast()))
        assert until(lambda: all_free(engine))


def test_an_engine_failure_tells_clients_nothing() -> None:
    """What went wrong inside is for the log, not for the answer."""

    def fail(_: str) -> None:
        raise RuntimeError("secret path")

    with serving(FakeRunner(on_errand=fail)) as engine, pytest.raises(EngineFailed, match="secret path") as failure:
        result(submit(engine, forecast()))
    assert "secret" not in failure.value.detail


def test_a_failing_decode_fails_all_and_is_seen() -> None:
    """When the shared step breaks, everyone in flight gets EngineFailed, and health says the engine is dead."""

    submitted = threading.Event()

    def fail(_: int) -> None:
        submitted.wait(PATIENCE_S)
        raise RuntimeError("boom")

    engine = Engine(runner := FakeRunner(num_slots=1), limits=AMPLE)
    engine.start()
    engine.prewarm()
    runner.on_step = fail
    permit = engine.reserve()
    tickets = [permit.submit(forecast(), deadline=1e12) for _ in range(3)]
    submitted.set()
    for ticket in tickets:
        with pytest.raises(EngineFailed):
            result(ticket)
    engine._thread.join(PATIENCE_S)
    assert not engine.health().alive
    assert not engine.health().ready
    with pytest.raises(NotReady):
        engine.reserve()
    with pytest.raises(EngineFailed):
        permit.submit(forecast(), deadline=1e12)
    assert engine.stats().queued_work == 0
    engine.stop()


def submit_until_refused(permit: Permit, tickets: list[Ticket]) -> None:
    while True:
        try:
            tickets.append(permit.submit(forecast(), deadline=1e12))
        except Draining:
            return


def test_submitting_while_the_engine_ends_never_hangs() -> None:
    """However a submission and the end of the thread interleave, the client hears of it."""
    for _ in range(20):
        engine = Engine(FakeRunner(), limits=AMPLE)
        engine.start()
        engine.prewarm()
        permit = engine.reserve()
        tickets: list[Ticket] = []
        client = threading.Thread(target=submit_until_refused, args=(permit, tickets))
        client.start()
        while len(tickets) < 4:
            time.sleep(0)
        engine.stop()
        client.join(PATIENCE_S)
        for ticket in tickets:
            error = ticket.future.exception(PATIENCE_S)
            assert error is None or isinstance(error, Draining)
        assert engine.stats().queued_work == 0


# --- health and metrics -------------------------------------------------------------------------------------


def test_a_step_that_hangs_is_seen() -> None:
    """`stuck_s` is the age of the step while there is work, and 0 when there is none."""
    clock, gate = Clock(), Gate()
    with serving(FakeRunner(on_step=gate), clock=clock) as engine:
        assert until(lambda: engine.health().stuck_s == 0.0)
        clock.now += 500.0
        assert engine.health().stuck_s == 0.0
        ticket = submit(engine, forecast(horizon=2))
        gate.wait()
        for seconds in (3.0, 60.0):
            began = engine.health().stuck_s
            clock.now += seconds
            assert engine.health().stuck_s - began == seconds
        gate.step()
        assert engine.health().stuck_s == 0.0
        gate.open()
        result(ticket)
        assert until(lambda: engine.health().stuck_s == 0.0)


def test_an_engine_that_just_started_is_not_stuck() -> None:
    """Work queued before the thread's first step is not as old as the machine."""
    clock = Clock()
    engine = Engine(FakeRunner(), clock=clock)
    engine._thread.run = lambda: None  # type: ignore[method-assign]
    engine.start()
    engine._submit(forecast(), "interactive", deadline=1e12)
    clock.now += 2.0
    assert engine.health().stuck_s == 2.0


def test_metrics_move() -> None:
    """Gauges show slots, pages and queue of this moment; counters count steps, sequences and busy seconds."""
    clock, gate = Clock(), Gate()
    steps, sequences = sample("kronos_decode_steps_total"), sample("kronos_batch_sequences_sum")
    busy = sample("kronos_engine_busy_seconds_total")
    with serving(FakeRunner(num_slots=3, on_step=gate), clock=clock) as engine:
        free = sample("kronos_cache_pages", state="free")
        assert (sample("kronos_slots", state="available"), sample("kronos_slots", state="busy")) == (3, 0)
        warm_steps = sample("kronos_decode_steps_total") - steps
        warm_sequences = sample("kronos_batch_sequences_sum") - sequences
        assert (warm_steps, warm_sequences) == (5, 7)
        ticket = submit(engine, forecast(lookback=40, horizon=3, sample_count=2))
        gate.wait()
        waiting = [submit(engine, forecast(sample_count=4), priority="bulk") for _ in range(2)]
        clock.now += 0.25
        gate.step()
        assert (sample("kronos_slots", state="available"), sample("kronos_slots", state="busy")) == (1, 2)
        gate.step()
        assert sample("kronos_queue_depth", priority="bulk") == 1
        assert sample("kronos_queue_depth", priority="interactive") == 0
        assert sample("kronos_slots", state="busy") == 3
        assert free - sample("kronos_cache_pages", state="free") == sample("kronos_cache_pages", state="held") > 0
        gate.open()
        for each in (ticket, *waiting):
            result(each)
        assert until(lambda: all_free(engine))
    assert sample("kronos_engine_busy_seconds_total") - busy == pytest.approx(0.25)
    assert sample("kronos_batch_sequences_sum") - sequences - warm_sequences == 2 * 3 + 4 * 4 * 2
    assert sample("kronos_batch_sequences_count") == sample("kronos_decode_steps_total")


@pytest.mark.parametrize(("ending", "reason"), [("deadline", "deadline"), ("cancel", "tired"), ("stop", "abandoned")])
def test_work_given_up_is_counted_by_reason(ending: str, reason: str) -> None:
    """kronos_cancelled_total tells why work ended early."""
    clock, gate = Clock(), Gate()
    before = sample("kronos_cancelled_total", reason=reason)
    with serving(FakeRunner(on_step=gate), clock=clock) as engine:
        ticket = submit(engine, forecast(horizon=9), deadline=clock.now + 5)
        gate.wait()
        match ending:
            case "deadline":
                clock.now += 6
            case "cancel":
                ticket.cancel("tired")
            case "stop":
                engine._stopping = True
        gate.open()
        assert ticket.future.exception(PATIENCE_S) is not None
    assert sample("kronos_cancelled_total", reason=reason) - before == 1


@pytest.mark.parametrize("errand_s", [0.0, 0.3])
def test_a_refusal_names_the_time_that_the_queue_takes(errand_s: float) -> None:
    """Whatever a request costs besides its steps; what is done while nobody waits says nothing of it."""
    clock = Clock()

    def take(seconds: float) -> None:
        clock.now += seconds

    gate = Gate()
    runner = FakeRunner(num_slots=4, on_step=lambda _: take(0.1), on_errand=lambda _: take(errand_s))
    with serving(runner, limits=Limits(max_work=400, max_wait_s=100), clock=clock) as engine:
        for ticket in [submit(engine, forecast(horizon=20)) for _ in range(20)]:
            result(ticket)
        for _ in range(5):
            result(submit(engine, forecast(horizon=20)))
        runner.on_step = gate
        tickets = [submit(engine, forecast(horizon=20)) for _ in range(20)]
        gate.wait()
        with pytest.raises(Overloaded) as refusal:
            engine.reserve()
        began, runner.on_step = clock.now, lambda _: take(0.1)
        gate.open()
        for ticket in tickets:
            result(ticket)
    assert refusal.value.retry_after == pytest.approx(clock.now - began, rel=0.2)


def test_an_idle_engine_audits_its_pools() -> None:
    """A page lost by a bug is not lost silently: the idle engine finds it and dies, to be replaced."""
    engine = Engine(FakeRunner(), limits=AMPLE)
    engine._scheduler.pool.allocate(1)
    engine.start()
    engine._thread.join(PATIENCE_S)
    assert not engine.health().alive


@pytest.mark.parametrize(
    "change",
    [
        {"history": np.zeros((0, 6), np.float32)},
        {"history": np.zeros((10, 5), np.float32)},
        {"history": np.zeros((10, 6))},
        {"history_stamps": np.zeros((9, 5), np.int16)},
        {"future_stamps": np.zeros((0, 5), np.int16)},
        {"future_stamps": np.full((4, 5), 60, np.int16)},
        {"future_stamps": np.full((4, 5), -1, np.int16)},
        {"sample_count": 0},
        {"seed": -1},
        {"temperature": 0.0},
    ],
)
def test_work_that_would_lead_a_runner_astray_cannot_be_made(change: dict[str, Any]) -> None:
    """Shapes, stamps and numbers are checked once more behind the API, since the kernel trusts them."""
    with pytest.raises(ValueError, match=r"history|stamp|forecast|range"):
        dataclasses.replace(forecast(), **change)
