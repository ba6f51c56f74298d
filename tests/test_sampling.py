"""Filters against a naive implementation, and draws that depend on nothing but their seed, path and step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from app.model import draws, sampling

# few distinct values: ties are the rule, not the exception
TIED_LOGITS = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=24)
LARGEST_BELOW_ONE = math.nextafter(1.0, 0.0)


def naive_filter(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """One row, in Python floats: who stays, then the softmax over those who stay."""
    scaled = [logit / temperature for logit in logits]
    ranked = sorted(range(len(scaled)), key=lambda i: -scaled[i])  # ties: lower index first
    top = max(scaled)
    weight = [math.exp(value - top) for value in scaled]
    if top_k > 0:
        kth = scaled[ranked[min(top_k, len(scaled)) - 1]]
        kept = {i for i, value in enumerate(scaled) if value >= kth}
    elif top_p < 1:
        kept, before = set(), 0.0
        for i in ranked:
            assume(abs(before - top_p) > 1e-6)  # float32 may round to either side of the line
            if before <= top_p or not kept:
                kept.add(i)
            before += weight[i] / sum(weight)
    else:
        kept = set(ranked)
    total = sum(weight[i] for i in kept)
    return [weight[i] / total if i in kept else 0.0 for i in range(len(scaled))]


@given(TIED_LOGITS, st.floats(0.2, 3), st.integers(-1, 30), st.floats(0, 1.2))
def test_filter_agrees_with_the_naive_one(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    """Exactly the same entries stay, ties included, with the same probabilities, which sum to 1."""
    expected = naive_filter(logits, temperature, top_k, top_p)
    rows = torch.tensor([logits, logits[::-1]])
    probs = sampling.filter_probabilities(rows, temperature, top_k, top_p)
    assert [p > 0 for p in probs[0].tolist()] == [p > 0 for p in expected]
    np.testing.assert_allclose(probs[0].numpy(), expected, atol=2e-6)
    np.testing.assert_allclose(probs.sum(-1).numpy(), 1, atol=2e-6)


def test_top_k_makes_top_p_ignored() -> None:
    """As the reference: with top_k above 0, top_p has no effect, even when top_k keeps everything."""
    logits = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    for top_k in (3, 16, 99):
        with_top_p = sampling.filter_probabilities(logits, 1.0, top_k, 0.1)
        assert torch.equal(with_top_p, sampling.filter_probabilities(logits, 1.0, top_k, 1.0))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    """A temperature that cannot divide is refused, not turned into NaN."""
    with pytest.raises(ValueError, match="temperature"):
        sampling.filter_probabilities(torch.zeros(1, 4), temperature, 0, 1.0)


def naive_draw(probabilities: list[float], u: float) -> int:
    """The first index whose running sum exceeds u times the total."""
    total = 0.0
    for p in probabilities:
        total += p
    running = 0.0
    for index, p in enumerate(probabilities):
        running += p
        if running > u * total:
            return index
    raise AssertionError("the running sum never exceeded u times the total")


WEIGHT = st.sampled_from([0.0, 0.0, 0.1, 0.25, 1e-7, 0.7, 1e-30])
WEIGHTS = st.lists(WEIGHT, min_size=1, max_size=20).filter(any)
ENDS = st.sampled_from([0.0, 5e-324, 0.5, LARGEST_BELOW_ONE])
UNIFORM = st.one_of(st.floats(0, 1, exclude_max=True), ENDS)


@given(WEIGHTS, UNIFORM)
def test_draw_is_the_inverse_distribution_function(weights: list[float], u: float) -> None:
    """The naive index, and never an entry of probability 0, for u from 0 to the largest number below 1."""
    row = torch.tensor([weights], dtype=torch.float32)
    index = int(sampling.draw(row, torch.tensor([u], dtype=torch.float64)))
    assert row[0, index] > 0
    assert index == naive_draw(row[0].double().tolist(), u)


def test_draw_at_the_ends() -> None:
    """u = 0 draws the first entry kept, u just below 1 the last one, though zeros lie outside them."""
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).repeat(2, 1)
    u = torch.tensor([0.0, LARGEST_BELOW_ONE], dtype=torch.float64)
    assert sampling.draw(probs, u).tolist() == [1, 3]


def test_draw_follows_the_probabilities() -> None:
    """Over an even grid of u each token comes up as often as its probability says."""
    logits = torch.randn(1, 1024, generator=torch.Generator().manual_seed(3)) * 2
    probs = sampling.filter_probabilities(logits, 0.8, 0, 0.95)
    grid = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000
    counts = torch.bincount(sampling.draw(probs.expand(len(grid), -1), grid), minlength=1024)
    assert (counts - probs[0] * len(grid)).abs().max() <= 1.01


@pytest.mark.parametrize("row", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_nothing_to_draw_from_is_refused(row: list[float]) -> None:
    """NaN, infinite or all-zero probabilities are an error, never a token."""
    with pytest.raises(ValueError, match="nothing to draw from"):
        sampling.draw(torch.tensor([[0.5, 0.5], row]), torch.zeros(2, dtype=torch.float64))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 30), st.integers(1, 30))
def test_uniforms_of_a_longer_horizon_begin_alike(seed: int, path: int, steps: int, more: int) -> None:
    """A path's draws do not depend on how many follow; they lie in [0, 1)."""
    short, long = draws.uniforms(seed, path, steps), draws.uniforms(seed, path, steps + more)
    assert short.shape == (steps, draws.DRAWS_PER_STEP)
    np.testing.assert_array_equal(short, long[:steps])
    assert ((long >= 0) & (long < 1)).all()


def test_uniforms_differ_by_seed_and_path() -> None:
    """No two (seed, path) share their numbers: seed 1 path 0 is not seed 0 path 1."""
    keys = [(seed, path) for seed in range(20) for path in range(20)]
    assert len({draws.uniforms(seed, path, 1).tobytes() for seed, path in keys}) == len(keys)


def test_uniforms_are_the_same_tomorrow() -> None:
    """A published seed keeps its meaning: these numbers may never change."""
    assert draws.uniforms(7, 3, 2).tolist() == [
        [0.4821286018761155, 0.7241355726248441],
        [0.05025403948627161, 0.31612687235830494],
    ]


@pytest.mark.parametrize(("seed", "path"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_uniforms_refuse_keys_out_of_bounds(seed: int, path: int) -> None:
    """A key that does not fit in 64 bits is refused, not wrapped around."""
    with pytest.raises(ValueError, match="seed and path"):
        draws.uniforms(seed, path, 1)
