"""Does the tuning loop name what limits a real fleet? Each limit is put in, then measured like any fleet.

    python -m benchmarks.limits [LIMIT …] [--reports DIR]

Real workers, real Nginx, real k6, `fleet tune` as an operator calls it; k6 finds the fleet on 127.0.0.1. What is there already
goes on where it was interrupted; a finished campaign is only reported again. Writes limits.json and limits.md beside the
campaigns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fleet.__main__ import main as fleet
from fleet.k6 import ROOT

PORT = 21500
RUN = ".run/limits"
WORKERS = "1,2,4"
TINY = {"LOOKBACK": "64", "HORIZON": "8"}
"""A forecast of some milliseconds: what is put in must be the limit, not the model."""
NGINX = "nginx/nginx.conf"


@dataclass(frozen=True)
class Limit:
    """``up`` are options of ``fleet up``, ``env`` its environment, ``edits`` replace text in nginx.conf; ``rate`` is of the open
    runs, ``dials`` are k6's. ``expected`` is a verdict of fleet.tune.bottleneck."""

    expected: str
    what: str
    runtime: str = "compose"
    env: Mapping[str, str] = field(default_factory=dict)
    up: tuple[str, ...] = ()
    edits: Mapping[str, str] = field(default_factory=dict)
    dials: Mapping[str, str] = field(default_factory=lambda: TINY)
    rate: float = 4.0
    seconds: float = 6.0


LIMITS = {
    "quota": Limit("quota", "each worker has 0.15 cores", env={"WORKER_CPUS": "0.15"}),
    "host": Limit(
        "host", "no quota: as many workers as cores, and more", env={"WORKER_CPUS": "2"},
        dials={"LOOKBACK": "400", "HORIZON": "48"}, seconds=8.0,
    ),
    "front": Limit(
        "front", "Nginx lets 10 requests a second through", env={"WORKER_CPUS": "0.3"},
        edits={"rate=500r/s": "rate=10r/s", "burst=1000 nodelay": "burst=1000"},
    ),
    "generator": Limit(
        "generator", "one user for 60 arrivals a second", env={"WORKER_CPUS": "0.3"}, dials={**TINY, "VUS": "1"}, rate=60.0
    ),
    "serial": Limit(
        "serial", "forecasts of all workers pass one lock, 30 ms each", runtime="local",
        up=("--app", "benchmarks.serial_section:app"),
    ),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """The number of limits that were not named."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=(__doc__ or "").splitlines()[0])
    options.add_argument("limits", nargs="*", metavar="LIMIT", help=f"of {', '.join(LIMITS)} (default: all)")
    options.add_argument("--reports", type=Path, default=ROOT / "reports" / f"{datetime.now(UTC):%Y-%m-%d}-limits")
    given = options.parse_args(argv)
    for name in given.limits or LIMITS:
        found = measured(name, LIMITS[name], given.reports)
        print(f"{name}: {found['verdict']} — {'; '.join(found['evidence'])}", flush=True)
    rows = [summarised(name, limit, given.reports) for name, limit in LIMITS.items()]
    (given.reports / "limits.json").write_text(json.dumps([row for row in rows if row], indent=1, ensure_ascii=False) + "\n")
    (given.reports / "limits.md").write_text(table(given.reports) + "\n")
    return sum(row["verdict"] != row["expected"] for row in rows if row)


def measured(name: str, limit: Limit, reports: Path) -> dict[str, Any]:
    """One campaign on a fleet of its own, which is down afterwards."""
    with a_fleet(name, limit, reports) as (where, env):
        seconds, rate = f"{limit.seconds:g}", f"{limit.rate:g}"
        asked = ["--slo", "p95=5s", "--rate", rate, "--workers", WORKERS, "--duration", seconds, "--vus-per-worker", "4"]
        dials = [part for key, value in limit.dials.items() for part in ("-e", f"{key}={value}")]
        if fleet([*where, "tune", *asked, *dials, "--name", name, "--reports", str(reports)], env):
            sys.exit(f"{name}: the campaign failed; the same command goes on")
    found = summarised(name, limit, reports)
    assert found is not None
    return found


@contextmanager
def a_fleet(name: str, limit: Limit, reports: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """One worker to begin with; the options that mean it, the environment that it has."""
    env = {**os.environ, "PUBLISH_PORT": str(PORT), **limit.env}
    where, up = ["--run", f"{RUN}/{name}", "--runtime", limit.runtime], ["up", "--workers", "1", *limit.up]
    if limit.runtime == "compose":
        where += ["--project", f"kronos-limits-{name}", "--file", str(ROOT / "docker-compose.yml")]
        if limit.edits:
            where += ["--file", str(override(limit, ROOT / RUN / name))]
        up += ["--without", "grafana", "--without", "prometheus"]
    else:
        up += ["--port", str(PORT), "--worker-port", str(PORT + 1)]
    try:
        if fleet([*where, *up], env):
            sys.exit(f"{name}: no fleet")
        yield where, env
    finally:
        fleet([*where, "down", "--now"], env)


def override(limit: Limit, folder: Path) -> Path:
    """nginx.conf with what is put in, laid over the one of docker-compose.yml."""
    text = (ROOT / NGINX).read_text()
    for old, new in limit.edits.items():
        if old not in text:
            sys.exit(f"{NGINX} has no {old!r}")
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(text)
    mounted = [f"{folder / 'nginx.conf'}:/etc/nginx/templates/nginx.conf.template:ro"]
    (folder / "override.yml").write_text(json.dumps({"services": {"nginx": {"volumes": mounted}}}) + "\n")
    return folder / "override.yml"


def summarised(name: str, limit: Limit, reports: Path) -> dict[str, Any] | None:
    """What the campaign of this limit says; None when there is none."""
    folders = sorted(reports.glob(f"????-??-??-{name}/summary.json"))
    if not folders:
        return None
    summary = json.loads(folders[-1].read_text())
    found = summary["series"][0]["bottleneck"]
    return {"limit": name, "what": limit.what, "expected": limit.expected, "runs": summary["runs"], **found}


def table(reports: Path) -> str:
    """limits.json as Markdown."""
    rows = ["| put in | named | evidence |", "|---|---|---|"]
    for row in json.loads((reports / "limits.json").read_text()):
        rows.append(f"| {row['limit']}: {row['what']} | {row['verdict']} | {'; '.join(row['evidence'])} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
