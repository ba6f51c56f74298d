"""The built-in runner: k6's points become requests, and whose CPU is whose; with a k6 and a fleet of a few lines each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from fleet.errors import BadSetting, WorkerFailed
from fleet.runtime import READY, Look, Runtime
from fleet.tune import served, vitals
from fleet.tune.protocol import RunSpec, Server, Setting, parse
from fleet.tune.served import FleetRunner
from fleet.tune.setting import Configuration
from fleet.tune.vitals import Vitals
from tests.tune import rigs

OPEN = RunSpec(1, "open", 40.0, None, 1.0, 1_234_567, 2)
CLOSED = RunSpec(1, "closed", None, 24, 1.0, 7, 2)


def point(second: float, value: float, metric: str = served.LATENCY, **tags: str) -> str:
    data = {"time": f"2026-11-21T14:00:{second:012.9f}+01:00", "value": value, "tags": tags}
    return json.dumps({"metric": metric, "type": "Point", "data": data})


POINTS = [
    json.dumps({"type": "Metric", "metric": served.LATENCY, "data": {"name": served.LATENCY, "type": "trend", "tainted": None}}),
    point(1.5, 500, outcome="right", worker="2"),
    point(1.4, 100, outcome="refused", worker="none"),
    point(1.4, 100, metric="http_req_duration"),
    point(2.0, 3, metric=served.DROPPED),
    point(3.0, 1, metric=served.DROPPED),
    point(1.5, 400, metric=served.INSIDE),
    point(1.5, 200, metric=served.INSIDE),
]


def test_k6s_points_become_requests() -> None:
    """k6 writes milliseconds and when a request was done; due is the difference, from the first on; only right answers are ok."""
    loaded = served.loaded(line.encode() for line in POINTS)
    seen = [(round(one.t, 6), one.latency_s, one.ok, one.worker) for one in loaded.requests]
    assert seen == [(0, 0.5, True, "2"), (0.3, 0.1, False, "none")]
    assert loaded.dropped == 4 and loaded.inside_s == pytest.approx(0.3) and loaded.outside_s is None


@pytest.mark.parametrize(
    "spec, dials",
    [
        (OPEN, {"SCENARIO": "open", "RATE": "40", "SEED": "234567"}),
        (CLOSED, {"SCENARIO": "baseline", "VUS": "24", "SEED": "7"}),
    ],
)
def test_k6_is_told_by_dials(spec: RunSpec, dials: dict[str, str]) -> None:
    """Open loop by rate, closed loop by users; the operator's own dials stay."""
    told = served.dials_of(spec, rigs.OBJECTIVE, "http://x", {"LOOKBACK": "100"})
    assert told == {**dials, "LOOKBACK": "100", "BASE_URL": "http://x", "DURATION": "1s", "P95_MS": "500"}


def worker(cpu: float, **more: float) -> dict[str, float]:
    return {"process_cpu_seconds_total": cpu, **more}


def test_cpu_is_shared_out_by_worker_host_and_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a worker's quota over the time under load, of all cores; a worker that came or went in between is left out."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    begun = Vitals(10.0, 100.0, 3.0, {"1": worker(5), "2": worker(1, kronos_cpu_quota_cores=0.25)})
    ended = Vitals(20.0, 130.0, 5.0, {"1": worker(9), "2": worker(3, kronos_cpu_quota_cores=0.25), "3": worker(9)})
    cpu = vitals.cpu(begun, ended, busy_s=8.0, worker_cores=0.5)
    assert [cpu.worker or 0, cpu.host or 0, cpu.generator or 0, cpu.fleet or 0] == pytest.approx([1.0, 0.75, 0.05, 6 / 32])
    assert vitals.cpu(begun, Vitals(20.0, 130.0, 5.0, {}), 8.0, 1.0).worker is None


def test_what_the_workers_say_is_added_up() -> None:
    """Growth between the moments over all workers: throttled periods, waiting in the queue, series per step, refusals."""
    stage = 'kronos_stage_seconds_{0}{{stage="{1}"}} {2}\n'
    texts = [
        stage.format("sum", "queue", queue) + stage.format("sum", "decode", 99) + stage.format("count", "queue", 10 * half)
        + f"kronos_batch_sequences_sum {80 * half}\nkronos_batch_sequences_count {20 * half}\n"
        + f'kronos_rejected_total{{reason="a"}} {half}\nkronos_rejected_total{{reason="b"}} {half}\n'
        + f"kronos_cpu_periods_total {100 * half}\nkronos_cpu_throttled_periods_total {25 * half}\n"
        for half, queue in ((1, 2.0), (2, 5.0))
    ]  # fmt: skip
    begun, ended = (Vitals(0.0, 0.0, 0.0, {name: vitals.counters(text) for name in "ab"}) for text in texts)
    assert vitals.server(begun, ended, 0.2, 0.1) == Server(0.25, 0.3, 4.0, 4, 0.2, 0.1)
    assert vitals.server(begun, Vitals(0.0, 0.0, 0.0, {}), None, None) == Server(refused=0)


