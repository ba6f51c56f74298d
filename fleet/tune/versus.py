"""``fleet compare A B``: from two places in campaigns to the verdict's sentences.

Knows: how a configuration is written (DIR, DIR:workers=3, DIR:workers=3,threads=2). Does not know: statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fleet.errors import BadSetting
from fleet.tune.analyst import Analyst
from fleet.tune.compare import METRICS, Ratio, compare
from fleet.tune.evidence import Evidence
from fleet.tune.objective import grid
from fleet.tune.protocol import Setting
from fleet.tune.raw import Folder
from fleet.tune.words import interval

NAMES = {"throughput": "throughput at saturation", "quantile": "latency at the rate"}


@dataclass(frozen=True)
class Configuration:
    """One side of a comparison."""

    folder: Path
    workers: int | None
    settings: dict[str, Setting]

    def evidence(self) -> Evidence:
        """Its runs. Raises BadSetting when the campaign has no such setting."""
        folder = Folder(self.folder)
        plan = folder.campaign().plan
        settings = self.settings or plan.grid[0]
        if settings not in plan.grid:
            raise BadSetting(f"{self.folder} has no runs with {settings}", f"it has {list(plan.grid)}")
        return Analyst(plan).evidence(folder.records(), settings)


def configuration(text: str) -> Configuration:
    """Raises BadSetting."""
    where, _, rest = text.partition(":")
    values = dict(part.partition("=")[::2] for part in rest.split(",")) if rest else {}
    count = values.pop("workers", None)
    if count is not None and not count.isdigit():
        raise BadSetting(f"no configuration: {text!r}", "write it like reports/DATE-NAME:workers=3")
    [settings] = grid([" ".join(f"{name}={value}" for name, value in values.items())])
    return Configuration(Path(where), int(count) if count is not None else None, settings)


def verdicts(before: str, after: str, effect: float) -> list[str]:
    """One sentence per metric and count: all counts that both have, unless counts are given."""
    first, second = configuration(before), configuration(after)
    one, two = first.evidence(), second.evidence()
    lines = []
    for metric, (mode, _) in METRICS.items():
        for pair in _pairs(first, second, one.counts(mode), two.counts(mode)):
            lines.append(sentence(compare(one, two, pair, metric, effect), pair, effect))
    return lines


def _pairs(first: Configuration, second: Configuration, one: tuple[int, ...], two: tuple[int, ...]) -> list[tuple[int, int]]:
    if first.workers is None and second.workers is None:
        return [(count, count) for count in one if count in two]
    return [(first.workers or second.workers or 0, second.workers or first.workers or 0)]


def sentence(ratio: Ratio, workers: tuple[int, int], effect: float) -> str:
    """The verdict and what it stands on."""
    where = f"{workers[0]} workers" if workers[0] == workers[1] else f"{workers[0]} → {workers[1]} workers"
    head = f"{NAMES[ratio.metric]}, {where}: {ratio.verdict}"
    if ratio.ratio is None:
        return head
    floor = "no A/A control" if ratio.floor is None else f"A/A floor {100 * ratio.floor:.1f} %"
    how = f"{ratio.rounds} {'paired rounds' if ratio.paired else 'runs, not interleaved: what changed in between counts too'}"
    more = f"; about {ratio.more_runs} more rounds would decide" if ratio.more_runs else ""
    return f"{head}; ratio {interval(ratio.ratio)} ({how}; smallest effect {100 * effect:g} %, {floor}){more}"
