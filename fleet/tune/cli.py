"""The verbs tune, simulate, report and compare: options in, the right module called.

Knows: argparse, where reports go. Does not know: statistics.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet.errors import BadSetting

# The verbs import what they need themselves: a simulated run is asked for hundreds of times, and needs no statistics.
if TYPE_CHECKING:
    from fleet.tune import plan, raw, runner

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

ROOT = Path(__file__).resolve().parents[2]
REPORTS = "reports"
BUILT_IN = ("local", "compose")


def add_verbs(verb: Subparsers) -> None:
    """Add the four verbs to a command line; ``run`` does what was asked."""
    tune = verb.add_parser("tune", help="how many workers: plan, measure, decide, report")
    tune.add_argument("--slo", required=True, metavar="p95=500ms", help="quantile and latency that have to hold")
    tune.add_argument("--rate", required=True, type=float, help="requests a second that have to be served")
    tune.add_argument("--workers", default="1..8", metavar="1..8", help="counts to consider (default: 1..8)")
    tune.add_argument("--preset", choices=["quick", "full"], default="quick", help="quick ranks, full proves (default: quick)")
    tune.add_argument("--runner", metavar="local|compose|exec:COMMAND", help="what makes a run (default: --runtime)")
    tune.add_argument("--name", default="tune", help="of the folder below reports/; the same name goes on (default: tune)")
    tune.add_argument("--seed", type=int, default=1, help="of the order and of every run (default: 1)")
    tune.add_argument("--price", type=float, metavar="EUR", help="per worker-hour, for the cost of a million requests")
    tune.add_argument("--grid", nargs="+", default=[], metavar="threads=1,2", help="settings to sweep besides workers")
    tune.add_argument("--rounds", type=int, metavar="N", help="of the sweep (default: by preset; fewer than 6 only rank)")
    tune.add_argument("--duration", type=float, metavar="S", help="of each run (default: by preset, rate and objective)")
    tune.add_argument("--vus-per-worker", type=int, metavar="N", help="users that saturate a worker (default: 8)")
    tune.add_argument("--patience", type=float, default=120.0, metavar="S", help="a run may take so much longer (default: 120)")
    tune.add_argument("-e", dest="dials", action="append", default=[], metavar="NAME=VALUE", help="a dial, as of fleet.load")
    tune.add_argument("--worker-cores", type=float, default=1.0, metavar="CORES", help="of a worker without quota (default: 1)")
    tune.add_argument("--reports", default=REPORTS, metavar="DIR", help=f"where folders go (default: {REPORTS})")
    tune.add_argument("--plan", action="store_true", help="show the plan and its duration, measure nothing")

    imitate = verb.add_parser("simulate", help="one run of a simulated fleet: runner protocol on standard input and output")
    imitate.add_argument("law", type=Path, metavar="LAW.json", help="fields and units: fleet/tune/simulate.py")

    again = verb.add_parser("report", help="make summary.json, report.md and report.html again from the raw runs")
    again.add_argument("folder", type=Path, metavar="DIR")

    versus = verb.add_parser("compare", help="verdict on two configurations: A is before, B is after")
    versus.add_argument("before", metavar="DIR:workers=3")
    versus.add_argument("after", metavar="DIR:workers=5")
    versus.add_argument("--effect", type=float, default=0.05, help="smallest that matters (default: 0.05)")


def run(options: argparse.Namespace, env: Mapping[str, str]) -> None:
    """Do what was asked; ``env`` is the operator's, where new workers get their settings from. Raises FleetError."""
    VERBS[options.verb](options, env)


def tune(options: argparse.Namespace, env: Mapping[str, str]) -> None:
    """Plan, measure what is missing, report."""
    from fleet.options import runtime_of
    from fleet.tune import raw, session

    asked = planned(options)
    show(asked)
    if options.plan:
        return
    if options.runner is None:
        options.runner = runtime_of(options, env)
    described = " ".join([options.runner, *(f"-e {dial}" for dial in options.dials)])
    campaign = raw.Campaign(options.name, asked, session.origin(described, ROOT), options.price)
    folder, campaign = session.open_folder(place(Path(options.reports), options.name), campaign)
    with measuring(options, asked, env) as found:
        session.Session(folder, campaign, found, say).go_on()
    finish(folder)


