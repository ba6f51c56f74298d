"""A prediction log whose place is away, silent, slow or full: no prediction notices, every lost record is counted (F15)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app import batcher
from app.prediction_log import rows, storage
from app.prediction_log.storage import Storage
from app.records import Record
from app.settings import Settings
from tests.caching import SINGLE, value
from tests.kv_server import black_hole, free_port
from tests.logged import record
from tests.serving import application, client, request, until, worker_of
from tests.test_prediction_log import log_at, read

SLOW_S = 0.5
"""What a put takes at a slow place: far above a prediction of the fake model."""
UNTOUCHED_S = 0.25
"""More than any prediction of the fake model takes on a busy machine, and less than any faulty put."""
SERVER_FAULTS = ("dead", "silent", "slow")


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(batcher, "LAST_PAUSE_S", 0.1)
    monkeypatch.setattr(storage, "PUT_S", 1.0)
    for name, text in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, text)


@contextmanager
def faulty(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place with a fault."""
    if fault == "no folder":
        (folder / "file").write_text("in the way")
        yield str(folder / "file" / "log")
    elif fault == "dead":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        yield "s3://bucket/log"
    elif fault == "silent":
        with black_hole() as hole:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{hole.port}")
            yield "s3://bucket/log"
    else:
        slow = Storage.put

        def put(self: Storage, name: str, content: Any) -> None:
            time.sleep(SLOW_S)
            slow(self, name, content)

        monkeypatch.setattr(Storage, "put", put)
        yield str(folder / "log")


def asked(http: TestClient, seed: int) -> float:
    """Seconds of one prediction, which succeeds."""
    began = time.monotonic()
    assert http.post(SINGLE, json=request(10, overrides={"pred_len": 2, "seed": seed})).status_code == 200
    return time.monotonic() - began


