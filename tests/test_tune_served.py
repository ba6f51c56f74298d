"""The built-in runner: k6's points become requests, and whose CPU is whose; with a k6 and a fleet of a few lines each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fleet.errors import BadSetting, WorkerFailed
from fleet.runtime import READY, Look, Runtime
from fleet.tune import served
from fleet.tune.protocol import RunSpec, parse
from fleet.tune.served import Clock, FleetRunner
from tests.tune import rigs

OPEN = RunSpec(3, "open", 40.0, None, 1.0, 1_234_567, 2)
CLOSED = RunSpec(3, "closed", None, 24, 1.0, 7, 2)


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
]


def test_k6s_points_become_requests() -> None:
    """k6 writes milliseconds and when a request was done; due is the difference, from the first on; only right answers are ok."""
    made, dropped = served.requests(line.encode() for line in POINTS)
    seen = [(round(one.t, 6), one.latency_s, one.ok, one.worker) for one in made]
    assert seen == [(0, 0.5, True, "2"), (0.3, 0.1, False, "none")]
    assert dropped == 4


@pytest.mark.parametrize(
    "spec, dials",
    [
        (OPEN, {"SCENARIO": "open", "RATE": "40", "SEED": "234567"}),
        (CLOSED, {"SCENARIO": "baseline", "VUS": "24", "SEED": "7"}),
    ],
)
def test_k6_is_told_by_dials(spec: RunSpec, dials: dict[str, str]) -> None:
    """Open loop by rate, closed loop by users; the operator's own dials stay; a grid is refused."""
    told = served.dials_of(spec, rigs.OBJECTIVE, "http://x", {"LOOKBACK": "100"})
    assert told == {**dials, "LOOKBACK": "100", "BASE_URL": "http://x", "DURATION": "1s", "P95_MS": "500"}
    with pytest.raises(BadSetting):
        served.dials_of(RunSpec(1, "open", 1.0, None, 1.0, 7, 0, {"threads": 2.0}), rigs.OBJECTIVE, "http://x", {})


def test_cpu_is_shared_out_by_worker_host_and_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a worker's quota, of all cores, of all cores; a worker that came or went in between is left out."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    begun = Clock(10.0, {"1": 5.0, "2": 1.0}, 100.0, 3.0)
    ended = Clock(20.0, {"1": 10.0, "2": 4.0, "3": 9.0}, 130.0, 5.0)
    cpu = served.cpu_between(begun, ended, worker_cores=0.5)
    assert [cpu.worker or 0, cpu.host or 0, cpu.generator or 0] == pytest.approx([0.8, 0.75, 0.05])
    assert served.cpu_between(begun, Clock(20.0, {}, 130.0, 5.0), 1.0).worker is None


class Fleet:
    """A runtime of one worker that remembers what it was asked."""

    def __init__(self, refuses: bool = False) -> None:
        self.scaled: list[int] = []
        self.refuses, self.seconds = refuses, 0.0

    def scale(self, workers: int) -> int:
        if self.refuses:
            raise WorkerFailed("worker-3 ended: out of memory", "python -m fleet logs 3")
        self.scaled.append(workers)
        return 1

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
    assert (result.failure, fleet.scaled, len(points.due), end.dropped) == ("", [3], 2, 4)
    assert end.cpu.worker is not None and end.cpu.host is not None


@pytest.mark.parametrize(
    "script, patience_s, refuses, reason",
    [
        ("exit 107", 20.0, False, "the script refused"),
        ("sleep 60", 0.2, False, "did not end within 1.2 s"),
        ("exit 0", 20.0, True, "out of memory"),
    ],
)
def test_a_run_that_went_wrong_says_why(tmp_path: Path, script: str, patience_s: float, refuses: bool, reason: str) -> None:
    """k6's faults, its hanging, and a fleet that does not come up are reasons of an invalid run, not the end of a campaign."""
    result = runner(tmp_path, Fleet(refuses), script, patience_s).run(OPEN)
    assert result.output == b"" and reason in result.failure
