"""The oracle's own promises: every fast path is compared with it, so it is tested beyond the goldens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from app.model import frames, sampling
from tests import golden_cases, oracle
from tests.golden_cases import Array

HISTORY, HORIZON = 30, 5
OPTIONS: dict[str, Any] = {"temperature": 0.9, "top_k": 0, "top_p": 0.9, "sample_count": 2, "seed": 11}


def series(history: int = HISTORY, horizon: int = HORIZON) -> tuple[Array, Array, Array]:
    """Candles and stamps cut from the real ones of the first golden case."""
    case = golden_cases.cases("predict")[0]
    values = frames.fill_missing(golden_cases.columns(case["columns"], golden_cases.inputs(case)["values"]))
    times = golden_cases.stamps([*case["x_timestamps"], *case["y_timestamps"]])
    stamps = frames.stamp_features(times)
    return values[:history], stamps[:history], stamps[history : history + horizon]


def forecast(history: int = HISTORY, horizon: int = HORIZON, **changed: Any) -> oracle.OracleResult:
    context = changed.pop("max_context", golden_cases.TINY_CONTEXT)
    return oracle.forecast(golden_cases.checkpoint(context), *series(history, horizon), **(OPTIONS | changed))


def test_a_seed_repeats_and_seeds_differ() -> None:
    """The same seed gives the same forecast bit for bit, another seed another one."""
    one, same, other = forecast(), forecast(), forecast(seed=12)
    np.testing.assert_array_equal(one.paths, same.paths)
    assert (one.tokens != other.tokens).any()


def test_a_path_does_not_depend_on_its_neighbours() -> None:
    """Path i is the same whether two or four paths were asked for, and paths differ."""
    two, four = forecast(sample_count=2), forecast(sample_count=4)
    np.testing.assert_array_equal(two.paths, four.paths[:2])
    assert len({path.tobytes() for path in four.tokens}) == 4


def test_a_longer_horizon_begins_alike() -> None:
    """While the window does not roll, the first tokens do not depend on how many follow."""
    np.testing.assert_array_equal(forecast(horizon=3).tokens, forecast(horizon=5).tokens[:, :3])


def test_greedy_needs_no_seed() -> None:
    """With top_k=1 every seed gives the same forecast: the most likely token at every step."""
    one, other = forecast(top_k=1, seed=1), forecast(top_k=1, seed=2)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.tokens[..., 0], one.s1_logits.argmax(-1))
    np.testing.assert_array_equal(one.tokens[..., 1], one.s2_logits.argmax(-1))


def test_no_filtered_token_is_generated() -> None:
    """Every token drawn, of both kinds, is one that the filter let through."""
    result = forecast(top_p=0.4, sample_count=8)
    for tokens, logits in (
        (result.tokens[..., 0], result.s1_logits),
        (result.tokens[..., 1], result.s2_logits),
    ):
        kept = sampling.filter_probabilities(torch.from_numpy(logits).flatten(0, 1), 0.9, 0, 0.4) > 0
        assert kept.gather(1, torch.from_numpy(tokens).reshape(-1, 1)).all()


def test_the_last_future_stamp_is_not_read() -> None:
    """A stamp enters with its candle's token: the last never does, the one before at the last step only."""
    values, past, future = series()
    options = OPTIONS | {"sample_count": 1}
    base = oracle.forecast(golden_cases.checkpoint(), values, past, future, **options)
    changed = future.copy()
    changed[-1] = [1, 2, 3, 4, 5]
    last = oracle.forecast(golden_cases.checkpoint(), values, past, changed, **options)
    np.testing.assert_array_equal(base.s1_logits, last.s1_logits)
    changed[-2] = [1, 2, 3, 4, 5]
    before = oracle.forecast(golden_cases.checkpoint(), values, past, changed, **options)
    np.testing.assert_array_equal(base.s1_logits[:, :-1], before.s1_logits[:, :-1])
    assert (base.s1_logits[:, -1] != before.s1_logits[:, -1]).any()


def test_rolling_forgets_the_oldest_candles() -> None:
    """Past the context, a step sees the last candles only: it equals generation from a history cut there."""
    values, past, future = series(20, 1)
    x = frames.normalise(values).x
    checkpoint = golden_cases.checkpoint(12)
    rolled = oracle.generate(checkpoint, x, past, future, **OPTIONS)
    s1, s2 = (torch.from_numpy(rolled.history_tokens[None, -12:, i]) for i in range(2))
    logits, _ = checkpoint.model.decode_s1(s1, s2, torch.from_numpy(past[None, -12:]))
    np.testing.assert_array_equal(rolled.s1_logits[0, 0], logits[0, -1].numpy())
    assert rolled.decoded.shape == (2, 12, 6)


def test_prediction_is_the_mean_of_the_paths() -> None:
    """The answer in original units is the mean over paths, restored (or restored, then averaged)."""
    result = forecast(sample_count=5)
    restored = frames.restore(result.paths, result.mean, result.std)
    np.testing.assert_allclose(result.pred, restored.mean(0), rtol=1e-5)
    assert result.pred.shape == (HORIZON, 6)


@pytest.mark.parametrize("case", golden_cases.params("first_step"))
def test_paths_follow_the_exact_distribution(case: golden_cases.Case) -> None:
    """Over many paths the first candle's tokens come up as often as the golden joint distribution says."""
    given, golden, options = golden_cases.inputs(case), golden_cases.outputs(case), case["kwargs"]
    count = 400
    made = oracle.generate(
        golden_cases.checkpoint(case["max_context"]), given["x"][0], given["x_stamp"][0],
        given["x_stamp"][0, -1:], temperature=options["temperature"], top_k=options["top_k"],
        top_p=options["top_p"], sample_count=count, seed=1,
    )  # fmt: skip
    s1, s2 = made.tokens[:, 0].T
    seen = np.zeros_like(golden["joint"])
    np.add.at(seen, (s1, s2), 1)
    assert not seen[golden["joint"] == 0].any()
    error = np.sqrt(count * golden["joint"] * (1 - golden["joint"])) + 1
    assert (np.abs(seen - count * golden["joint"]) < 4 * error).all()
    gap = made.paths[:, 0].mean(0) - golden["expected_norm"]
    assert (np.abs(gap) < 4 * golden["sd_norm"] / np.sqrt(count) + 2e-5).all()


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        pytest.param((slice(None), slice(1, None), slice(None)), "30 candles with 29 stamps", id="history"),
        pytest.param((slice(None), slice(None), slice(0, 0)), "horizon of 0", id="no horizon"),
    ],
)
def test_stamps_that_do_not_fit_are_refused(cut: tuple[slice, slice, slice], message: str) -> None:
    """As many stamps as candles, and at least one to predict."""
    values, past, future = (array[part] for array, part in zip(series(), cut, strict=True))
    with pytest.raises(ValueError, match=message):
        oracle.forecast(golden_cases.checkpoint(), values, past, future, **OPTIONS)


def test_a_horizon_beyond_the_context_is_refused() -> None:
    """More new candles than the context holds cannot be decoded."""
    with pytest.raises(ValueError, match="horizon of 5 does not fit in a context of 4"):
        forecast(max_context=4)


def test_train_mode_is_refused() -> None:
    """A model left in train mode cannot forecast by accident."""
    checkpoint = replace(golden_cases.checkpoint())
    checkpoint.model.train()
    with pytest.raises(RuntimeError, match="call eval"):
        oracle.forecast(checkpoint, *series(), **OPTIONS)
