"""The demo checkpoint: the candles it learns from, the scores it is judged by, its recipe, and its card."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.model import frames, weights
from app.model.tokenizer import Tokenizer
from training import baselines, card, evaluate, scoring, synthetic, train, windows

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def drawn() -> synthetic.Series:
    return synthetic.generate(5, 300, 400)


@pytest.fixture(scope="module")
def real() -> windows.RealCandles:
    return windows.read_real()


def test_synthetic_candles_are_in_order(drawn: synthetic.Series) -> None:
    """Low <= open, close <= high, prices above 0, volume and amount at least 0, times rising, every regime
    present."""
    opened, high, low, close, volume, amount = np.moveaxis(drawn.values, -1, 0)
    assert np.isfinite(drawn.values).all()
    assert (high >= np.maximum(opened, close)).all()
    assert (low <= np.minimum(opened, close)).all()
    assert (low > 0).all()
    assert (volume >= 0).all()
    assert ((amount > 0) == (volume > 0)).all()
    assert (np.diff(drawn.times, axis=1) > np.timedelta64(0)).all()
    assert set(drawn.regimes) == {regime.name for regime in synthetic.REGIMES}
    assert set(drawn.spacings) == {spacing.name for spacing in synthetic.SPACINGS}


def test_synthetic_candles_are_a_function_of_the_seed(drawn: synthetic.Series) -> None:
    """The same seed gives the same bits, another seed other candles."""
    again, other = synthetic.generate(5, 300, 400), synthetic.generate(6, 300, 400)
    assert np.array_equal(drawn.values, again.values)
    assert np.array_equal(drawn.times, again.times)
    assert not np.array_equal(drawn.values, other.values)


def test_sessions_pause_at_night_and_weekends(drawn: synthetic.Series) -> None:
    """Of the hourly series about a third trades around the clock, weekends included; the others at neither
    time."""
    weekday = (drawn.times.astype("datetime64[D]").astype(np.int64) + 3) % 7
    minutes = drawn.times.astype("datetime64[m]").astype(np.int64) % 1440
    hourly = np.array(drawn.spacings) == "1 h"
    at_night = np.any((minutes < 570) | (minutes >= 960), axis=1)[hourly]
    at_weekends = np.any(weekday >= 5, axis=1)[hourly]
    assert 0.15 < at_night.mean() < 0.55
    assert np.array_equal(at_night, at_weekends)


def test_volatility_clusters(drawn: synthetic.Series) -> None:
    """Moves of similar size follow each other: |return| remembers more than the return does."""
    returns = np.diff(np.log(drawn.values[..., 3]), axis=1)[np.array(drawn.regimes) == "walk"]
    size = np.mean([_autocorrelation(row) for row in np.abs(returns)])
    sign = np.mean([_autocorrelation(row) for row in returns])
    assert size > 0.1
    assert abs(sign) < 0.05


def test_volume_has_an_intraday_u_shape(drawn: synthetic.Series) -> None:
    """In traded 5-minute sessions, the first and last hour see more volume than the middle of the day."""
    minutes = drawn.times.astype("datetime64[m]").astype(np.int64) % 1440
    session = (
        (np.array(drawn.spacings) == "5 min") & (minutes.min(axis=1) >= 570) & (drawn.values[:, 0, 4] > 0)
    )
    volume = drawn.values[session, :, 4] / drawn.values[session, :, 4].mean(axis=1, keepdims=True)
    edges = (minutes[session] < 630) | (minutes[session] >= 840)
    assert volume[edges].mean() > 1.2 * volume[~edges].mean()


def test_reverting_series_revert(drawn: synthetic.Series) -> None:
    """Far from its mean, a reverting series comes back on average; a walk does not."""
    pull = {
        name: _pull(drawn.values[np.array(drawn.regimes) == name, :, 3]) for name in ("reverting", "walk")
    }
    assert pull["reverting"] > 0.5
    assert pull["reverting"] > pull["walk"] + 0.2


def _autocorrelation(row: Floats) -> float:
    centred = row - row.mean()
    return float((centred[1:] * centred[:-1]).sum() / (centred**2).sum())


def _pull(closes: Floats) -> float:
    """1 - slope of the close 40 candles ahead on the close now, both about the mean of the 60 candles before
    now."""
    log_close = np.log(closes)
    mean = np.stack([log_close[:, now - 60 : now].mean(axis=1) for now in range(60, 350, 10)])
    here = log_close[:, 60:350:10].T - mean
    ahead = log_close[:, 100:390:10].T - mean
    scale = log_close.std(axis=1)
    return 1.0 - float(((here / scale) * (ahead / scale)).sum() / ((here / scale) ** 2).sum())


def test_windows_are_scaled_by_the_lookback_alone(drawn: synthetic.Series) -> None:
    """A window is normalised as the service does, and the future neither changes its scale nor escapes the
    clip."""
    cut = windows.cut(drawn.values[:4], drawn.times[:4], 100)
    history = frames.normalise(np.asfortranarray(drawn.values[2, :100].astype(np.float32)))
    assert np.array_equal(cut.x[2, :100], history.x)
    assert np.allclose(
        frames.restore(cut.x[2, :100], cut.mean[2], cut.std[2]), drawn.values[2, :100], rtol=1e-4
    )
    stretched = drawn.values[:4].copy()
    stretched[:, 100:] *= 3.0
    again = windows.cut(stretched, drawn.times[:4], 100)
    assert np.array_equal(again.x[:, :100], cut.x[:, :100])
    assert np.abs(again.x).max() <= frames.CLIP
    assert np.array_equal(cut.stamps[1], frames.stamp_features(drawn.times[1]))


def test_training_never_sees_the_held_out_candles(real: windows.RealCandles) -> None:
    """Changing the last fifth of the real candles changes no training window, and evaluation forecasts only
    those."""
    changed = windows.RealCandles(real.values.copy(), real.times)
    changed.values[real.held_out_from :] *= 2.0
    ours, theirs = (windows.draw((1, 2), 300, 100, 41, 40, candles) for candles in (real, changed))
    assert np.array_equal(ours.x, theirs.x)
    setting = evaluate.Setting("real", lookback=96, horizon=24, series=0)
    cut, _ = evaluate.held_out(setting)
    assert np.array_equal(cut.values[0, 96], real.values[real.held_out_from])
    assert len(cut.values) == (len(real.values) - real.held_out_from) // 24


def test_crps_by_hand() -> None:
    """Two samples 0 and 2 with the truth at 1: mean distance 1, less half of the mean gap 2, is 0."""
    samples = np.array([[0.0, 2.0], [0.0, 2.0]])
    assert scoring.crps_samples(samples, np.array([1.0, 4.0])) == pytest.approx([0.0, 2.0])
    with pytest.raises(ValueError, match="at least 2"):
        scoring.crps_samples(np.zeros((1, 1)), np.zeros(1))


def test_crps_of_a_normal_forecast() -> None:
    """The closed form: (sqrt(2) - 1) / sqrt(pi) at the mean of N(0, 1), |y - mean| for a certain forecast,
    and the limit of the sample form."""
    zero, one = np.zeros(1), np.ones(1)
    assert scoring.crps_gaussian(zero, one, zero) == pytest.approx([(math.sqrt(2) - 1) / math.sqrt(math.pi)])
    assert scoring.crps_gaussian(one, zero, 4 * one) == pytest.approx([3.0])
    samples = np.random.default_rng(0).normal(0.5, 2.0, (1, 200_000))
    closed = scoring.crps_gaussian(np.array([0.5]), np.array([2.0]), one)
    assert scoring.crps_samples(samples, one) == pytest.approx(closed, rel=0.01)


def test_pinball_and_coverage_by_hand() -> None:
    """Missing upwards costs the level, missing downwards one less the level; the interval includes its
    ends."""
    quantiles, levels = np.array([[1.0, 3.0]]), np.array([0.1, 0.9])
    assert scoring.pinball(quantiles, levels, np.array([4.0])) == pytest.approx([(0.1 * 3 + 0.9 * 1) / 2])
    assert scoring.pinball(quantiles, levels, np.array([0.0])) == pytest.approx([(0.9 * 1 + 0.1 * 3) / 2])
    actual = np.array([0.9, 1.0, 3.0, 3.1])
    assert scoring.covered(np.ones(4), np.full(4, 3.0), actual).tolist() == [0, 1, 1, 0]


def test_bootstrap_is_paired_by_series() -> None:
    """A constant ratio has no spread whatever the series are; unrelated scores have an interval around
    theirs."""
    theirs = np.random.default_rng(0).exponential(1.0, 200)
    change = scoring.bootstrap_change(0.8 * theirs, theirs, seed=1)
    assert (change.estimate, change.low, change.high) == pytest.approx((-0.2, -0.2, -0.2))
    mean = scoring.bootstrap_mean(theirs, seed=1)
    assert mean.low < mean.estimate < mean.high
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * theirs.std() / math.sqrt(200), rel=0.15)
    assert mean == scoring.bootstrap_mean(theirs, seed=1)


def test_baselines_by_hand() -> None:
    """Closes 0, 1, 3: moves 1 and 2, so drift 1.5 a candle and a spread of 0.5 sqrt(candles ahead)."""
    closes = np.array([[0.0, 1.0, 3.0]])
    assert baselines.last_value(closes, 2).mean.tolist() == [[3.0, 3.0]]
    assert baselines.last_value(closes, 2).std.tolist() == [[0.0, 0.0]]
    assert baselines.drift(closes, 2).mean.tolist() == [[4.5, 6.0]]
    cone = baselines.historical_volatility(closes, 2)
    assert cone.mean.tolist() == [[3.0, 3.0]]
    assert cone.std[0] == pytest.approx([0.5, 0.5 * math.sqrt(2)])


def test_scores_know_a_perfect_forecast() -> None:
    """Samples and cones that sit on the truth score 0 everywhere and cover it."""
    actual = np.random.default_rng(0).normal(size=(3, 5))
    samples = np.repeat(actual[..., None], 4, axis=-1)
    sure = scoring.score_samples(samples, actual, np.ones(3))
    cone = scoring.score_cone(baselines.Cone(actual, np.zeros_like(actual)), actual, np.ones(3))
    for scores in (sure, cone):
        for name in ("mae", "mse", "percent", "crps", "pinball"):
            assert getattr(scores, name) == pytest.approx(0.0, abs=1e-12)
    assert cone.coverage.tolist() == [1.0, 1.0, 1.0]


def test_a_setting_is_evaluated_against_every_baseline() -> None:
    """A forecaster that repeats the last close equals the last value in the point scores of evaluate()."""
    setting = evaluate.Setting("synthetic", lookback=64, horizon=8, series=30)

    def repeat(cut: windows.Windows, horizon: int, top_p: float) -> NDArray[np.float32]:
        last = cut.x[:, cut.lookback - 1][:, None, None]
        return np.tile(last, (1, 5, horizon, 1))

    result = evaluate.evaluate(setting, repeat)
    assert result["series"] == 30
    ours, last = result["forecasters"]["demo, top_p 1"], result["forecasters"]["last value"]
    for score in ("mae", "rmse", "percent", "crps", "pinball"):
        assert ours[score] == pytest.approx(last[score], rel=1e-3)
    assert set(result["changes"]["demo, top_p 0.9"]) == set(baselines.BASELINES)
    by_regime = [
        row for row in result["groups"] if row["group"] in {regime.name for regime in synthetic.REGIMES}
    ]
    assert sum(row["series"] for row in by_regime) == 30


def test_training_twice_gives_the_same_bits(tmp_path: Path) -> None:
    """The recipe alone decides the weights: not the order of runs, nor torch's global random state."""
    said: list[str] = []
    train.train(train.RECIPES["tiny"], tmp_path / "a", said.append)
    torch.manual_seed(99)
    train.train(train.RECIPES["tiny"], tmp_path / "b", said.append)
    for part in ("tokenizer", "model"):
        first, second = (tmp_path / run / part / weights.WEIGHTS_FILE for run in "ab")
        assert first.read_bytes() == second.read_bytes()
    assert len(said) == 4
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["model", "tokenizer"]
    loaded = weights.load(str(tmp_path / "a" / "model"), str(tmp_path / "a" / "tokenizer"))
    untrained = train.fresh(train.RECIPES["tiny"].seed, lambda: Tokenizer(train.RECIPES["tiny"].tokenizer))
    assert not torch.equal(loaded.tokenizer.embed.weight, untrained.embed.weight)


