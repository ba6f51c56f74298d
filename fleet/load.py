"""One k6 run with everything it says kept: ``python -m fleet.load [SCENARIO] [-e NAME=VALUE …]``.

Into ``reports/scratch/TESTID`` go summary.txt and summary.json (the script's), dashboard.html, raw.json.gz (every point)
and run.json (what was run, how it ended). When a Prometheus answers behind the front door, k6 writes there too.
Knows: k6's options, files and exit codes, the names of the dials. Does not know: what a dial does, how k6 is built.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx

from fleet.errors import INTERRUPTED, BadSetting, FleetError
from fleet.k6 import ROOT, ask_version, find_or_build, tell

SCRIPT: Final = "tests/load/baseline.js"
DIALS: Final[dict[str, dict[str, Any]]] = json.loads((ROOT / "tests" / "load" / "dials.json").read_text())
SCRATCH: Final = ROOT / "reports" / "scratch"
POINTS: Final = "raw.json.gz"
"""Every point of a run, one JSON document a line."""
PROMETHEUS_TIMEOUT_S: Final = 2.0
TREND_STATS: Final = "avg,med,p(95),p(99),max,count"
# k6's exit codes (its package errext/exitcodes), in words.
MEANINGS: Final = {
    0: "every threshold held",
    99: "a threshold failed",
    104: "an option is wrong",
    105: "stopped before its end",
    107: "the script refused, or has a fault; the message is above",
    108: "the script gave up",
    109: "k6 itself broke",
    -signal.SIGKILL: "killed",
}


@dataclass(frozen=True)
class Run:
    """What to run. ``dials`` are the ones given, by name; ``folder`` is where its files go.

    Paths are seen from the repository: a stored command should not name somebody's machine.
    """

    k6: str
    dials: Mapping[str, str]
    folder: str
    raw: bool = True
    dashboard: bool = True
    prometheus: str | None = None  # address for remote write

    def argv(self) -> list[str]:
        """The command. Load is given by dials only: k6's own --vus and --duration would override the scenarios."""
        outputs = [f"--out=json={self.folder}/{POINTS}"] if self.raw else []
        outputs += ["--out=experimental-prometheus-rw"] if self.prometheus else []
        given = {**self.dials, "OUT": self.folder}
        dials = [argument for name, value in given.items() for argument in ("-e", f"{name}={value}")]
        plain = ["--no-usage-report", "--include-system-env-vars=true"]  # for FLEET_API_KEY, which is no argument: all see those
        return [self.k6, "run", *plain, *outputs, *dials, SCRIPT]

    def env(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """k6's settings that have no flag. Nothing is fetched; the dashboard is for this machine, on any free port.

        Dials are arguments only: a variable that happens to have the name of one is left out.
        """
        env = {name: value for name, value in inherited.items() if name not in DIALS}
        env |= {"K6_AUTO_EXTENSION_RESOLUTION": "false"}
        if self.dashboard:
            env |= {
                "K6_WEB_DASHBOARD": "true", "K6_WEB_DASHBOARD_HOST": "127.0.0.1", "K6_WEB_DASHBOARD_PORT": "0",
                "K6_WEB_DASHBOARD_PERIOD": "2s", "K6_WEB_DASHBOARD_EXPORT": f"{self.folder}/dashboard.html",
            }  # fmt: skip
        if self.prometheus:
            env |= {
                "K6_PROMETHEUS_RW_SERVER_URL": self.prometheus, "K6_PROMETHEUS_RW_TREND_STATS": TREND_STATS,
                "K6_PROMETHEUS_RW_STALE_MARKERS": "true",
            }  # fmt: skip
        return env


def parse_dials(scenario: str | None, given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` texts by name. Raises BadSetting for a name that is no dial: k6 itself would not notice."""
    dials = {"SCENARIO": scenario} if scenario else {}
    for text in given:
        name, equals, value = text.partition("=")
        if name not in DIALS or not equals:
            close = get_close_matches(name.upper(), DIALS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"dials are {', '.join(DIALS)}"
            raise BadSetting(f"-e {text}: {'no dial has this name' if equals else 'is not NAME=VALUE'}", hint)
        if name == "OUT" or (name == "SCENARIO" and scenario):
            raise BadSetting(f"-e {text}: is given in another way here", "python -m fleet.load --help")
        dials[name] = value
    return dials


def dials_table() -> str:
    """The dials as Markdown, for README."""
    rows = ["| dial | default | what |", "|---|---|---|"]
    for name, dial in DIALS.items():
        own = "".join(f", {scenario} {value}" for scenario, value in dial.get("by_scenario", {}).items())
        missing = [scenario for scenario in DIALS["SCENARIO"]["choices"] if scenario not in dial.get("scenarios", [scenario])]
        scope = f" (not in {', '.join(missing)})" if missing else ""
        unit = f", {dial['unit']}" if "unit" in dial else ""
        rows.append(f"| `{name}` | {dial['default']}{own} | {dial['what']}{unit}{scope} |")
    return "\n".join(rows)


def remote_write(base_url: str) -> str | None:
    """Where k6 can write its metrics: the Prometheus behind the front door, None when none answers."""
    try:
        ready = httpx.get(f"{base_url}/prometheus/-/ready", timeout=PROMETHEUS_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return None
    return f"{base_url}/prometheus/api/v1/write" if ready.status_code == 200 else None


def make_folder(dials: dict[str, str], parent: Path) -> Path:
    """A new folder named by TESTID, which is made up of scenario and time when it is not given. Raises BadSetting."""
    name = dials.get("SCENARIO", DIALS["SCENARIO"]["default"])
    dials.setdefault("TESTID", f"{name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    folder = parent / dials["TESTID"]
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise BadSetting(f"{folder} holds another run", "choose another -e TESTID=, or move the folder away") from error
    return folder


def execute(run: Run, inherited: Mapping[str, str]) -> int:
    """k6's exit code. Asked once to end, k6 ends in order, with its summary; asked twice, at once."""
    # A session of its own: else one Ctrl-C would reach it twice, from the terminal and from here.
    process = subprocess.Popen(run.argv(), env=run.env(inherited), cwd=ROOT, start_new_session=True)

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        process.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def meaning(code: int) -> str:
    """k6's exit code in words."""
    return MEANINGS.get(code, f"k6 ended with {code}")


def write_record(run: Run, began: float, code: int) -> None:
    """run.json: enough to repeat the run, and how it ended."""
    record = {
        "command": shlex.join(run.argv()), "dials": dict(run.dials), "began": began, "seconds": round(time.time() - began, 1),
        "code": code, "meaning": meaning(code), "k6": str(ask_version(ROOT / run.k6)),
        "cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg(),
    }  # fmt: skip
    (ROOT / run.folder / "run.json").write_text(json.dumps(record, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m fleet.load", description="Put load on the fleet with k6 and keep what it says.")
    top.add_argument("scenario", nargs="?", choices=DIALS["SCENARIO"]["choices"], help="default: baseline, 50 users, 5 minutes")
    top.add_argument("-e", dest="dials", action="append", default=[], metavar="NAME=VALUE", help="a dial, see README")
    top.add_argument("--into", type=Path, default=SCRATCH, metavar="DIR", help="where the run's folder goes (reports/scratch)")
    top.add_argument("--no-raw", action="store_true", help="do not keep every point")
    top.add_argument("--no-dashboard", action="store_true", help="no live page, no dashboard.html")
    return top


def main(arguments: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """Run, keep, say how it ended; the exit code is k6's."""
    options = parser().parse_args(arguments)
    try:
        dials = parse_dials(options.scenario, options.dials)
        k6 = find_or_build(tell, env)
        folder = make_folder(dials, options.into.resolve())
    except FleetError as error:
        tell(f"{error.what}\nNext: {error.then}")
        return error.code
    except KeyboardInterrupt:
        tell("Interrupted")
        return INTERRUPTED
    base_url = dials.get("BASE_URL", str(DIALS["BASE_URL"]["default"])).rstrip("/")
    k6_path, folder_path = os.path.relpath(k6, ROOT), os.path.relpath(folder, ROOT)
    run = Run(k6_path, dials, folder_path, not options.no_raw, not options.no_dashboard, remote_write(base_url))
    began = time.time()
    code = execute(run, env)
    write_record(run, began, code)
    print(f"{meaning(code)}; all of it is in {os.path.relpath(folder)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
