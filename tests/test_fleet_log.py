"""``fleet log query``: answers equal those computed by hand or by pandas, and nothing but the log can be read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from app.prediction_log import rows
from app.prediction_log.sink import folder
from app.records import Record
from fleet.__main__ import main
from tests.logged import STAGES, record

TEN = datetime(2026, 11, 21, 10, tzinfo=UTC).timestamp()
START = datetime(2024, 6, 1)


def lay(place: Path, told: Sequence[Record], name: str = "20261121T100000.000000Z-w-00000000-000001.parquet") -> Path:
    """Put records into the log as a worker would: a file in each folder they belong to."""
    by_folder: dict[str, list[Record]] = {}
    for each in told:
        by_folder.setdefault(folder(each.model_version, each.answered), []).append(each)
    for where, group in by_folder.items():
        (place / where).mkdir(parents=True, exist_ok=True)
        content = rows.parquet(rows.table([rows.take(each, False) for each in group]))
        (place / where / name).write_bytes(content)
    return place


def ask(capsys: pytest.CaptureFixture[str], place: Path, *words: str) -> list[dict[str, Any]]:
    """The answer to a question, as a program gets it."""
    code = main(["log", "query", *words, "--at", str(place), "--json"], {})
    out = capsys.readouterr()
    assert code == 0, out.err
    found: list[dict[str, Any]] = json.loads(out.out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str, env: dict[str, str] | None = None) -> str:
    """What a verb says that does not succeed, with its next step."""
    assert main(["log", *words], env or {}) != 0
    said = capsys.readouterr().err
    assert "Next: " in said
    return said


def test_p95_by_hour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Milliseconds of the engine's stages by hour; hits of the cache are counted apart."""
    told = [record(answered=TEN + minute * 60, stages={"queue": 0.01, "decode": 0.001 * minute}) for minute in range(60)]
    told += [record(answered=TEN + 1, cache="hit", stages={"cache": 1e-5}) for _ in range(40)]
    told += [record(answered=TEN + 3600, stages={"decode": 0.5})]
    first, second = ask(capsys, lay(tmp_path, told), "--named", "latency")
    assert first["hour"] == "2026-11-21T10:00:00Z" and (first["forecasts"], first["hits"]) == (100, 40)
    assert first["p50_ms"] == pytest.approx(np.quantile(np.arange(60) + 10.0, 0.5))
    assert first["p95_ms"] == pytest.approx(np.quantile(np.arange(60) + 10.0, 0.95))
    assert (second["hour"], second["p99_ms"]) == ("2026-11-21T11:00:00Z", 500)
    stages = ask(capsys, tmp_path, "--named", "stages")
    assert [(row["hour"][11:13], row["stage"], row["forecasts"]) for row in stages] == [
        ("10", "cache", 40), ("10", "decode", 60), ("10", "queue", 60), ("11", "decode", 1),
    ]  # fmt: skip
    assert stages[1]["mean_ms"] == pytest.approx(29.5) and stages[1]["p95_ms"] == pytest.approx(56.05)


def test_what_was_forecast_for_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every forecast of that candle, newest first, whoever made it and how far ahead it was."""
    far = record(20, 6, answered=TEN, series_id="BTC-5m")
    near = record(22, 4, answered=TEN + 60, series_id="BTC-5m", model_version="other@v2+ff")
    other = record(22, 4, answered=TEN + 60, series_id="ETH-5m")
    place = lay(tmp_path, [far, near, other])
    found = ask(capsys, place, "--named", "at", "--series", "BTC-5m", "--time", "2024-06-01T22:00")
    assert [(row["record_id"], row["step"]) for row in found] == [(near.record_id, 1), (far.record_id, 3)]
    assert found[1]["close"] == far.result.prediction[2].close and found[0]["low"] == near.result.prediction[0].low
    assert ask(capsys, place, "--named", "at", "--series", "BTC-5m", "--time", "2024-06-01T22:00Z") == found
    assert ask(capsys, place, "--named", "at", "--series", "BTC-5m", "--time", "2025-06-01") == []


def test_the_last_forecast_that_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Until an instant: UTC, or with an offset of its own."""
    told = [record(20, 3, answered=TEN + minutes * 60, series_id="BTC-5m") for minutes in (0, 10, 20)]
    place = lay(tmp_path, told)
    for time in ("2026-11-21T10:15", "2026-11-21T12:15+02:00"):
        found = ask(capsys, place, "--named", "made", "--series", "BTC-5m", "--time", time)
        assert [row["record_id"] for row in found] == [told[1].record_id] * 3
        assert [row["close"] for row in found] == [candle.close for candle in told[1].result.prediction]
        assert [row["step"] for row in found] == [1, 2, 3]
    assert [row["forecasts"] for row in ask(capsys, place, "--named", "series")] == [3]


