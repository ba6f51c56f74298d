"""The prediction log: what a row says, where it lies, when it is there. Faults are in ``test_prediction_log_faults``."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.main import make_sinks
from app.prediction_log import rows
from app.prediction_log.sink import PredictionLog, folder
from app.settings import Settings, SettingsError, load
from tests.caching import BATCH, SINGLE, value
from tests.logged import STAGES, record
from tests.serving import client, request, until

COLUMNS = ("open", "high", "low", "close", "volume", "amount")
HOUR = 3600.0
TEN = datetime(2026, 11, 21, 10, 30, tzinfo=UTC).timestamp()


def log_at(place: Path, **changes: Any) -> PredictionLog:
    (sink,) = make_sinks(Settings(prediction_log=str(place), **changes))
    assert isinstance(sink, PredictionLog)
    return sink


def written(place: Path) -> list[Path]:
    return sorted(place.glob("**/*.parquet"))


def read(place: Path) -> list[dict[str, Any]]:
    """All rows, as they are in the files."""
    found = [row for path in written(place) for row in pq.ParquetFile(path).read().to_pylist()]
    return sorted(found, key=lambda row: row["answered"])


def one_row(record_: Any, *, inputs: bool = False) -> dict[str, Any]:
    """The row of a record, out of the bytes of a file."""
    made = rows.table([rows.take(record_, inputs)])
    row: dict[str, Any] = pq.read_table(pa.BufferReader(rows.parquet(made))).to_pylist()[0]
    return row


def test_a_row_says_what_was_answered() -> None:
    """To the last digit: forecast, quantiles, parameters, versions, timings; and it has the schema's version."""
    told = record(count=30, horizon=5, answered=TEN, quantiles=[0.1, 0.9], repair=True, series_id="BTC-5m")
    row = one_row(told)
    for name in COLUMNS:
        assert row[name] == [getattr(candle, name) for candle in told.result.prediction]
    assert [level["level"] for level in row["quantiles"]] == [0.1, 0.9]
    quantiles: Any = told.result.quantiles
    for level, candles in zip(row["quantiles"], quantiles.values(), strict=True):
        assert all(level[name] == [getattr(candle, name) for candle in candles] for name in COLUMNS)
    assert row["timestamps"][0] == row["input_until"].replace(hour=row["input_until"].hour + 1)
    assert row["answered"] == datetime.fromtimestamp(TEN, UTC)
    assert dict(row["stages_ms"]) == pytest.approx({name: 1e3 * seconds for name, seconds in STAGES.items()})
    assert row["total_ms"] == pytest.approx(1e3 * sum(STAGES.values()))
    expected = {
        "schema_version": rows.VERSION, "record_id": told.record_id, "request_id": "request-1", "endpoint": "single",
        "worker": "worker-1", "model_version": "demo@main+0123456789ab", "tokenizer_version": "tokenizer@main+ab",
        "series_id": "BTC-5m", "cache": "miss", "input_candles": 30, "utc_offset": 0, "horizon": 5, "temperature": 1.0,
        "top_k": 0, "top_p": 0.9, "sample_count": 8, "seed": 7, "repair": True, "input": None,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_inputs_are_recorded_where_they_are_wanted() -> None:
    """As they were sent, without the columns that were not."""
    sent = request(12, overrides={"pred_len": 2, "seed": 1})
    for candle in sent["candles"]:
        del candle["amount"]
    row = one_row(record(candles=sent["candles"], timestamps=sent["timestamps"]), inputs=True)
    for name in COLUMNS[:5]:
        assert row["input"][name] == [candle[name] for candle in sent["candles"]]
    assert row["input"]["amount"] is None
    assert [moment.isoformat() + "Z" for moment in row["input"]["timestamps"]] == sent["timestamps"]


def test_times_keep_the_clock_of_the_series() -> None:
    """An offset is a column of its own; without one it is null, and the times are what was written."""
    stamps = [f"2024-06-01 0{hour}:00:00" for hour in range(5)]
    bare = one_row(record(5, 2, timestamps=stamps))
    assert bare["utc_offset"] is None and bare["timestamps"][0] == datetime(2024, 6, 1, 5)
    east = one_row(record(5, 2, timestamps=[text + "+05:30" for text in stamps]))
    assert east["utc_offset"] == 330 and east["timestamps"] == bare["timestamps"]


def test_the_input_hash_is_as_documented() -> None:
    """The same history has the same hash whatever is asked of it; another price, scale or time has another."""
    first = record(20, 4)
    scale, work = first.prepared.scale, first.prepared.work
    parts = [work.history.astype("<f4"), scale.mean.astype("<f4"), scale.std.astype("<f4"), work.history_stamps.astype("<i2")]
    expected = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()
    assert one_row(first)["input_sha256"] == expected == one_row(record(20, 9, quantiles=[0.5]))["input_sha256"]
    sent = request(20)
    sent["candles"][3]["open"] += 0.01
    doubled = [{name: 2 * number for name, number in candle.items()} for candle in request(20)["candles"]]
    later = [text.replace("2024", "2025") for text in request(20)["timestamps"]]
    others = ({"candles": sent["candles"]}, {"candles": doubled}, {"timestamps": later})
    assert len({expected, *(one_row(record(20, 4, **change))["input_sha256"] for change in others)}) == 4


def test_a_new_column_needs_no_new_reader_but_a_lost_one_a_new_version() -> None:
    """The columns of this version, in order: whoever changes one has to decide."""
    names = (
        "schema_version answered record_id request_id endpoint worker model_version tokenizer_version series_id cache "
        "input_sha256 input_candles input_until utc_offset horizon temperature top_k top_p sample_count seed repair total_ms "
        "stages_ms warnings timestamps open high low close volume amount quantiles input"
    )
    assert rows.VERSION == 1 and " ".join(rows.SCHEMA.names) == names


def test_files_lie_by_model_day_and_hour(tmp_path: Path) -> None:
    """Of the answer, in UTC; each record in one file; names that no two processes share."""
    first, second = log_at(tmp_path), log_at(tmp_path)
    first.offer(record(answered=TEN))
    first.offer(record(answered=TEN + HOUR))
    first.offer(record(answered=TEN, model_version="other@v2+ff/:x"))
    second.offer(record(answered=TEN))
    first.close(5)
    second.close(5)
    where = [str(path.parent.relative_to(tmp_path)) for path in written(tmp_path)]
    demo = "model=demo-main-0123456789ab/day=2026-11-21"
    assert where == [f"{demo}/hour=10", f"{demo}/hour=10", f"{demo}/hour=11", "model=other-v2-ff--x/day=2026-11-21/hour=10"]
    names = [path.name for path in written(tmp_path)]
    form = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[\w.-]+-[0-9a-f]{8}-\d{6}\.parquet")
    assert len(set(names)) == 4 and all(form.fullmatch(name) for name in names)
    assert len({name[23:-15] for name in names}) == 2, "each log has a name of its own, were they made in the same moment"
    assert folder("m@1+a", 0.0) == "model=m-1-a/day=1970-01-01/hour=00"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"], "no temporary files"


def test_files_are_written_once(tmp_path: Path) -> None:
    """A later batch is a new file; what is there is never opened again."""
    log = log_at(tmp_path, prediction_log_batch=2)
    for _ in range(2):
        log.offer(record(answered=TEN))
    assert until(lambda: len(written(tmp_path)) == 1)
    (path,) = written(tmp_path)
    before = path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()
    for _ in range(2):
        log.offer(record(answered=TEN))
    log.close(5)
    assert len(written(tmp_path)) == 2
    assert (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) == before


def test_every_forecast_of_the_service_is_a_row(tmp_path: Path) -> None:
    """Single, batch and repeats; embeddings and refusals are none. What is held is written when the worker leaves."""
    with client(Settings(prewarm=False, prediction_log=str(tmp_path), prediction_log_age=60.0)) as http:
        asked = request(10, overrides={"pred_len": 3, "seed": 5}, quantiles=[0.5])
        one = http.post(SINGLE, json=asked, headers={"x-request-id": "first"}).json()
        http.post(SINGLE, json=asked, headers={"x-request-id": "again"})
        items = [request(10, overrides={"pred_len": steps, "seed": 1}) for steps in (1, 2)]
        http.post(BATCH, json={"items": [*items, {"candles": []}]}, headers={"x-request-id": "batch"})
        assert http.post(SINGLE, json={}).status_code == 422
        assert http.post("/v1/embeddings", json=request(10)).status_code == 200
        assert written(tmp_path) == [] and value("kronos_sink_held_records", sink="log") == 4
    found = read(tmp_path)
    assert [(row["request_id"], row["endpoint"], row["cache"], row["horizon"]) for row in found] == [
        ("first", "single", "miss", 3), ("again", "single", "hit", 3),
        ("batch", "batch", "miss", 1), ("batch", "batch", "miss", 2),
    ]  # fmt: skip
    assert found[0]["close"] == [candle["close"] for candle in one["prediction"]]
    assert found[0]["quantiles"][0]["open"] == [candle["open"] for candle in one["quantiles"]["0.5"]]
    assert len({row["record_id"] for row in found}) == 4
    assert abs(found[0]["answered"].timestamp() - time.time()) < 60


def test_a_record_is_written_when_its_age_is_up(tmp_path: Path) -> None:
    """The age bounds what a killed process loses."""
    log = log_at(tmp_path, prediction_log_age=0.2)
    log.offer(record())
    time.sleep(0.05)
    assert not written(tmp_path)
    assert until(lambda: bool(written(tmp_path)), 5)
    log.close(1)


def test_what_waits_does_not_keep_the_request_alive() -> None:
    """Paths are let go, and candles too unless they are wanted; the weight that is counted follows what is kept."""
    heavy = record(400, 20, return_paths=True)
    light, full = rows.take(heavy, False), rows.take(heavy, True)
    assert light.history is None and not hasattr(light, "prepared")
    assert full.bytes - light.bytes == 400 * rows.CANDLE_BYTES
    assert rows.take(record(400, 20, quantiles=[0.1, 0.9]), False).bytes - light.bytes == 40 * rows.CANDLE_BYTES


def test_without_the_setting_nothing_is_loaded() -> None:
    """Arrow takes 40 MB: a worker that keeps no log imports none of it."""
    script = (
        "import sys; from app.settings import Settings; from app.main import create_app; create_app(Settings());"
        "sys.exit(any(name.startswith(('pyarrow', 'obstore')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("place", ["gs://bucket/x", "s3://", "http://host/x"])
def test_a_place_that_is_none_is_refused(place: str) -> None:
    """Only folders and s3:// addresses; the message names the setting."""
    with pytest.raises(SettingsError, match="KRONOS_PREDICTION_LOG"):
        load({"KRONOS_PREDICTION_LOG": place})
    assert load({"KRONOS_PREDICTION_LOG": "s3://bucket/some/where"}).prediction_log == "s3://bucket/some/where"
