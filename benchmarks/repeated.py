"""How many workers does a result cache save, when a few popular requests are asked again and again?

    python -m benchmarks.repeated [CACHE …] [--plan] [--reports DIR]

The tuning loop, as an operator calls it, on a fleet without a result cache and on one with a cache in each worker; the same
objective, rate and requests. (A shared one can save nothing more where one worker is enough: `benchmarks.capacity repeated`
compares it at equal numbers.) What is there already goes on where it was interrupted. Writes repeated.json and table.md beside
the campaigns. Real containers of 0.5 cores; the images have to be there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.studies.catalogue import CACHES
from fleet.__main__ import main as fleet
from fleet.k6 import ROOT

PORT = 21520
RUN = ".run/repeated"
CORES = "0.5"
"""Of one worker: three of them leave a quarter of two cores to k6, Nginx and the rest."""
COUNTS = {"uncached": "2,3", "in-worker": "1,2"}
"""Around what the rate needs: a worker of 0.5 cores computes 25 of these forecasts a second."""
SLO, RATE, HORIZON, POPULAR = "p95=500ms", 60, 24, 8
LOAD = ("--rate", str(RATE), "--duration", "15", "--rounds", "1")
HEAD = ("cache", "workers needed", "P(objective met)", "p95 ms, by workers", "saturation of one worker /s", "limit")


def main(argv: list[str] | None = None) -> int:
    """0, or the exit code of the first campaign that failed."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.repeated", description=(__doc__ or "").splitlines()[0])
    options.add_argument("caches", nargs="*", metavar="CACHE", help=f"of {', '.join(COUNTS)} (default: all)")
    options.add_argument("--plan", action="store_true", help="show what would be measured, and how long")
    options.add_argument("--reports", type=Path, default=ROOT / "reports" / f"{datetime.now(UTC):%Y-%m-%d}-repeated")
    given = options.parse_args(argv)
    if unknown := set(given.caches) - set(COUNTS):
        options.error(f"no such cache: {', '.join(sorted(unknown))}")
    for name in given.caches or COUNTS:
        if code := planned(name) if given.plan else measured(name, given.reports):
            return code
    if not given.plan:
        rows = [row for name in COUNTS if (row := summarised(name, given.reports))]
        (given.reports / "repeated.json").write_text(json.dumps(rows, indent=1) + "\n")
        (given.reports / "table.md").write_text(table(rows) + "\n")
        print(table(rows))
    return 0


def asked(name: str) -> list[str]:
    """What the tuning loop is asked about this cache."""
    dials = ("-e", f"HORIZON={HORIZON}", "-e", f"POPULAR={POPULAR}")
    return ["tune", "--slo", SLO, *LOAD, "--workers", COUNTS[name], *dials, "--name", name]


def planned(name: str) -> int:
    """The loop's own plan."""
    print(f"{name}: {CACHES[name]}")
    return fleet([*asked(name), "--plan"], dict(os.environ))


def measured(name: str, reports: Path) -> int:
    """One campaign on a fleet of its own, which is down afterwards. The exit code."""
    with a_fleet(name) as (where, env):
        return fleet([*where, *asked(name), "--reports", str(reports)], env)


@contextmanager
def a_fleet(name: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """One worker to begin with; the options that mean it, the environment that it has."""
    env = {**os.environ, "PUBLISH_PORT": str(PORT), "WORKER_CPUS": CORES, **CACHES[name]}
    where = ["--run", f"{RUN}/{name}", "--runtime", "compose", "--project", f"kronos-repeated-{name}"]
    try:
        if fleet([*where, "up", "--workers", "1", "--no-build", "--without", "grafana", "--without", "prometheus"], env):
            sys.exit(f"{name}: no fleet")
        yield where, env
    finally:
        fleet([*where, "down", "--now"], env)


def summarised(name: str, reports: Path) -> dict[str, Any] | None:
    """What the campaign of this cache says; None when there is none."""
    folders = sorted(reports.glob(f"????-??-??-{name}/summary.json"))
    if not folders:
        return None
    summary = json.loads(folders[-1].read_text())
    series = summary["series"][0]
    p95 = {count["workers"]: round(1000 * count["p95"]["value"], 1) for count in series["counts"] if count["p95"]}
    found = {"cache": name, "runs": summary["runs"], "workers": series["answer"]["workers"], "p": series["answer"]["p"]}
    saturation = next((count["per_worker"]["value"] for count in series["counts"] if count["per_worker"]), None)
    return {**found, "p95_ms": p95, "per_worker": saturation, "limit": series["bottleneck"]["verdict"]}


def table(rows: list[dict[str, Any]]) -> str:
    """The answers as Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for row in rows:
        p95 = ", ".join(f"{workers}: {value:g}" for workers, value in row["p95_ms"].items())
        needed = "none of these" if row["workers"] is None else row["workers"]
        sure = "–" if row["p"] is None else f"{100 * row['p']:.1f} %"
        most = "–" if row["per_worker"] is None else f"{row['per_worker']:.3g}"
        cells = (row["cache"], needed, sure, p95, most, row["limit"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
