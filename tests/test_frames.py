"""Candles ↔ arrays: column rules, the reference's statistics to the last bit, time features."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.model import frames
from tests import golden_cases
from tests.golden_cases import Array, Case

PRICE = st.floats(0.01, 1e5, allow_nan=False)


def candles(length: int = 20, **replaced: Array | None) -> dict[str, Array | None]:
    rng = np.random.default_rng(5)
    made: dict[str, Array | None] = {name: 10 + rng.random(length) for name in frames.COLUMNS}
    return made | replaced


@pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in golden_cases.cases("predict")])
def test_statistics_are_bit_identical(case: Case) -> None:
    """Scale and normalised values equal the reference's to the last bit, also for a constant price."""
    values = golden_cases.columns(case["columns"], golden_cases.inputs(case)["values"])
    normalised = frames.normalise(frames.fill_missing(values), case.get("clip", frames.CLIP))
    golden = golden_cases.outputs(case)
    for answer, name in zip(normalised, ("x_norm", "x_mean", "x_std"), strict=True):
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer, golden[name], err_msg=name)


def test_memory_order_does_not_change_statistics() -> None:
    """A row-major copy of the values normalises to the same bits: the order of summation is fixed inside."""
    values = frames.fill_missing(candles(997))
    assert values.flags.f_contiguous
    by_column, by_row = frames.normalise(values), frames.normalise(np.ascontiguousarray(values))
    assert by_column.x.flags.c_contiguous
    for one, other in zip(by_column, by_row, strict=True):
        np.testing.assert_array_equal(one, other)


def test_missing_volume_makes_both_zero() -> None:
    """Without volume, volume and amount are 0, and an amount that was given is not used."""
    values = frames.fill_missing(candles(volume=None))
    np.testing.assert_array_equal(values[:, 4:], 0)
    assert (values[:, :4] > 0).all()


def test_missing_amount_is_volume_times_mean_price() -> None:
    """Without amount, it is volume times the mean of the four prices, computed before the cast to float32."""
    given_columns = candles()
    del given_columns["amount"]
    prices = np.stack([np.asarray(given_columns[name]) for name in frames.PRICES])
    expected = (given_columns["volume"] * prices.mean(0)).astype(np.float32)
    np.testing.assert_array_equal(frames.fill_missing(given_columns)[:, 5], expected)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param(candles(close=None), "'close' is missing", id="no close"),
        pytest.param({}, "'open' is missing", id="nothing"),
        pytest.param(candles(high=np.ones(3)), "one length", id="short price"),
        pytest.param(candles(volume=np.ones(3), amount=None), "one length", id="short volume"),
        pytest.param(candles(0), "at least 1", id="no rows"),
        pytest.param(candles(low=np.full(20, np.nan)), "low: values that are NaN", id="NaN"),
        pytest.param(candles(amount=np.full(20, -np.inf)), "amount: values that are NaN", id="infinity"),
        pytest.param(candles(volume=np.full(20, 1e39)), "volume: .* beyond float32", id="overflow"),
    ],
)
def test_unusable_columns_are_refused_by_name(columns: dict[str, Array | None], message: str) -> None:
    """A column that cannot be used is named."""
    with pytest.raises(ValueError, match=message):
        frames.fill_missing(columns)


def test_statistics_beyond_float32_are_refused() -> None:
    """Values whose squares overflow float32 are refused, not turned into a scale of infinity."""
    values = frames.fill_missing(candles(open=np.linspace(1, 1e30, 20)))
    with pytest.raises(ValueError, match="open: values too large"):
        frames.normalise(values)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 60), st.just(6)), elements=PRICE), st.floats(0.5, 6))
def test_normalise_and_restore_are_inverse(raw: Array, clip: float) -> None:
    """Normalised values lie within the clip, and what was not clipped comes back."""
    values = frames.fill_missing(dict(zip(frames.COLUMNS, raw.T, strict=True)))
    x, mean, std = frames.normalise(values, clip)
    assert (np.abs(x) <= np.float32(clip)).all()
    back = frames.restore(x, mean, std)
    inside = np.abs(x) < np.float32(clip)
    allowed = 4e-7 * (np.abs(values) + np.abs(mean) + std)
    assert (np.abs(back - values)[inside] <= allowed[inside]).all()


def test_restore_takes_leading_axes() -> None:
    """Paths [k, H, 6] are restored like each of them alone, in float32."""
    x, mean, std = frames.normalise(frames.fill_missing(candles()))
    paths = np.stack((x, -x))
    restored = frames.restore(paths, mean, std)
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored[1], frames.restore(paths[1], mean, std))


@given(st.lists(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2199, 12, 31)), min_size=1, max_size=20))
def test_stamps_agree_with_the_calendar(times: list[dt.datetime]) -> None:
    """All fields are what Python's own calendar says (weekday from Monday 0), also before 1970."""
    features = frames.stamp_features(np.array(times, dtype="datetime64[s]"))
    assert features.dtype == np.int16
    assert features.tolist() == [[t.minute, t.hour, t.weekday(), t.day, t.month] for t in times]


def test_missing_stamp_is_refused() -> None:
    """NaT is no stamp."""
    with pytest.raises(ValueError, match="NaT"):
        frames.stamp_features(np.array(["2024-01-01", "NaT"], dtype="datetime64[s]"))
