"""The campaigns about popular requests, without fleets: what is asked, and what is made of the answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import repeated
from fleet.options import parser


def stored(reports: Path, name: str, workers: int | None, p: float | None) -> None:
    """A finished campaign, as far as the table reads it."""
    counts = [{"workers": 1, "p95": {"value": 0.0213}, "per_worker": {"value": 24.96}}, {"workers": 2, "p95": None}]
    series = {"answer": {"workers": workers, "p": p}, "counts": counts, "bottleneck": {"verdict": "quota"}}
    folder = reports / f"2026-11-21-{name}"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"runs": 18, "series": [series]}))


@pytest.mark.parametrize("name", repeated.COUNTS)
def test_the_same_is_asked_of_every_cache(name: str) -> None:
    """But for the numbers of workers that are tried; and the command line takes it."""
    asked = repeated.asked(name)
    others = [part for part in asked if part not in {name, repeated.COUNTS[name]}]
    assert others == [part for part in repeated.asked("uncached") if part not in {"uncached", repeated.COUNTS["uncached"]}]
    options = parser().parse_args(asked)
    assert options.dials == ["HORIZON=24", "POPULAR=8"] and options.name == name


def test_the_table_says_what_each_campaign_said(tmp_path: Path) -> None:
    """Workers needed, how sure, p95 of every number that was measured; and where none is enough."""
    stored(tmp_path, "uncached", None, None)
    stored(tmp_path, "in-worker", 1, 0.9987)
    rows = [row for name in repeated.COUNTS if (row := repeated.summarised(name, tmp_path))]
    lines = repeated.table(rows).splitlines()[2:]
    assert lines == [
        "| uncached | none of these | – | 1: 21.3 | 25 | quota |",
        "| in-worker | 1 | 99.9 % | 1: 21.3 | 25 | quota |",
    ]
