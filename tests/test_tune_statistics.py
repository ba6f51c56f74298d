"""Intervals, warm-up and scaling laws against known answers."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.tune import laws, moods, warmup
from fleet.tune.statistics import mean_interval, t_quantile
from tests.tune import rigs

COUNTS = (1, 2, 3, 4, 6, 7, 8)
N = np.array(COUNTS, float)
TRUE = {
    "linear": 10 * N,
    "amdahl": 10 * N / (1 + 0.08 * (N - 1)),
    "usl": 10 * N / (1 + 0.03 * (N - 1) + 0.01 * N * (N - 1)),
    "ceiling": np.minimum(10 * N, 34.0),
}


@pytest.mark.parametrize("rounds", [6, 9, 20])
def test_the_interval_is_students_on_normal_values(rounds: int) -> None:
    """The bootstrap over few rounds is as wide as the exact interval of normal values, on the average."""
    random, ratios = np.random.default_rng(3), []
    for _ in range(100):
        values = random.normal(size=rounds)
        exact = t_quantile(0.975, rounds - 1) * values.std(ddof=1) / math.sqrt(rounds)
        ratios.append(mean_interval(values).half / exact)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("rounds", [6, 12])
def test_95_per_cent_intervals_cover_95_per_cent(rounds: int) -> None:
    """Of 1500 campaigns with known truth between 93 and 97 % have it in their interval."""
    random = np.random.default_rng(5)
    found = [mean_interval(random.normal(1.0, 0.3, rounds)) for _ in range(1500)]
    assert 0.93 <= np.mean([interval.low <= 1.0 <= interval.high for interval in found]) <= 0.97


@pytest.mark.slow
def test_who_stops_when_it_is_narrow_keeps_the_first_looks_freedom() -> None:
    """Rounds go on until the interval is within ± 0.2: as if their number had been fixed, it holds the truth too rarely."""
    random, covered = np.random.default_rng(9), {None: 0, 6: 0}
    for _ in range(1000):
        values = random.normal(0, 0.35, 40)
        for first in covered:
            rounds = 6
            while rounds < 40 and mean_interval(values[:rounds], first).half > 0.2:
                rounds += 1
            found = mean_interval(values[:rounds], first)
            covered[first] += found.low <= 0 <= found.high
    assert covered[None] < 930 <= covered[6] <= 975


def test_few_rounds_rank_and_do_not_claim() -> None:
    """Below six rounds an interval says so; below two it has no ends."""
    assert not mean_interval(np.array([1.0, 2.0, 3.0])).claim
    assert mean_interval(np.arange(6.0)).claim
    assert mean_interval(np.array([1.0])).high == math.inf
    with pytest.raises(ValueError, match="without values"):
        mean_interval(np.array([]))


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=15), st.floats(-5, 5), st.floats(0.1, 10))
def test_intervals_move_with_the_unit(values: list[float], shift: float, scale: float) -> None:
    """Milliseconds or seconds: the interval is the same, rewritten."""
    first, second = mean_interval(np.array(values)), mean_interval(np.array(values) * scale + shift)
    assert second.low == pytest.approx(first.low * scale + shift, abs=1e-6)
    assert second.high == pytest.approx(first.high * scale + shift, abs=1e-6)
    assert first.low - 1e-9 <= first.value <= first.high + 1e-9


def test_moods_of_rounds_and_runs_are_told_apart() -> None:
    """Six rounds of seven counts and six of another count: the sum of both variances, known by about as many rounds as matter."""
    random, found = np.random.default_rng(6), []
    for rounds, runs in [(0.06, 0.02)] * 300 + [(0.0, 0.06)] * 300:
        table = np.full((12, 8), np.nan)
        table[:6, :7] = random.normal(0, runs, (6, 7)) + random.normal(0, rounds, (6, 1))
        table[6:, 7:] = random.normal(0, runs, (6, 1)) + random.normal(0, rounds, (6, 1))
        found.append(moods.moods(table, sampling=0.0))
    of_rounds, of_runs = found[:300], found[300:]
    assert np.sqrt(np.mean([one.total**2 for one in of_rounds])) == pytest.approx(math.hypot(0.06, 0.02), rel=0.05)
    assert np.sqrt(np.mean([one.total**2 for one in of_runs])) == pytest.approx(0.06, rel=0.05)
    assert 9 < np.median([one.freedom for one in of_rounds]) < 12 < np.median([one.freedom for one in of_runs])


def test_sampling_is_no_mood_and_one_round_says_nothing() -> None:
    """What one run cannot know by itself is taken off; without repeats there is no noise to speak of."""
    table = np.random.default_rng(1).normal(0, 0.05, (200, 3))
    assert moods.moods(table, sampling=0.05**2).host < 0.02
    assert moods.moods(table, sampling=0.03**2).host == pytest.approx(0.04, rel=0.1)
    assert moods.moods(table[:1], sampling=0.0) == moods.Moods(0.0, 0.0, 0.0, 1)


def test_each_size_of_the_moods_is_as_likely_as_what_was_seen_makes_it() -> None:
    """The most likely size is the one that was seen less sampling; more rounds tell it better, none tell nothing."""
    sizes = np.linspace(0.01, 0.1, 91)
    known = moods.Moods(math.hypot(0.04, 0.02), 0.02, 40, 40)
    assert sizes[np.argmax(known.likelihood(sizes))] == pytest.approx(0.04, abs=0.001)
    fewer = msgspec.structs.replace(known, freedom=5)
    assert np.ptp(known.likelihood(sizes)) > 5 * np.ptp(fewer.likelihood(sizes))
    assert np.ptp(msgspec.structs.replace(known, freedom=0).likelihood(sizes)) == 0


def test_mser_finds_the_end_of_a_known_warm_up() -> None:
    """A series that starts at three times its level for 10 of 50 bins loses these, and noise alone loses nothing."""
    random = np.random.default_rng(1)
    noise = 1 + 0.02 * random.normal(size=50)
    assert warmup.mser(noise + np.where(np.arange(50) < 10, 2.0, 0.0)) == 10
    cuts = [warmup.mser(1 + 0.02 * random.normal(size=50)) for _ in range(200)]
    assert np.mean([cut > 0 for cut in cuts]) < 0.12


def test_one_runs_early_burst_is_no_warm_up() -> None:
    """Cutting it would flatter the tail: the cut comes from what the runs have in common."""
    calm = [warmup.latency_series(rigs.steady(seed=seed), 30.0) for seed in range(8)]
    burst = calm[0].copy()
    burst[:10] *= 20
    assert warmup.mser(burst) == 10
    assert warmup.cut_s([burst, *calm[1:]], 30.0) == 0


def test_no_runs_level_makes_it_the_one_that_counts() -> None:
    """Runs at 25 to 400 ms (few workers, many): the middle one's burst is still not what they have in common."""
    series = [warmup.latency_series(rigs.steady(latency=0.025 * 2**level, seed=level), 30.0) for level in range(5)]
    series[2][:10] *= 3
    assert warmup.mser(series[2]) == 10
    assert warmup.cut_s(series, 30.0) == 0