def truth_of(folder_: Path, hours: int = 60, kind: str = "csv") -> tuple[Path, pd.DataFrame]:
    """Candles that came, from the start of the example series on."""
    random = np.random.default_rng(1)
    closes = 100 + random.standard_normal(hours).cumsum() * 0.2
    table = pd.DataFrame(
        {"timestamps": [START + timedelta(hours=hour) for hour in range(hours)], "open": closes, "high": closes + 1,
         "low": closes - 1, "close": closes + 0.1},
    )  # fmt: skip
    path = folder_ / f"truth.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path, index=False)
    return path, table


def forecasts(levels: list[float] | None) -> list[Record]:
    """Of two series and two models, from many starts; one is given again by the cache, one has no truth."""
    told = [
        record(20 + start, 5, answered=TEN + start, series_id=series, quantiles=levels, model_version=model,
               overrides={"pred_len": 5, "seed": 100 * start + len(series), "sample_count": 9})
        for start in range(12) for series in ("A", "BB") for model in ("m@1+a", "n@1+b")
    ]  # fmt: skip
    again = record(20, 5, answered=TEN + 99, series_id="A", cache="hit", model_version="m@1+a", quantiles=levels)
    late = record(200, 5, answered=TEN + 99, series_id="A", model_version="m@1+a", quantiles=levels)
    return [*told, again, late]