def test_an_interrupted_training_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    """Nothing under the destination changes until both parts are trained."""

    def interrupt(line: str) -> None:
        if line.startswith("model"):
            raise KeyboardInterrupt

    train.train(train.RECIPES["tiny"], tmp_path, lambda line: None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        train.train(train.RECIPES["tiny"], tmp_path, interrupt)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_bundled_checkpoint_is_small_and_loads() -> None:
    """Tokenizer and model together take at most 8 MB, fit each other, and carry the recipe's
    configuration."""
    parts = [train.DESTINATION / part for part in ("tokenizer", "model")]
    assert sum(path.stat().st_size for part in parts for path in part.iterdir()) <= 8e6
    loaded = weights.load(str(parts[1]), str(parts[0]))
    assert loaded.tokenizer.config == train.RECIPES["demo"].tokenizer
    assert loaded.model.config == train.RECIPES["demo"].model
    assert loaded.max_context == train.RECIPES["demo"].max_context


def test_the_evaluation_is_of_the_bundled_checkpoint() -> None:
    """evaluation.json names the recipe, and the sizes and hashes of the files that lie beside it."""
    evaluation = json.loads((train.DESTINATION / evaluate.EVALUATION).read_text())
    assert evaluation["recipe"] == json.loads(json.dumps(asdict(train.RECIPES["demo"])))
    loaded = weights.load(str(train.DESTINATION / "model"), str(train.DESTINATION / "tokenizer"))
    for name, module in (("tokenizer", loaded.tokenizer), ("model", loaded.model)):
        assert evaluation["checkpoint"][name] == evaluate.describe(train.DESTINATION / name, module)


def test_the_demo_beats_the_last_value_on_synthetic_candles() -> None:
    """On both held-out synthetic settings, the interval of the change in point error and in CRPS lies below
    0."""
    evaluation = json.loads((train.DESTINATION / evaluate.EVALUATION).read_text())
    judged = [setting for setting in evaluation["settings"] if setting["name"].startswith("synthetic")]
    assert len(judged) == 2
    for setting in judged:
        for changes in setting["changes"].values():
            assert changes["last value"]["mae"]["high"] < 0
            assert changes["last value"]["crps"]["high"] < 0


def test_the_card_shows_the_evaluation() -> None:
    """Every table of the card is what evaluation.json says; the card has the tables, and says what it is
    not."""
    text = (train.DESTINATION / evaluate.MODEL_CARD).read_text()
    evaluation = json.loads((train.DESTINATION / evaluate.EVALUATION).read_text())
    assert card.render(text, evaluation) == text
    for name in card.TABLES:
        assert f"<!-- table: {name} -->\n|" in text
    assert "not a trading model" in text


def test_a_card_cannot_ask_for_an_unknown_table() -> None:
    """A mistyped mark is an error, not a table that is never filled."""
    with pytest.raises(ValueError, match="scoers"):
        card.render("<!-- table: scoers -->\n<!-- end -->", {})