def test_a_common_warm_up_is_cut_from_all_runs() -> None:
    """Every run starts slowly for 6 s of 30: about these are dropped."""
    series = []
    for seed in range(6):
        made = rigs.steady(seed=seed)
        slow = rigs.points(made.due, made.latency * (1 + 2 * np.exp(-made.due / 2)))
        series.append(warmup.latency_series(slow, 30.0))
    assert 3 <= warmup.cut_s(series, 30.0) <= 12


def test_aicc_is_the_formula() -> None:
    """Hurvich and Tsai: n ln(RSS/n) + 2k + 2k(k+1)/(n−k−1); without enough runs it is infinite."""
    assert laws.aicc(2.0, 20, 3) == pytest.approx(20 * math.log(0.1) + 6 + 24 / 16)
    assert laws.aicc(2.0, 4, 3) == math.inf


@pytest.mark.parametrize("name", list(TRUE))
def test_each_law_is_found_again(name: str) -> None:
    """Six rounds with 2 % noise, rounds that differ by 3 %: the family, and parameters whose intervals hold the truth."""
    random, found = np.random.default_rng(7), []
    for _ in range(10):
        noise = random.normal(0, 0.02, (6, len(N))) + random.normal(0, 0.03, (6, 1))
        law = laws.choose(np.log(TRUE[name]) + noise, COUNTS)
        assert law is not None
        found.append(law)
    assert sum(law.family == name for law in found) >= 8
    rates = [law.parameters["per_worker"] for law in found if law.family == name]
    assert sum(rate.low <= 10 <= rate.high for rate in rates) >= len(rates) - 3


