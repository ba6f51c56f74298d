"""`python -m fleet.load` around a program that only pretends to be k6."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import BadSetting
from fleet.k6 import ROOT
from fleet.load import DIALS, Run, main, meaning, parse_dials, remote_write
from tests.load.rig import free_port

# Notes what it was started with, and what it is told; ends when told, or with the code it was asked for.
K6 = """#!/bin/sh
[ "$1" = version ] && { echo "k6 v2.2.0 (go1.26.8, linux/amd64)"; exit; }
echo "$@" > "$NOTES.argv"
env > "$NOTES.env"
trap 'echo told >> "$NOTES.told"' INT
[ -z "$K6_WAITS" ] && exit "${K6_CODE:-0}"
touch "$NOTES.waiting"
for look in $(seq 200); do [ -e "$NOTES.told" ] && { sleep 0.5; exit 105; }; sleep 0.05; done
"""
NOBODY = f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / "k6"
    program.write_text(K6)
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:/bin:/usr/bin", "NOTES": str(tmp_path / "notes")}


def load(tmp_path: Path, env: dict[str, str], *arguments: str) -> int:
    return main([*arguments, "-e", f"BASE_URL={NOBODY}", "--into", str(tmp_path / "runs")], env)


def test_what_k6_is_started_with(tmp_path: Path, env: dict[str, str]) -> None:
    """Load is given by dials only, nothing is fetched or reported, the dashboard stays on this machine, all is kept."""
    assert load(tmp_path, env, "open", "-e", "RATE=3", "-e", "TESTID=mine") == 0
    folder = os.path.relpath(tmp_path / "runs" / "mine", ROOT)
    argv = (tmp_path / "notes.argv").read_text().split()
    assert argv[0] == "run" and argv[-1] == "tests/load/baseline.js"
    assert {"--no-usage-report", "--include-system-env-vars=true", f"--out=json={folder}/raw.json.gz"} <= set(argv)
    assert {"SCENARIO=open", "RATE=3", "TESTID=mine", f"OUT={folder}", f"BASE_URL={NOBODY}"} <= set(argv)
    assert not any(each.startswith(("--vus", "--duration", "--out=experimental")) for each in argv)
    settings = dict(line.split("=", 1) for line in (tmp_path / "notes.env").read_text().splitlines() if line.startswith("K6_"))
    assert settings == {
        "K6_AUTO_EXTENSION_RESOLUTION": "false", "K6_WEB_DASHBOARD": "true", "K6_WEB_DASHBOARD_HOST": "127.0.0.1",
        "K6_WEB_DASHBOARD_PORT": "0", "K6_WEB_DASHBOARD_PERIOD": "2s", "K6_WEB_DASHBOARD_EXPORT": f"{folder}/dashboard.html",
    }  # fmt: skip


def test_a_key_is_passed_on_and_not_written_down(tmp_path: Path, env: dict[str, str]) -> None:
    """k6 has it in its environment, where nobody else looks; a variable with the name of a dial does not get there."""
    assert load(tmp_path, {**env, "FLEET_API_KEY": "sesame", "DURATION": "9s"}, "-e", "TESTID=mine") == 0
    environment = (tmp_path / "notes.env").read_text().splitlines()
    assert "FLEET_API_KEY=sesame" in environment and "DURATION=9s" not in environment
    written = [path.read_text() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert written and not any("sesame" in text for text in [*written, (tmp_path / "notes.argv").read_text()])


def test_less_can_be_kept(tmp_path: Path, env: dict[str, str]) -> None:
    """Raw points and dashboard can be left out."""
    assert load(tmp_path, env, "--no-raw", "--no-dashboard") == 0
    assert "--out" not in (tmp_path / "notes.argv").read_text()
    assert "K6_WEB" not in (tmp_path / "notes.env").read_text()


def test_prometheus_is_written_to() -> None:
    """With an address for it, k6 gets the output and the statistics that the dashboards show."""
    run = Run("k6", {}, "out", prometheus="http://127.0.0.1:8080/prometheus/api/v1/write")
    assert "--out=experimental-prometheus-rw" in run.argv()
    settings = run.env({})
    assert settings["K6_PROMETHEUS_RW_SERVER_URL"] == "http://127.0.0.1:8080/prometheus/api/v1/write"
    assert "p(95)" in settings["K6_PROMETHEUS_RW_TREND_STATS"]


def test_without_prometheus_nothing_is_written_to_it() -> None:
    """Nobody behind the front door is no error."""
    assert remote_write(NOBODY) is None


@pytest.mark.parametrize("code, words", [(0, "every threshold held"), (99, "a threshold failed"), (107, "script"), (77, "77")])
def test_how_it_ended(tmp_path: Path, env: dict[str, str], capsys: pytest.CaptureFixture[str], code: int, words: str) -> None:
    """The exit code is k6's; screen and run.json say what it means; run.json names nobody's machine but relatively."""
    assert load(tmp_path, {**env, "K6_CODE": str(code)}, "-e", "TESTID=mine") == code
    assert words in meaning(code) and meaning(code) in capsys.readouterr().out
    record = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())
    assert (record["code"], record["meaning"], record["k6"]) == (code, meaning(code), "v2.2.0")
    assert record["dials"] == {"TESTID": "mine", "BASE_URL": NOBODY}
    assert str(ROOT) not in record["command"]


@pytest.mark.parametrize(
    "given, words",
    [
        (["VSU=3"], "did you mean VUS"),
        (["vus=3"], "did you mean VUS"),
        (["QQQQ=3"], "dials are SCENARIO"),
        (["VUS"], "did you mean VUS"),
        (["OUT=here"], "--help"),
        (["SCENARIO=open"], "--help"),
    ],
)
def test_names_that_are_no_dials_are_refused(given: list[str], words: str) -> None:
    """k6 would take them and change nothing."""
    with pytest.raises(BadSetting) as refused:
        parse_dials("baseline", given)
    assert words in refused.value.then


def test_dials_are_read() -> None:
    """A value may hold an equals sign; the scenario is a dial too."""
    assert parse_dials("open", ["TESTID=a", "BASE_URL=http://x?a=b"]) == {
        "SCENARIO": "open", "TESTID": "a", "BASE_URL": "http://x?a=b",
    }  # fmt: skip
    assert parse_dials(None, ["SCENARIO=mixed"]) == {"SCENARIO": "mixed"}
    assert set(DIALS) >= {"SCENARIO", "BASE_URL", "OUT", "TESTID"}


def test_a_run_is_never_overwritten(tmp_path: Path, env: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The same TESTID twice is refused, before anything is asked."""
    assert load(tmp_path, env, "-e", "TESTID=mine") == 0
    (tmp_path / "notes.argv").unlink()
    assert load(tmp_path, env, "-e", "TESTID=mine") == BadSetting.code
    assert "holds another run" in capsys.readouterr().err
    assert not (tmp_path / "notes.argv").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_in_order(tmp_path: Path, env: dict[str, str], number: signal.Signals) -> None:
    """k6 is told once, in the way that makes it write its summary; its code is ours; run.json says so."""
    argv = [sys.executable, "-m", "fleet.load", "-e", f"BASE_URL={NOBODY}", "-e", "TESTID=mine", "--into", str(tmp_path)]
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(argv, cwd=ROOT, env={**env, "K6_WAITS": "1"}, **how) as process:
        end = time.monotonic() + 20
        while not (tmp_path / "notes.waiting").exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.killpg(process.pid, number)  # as a terminal does: to everybody in the foreground
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 105 and "stopped before its end" in said
    assert (tmp_path / "notes.told").read_text() == "told\n"
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["code"] == 105