def median(durations: list[float]) -> float:
    return sorted(durations)[len(durations) // 2]


@pytest.mark.parametrize("fault", ["no folder", *(pytest.param(fault, marks=pytest.mark.slow) for fault in SERVER_FAULTS)])
def test_no_prediction_notices(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All succeed as fast as ever, and the worker leaves in time; nothing is lost without being counted."""
    before = {outcome: value("kronos_sink_records_total", sink="log", outcome=outcome) for outcome in ("written", "dropped")}
    with faulty(fault, tmp_path, monkeypatch) as place:
        settings = Settings(prewarm=False, prediction_log=place, prediction_log_age=0.05)
        with client(settings) as http, ThreadPoolExecutor(4) as pool:
            durations = list(pool.map(lambda seed: asked(http, seed), range(40)))
            assert median(durations) < UNTOUCHED_S
            if fault != "slow":
                assert until(lambda: value("kronos_sink_up", sink="log") == 0)
            began = time.monotonic()
        assert time.monotonic() - began < 8
    now = {outcome: value("kronos_sink_records_total", sink="log", outcome=outcome) for outcome in before}
    lost = 40 - (len(read(tmp_path / "log")) if fault == "slow" else 0)
    assert now["dropped"] - before["dropped"] == lost
    assert now["written"] - before["written"] == 40 - lost


@pytest.mark.parametrize("fault", ["silent", "slow"])
def test_control_a_log_that_writes_on_the_way_is_noticed(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the same storage without buffer and thread makes the same predictions wait, or fail."""

    class OnTheWay:
        def __init__(self, place: str) -> None:
            self.storage = Storage(place)

        def offer(self, told: Record) -> None:
            self.storage.put("x.parquet", rows.parquet(rows.table([rows.take(told, False)])))

        def close(self, timeout_s: float) -> None:
            pass

    with faulty(fault, tmp_path, monkeypatch) as place:
        app = application(Settings(prewarm=False))
        worker_of(app).sinks = (OnTheWay(place),)
        with TestClient(app, raise_server_exceptions=False) as http:
            assert until(lambda: worker_of(app).served is not None)
            began = time.monotonic()
            status = http.post(SINGLE, json=request(10, overrides={"pred_len": 2, "seed": 1})).status_code
            assert status != 200 or time.monotonic() - began >= UNTOUCHED_S


def test_what_waited_is_written_when_the_place_is_back(tmp_path: Path) -> None:
    """Nothing is given up that there is room for, and nothing is written twice."""
    (tmp_path / "log").write_text("in the way")
    log = log_at(tmp_path / "log", prediction_log_age=0.02)
    for _ in range(30):
        log.offer(record())
        time.sleep(0.005)
    assert value("kronos_sink_up", sink="log") == 0 and log.batcher.held == 30
    (tmp_path / "log").unlink()
    assert until(lambda: log.batcher.held == 0)
    assert len(read(tmp_path / "log")) == 30 == len({row["record_id"] for row in read(tmp_path / "log")})
    log.close(1)


def test_an_outage_costs_no_more_memory_than_was_allowed(tmp_path: Path) -> None:
    """The buffer's bytes bound it; the newest are dropped, and the counter is what is missing."""
    (tmp_path / "log").write_text("in the way")
    log = log_at(tmp_path / "log", prediction_log_age=0.02, prediction_log_buffer=2**20)
    before = value("kronos_sink_records_total", sink="log", outcome="dropped")
    told = [record(100, 50) for _ in range(100)]
    for each in told:
        log.offer(each)
    assert 0 < log.batcher.held_bytes <= 2**20
    (tmp_path / "log").unlink()
    log.close(5)
    found = {row["record_id"] for row in read(tmp_path / "log")}
    dropped = value("kronos_sink_records_total", sink="log", outcome="dropped") - before
    assert 0 < dropped == len(told) - len(found)
    assert found == {each.record_id for each in told[: len(found)]}, "the newest were dropped"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"mounting a small disk needs root: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    """Half-written files are not left behind; when there is room again, everything that waited is there, whole."""
    with small_disk(tmp_path) as disk:
        (disk / "ballast").write_bytes(os.urandom(56 * 2**10))
        log = log_at(disk / "log", prediction_log_age=0.02)
        for _ in range(20):
            log.offer(record(100, 20))
        assert until(lambda: value("kronos_sink_up", sink="log") == 0)
        time.sleep(0.3)
        assert read(disk / "log") == [] and log.batcher.held == 20
        (disk / "ballast").unlink()
        assert until(lambda: log.batcher.held == 0)
        assert len(read(disk / "log")) == 20
        log.close(1)


@pytest.mark.slow
def test_a_killed_process_loses_at_most_its_buffer(tmp_path: Path) -> None:
    """kill -9 while it writes: every file that is there is whole, and only records younger than the age are missing."""
    script = (
        "import time; from pathlib import Path; from tests.logged import record; from tests.test_prediction_log import log_at\n"
        f"log = log_at(Path({str(tmp_path)!r}), prediction_log_age=0.2)\n"
        "for number in range(10**6):\n"
        "    log.offer(record(request_id=str(number))); print(number, flush=True); time.sleep(0.002)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    moments: list[tuple[int, float]] = []
    for line in process.stdout:
        moments.append((int(line), time.monotonic()))
        if moments[-1][1] - moments[0][1] > 3:
            break
    process.kill()
    killed = time.monotonic()
    process.wait()
    process.stdout.close()
    found = {int(row["request_id"]) for row in read(tmp_path)}
    assert found == set(range(len(found))), "no gap"
    old = [number for number, moment in moments if killed - moment > 2.0]
    assert old and set(old) <= found


def test_a_row_that_cannot_be_made_is_counted_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not stand in the way of others."""
    monkeypatch.setattr(rows, "input_hash", lambda *_: 1 / 0)
    before = value("kronos_sink_records_total", sink="log", outcome="failed")
    log = log_at(tmp_path, prediction_log_age=0.02)
    log.offer(record())
    assert until(lambda: value("kronos_sink_records_total", sink="log", outcome="failed") == before + 1)
    monkeypatch.undo()
    log.offer(record())
    log.close(5)
    assert len(read(tmp_path)) == 1
