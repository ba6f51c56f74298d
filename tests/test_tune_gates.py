"""Which runs may be used, and what makes one invalid rather than a fleet that is too small."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fleet.tune.gates import judge
from fleet.tune.protocol import Cpu, Points
from fleet.tune.runstats import summarise
from tests.tune import rigs

T = rigs.DURATION_S


def growing() -> Points:
    """A queue that grows for the whole run: 40/s come, 30/s are served."""
    due = np.arange(0, T, 1 / 40)
    return rigs.points(due, 0.1 + due / 3)


def users(number: int, latency: float, waits: float = 0.0) -> Points:
    """A closed loop: each of ``number`` waits ``latency`` seconds for an answer and then ``waits`` in the generator."""
    begins = np.arange(0, T, latency + waits)
    return rigs.points(np.sort(np.concatenate([begins + 0.001 * user for user in range(number)])), latency)


@pytest.mark.parametrize(
    "made, end, kind, reason",
    [
        (rigs.steady(), {}, "valid", ""),
        (rigs.steady(latency=2.0), {}, "valid", ""),
        (None, {}, "invalid", "exploded"),
        (rigs.steady(), {"cpu": Cpu(generator=0.95)}, "invalid", "95% of its CPU"),
        (rigs.steady(), {"dropped": 3}, "invalid", "3 arrivals dropped"),
        (rigs.steady(latency=2.0), {"dropped": 300}, "overloaded", "dropped"),
        (rigs.steady(rate=39.0), {}, "invalid", "of the arrivals asked for"),
        (rigs.points([1.0, 2.0, 20.0], 0.1), {}, "invalid", "only 1 requests"),
        (growing(), {}, "overloaded", "queue kept"),
    ],
)
def test_open_runs(made: Points | None, end: dict[str, Any], kind: str, reason: str) -> None:
    """A fault of the generator makes a run invalid, unless what was answered already misses the objective."""
    verdict = judge(rigs.record(made, **end), rigs.OBJECTIVE)
    assert (verdict.kind, verdict.usable) == (kind, kind != "invalid")
    assert reason in " ".join(verdict.reasons)


@pytest.mark.parametrize(
    "made, end, reason, generator",
    [
        (users(8, 0.2), {}, "", False),
        (users(8, 0.2, waits=0.1), {}, "67% of the users", True),
        (users(4, 0.2), {}, "50% of the users", True),
        (users(8, 0.2), {"cpu": Cpu(generator=1.0)}, "generator used 100%", True),
    ],
)
def test_closed_runs(made: Points, end: dict[str, Any], reason: str, generator: bool) -> None:
    """Users that are not waiting for the fleet are held up in the generator: throughput is then its own."""
    verdict = judge(rigs.record(made, mode="closed", **end), rigs.OBJECTIVE)
    assert (verdict.kind, verdict.generator) == ("invalid" if reason else "valid", generator)
    assert reason in " ".join(verdict.reasons)


def test_latency_that_still_moves_is_not_a_steady_state() -> None:
    """A fleet that is still warming up in the second half has not been measured."""
    due = np.arange(0, T, 1 / 40)
    verdict = judge(rigs.record(rigs.points(due, 0.3 * np.exp(-due / 12) + 0.02)), rigs.OBJECTIVE)
    assert verdict.kind == "invalid" and "moved by -" in verdict.reasons[0]


def test_random_arrivals_are_not_mistaken_for_missing_ones() -> None:
    """Poisson arrivals of the right rate scatter by more than 1 %: of 200 runs nearly all are valid."""
    random, kinds = np.random.default_rng(1), []
    for _ in range(200):
        due = np.sort(random.uniform(0, T, random.poisson(40 * T)))
        kinds.append(judge(rigs.record(rigs.points(due, 0.1 * random.lognormal(0, 0.3, len(due)))), rigs.OBJECTIVE).kind)
    assert kinds.count("valid") >= 196


def test_failures_and_drops_count_as_never_ending() -> None:
    """Shedding load cannot meet an objective: 6 % refused in an instant leave no 95th percentile."""
    made = rigs.steady(spread=0.0)
    refused = rigs.points(made.due, np.where(np.arange(len(made.due)) % 16 == 0, 0.001, 0.1), np.arange(len(made.due)) % 16 > 0)
    stats = summarise(rigs.record(refused), 0.0, rigs.OBJECTIVE)
    assert (stats.met, stats.quantile, stats.p95) == (False, 20 * 0.5, 0.1)
    assert stats.answered == pytest.approx(15 / 16, abs=0.001)
    assert summarise(rigs.record(made, dropped=100), 0.0, rigs.OBJECTIVE).met is False
    assert summarise(rigs.record(made), 0.0, rigs.OBJECTIVE).met is True


def test_throughput_and_goodput_are_of_the_steady_window() -> None:
    """Answers that end inside of the window, right, and for goodput within the objective; the warm-up is no part of it."""
    due = np.arange(0, T, 1 / 40)
    made = rigs.points(due, np.where(due < 10, 0.2, np.where(np.arange(len(due)) % 4 == 0, 0.6, 0.1)))
    stats = summarise(rigs.record(made), 10.0, rigs.OBJECTIVE)
    assert stats.throughput == pytest.approx(40, rel=0.03)
    assert stats.goodput == pytest.approx(30, rel=0.03)
    assert (stats.p50, stats.p99) == (0.1, 0.6)


def test_one_run_knows_how_unsure_its_quantile_is() -> None:
    """The standard error from within a run is about the scatter between runs when nothing else varies."""
    runs = [summarise(rigs.record(rigs.steady(seed=seed)), 0.0, rigs.OBJECTIVE) for seed in range(60)]
    scatter = np.std([math.log(stats.quantile) for stats in runs])
    assert np.mean([stats.log_error for stats in runs]) == pytest.approx(scatter, rel=0.4)
