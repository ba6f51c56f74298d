"""The simulated queue against queueing theory, and against itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.tune.queueing import Shape, _general_open_loop, _plain_open_loop, closed_loop, open_loop

ONE = Shape((1.0, 1.0))


def poisson(rate: float, count: int, seed: int = 1) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_worker_waits_as_m_m_1_does(load: float) -> None:
    """Mean time in the system is s / (1 − ρ)."""
    work = np.random.default_rng(2).exponential(0.1, 200_000)
    trace = open_loop(ONE, poisson(load / 0.1, 200_000), work.tolist())
    assert trace.latency.mean() == pytest.approx(0.1 / (1 - load), rel=0.06)


def test_constant_work_waits_half_as_long() -> None:
    """M/D/1 (Pollaczek and Khinchine): mean wait is ρs / 2(1 − ρ)."""
    trace = open_loop(ONE, poisson(7.0, 200_000), [0.1])
    assert trace.latency.mean() == pytest.approx(0.1 + 0.7 * 0.1 / (2 * 0.3), rel=0.04)


@pytest.mark.parametrize(
    "shape, capacity",
    [
        (Shape((1.0, 1.0, 1.0, 1.0, 1.0)), 40.0),
        (Shape((1.0, 1.0, 1.0, 2 / 3, 1 / 2)), 20.0),
        (Shape((1.0, 1.0, 1.0), slots=4, batch_cost=0.5), 32.0),
        (Shape((1.0, 1.0), max_rate=4.0), 4.0),
        (Shape((1.0, 1.0, 1.0), overhead_s=0.1, max_in_flight=2), 10.0),
    ],
)
def test_saturated_throughput_is_what_the_shape_says(shape: Shape, capacity: float) -> None:
    """Closed loop, constant work of 0.1 s: workers, shared cores, batches and the generator's limits each give their number."""
    trace = closed_loop(shape, 32, 50.0, [0.1])
    ended = ((trace.due + trace.latency > 10) & (trace.due + trace.latency <= 50)).sum() / 40
    assert ended == pytest.approx(capacity, rel=0.02)


queues = st.tuples(
    st.lists(st.floats(0, 2), min_size=1, max_size=60), st.lists(st.floats(0.01, 1), min_size=1, max_size=60),
    st.lists(st.floats(0.2, 1), min_size=1, max_size=5),
)  # fmt: skip


@given(queues)
def test_the_quick_simulation_is_the_general_one(drawn: tuple[list[float], list[float], list[float]]) -> None:
    """The shortcut for plain fleets gives the same latencies, workers and busy times as the one that can do everything."""
    gaps, work, speeds = drawn
    shape, due = Shape((1.0, *speeds), overhead_s=0.01), np.cumsum(gaps)
    quick, general = _plain_open_loop(shape, due, work), _general_open_loop(shape, due, work)
    np.testing.assert_allclose(quick.latency, general.latency, atol=1e-9)
    np.testing.assert_allclose(quick.busy_s, general.busy_s, atol=1e-9)
    assert quick.worker.tolist() == general.worker.tolist()


@given(queues, st.integers(1, 4), st.floats(0, 1), st.one_of(st.none(), st.integers(1, 5)))
@settings(deadline=None)
def test_work_is_neither_lost_nor_done_faster_than_possible(
    drawn: tuple[list[float], list[float], list[float]], slots: int, batch_cost: float, limit: int | None
) -> None:
    """Every request ends once, refused or after at least its work; what is refused is only so because a queue is full."""
    gaps, work, speeds = drawn
    shape = Shape((1.0, *speeds), slots, batch_cost, limit)
    trace = open_loop(shape, np.cumsum(gaps), work)
    assert len(trace.due) == len(gaps) and np.isfinite(trace.latency).all()
    needed = np.resize(work, len(gaps))
    assert (trace.latency[trace.ok] >= needed[trace.ok] - 1e-9).all()
    assert trace.ok.all() if limit is None else trace.ok.any()


def test_the_next_request_goes_to_the_worker_with_the_fewest() -> None:
    """While the first is busy the others are used in turn."""
    trace = open_loop(Shape((1.0,) * 4), np.array([0.0, 0.1, 0.2, 0.3, 1.05]), [1.0])
    assert trace.worker.tolist() == [1, 2, 0, 1, 2]


def test_a_full_queue_refuses() -> None:
    """A worker that holds two requests takes no third; the refusal is quick and costs it nothing."""
    trace = open_loop(Shape((1.0, 1.0), queue_limit=2, refusal_s=0.01), np.array([0.0, 0.1, 0.2, 1.5]), [1.0])
    assert trace.ok.tolist() == [True, True, False, True]
    assert trace.latency.tolist() == pytest.approx([1.0, 1.9, 0.01, 1.5])


def test_a_generator_at_its_limit_drops_and_says_so() -> None:
    """Open loop: nothing is sent late; what cannot be sent is counted."""
    due = np.arange(0, 10, 0.01)
    few = open_loop(Shape((1.0, 1.0), max_in_flight=3), due, [1.0])
    slow = open_loop(Shape((1.0,) * 200, max_rate=50.0), due, [0.01])
    assert few.dropped + len(few.due) == slow.dropped + len(slow.due) == 1000
    assert len(few.due) == pytest.approx(13, abs=1)
    assert len(slow.due) == pytest.approx(500, abs=10)
