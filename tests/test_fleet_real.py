"""The same promises with the real worker and the bundled checkpoint: every forecast is compared with the one the
same request got alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fleet import Judge, ask_alone, bodies
from benchmarks.users import Request
from fleet.host import Machine
from tests.fleet.live import ROOT, Live, live, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("real") / "run", app=()) as found:
        code, said = found.up(3)
        assert code == 0, said
        assert "served by worker-" in said and "decode" in said
        yield found


@pytest.fixture(scope="module")
def requests(fleet: Live) -> list[Request]:
    asked = bodies(lookback=200, horizon=24, different=12)
    alone = asyncio.run(ask_alone("127.0.0.1", fleet.port, asked))
    judge = Judge()
    return [judge.request(body, answer) for body, answer in zip(asked, alone, strict=True)]


def test_status_of_an_idle_fleet(fleet: Live) -> None:
    """The real metrics are understood: nothing in flight, nothing queued, memory known."""
    rows = json.loads(fleet.cli("status", "--json")[1])["processes"]
    workers = [row for row in rows if row["name"] != "nginx"]
    assert [row["state"] for row in rows] == ["ready"] * 4
    assert all(row["in_flight"] == row["queued"] == 0 and row["memory_mb"] > 10 for row in workers)


def test_scaling_under_load_loses_nothing(fleet: Live, requests: list[Request]) -> None:
    """3 → 4 → 2 → 3 workers: every forecast arrives and is the right one."""
    with fleet.load(users=6, pause=(0.05, 0.3), requests=requests) as traffic:
        for workers in ("4", "2", "3"):
            assert fleet.cli("scale", workers)[0] == 0
    assert traffic.failures == [] and len(traffic.exchanges) > 20


def test_kill_9_mid_forecast_is_invisible(fleet: Live, requests: list[Request]) -> None:
    """A worker killed while it computes: its requests are answered by others, and it comes back."""
    worker = fleet.fleet.workers[0]
    with fleet.load(users=6, pause=(0.0, 0.05), requests=requests) as traffic:
        time.sleep(1)
        before = fleet.child(worker)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: fleet.came_back(worker, before), 60)
    assert traffic.failures == []


def test_a_stopped_worker_is_replaced_within_30_seconds(fleet: Live, requests: list[Request]) -> None:
    """SIGSTOP in mid-forecast, with the heartbeat of 10 s that workers really have: no failure."""
    worker = fleet.fleet.workers[1]
    with fleet.load(users=6, pause=(0.05, 0.3), requests=requests) as traffic:
        time.sleep(1)
        before = fleet.child(worker)
        os.kill(before, signal.SIGSTOP)
        gone = wait_until(lambda: before not in [member.pid for member in Machine().family(worker.process)], 30)
        wait_until(lambda: fleet.ready(worker), 60)
    assert traffic.failures == [] and gone < 30


def test_a_worker_whose_supervisor_died_leaves_in_order(fleet: Live, requests: list[Request]) -> None:
    """It finishes what it has and goes; up starts its successor; nobody notices."""
    worker = fleet.fleet.workers[2]
    with fleet.load(users=6, pause=(0.05, 0.3), requests=requests) as traffic:
        os.kill(worker.process.pid, signal.SIGKILL)
        wait_until(lambda: not Machine().family(worker.process), 30)
        code, said = fleet.cli("up")
        assert code == 0 and "Mended" in said
    assert traffic.failures == []


def test_a_roll_loses_nothing(fleet: Live, requests: list[Request]) -> None:
    """All workers replaced under load: every forecast arrives and is the right one."""
    before = {worker.process for worker in fleet.fleet.workers}
    with fleet.load(users=6, pause=(0.05, 0.3), requests=requests) as traffic:
        code, said = fleet.cli("roll")
        assert code == 0, said
    assert traffic.failures == [] and len(traffic.exchanges) > 20
    assert not before & {worker.process for worker in fleet.fleet.workers}


def test_torn_weights_halt_the_roll(fleet: Live, requests: list[Request], tmp_path: Path) -> None:
    """A checkpoint that was cut while it was copied: its reason is told, the old workers serve on."""
    torn = tmp_path / "model"
    shutil.copytree(ROOT / "models" / "demo" / "model", torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    before = fleet.fleet
    with fleet.load(users=6, pause=(0.05, 0.3), requests=requests) as traffic:
        code, said = fleet.cli("roll", "--model", str(torn))
    assert code == 14 and "safetensors" in said and "The roll has halted" in said, said
    assert traffic.failures == [] and fleet.fleet == before
