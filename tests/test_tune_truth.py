"""The truth benchmark in small: the loop's answers against fleets whose law is known."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from benchmarks import tuner_fleets
from benchmarks.tuner_fleets import EXPECTED, FAMILIES, draw, long_run
from benchmarks.tuner_truth import judge, table
from fleet.tune import simulate
from fleet.tune.objective import Objective


def test_the_truth_is_queueing_theory() -> None:
    """M/M/1 at half load: the 95th percentile of the time in the system is −ln 0.05 · s / (1 − ρ)."""
    law = simulate.Law(service=simulate.Service(family="gamma", mean_s=0.0125, cv=1.0), arrivals="poisson")
    assert long_run(law, 1, 0.95, 0.0) == pytest.approx(-np.log(0.05) * 0.0125 / 0.5, rel=0.05)


def test_the_truth_is_the_smallest_count_at_the_slow_end() -> None:
    """Noise makes the answer larger when the objective is near."""
    law = simulate.Law(service=simulate.Service(mean_s=0.06, cv=0.5))
    calm, seen = tuner_fleets.truth(law, Objective(0.95, 0.2))
    assert calm == 3 and seen[3] <= 0.2
    noisy = msgspec.structs.replace(law, noise=simulate.Noise(run=0.15))
    assert tuner_fleets.truth(noisy, Objective(0.95, 0.2))[0] == 4


def test_every_family_has_its_limit() -> None:
    """What is drawn is judged."""
    assert set(EXPECTED) == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_loop_is_right_about_known_fleets() -> None:
    """One fleet of each family: right or within the named tolerance, and the right limit, but for one of eleven."""
    scores = [judge(draw(family, 5000 + number), "full", number) for number, family in enumerate(FAMILIES)]
    assert sum(score.right or score.near for score in scores) >= len(scores) - 1, table(scores)
    assert sum(score.under and not score.near for score in scores) <= 1, table(scores)
    assert sum(score.said == score.bottleneck for score in scores) >= len(scores) - 1, table(scores)