@pytest.mark.parametrize("name", list(TRUE))
def test_without_noise_the_parameters_are_exact(name: str) -> None:
    """Known answers: λ = 10, σ = 0.08 or 0.03, κ = 0.01, ceiling 34."""
    law = laws.choose(np.tile(np.log(TRUE[name]), (6, 1)), COUNTS)
    assert law is not None
    exact = {"per_worker": 10, "sigma": 0.08 if name == "amdahl" else 0.03, "kappa": 0.01, "ceiling": 34}
    assert {key: found.value for key, found in law.parameters.items()} == pytest.approx(
        {key: exact[key] for key in law.parameters}, rel=1e-6
    )
    assert law.throughput(5) == pytest.approx(np.interp(5, N, TRUE[name]), rel=0.02)


@given(st.floats(0.5, 50), st.floats(0, 0.3), st.floats(0, 0.05), st.integers(0, 10**6))
def test_parameters_never_mean_nonsense(rate: float, sigma: float, kappa: float, seed: int) -> None:
    """Whatever was measured: rates are positive, σ and κ not negative, and estimates lie in their intervals or at their end."""
    noise = np.random.default_rng(seed).normal(0, 0.05, (4, len(N)))
    law = laws.choose(np.log(rate * N / (1 + sigma * (N - 1) + kappa * N * (N - 1))) + noise, COUNTS)
    assert law is not None
    for name, found in law.parameters.items():
        assert found.value >= 0 and np.isfinite(found.value)
        assert found.value > 0 or name in {"sigma", "kappa"}
        assert found.low - 1e-9 <= found.high


def test_a_host_that_is_slow_for_a_whole_round_does_not_hide_the_law() -> None:
    """Rounds that differ by 30 %, runs by 0.5 %: a serial share of 0.5 % is still seen within the rounds."""
    random = np.random.default_rng(4)
    noise = random.normal(0, 0.005, (6, len(N))) + random.normal(0, 0.3, (6, 1))
    law = laws.choose(np.log(10 * N / (1 + 0.005 * (N - 1))) + noise, COUNTS)
    assert law is not None and law.family == "amdahl" and law.fits
    assert law.parameters["sigma"].low < 0.005 < law.parameters["sigma"].high < 0.01


def test_what_was_not_measured_is_marked_and_what_does_not_fit_is_said() -> None:
    """Outside of the counts a law is a guess; a shape that is none of the laws is called a misfit."""
    zigzag = np.log(10 * N) + np.array([0.0, 0.3, -0.3, 0.3, -0.3, 0.3, 0.0])
    law = laws.choose(zigzag + np.random.default_rng(1).normal(0, 0.01, (6, len(N))), COUNTS)
    assert law is not None and not law.fits
    assert law.extrapolates(9) and not law.extrapolates(5)


def test_a_missing_run_is_no_reason_to_give_up_but_a_missing_count_is() -> None:
    """Gaps are allowed for within a round; a law needs three counts."""
    table = np.tile(np.log(TRUE["amdahl"]), (6, 1)) + np.random.default_rng(2).normal(0, 0.03, (6, 1))
    table[2, 3] = table[0, 0] = np.nan
    law = laws.choose(table, COUNTS)
    assert law is not None and law.parameters["sigma"].value == pytest.approx(0.08, rel=0.05)
    assert laws.choose(table[:, :2], COUNTS[:2]) is None
    table[:, 4] = np.nan
    assert laws.choose(table, COUNTS) is None
