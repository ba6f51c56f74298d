"""How a fleet of real containers does under load: the studies behind NOTES.md, each with k6 and in rounds.

    python -m benchmarks.capacity workers --plan     # what it would measure, and how long
    python -m benchmarks.capacity workers            # measures; Ctrl-C is safe, the same command goes on
    python -m benchmarks.capacity alternatives       # several studies, one after the other
    python -m benchmarks.capacity report DIR         # tables and pictures again, from the raw runs alone

A study's fleets run side by side on ports from 21600 on, as Compose projects `kc-STUDY-FLEET`, and are taken down at the end,
however it comes. Everything goes to `reports/DATE-capacity-STUDY`; the newest such folder is gone on with.
The images have to be there (`docker compose build`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks.studies import figures, fleets, onerun, report
from benchmarks.studies.catalogue import GROUPS, STUDIES
from benchmarks.studies.folder import Begun, Folder, RunRecord
from benchmarks.studies.study import Slot, Study, expected_s, plan
from fleet.__main__ import interrupt
from fleet.errors import INTERRUPTED, BadSetting, FleetError
from fleet.k6 import ROOT, find_or_build, tell
from fleet.tune.session import origin

REPORTS = "reports"
OVERHEAD_S = {"run": 8.0, "fleet": 12.0, "worker": 3.0}
"""Beyond the load itself, on two cores; for the shown duration only."""


def studies(names: Sequence[str], rounds: int | None, seconds: float | None) -> list[Study]:
    """By name or name of a group, with other rounds or seconds when given. Raises BadSetting."""
    found = []
    for name in (each for asked in names for each in GROUPS.get(asked, (asked,))):
        if name not in STUDIES:
            raise BadSetting(f"there is no study {name!r}", f"one of {', '.join((*STUDIES, *GROUPS))}")
        given = {key: value for key, value in (("rounds", rounds), ("seconds", seconds)) if value is not None}
        found.append(msgspec.structs.replace(STUDIES[name], **given))
    return found


def folder_of(study: Study, into: Path | None) -> Folder:
    """Where a study goes: into the folder given, else the newest of its name, else a new one of today."""
    reports = ROOT / REPORTS
    there = sorted(reports.glob(f"????-??-??-capacity-{study.name}"))
    today = reports / f"{datetime.now(UTC).date()}-capacity-{study.name}"
    return Folder(into.resolve() if into else there[-1] if there else today)


def missing(study: Study, folder: Folder) -> list[Slot]:
    """The runs that are not there yet."""
    done = folder.done()
    return [slot for slot in plan(study) if slot.id not in done]


def show(study: Study, folder: Folder, console: Console) -> None:
    """The plan and its duration."""
    slots = missing(study, folder)
    minutes = expected_s(study, slots, OVERHEAD_S) / 60
    console.print(f"{study.name}: {study.question}", highlight=False, soft_wrap=True)
    for fleet in study.fleets:
        console.print(
            f"  fleet {fleet.name}: {fleet.workers} × {fleet.cpus:g} cores {fleet.env or ''}", highlight=False, soft_wrap=True
        )
    for number in sorted({slot.round for slot in slots}, key=lambda number: number or sys.maxsize):
        names = ", ".join(slot.variant.name for slot in slots if slot.round == number)
        console.print(f"  {f'round {number}' if number else 'once'}: {names}", highlight=False, soft_wrap=True)
    where = os.path.relpath(folder.path)
    console.print(f"  {len(slots)} runs to make, about {minutes:.0f} minutes; into {where}", highlight=False, soft_wrap=True)


def measure(study: Study, folder: Folder, console: Console) -> None:
    """Every run that is missing; fleets come up before and go down after, whatever happens. Raises FleetError."""
    k6 = find_or_build(tell)
    study = folder.begin(Begun(study, origin("k6", ROOT))).study
    slots = missing(study, folder)
    wanted = [fleet for fleet in study.fleets if any(slot.variant.fleet == fleet.name for slot in slots)]
    with fleets.side_by_side(study, wanted, console) as up:
        for fleet in wanted:
            onerun.warm(up[fleet.name], k6)
        began = time.monotonic()
        for place, slot in enumerate(slots, 1):
            record = onerun.measure(study, slot, up[slot.variant.fleet], k6, folder)
            left = (time.monotonic() - began) / place * (len(slots) - place) / 60
            console.print(
                f"{place}/{len(slots)}  {progress(study, record, folder)}, {left:.0f} min left", highlight=False, soft_wrap=True
            )


def progress(study: Study, record: RunRecord, folder: Folder) -> str:
    """One run in a line."""
    asked = figures.read(folder.points(record.id))
    found = figures.figures(asked, *figures.steady(study, record))
    latency = f"p50 {1000 * found.p50:.0f} ms, p95 {1000 * found.p95:.0f} ms"
    bad = f", refused {found.refused:.1%}, failed {found.failed:.1%}" if found.refused + found.failed else ""
    return f"{record.id}: {found.throughput:.1f}/s, {latency}{bad}, {record.meaning}"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=(__doc__ or "").split("\n\n")[0])
    top.add_argument("studies", nargs="+", metavar="STUDY", help=f"{', '.join((*STUDIES, *GROUPS))}; or: report DIR …")
    top.add_argument("--rounds", type=int, metavar="N", help="of each study (default: its own; more may be given later)")
    top.add_argument("--seconds", type=float, metavar="S", help="of each run (default: its own)")
    top.add_argument("--into", type=Path, metavar="DIR", help="folder of one study (default: its newest in reports/)")
    top.add_argument("--plan", action="store_true", help="show the plan and its duration, measure nothing")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, measure, report; the exit code."""
    options, console = parser().parse_args(arguments), Console()
    try:
        if options.studies[0] == "report":
            for path in options.studies[1:]:
                report.write(Folder(Path(path)), console.print)
            return 0
        chosen = studies(options.studies, options.rounds, options.seconds)
        if options.into and len(chosen) > 1:
            raise BadSetting("--into is the folder of one study", "leave it out")
        for study in chosen:
            folder = folder_of(study, options.into)
            show(study, folder, console)
            if not options.plan:
                if missing(study, folder):
                    measure(study, folder, console)
                report.write(folder, console.print)
    except FleetError as error:
        console.print(f"{error.what}\nNext: {error.then}", markup=False, highlight=False, soft_wrap=True)
        return error.code
    except KeyboardInterrupt:
        console.print("Interrupted; the same command goes on")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, interrupt)
    sys.exit(main())