def steps_of(told: Sequence[Record], series: str, truth: pd.DataFrame) -> pd.DataFrame:
    """The oracle's join: a row for each computed step of a series whose truth is known."""
    made = []
    for each in told:
        if each.result.series_id != series or each.cache == "hit":
            continue
        quantiles: Any = each.prepared.asked.quantiles and each.result.quantiles
        for step, candle in enumerate(each.result.prediction, 1):
            time = pd.Timestamp(candle.timestamp).tz_localize(None)
            bands = {f"q{level}": candles[step - 1].close for level, candles in (quantiles or {}).items()}
            made.append({"model": each.model_version, "step": step, "timestamps": time, "forecast": candle.close} | bands)
    return pd.DataFrame(made).merge(truth, on="timestamps")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_error_equals_pandas(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MAE, RMSE, bias and MAPE by model and step, of one series against its truth; repeats of the cache count once."""
    told, (path, truth) = forecasts(None), truth_of(tmp_path, kind=kind)
    found = ask(capsys, lay(tmp_path / "log", told), "--named", "error", "--truth", str(path), "--series", "A")
    joined = steps_of(told, "A", truth)
    assert [(row["series_id"], row["model_version"], row["step"]) for row in found] == [
        ("A", model, step) for model in ("m@1+a", "n@1+b") for step in range(1, 6)
    ]
    for row in found:
        part = joined[(joined["model"] == row["model_version"]) & (joined["step"] == row["step"])]
        gap = part["forecast"] - part["close"]
        assert row["forecasts"] == len(part) == 12
        assert row["mae"] == pytest.approx(gap.abs().mean()) and row["bias"] == pytest.approx(gap.mean())
        assert row["rmse"] == pytest.approx(np.sqrt((gap**2).mean()))
        assert row["mape_percent"] == pytest.approx(100 * (gap / part["close"]).abs().mean())


def test_coverage_equals_pandas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each pair of opposite levels: nominal share, share seen, mean width; the median has no interval."""
    told, (path, truth) = forecasts([0.1, 0.25, 0.5, 0.75, 0.9]), truth_of(tmp_path)
    found = ask(capsys, lay(tmp_path / "log", told), "--named", "coverage", "--truth", str(path), "--series", "BB")
    joined = steps_of(told, "BB", truth)
    assert len(found) == 2 * 5 * 2
    seen = set()
    for row in found:
        part = joined[(joined["model"] == row["model_version"]) & (joined["step"] == row["step"])]
        low, high = part[f"q{row['lower']}"], part[f"q{row['upper']}"]
        assert row["nominal"] == pytest.approx(row["upper"] - row["lower"])
        assert row["coverage"] == pytest.approx(((low <= part["close"]) & (part["close"] <= high)).mean())
        assert row["width"] == pytest.approx((high - low).mean()) and row["forecasts"] == 12
        seen.add(row["coverage"])
    assert len(seen) > 1, "a truth that is always inside proves nothing"


def test_another_column_and_missing_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--column low looks at lows; a column that the truth does not have gives no rows, not zeros."""
    told, (path, truth) = forecasts(None), truth_of(tmp_path)
    words = ("--named", "error", "--truth", str(path), "--series", "A", "--column")
    place = lay(tmp_path / "log", told)
    joined = steps_of(told, "A", truth)
    lows = [each.result.prediction[0].low for each in told[:48:4]]
    part = joined[(joined["model"] == "m@1+a") & (joined["step"] == 1)]
    assert ask(capsys, place, *words, "low")[0]["mae"] == pytest.approx(np.abs(np.array(lows) - part["low"].to_numpy()).mean())
    assert ask(capsys, place, *words, "volume") == []


def test_own_sql_and_its_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All columns and views, as a table, as CSV and as JSON."""
    told = [record(20, 3, answered=TEN + second, series_id="[A]", quantiles=[0.5]) for second in range(250)]
    place = lay(tmp_path, told)
    sql = "SELECT model, day, hour, count(*) AS n, sum(len(close)) AS steps FROM predictions GROUP BY ALL"
    (row,) = ask(capsys, place, sql)
    assert row == {"model": "demo-main-0123456789ab", "day": "2026-11-21", "hour": 10, "n": 250, "steps": 750}
    for view in ("steps", "bands"):
        assert ask(capsys, place, f"SELECT count(*) AS n FROM {view}") == [{"n": 750}]
    assert main(["log", "query", "FROM predictions ORDER BY answered", "--csv"], {"KRONOS_PREDICTION_LOG": str(place)}) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == 250 and json.loads(lines[0]["close"]) == [candle.close for candle in told[0].result.prediction]
    assert lines[0]["answered"] == "2026-11-21T10:00:00Z" and lines[0]["input"] == ""
    assert json.loads(lines[0]["stages_ms"]) == pytest.approx({name: 1e3 * took for name, took in STAGES.items()})
    assert main(["log", "query", "SELECT series_id, answered FROM predictions", "--at", str(place)], {}) == 0
    shown = capsys.readouterr().out
    assert "[A]" in shown and "50 rows more" in shown


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM read_text('/etc/hostname')", "SELECT * FROM glob('/*')",
        "COPY (SELECT 1) TO '{folder}/stolen.csv'", "ATTACH '{folder}/new.db'", "SET enable_external_access = true",
        "INSTALL httpfs", "LOAD httpfs", "SELECT * FROM read_parquet('{folder}/**/*.parquet')", "EXPORT DATABASE '{folder}/out'",
        "SELECT nothing FROM predictions", "SELEC 1", "SELECT * FROM told", "",
    ],
)  # fmt: skip
def test_sql_reaches_nothing_else(sql: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file, no network, no extension, no variable of this process; bad SQL is explained, with a next step."""
    place = lay(tmp_path / "log", [record(answered=TEN)])
    before = sorted(tmp_path.rglob("*"))
    refused(capsys, "query", sql.replace("{folder}", str(tmp_path)), "--at", str(place))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No log, an empty one, a question without its options: each says so and what to do."""
    place = lay(tmp_path / "log", [record(answered=TEN)])
    (tmp_path / "empty").mkdir()
    path, _ = truth_of(tmp_path)
    at = ("--at", str(place))
    assert "KRONOS_PREDICTION_LOG is not set" in refused(capsys, "query", "SELECT 1")
    assert "no folder" in refused(capsys, "query", "SELECT 1", "--at", str(tmp_path / "none"))
    assert "no predictions yet" in refused(capsys, "query", "SELECT 1", env={"KRONOS_PREDICTION_LOG": str(tmp_path / "empty")})
    assert "neither a folder nor s3" in refused(capsys, "query", "SELECT 1", "--at", "gs://bucket")
    assert "either SQL or --named" in refused(capsys, "query", *at)
    assert "needs --series" in refused(capsys, "query", "--named", "at", *at)
    assert "is no time" in refused(capsys, "query", "--named", "at", "--series", "A", "--time", "ten", *at)
    assert "needs the truth" in refused(capsys, "query", "--named", "error", *at)
    assert "of one series" in refused(capsys, "query", "--named", "error", "--truth", str(path), *at)
    assert "there is no file" in refused(capsys, "query", "--named", "error", "--truth", "x.csv", "--series", "A", *at)


def test_newer_columns_and_older_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column that came later is null in the files before it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = lay(tmp_path, [record(answered=TEN)])
    newer = rows.table([rows.take(record(answered=TEN + 3600), False)]).append_column("region", pa.array(["eu"]))
    where = place / folder("demo@main+0123456789ab", TEN + 3600)
    where.mkdir(parents=True)
    pq.write_table(newer, where / "20261121T110000.000000Z-w-00000000-000001.parquet")
    assert ask(capsys, place, "SELECT region FROM predictions ORDER BY answered") == [{"region": None}, {"region": "eu"}]
