"""What is asked for, and in which order it is measured."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import BadSetting
from fleet.tune import objective as asking
from fleet.tune import plan as planning
from fleet.tune.objective import Objective
from tests.tune import rigs


@pytest.mark.parametrize(
    "text, share, seconds",
    [("p95=500ms", 0.95, 0.5), ("p99=1.5s", 0.99, 1.5), ("p99.9<=2", 0.999, 2.0), (" p50 ≤ 20 ms", 0.5, 0.02)],
)
def test_objectives_as_people_write_them(text: str, share: float, seconds: float) -> None:
    """A quantile and a latency, in milliseconds or seconds."""
    found = asking.objective(text)
    assert [found.share, found.seconds] == pytest.approx([share, seconds])


@pytest.mark.parametrize("text", ["p95", "95=500ms", "p0=1s", "p100=1s", "p95=0ms", "p95=fast", "p95=5min", ""])
def test_no_objective_is_refused_with_an_example(text: str) -> None:
    """The next command to type is in the error."""
    with pytest.raises(BadSetting) as caught:
        asking.objective(text)
    assert "--slo p95=500ms" in caught.value.then


@given(st.floats(0.01, 99.99).map(lambda share: round(share, 2)), st.integers(1, 10**6))
def test_an_objective_is_what_it_prints(share: float, milliseconds: int) -> None:
    """What the report shows can be given to --slo again."""
    wanted = Objective(share / 100, milliseconds / 1000)
    again = asking.objective(str(wanted))
    assert [again.share, again.seconds] == pytest.approx([wanted.share, wanted.seconds], rel=1e-5)


def test_worker_counts_and_grids() -> None:
    """Ranges, lists and both; a grid is every combination."""
    assert asking.counts("1..4,8,6..6") == (1, 2, 3, 4, 6, 8)
    assert asking.grid([]) == [{}]
    found = [(setting["threads"], setting["mode"]) for setting in asking.grid(["threads=1,2", "mode=a,b"])]
    assert found == [(1.0, "a"), (1.0, "b"), (2.0, "a"), (2.0, "b")]


@pytest.mark.parametrize("text", ["", "0..3", "a", "4..1", "1..", "1..99999"])
def test_no_counts_are_refused(text: str) -> None:
    """Nothing is measured at a count that cannot be."""
    with pytest.raises(BadSetting):
        asking.counts(text)


@pytest.mark.parametrize("text", ["threads", "threads=", "=1", "workers=1,2", "threads=1 threads=2"])
def test_no_grid_is_refused(text: str) -> None:
    """Workers have an option of their own; a setting is named once."""
    with pytest.raises(BadSetting):
        asking.grid([text])


plans = st.builds(
    lambda last, preset, seed: planning.make(Objective(0.95, 0.5), 40.0, tuple(range(1, last + 1)), preset, seed),
    st.integers(1, 20), st.sampled_from(["quick", "full"]), st.integers(0, 1000),
)  # fmt: skip


@given(plans)
def test_each_round_holds_every_configuration_once_and_the_reference_twice(plan: planning.Plan) -> None:
    """Pairing within a round needs it, and the A/A control is in every round."""
    by_round = Counter((slot.round, slot.workers, slot.mode, slot.twin) for slot in planning.sweep(plan))
    wanted = {(count, mode, False) for count in plan.counts for mode in ("open", "closed")}
    wanted |= {(plan.reference, mode, True) for mode in ("open", "closed")}
    assert by_round == Counter((number, *one) for number in range(plan.rounds) for one in wanted)


@given(plans)
def test_one_count_between_the_others_is_held_out(plan: planning.Plan) -> None:
    """It is predicted by interpolation, so it lies inside, and nothing of it is in the sweep; under four counts there is none."""
    if len(plan.workers) < 4:
        assert plan.held_out is None and plan.counts == plan.workers
        return
    assert plan.held_out is not None and plan.workers[0] < plan.held_out < plan.workers[-1]
    assert plan.held_out not in plan.counts
    assert (plan.counts[0], plan.counts[-1]) == (plan.workers[0], plan.workers[-1])
    assert len(plan.counts) <= planning.PRESETS[plan.preset].most_counts


def test_order_is_drawn_anew_in_each_round_and_repeatable() -> None:
    """What drifts cannot favour a configuration, and the same seed measures in the same order."""
    plan = rigs.plan(rounds=6)
    rounds = [[slot.workers for slot in planning.sweep(plan) if slot.round == number] for number in range(6)]
    assert len({tuple(order) for order in rounds}) > 1
    assert planning.sweep(plan) == planning.sweep(rigs.plan(rounds=6)) != planning.sweep(rigs.plan(rounds=6, seed=2))


def test_every_attempt_has_a_seed_of_its_own() -> None:
    """Twins and repeats are other runs, not the same again."""
    plan = rigs.plan(rounds=6)
    seeds = [planning.spec(plan, slot, attempt).seed for slot in planning.sweep(plan) for attempt in (1, 2, 3)]
    assert len(set(seeds)) == len(seeds)


def test_runs_are_long_enough_for_their_question() -> None:
    """A slow objective or a low rate makes runs longer: queues have to settle, and a percentile needs requests."""
    assert planning.make(Objective(0.95, 10.0), 40.0, (1, 2), "quick").duration_s == 200
    assert planning.make(Objective(0.95, 0.5), 2.0, (1, 2), "quick").duration_s == 300
    assert planning.make(Objective(0.95, 0.5), 40.0, (1, 2), "full").duration_s == 30


def test_no_rate_is_refused() -> None:
    """Zero requests a second need no workers."""
    with pytest.raises(BadSetting):
        rigs.plan(rate=0.0)
