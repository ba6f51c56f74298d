"""The prediction log in a real S3 server: written, asked and compacted there; killed, silent and back again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest

from app import batcher
from app.prediction_log import storage
from app.prediction_log.sink import PredictionLog
from app.settings import Settings
from fleet.__main__ import main
from fleet.errors import Busy
from fleet.log import alone
from fleet.log import compact as compaction
from fleet.log.files import Files
from fleet.log.query import ask
from tests.caching import SINGLE, value
from tests.logged import record
from tests.s3_server import BUCKET, WHY_NOT, S3Server, s3_server
from tests.serving import client, request, until
from tests.test_fleet_log import TEN
from tests.test_fleet_log_compact import KILLED, LATER, quiet

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
PLACE = f"s3://{BUCKET}/some/where"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server of one's own, which the environment names."""
    monkeypatch.setattr(batcher, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(batcher, "LAST_PAUSE_S", 0.1)
    monkeypatch.setattr(storage, "PUT_S", 1.0)
    with s3_server(tmp_path) as running:
        for name, text in running.environment.items():
            monkeypatch.setenv(name, text)
        yield running


def log_of(**changes: Any) -> PredictionLog:
    return PredictionLog.of(PLACE, Settings(prediction_log=PLACE, **changes))


def ids() -> list[str]:
    """What a reader sees."""
    found = ask(Files(PLACE), "SELECT record_id FROM predictions ORDER BY record_id", {})
    answer: list[str] = found["record_id"].to_pylist()
    return answer


def laid(count: int = 4) -> list[str]:
    """Files of three records each, in one closed hour; the records' ids."""
    log, told = log_of(prediction_log_batch=3), [record(answered=TEN + number, quantiles=[0.5]) for number in range(3 * count)]
    for each in told:
        log.offer(each)
    log.close(5)
    return sorted(each.record_id for each in told)


def test_the_service_writes_there_and_the_fleet_asks(server: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole files below the prefix, at drain at the latest; SQL over them as over a folder."""
    with client(Settings(prewarm=False, prediction_log=PLACE, prediction_log_age=60.0)) as http:
        for seed in range(20):
            asked = request(10, overrides={"pred_len": 3, "seed": seed}, series_id="BTC-5m")
            assert http.post(SINGLE, json=asked).status_code == 200
    (path,) = (server.folder / "buckets" / BUCKET).rglob("*.parquet")
    assert str(path.relative_to(server.folder / "buckets" / BUCKET)).startswith("some/where/model=model-1/day=")
    assert main(["log", "query", "SELECT series_id, count(*) AS n FROM predictions GROUP BY ALL", "--csv"], {
        **server.environment, "KRONOS_PREDICTION_LOG": PLACE}) == 0  # fmt: skip
    assert capsys.readouterr().out.split() == ["series_id,n", "BTC-5m,20"]


def test_killed_and_started_again(server: S3Server) -> None:
    """What waited is written when the server is back: every record once."""
    log, told = log_of(prediction_log_age=0.02), [record() for _ in range(60)]
    for number, each in enumerate(told):
        if number == 20:
            assert until(lambda: log.batcher.held == 0)
            server.kill()
        log.offer(each)
    assert until(lambda: value("kronos_sink_up", sink="log") == 0) and log.batcher.held == 40
    server.start()
    assert until(lambda: log.batcher.held == 0)
    log.close(1)
    assert ids() == sorted(each.record_id for each in told)


def test_silent_for_a_while(server: S3Server) -> None:
    """A put that was given up may have arrived after all: the repeat has its name, so nothing is there twice."""
    log, told = log_of(prediction_log_age=0.02), [record() for _ in range(10)]
    server.stall()
    for each in told:
        log.offer(each)
    assert until(lambda: value("kronos_sink_up", sink="log") == 0)
    server.resume()
    assert until(lambda: log.batcher.held == 0)
    log.close(1)
    assert ids() == sorted(each.record_id for each in told)


def test_a_bucket_that_is_none(server: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """The worker tries on; the operator is told."""
    log = PredictionLog.of("s3://nowhere/log", Settings(prediction_log_age=0.02))
    log.offer(record())
    assert until(lambda: value("kronos_sink_up", sink="log") == 0)
    log.close(0.1)
    assert main(["log", "query", "SELECT 1", "--at", "s3://nowhere/log"], server.environment) != 0
    assert "s3://nowhere/log cannot be read" in capsys.readouterr().err


def test_compacted_there(server: S3Server) -> None:
    """Fewer files, the same rows; the lease is given back."""
    before = laid()
    done = compaction.compact(Files(PLACE), LATER, quiet)
    assert (done.files, done.into, done.rows) == (4, 1, 12) and ids() == before
    assert len(Files(PLACE).everything()) == 1
    assert compaction.compact(Files(PLACE), LATER, quiet) == compaction.Done()


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 5, 8])
def test_killed_while_compacting_there(step: int, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers see every row once; the dead one's lease is respected for its time, then taken over."""
    before = laid()
    script = KILLED.replace("run(Path(sys.argv[1]))", f"from tests.test_prediction_log_s3 import again; again({PLACE!r})")
    killed = subprocess.run([sys.executable, "-W", "error", "-c", script, "", str(step)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert ids() == before
    with pytest.raises(Busy, match=f"{os.uname().nodename}.*or died of it"):
        again(PLACE)
    monkeypatch.setattr(alone, "LEASE", timedelta(0))
    again(PLACE)
    assert ids() == before and len(Files(PLACE).everything()) == 1


def again(place: str) -> None:
    """One compaction; also in a process of its own, which is killed."""
    compaction.compact(Files(place), LATER, quiet)


def test_a_lease_that_was_taken_over_ends_the_work(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who slept too long finds out before it writes, and leaves the other's lease alone."""
    files = Files(PLACE)
    with pytest.raises(Busy, match="has begun"), alone.lease(files) as still_mine, monkeypatch.context() as impatient:
        still_mine()
        impatient.setattr(alone, "LEASE", timedelta(0))
        with alone.lease(Files(PLACE)):
            still_mine()
    with alone.lease(files), pytest.raises(Busy, match="is compacting"), alone.lease(Files(PLACE)):
        pass
    assert not [each for each in obstore.list(files.store).collect() if each["path"] == alone.NAME]


def test_storage_that_ignores_conditions_is_found_out(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them nobody could be alone: compaction refuses, until somebody answers for it."""
    before, put = laid(), obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, path, content, mode=None: put(store, path, content))
    with pytest.raises(alone.NoLock, match="no notice of conditions"):
        again(PLACE)
    assert len(Files(PLACE).everything()) == 4
    compaction.compact(Files(PLACE), LATER, quiet, assured=True)
    assert ids() == before and len(Files(PLACE).everything()) == 1