class Fleet:
    """A runtime of one worker that remembers what it was asked."""

    command = "python -m fleet"

    def __init__(self, refuses: bool = False) -> None:
        self.scaled: list[int] = []
        self.rolled = 0
        self.refuses, self.seconds = refuses, 0.0

    def scale(self, workers: int) -> int:
        if self.refuses:
            raise WorkerFailed("worker-3 ended: out of memory", "python -m fleet logs 3")
        self.scaled.append(workers)
        return 1

    def roll(self, _options: object) -> None:
        self.rolled += 1

    def looks(self) -> Sequence[Look]:
        self.seconds += 0.01
        text = f"process_cpu_seconds_total {self.seconds}\n"
        return [Look("worker-1", True, READY, 0.0, text), Look("nginx", False, READY, 0.0)]

    def front(self) -> Any:
        return SimpleNamespace(url="http://127.0.0.1:1", workers=1)


def runner(tmp_path: Path, fleet: Fleet, script: str, patience_s: float = 20.0) -> FleetRunner:
    """With a k6 that is a shell script; $OUT is its folder."""
    raw = tmp_path / "points"
    raw.write_text("\n".join(POINTS) + "\n")
    k6 = tmp_path / "k6"
    find = 'for a in "$@"; do case "$a" in OUT=*) OUT="${a#OUT=}";; esac; done'
    k6.write_text(f'#!/bin/sh\n{find}\ngzip -c {raw} > "$OUT/raw.json.gz"\n{script}\n')
    k6.chmod(0o755)
    return FleetRunner(cast(Runtime, fleet), k6, rigs.OBJECTIVE, patience_s=patience_s)


@pytest.mark.parametrize("script", ["exit 0", "exit 99"])
def test_a_run_scales_loads_and_speaks_the_protocol(tmp_path: Path, script: str) -> None:
    """What comes out is a run like any other, also when k6's own threshold failed."""
    fleet = Fleet()
    result = runner(tmp_path, fleet, script).run(OPEN)
    points, end = parse(result.output.splitlines(), OPEN.duration_s)
    assert (result.failure, fleet.scaled, len(points.due), end.dropped) == ("", [1], 2, 4)
    assert end.cpu.worker is not None and end.cpu.host is not None


@pytest.mark.parametrize(
    "script, patience_s, refuses, reason",
    [
        ("exit 107", 20.0, False, "the script refused"),
        ("sleep 60", 0.2, False, "did not end within 2.2 s"),
        ("exit 0", 20.0, True, "out of memory"),
    ],
)
def test_a_run_that_went_wrong_says_why(tmp_path: Path, script: str, patience_s: float, refuses: bool, reason: str) -> None:
    """k6's faults, its hanging, and a fleet that does not come up are reasons of an invalid run, not the end of a campaign."""
    result = runner(tmp_path, Fleet(refuses), script, patience_s).run(OPEN)
    assert result.output == b"" and reason in result.failure


def test_a_run_waits_until_every_worker_answers(tmp_path: Path) -> None:
    """Ready is not enough: a worker that Nginx has not found yet would make another fleet of the first seconds."""
    found = runner(tmp_path, Fleet(), "exit 0").run(msgspec.structs.replace(OPEN, workers=2))
    assert found.failure == "of 2 workers 1 answer through the door"


def test_a_fleet_is_prepared_once_for_runs_that_are_alike(tmp_path: Path) -> None:
    """Scaling and warming again would cost time and change nothing; after a failure they are done again."""
    fleet = Fleet()
    made = runner(tmp_path, fleet, "exit 0")
    for spec in (OPEN, CLOSED, OPEN):
        made.run(spec)
    assert fleet.scaled == [1]
    fleet.refuses = True
    made.run(msgspec.structs.replace(OPEN, workers=2))
    fleet.refuses = False
    made.run(OPEN)
    assert fleet.scaled == [1, 1]


def test_settings_of_a_grid_reach_the_workers_by_a_roll(tmp_path: Path) -> None:
    """Each value in the environment of the commands, once for runs that have the same; what was set before comes back."""
    grid: list[dict[str, Setting]] = [{"slots": 4.0}, {"slots": 8.0}]
    configuration, fleet = Configuration.of(grid, {"KRONOS_SLOTS": "16", "HOME": "x"}), Fleet()
    change = configuration.changer(cast(Runtime, fleet))
    assert change is not None
    made, seen = runner(tmp_path, fleet, "exit 0"), []
    made.configure = change
    for settings in (grid[0], grid[0], grid[1]):
        made.run(msgspec.structs.replace(OPEN, settings=settings))
        seen.append(configuration.env["KRONOS_SLOTS"])
    change({})
    assert (seen, fleet.rolled) == (["4", "4", "8"], 3)
    assert configuration.env == {"KRONOS_SLOTS": "16", "HOME": "x", "KRONOS_THREADS": "1"}


def test_a_grid_of_what_is_no_setting_is_refused() -> None:
    """By name, before anything is measured; without a grid there is nothing to change."""
    with pytest.raises(BadSetting, match="colour"):
        Configuration.of([{"colour": "red"}], {})
    assert Configuration.of([{}], {"A": "b"}) == Configuration({}, {"A": "b"}, {"A": "b"})
    assert Configuration.of([{}], {}).changer(cast(Runtime, Fleet())) is None
