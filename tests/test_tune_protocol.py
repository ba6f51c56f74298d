"""What a runner may print, and every way in which it can fail to be one."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import BadSetting
from fleet.tune.protocol import Misbehaved, RunSpec, parse
from fleet.tune.runner import ExecRunner

SPEC = RunSpec(3, "open", 40.0, None, 1.0, 7, 2)
REQUEST = b'{"t": 0.5, "latency_s": 0.1, "ok": true, "worker": "2"}'
END = b'{"end": true, "duration_s": 1.0, "dropped": 0}'
seconds = st.floats(0, 1e6, allow_nan=False)


def test_the_spec_is_the_documented_document() -> None:
    """A runner written from the documentation understands what it gets: exactly these fields, null where nothing is meant."""
    assert json.loads(SPEC.to_json()) == {
        "workers": 3, "mode": "open", "rate": 40.0, "vus": None, "duration_s": 1.0, "seed": 7, "round": 2,
    }  # fmt: skip
    with_grid = RunSpec(3, "closed", None, 24, 1.0, 7, 2, {"threads": 2.0})
    assert json.loads(with_grid.to_json())["settings"] == {"threads": 2.0}


@given(st.lists(st.tuples(seconds, seconds, st.booleans(), st.one_of(st.none(), st.text(), st.integers())), min_size=1))
def test_every_run_of_the_protocol_is_understood(rows: list[tuple[float, float, bool, object]]) -> None:
    """Whatever requests a runner prints, in any order and with fields of its own, they come back by due time."""
    lines = [
        json.dumps({"t": due, "latency_s": latency, "ok": ok, "worker": worker, "stage_s": 1}).encode()
        for due, latency, ok, worker in rows
    ]
    points, end = parse([*lines, b"", END], 1.0)
    assert points.due.tolist() == sorted(row[0] for row in rows)
    assert sorted(points.latency.tolist()) == sorted(row[1] for row in rows)
    assert points.ok.sum() == sum(row[2] for row in rows)
    assert end.cpu.worker is None


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_nonsense_is_refused_with_a_reason_and_nothing_else(lines: list[bytes]) -> None:
    """Whatever a broken runner prints before it breaks off, the loop does not crash: Misbehaved says why it is no run."""
    with pytest.raises(Misbehaved, match=r"."):
        parse([*lines, b"{"], 1.0)


@pytest.mark.parametrize(
    "lines, reason",
    [
        ([REQUEST], "closing line is missing"),
        ([END], "no request"),
        ([REQUEST, END, REQUEST], "after the closing line"),
        ([REQUEST, b"Segmentation fault", END], "line 2"),
        ([b'{"t": -1, "latency_s": 0.1, "ok": true}', END], "line 1"),
        ([b'{"t": NaN, "latency_s": 0.1, "ok": true}', END], "line 1"),
        ([b'{"t": 1, "latency_s": 0.1}', END], "ok"),
        ([REQUEST, b'{"end": true, "duration_s": 0.5}'], "lasted 0.5 s of 1 s"),
        ([REQUEST, b'{"end": false, "duration_s": 1.0}'], "line 2"),
        ([REQUEST, b'{"end": true, "duration_s": 1.0, "cpu": {"host": "full"}}'], "cpu.host"),
    ],
)
def test_a_run_that_is_none_says_why(lines: list[bytes], reason: str) -> None:
    """Each misbehaviour has a sentence that names the line or the fault."""
    with pytest.raises(Misbehaved, match=reason):
        parse(lines, 1.0)


def runner(script: str, patience_s: float = 20.0) -> ExecRunner:
    return ExecRunner(f"{shlex.quote(sys.executable)} -c {shlex.quote(script)}", patience_s)


def test_an_executable_gets_the_spec_and_its_lines_come_back() -> None:
    """The runner is told what to do on standard input, and its output is kept byte for byte."""
    result = runner("import sys; print(sys.stdin.read().strip()); print('second')").run(SPEC)
    assert (result.output, result.failure) == (SPEC.to_json() + b"\nsecond\n", "")


@pytest.mark.parametrize(
    "script, reason",
    [
        ("import sys; sys.stderr.write('no docker here'); sys.exit(3)", "exit code 3: no docker here"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("import sys; sys.stdin.close(); print('x')", ""),
    ],
)
def test_an_executable_that_dies_is_reported(script: str, reason: str) -> None:
    """How it ended and its last words are the reason; one that does not read its input is no reason to crash."""
    assert runner(script).run(SPEC).failure == reason


def test_one_that_hangs_is_ended_with_everything_it_started() -> None:
    """After its time and patience nothing of it is left: its children die with it."""
    script = "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    began = time.monotonic()
    result = runner(script, patience_s=0.5).run(SPEC)
    assert result.failure == "it did not end within 1.5 s"
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_children_of_a_runner_end_with_it(tmp_path: Path) -> None:
    """A load generator that the runner left behind would disturb the next run."""
    mark = tmp_path / "alive"
    child = f"import time; [(open({str(mark)!r}, 'w').write(str(n)), time.sleep(0.1)) for n in range(100)]"
    script = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
    runner(script, patience_s=1.0).run(SPEC)
    time.sleep(0.3)
    before = mark.read_text()
    time.sleep(0.4)
    assert mark.read_text() == before


def test_a_command_that_is_none_is_a_bad_setting() -> None:
    """A misspelt command ends the campaign at once, with what to do."""
    with pytest.raises(BadSetting, match="cannot be started"):
        ExecRunner("/no/such/program").run(SPEC)
