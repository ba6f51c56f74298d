"""Candles from files, the times that follow them, and the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

from fleet import candles, picture
from fleet.errors import BadCandles
from tests.fleet.live import ROOT

EXAMPLE = ROOT / "examples" / "candles-5m.csv"
HEADER = "timestamps,open,high,low,close,volume,amount"
ROW = "2024-06-01 09:{minute:02d}:00,1,2,0.5,1.5,10,15"


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "candles.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_example_is_read_whole() -> None:
    """400 candles, all columns, ascending times."""
    table = candles.read(EXAMPLE)
    assert table.shape == (400, 6) and table.index.is_monotonic_increasing
    assert len(candles.read(EXAMPLE, lookback=100)) == 100


def test_volume_and_amount_may_be_missing(tmp_path: Path) -> None:
    """They are not sent then; the server fills them as the model expects."""
    path = written(tmp_path, "Date, Open ,HIGH,low,close", "2024-06-01,1,2,0.5,1.5", "2024-06-02,1,2,0.5,1.5")
    document = candles.request_document(candles.read(path), candles.Question(horizon=1))
    assert document["candles"][0] == {"open": 1, "high": 2, "low": 0.5, "close": 1.5}
    assert document["prediction_timestamps"] == ["2024-06-03T00:00:00"]


@pytest.mark.parametrize(
    "lines, words",
    [
        (["open,high,low,close", "1,2,3,4"], "no column timestamps"),
        (["timestamps,open,high", "2024-06-01,1,2"], "no column low, close"),
        ([HEADER], "has no rows"),
        ([HEADER, ROW.format(minute=1), "2024-06-01 09:02:00,1,,0.5,1.5,10,15"], "line 3: high nan is not a finite"),
        ([HEADER, ROW.format(minute=1), "2024-06-01 09:02:00,1,2,0.5,oops,10,15"], "line 3: close oops is not a finite"),
        ([HEADER, "2024-06-01 09:02:00,1,2,0.5,inf,10,15"], "line 2: close inf is not a finite"),
        ([HEADER, "yesterday,1,2,0.5,1.5,10,15"], "line 2: timestamps yesterday is not a time"),
        ([HEADER, ROW.format(minute=2), ROW.format(minute=1)], "line 3: timestamps 2024-06-01 09:01:00 is not later"),
        ([HEADER, ROW.format(minute=2), ROW.format(minute=2)], "line 3: timestamps 2024-06-01 09:02:00 is not later"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_column(tmp_path: Path, lines: list[str], words: str) -> None:
    """The person with the file learns which cell to mend."""
    with pytest.raises(BadCandles, match=words):
        candles.read(written(tmp_path, *lines))


def test_no_file_is_said_plainly(tmp_path: Path) -> None:
    """With a file that exists in the next command."""
    with pytest.raises(BadCandles, match="there is no file") as caught:
        candles.read(tmp_path / "none.csv")
    assert "examples/candles-5m.csv" in caught.value.then


def test_a_uniform_series_goes_on_uniformly() -> None:
    """Round the clock, as crypto trades."""
    times = pd.date_range("2024-06-01", periods=50, freq="1h")
    assert list(candles.future_times(times, 3)) == list(pd.date_range("2024-06-03 02:00", periods=3, freq="1h"))


def test_trading_hours_are_learnt_from_the_history() -> None:
    """The example trades 09:35-11:30 and 13:05-15:00 on weekdays; so does its future, over lunch and weekend."""
    history = candles.read(EXAMPLE)
    future = candles.future_times(pd.DatetimeIndex(history.index), 100)
    assert history.index[-1] == pd.Timestamp("2024-06-28 14:00")  # a Friday
    assert list(future[:13]) == [
        *pd.date_range("2024-06-28 14:05", "2024-06-28 15:00", freq="5min"),
        pd.Timestamp("2024-07-01 09:35"),
    ]
    seen = set(pd.DatetimeIndex(history.index).time)
    assert set(future.time) <= seen and set(future.day_of_week) <= {0, 1, 2, 3, 4}


def test_a_single_gap_is_not_taken_for_trading_hours() -> None:
    """Less than three days say nothing about hours: the usual spacing goes on."""
    times = pd.date_range("2024-06-03 09:00", periods=20, freq="5min").delete(7)
    assert candles.future_times(times, 1)[0] == pd.Timestamp("2024-06-03 10:40")


def test_the_picture_shows_candles_cone_and_border(tmp_path: Path) -> None:
    """Both colours of candles, the cone's colour only right of the border, in a file of the asked kind."""
    history = candles.read(EXAMPLE)
    future = candles.future_times(pd.DatetimeIndex(history.index), 24)
    flat = pd.DataFrame(dict.fromkeys(history.columns, 10.9), index=future)
    spread = {q: flat + (q - 0.5) * np.linspace(0, 1, 24)[:, None] for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    path = tmp_path / "out.png"
    picture.draw(path, history, flat, spread, "title", "subtitle")
    pixels = image.imread(path)[..., :3]
    middle = pixels[: int(pixels.shape[0] * 0.7)]

    def share(colour: str, part: np.ndarray) -> float:
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return float((np.abs(part - wanted).max(-1) < 0.08).mean())

    assert share(picture.UP, middle) > 0.001 and share(picture.DOWN, middle) > 0.001
    bluish = (middle[..., 2] - middle[..., 0] > 0.1).mean(0)
    assert bluish[: int(len(bluish) * 0.5)].mean() < 0.02 < bluish[int(len(bluish) * 0.8) :].mean()


def test_an_unknown_kind_of_picture_is_refused(tmp_path: Path) -> None:
    """ValueError, which the verb turns into a sentence."""
    history = candles.read(EXAMPLE, 60)
    with pytest.raises(ValueError, match="docx"):
        picture.draw(tmp_path / "out.docx", history, history.tail(5), {}, "", "")
