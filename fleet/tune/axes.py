"""Laws along the axes of a grid: what more threads, or more batch slots, do to throughput at a fixed number of workers.

Knows: which runs differ in one setting only. Does not know: what the settings mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fleet.tune import laws
from fleet.tune.evidence import Evidence
from fleet.tune.laws import Law
from fleet.tune.protocol import Setting

Settings = Mapping[str, Setting]


def along(grid: Sequence[Settings], evidences: Sequence[Evidence]) -> dict[str, dict[str, Law]]:
    """By axis and by what is held fixed, at the largest count of workers: laws of settings that have three numbers or more."""
    found: dict[str, dict[str, Law]] = {}
    for name in grid[0]:
        lines: dict[str, list[tuple[int, Evidence]]] = {}
        for settings, evidence in zip(grid, evidences, strict=True):
            value = settings[name]
            if isinstance(value, float) and value.is_integer() and value > 0:
                lines.setdefault(_fixed(settings, name, evidence), []).append((int(value), evidence))
        for fixed, line in lines.items():
            law = _law(sorted(line, key=lambda one: one[0]))
            if law is not None:
                found.setdefault(name, {})[fixed] = law
    return found


def _fixed(settings: Settings, name: str, evidence: Evidence) -> str:
    """The other settings, in words."""
    others = {key: f"{value:g}" if isinstance(value, float) else value for key, value in settings.items() if key != name}
    return ", ".join([f"{evidence.plan.reference} workers", *(f"{key} {value}" for key, value in others.items())])


def _law(line: list[tuple[int, Evidence]]) -> Law | None:
    """Throughput at the largest count, (rounds, values)."""
    by_round = [
        {run.slot.round: run.stats.throughput for run in evidence.of("closed", evidence.plan.reference) if run.stats is not None}
        for _, evidence in line
    ]
    rounds = sorted({number for runs in by_round for number in runs})
    table = np.array([[np.log(runs[number]) if runs.get(number) else np.nan for runs in by_round] for number in rounds])
    return laws.choose(table, tuple(value for value, _ in line)) if rounds else None