def planned(options: argparse.Namespace) -> plan.Plan:
    """The plan of these options. Raises BadSetting."""
    from fleet.tune import objective, plan

    changes: dict[str, Any] = {"grid": tuple(objective.grid(options.grid))}
    if options.duration is not None:
        if options.duration <= 0:
            raise BadSetting(f"no duration: {options.duration:g}", "seconds, like --duration 30")
        changes["duration_s"] = options.duration
    for name in ("rounds", "vus_per_worker"):
        if (value := getattr(options, name)) is not None:
            if value < 1:
                raise BadSetting(f"--{name.replace('_', '-')} {value}: needs 1 or more", "leave it out for the default")
            changes[name] = value
    asked = objective.objective(options.slo)
    return plan.make(asked, options.rate, objective.counts(options.workers), options.preset, options.seed, **changes)


def show(asked: plan.Plan) -> None:
    """What will be measured, and how long it takes."""
    from fleet.tune.plan import expected_s

    least, most = expected_s(asked)
    held = "none (fewer than four counts)" if asked.held_out is None else str(asked.held_out)
    counts = ", ".join(str(count) for count in asked.counts)
    say(f"Objective {asked.objective} at {asked.rate:g}/s; {asked.rounds} rounds of {asked.duration_s:g} s, {asked.preset}")
    say(f"Sweep {counts} workers, open and closed loop; held out: {held}; A/A control: {asked.reference} workers")
    if len(asked.grid) > 1:
        say(f"Grid: {len(asked.grid)} settings")
    say(f"Expected on a real fleet: {least / 60:.0f} to {most / 60:.0f} minutes; Ctrl-C is safe, the same command goes on")


def place(reports: Path, name: str) -> Path:
    """The folder of a name: the one that is there, else a new one with today's date. Raises BadSetting."""
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise BadSetting(f"no name: {name!r}", "letters, digits, - _ . like --name five-workers")
    found = sorted(path for path in reports.glob(f"????-??-??-{name}") if (path / "plan.json").exists())
    return found[-1] if found else reports / f"{datetime.now(UTC):%Y-%m-%d}-{name}"


@contextmanager
def measuring(options: argparse.Namespace, asked: plan.Plan, env: Mapping[str, str]) -> Iterator[runner.Runner]:
    """The runner of these options; a real fleet is locked meanwhile, and gets its workers back. Raises FleetError."""
    from fleet.tune.runner import ExecRunner

    kind, _, command = options.runner.partition(":")
    if kind == "exec" and command.strip():
        yield ExecRunner(command, options.patience)
    elif kind in BUILT_IN and not command:
        with real(options, asked, env) as found:
            yield found
    else:
        raise BadSetting(f"no runner {options.runner!r}", "--runner exec:COMMAND, like exec:'python -m fleet simulate LAW.json'")


@contextmanager
def real(options: argparse.Namespace, asked: plan.Plan, env: Mapping[str, str]) -> Iterator[runner.Runner]:
    """A fleet that is up, under k6. Raises NotUp, NoK6, Busy, BadSetting."""
    from rich.console import Console

    from fleet import k6, load, runtimes
    from fleet.state import locked
    from fleet.tune.served import FleetRunner
    from fleet.tune.setting import Configuration

    dials = load.parse_dials(None, options.dials)
    configuration = Configuration.of(asked.grid, env)
    desk, runtime = runtimes.make(options.runner, runtimes.place(options), configuration.env, Console(quiet=True))
    workers, change = runtime.front().workers, configuration.changer(runtime)
    found = k6.find_or_build(say)
    with locked(desk.folders, "tune"):
        try:
            yield FleetRunner(runtime, found, asked.objective, options.worker_cores, dials, options.patience, change)
        finally:
            if change is not None:
                change({})
            runtime.scale(workers)


def report_again(options: argparse.Namespace, _env: Mapping[str, str]) -> None:
    """From raw data alone."""
    from fleet.tune.raw import Folder

    finish(Folder(options.folder))


def finish(folder: raw.Folder) -> None:
    """Write the reports and say the answer."""
    from fleet.tune import report, words

    found = report.write(folder)
    say(words.headline(found.series[found.best], found.campaign.plan.rate))
    say(f"Report: {folder.path / 'report.md'}")


def compare_two(options: argparse.Namespace, _env: Mapping[str, str]) -> None:
    """Both metrics, one line each."""
    from fleet.tune import versus

    for line in versus.verdicts(options.before, options.after, options.effect):
        say(line)


def imitate(options: argparse.Namespace, _env: Mapping[str, str]) -> None:
    """One run of a simulated fleet."""
    from fleet.tune import simulate

    simulate.answer(options.law)


def say(line: str) -> None:
    """For people and for logs."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


VERBS: Mapping[str, Any] = {"tune": tune, "simulate": imitate, "report": report_again, "compare": compare_two}
