"""table.md: a study in tables.

Knows: Markdown, units. Does not know: how figures are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.studies.figures import Figures, Used
from benchmarks.studies.known import Known
from benchmarks.studies.study import MOST_WARM_UP_S, WARM_UP_SHARE, Fleet
from benchmarks.studies.verdicts import Line, Run, Versus
from fleet.tune.plan import FEWEST_FOR_CLAIMS
from fleet.tune.statistics import Interval
from fleet.tune.words import NOT, interval, number, rows

if TYPE_CHECKING:
    from benchmarks.studies.report import Results, Slice

LINES = (
    "variant", "runs", "right answers/s", "p50 s", "p95 s", "p99 s", "refused", "failed", "worker CPU of quota", "throttled",
    "host CPU", "nginx cores", "k6 cores", "workers' memory MB",
)  # fmt: skip
KNOWN = ("variant", "runs", "known to the cache", "computed once for several", "computed for one", "known in the worst run")
RUNS = ("run", "right answers/s", "p50 s", "p95 s", "p99 s", "refused", "failed", "worker CPU", "host CPU", "k6", "counts")
SLICES = (
    "from s", "due/s", "right answers/s", "p50 s", "p95 s", "refused", "failed", "dropped", "worker CPU of quota", "host CPU",
    "workers' memory MB",
)  # fmt: skip


def markdown(results: Results) -> str:
    """The whole study."""
    study = results.begun.study
    lines = [f"# {study.name}", "", study.question, ""]
    lines += rows(LINES, [_line(line) for line in results.lines])
    if results.known:
        lines += ["## Known to the cache", "", *rows(KNOWN, [_known(each) for each in results.known])]
    if results.versus:
        lines += ["## Differences", ""]
        head = ("before → after", "figure", "ratio", "rounds", "A/A floor", "verdict")
        lines += rows(head, [_versus(each) for each in results.versus])
    for run, slices in results.slices.items():
        lines += [f"## {run}, piece by piece", "", *rows(SLICES, [_slice(each) for each in slices])]
    lines += ["## Runs", "", *rows(RUNS, [_run(run) for run in results.runs])]
    lines += ["## How it was measured", "", *_how(results)]
    return "\n".join(lines) + "\n"


def _how(results: Results) -> list[str]:
    """What a reader has to know to believe the tables, or to make them again."""
    study, origin = results.begun.study, results.begun.origin
    machine = ", ".join(f"{name} {value}" for name, value in {**origin.machine, **origin.versions}.items())
    window = f"the steady window (without the first {100 * WARM_UP_SHARE:.0f} % of a run, at most {MOST_WARM_UP_S:g} s)"
    return [
        *(f"- Fleet {fleet.name}: {_fleet(fleet)}." for fleet in study.fleets),
        f"- {study.rounds} rounds, each in an order of its own (seed {study.seed}); runs of {study.seconds:g} s.",
        "- All fleets run side by side, one at a time gets load; their health check is cheaper than the image's own.",
        f"- Figures are of {window}. The unit is the run.",
        "- p50, p95, p99 are geometric means of run-level statistics of right answers; intervals are 95 %.",
        f"- Ratios are taken within rounds. Fewer than {FEWEST_FOR_CLAIMS} rounds only rank, and have no intervals here.",
        f"- Begun {origin.begun}. {machine}.",
        "- `python -m benchmarks.capacity report DIR` makes this file again from the raw runs.",
    ]


def _fleet(fleet: Fleet) -> str:
    """What is special about it."""
    edits = [f"`{new.strip()}` in {path}" for path, texts in fleet.edits.items() for new in texts.values()]
    settings = [f"{name}={value}" for name, value in fleet.env.items()]
    return ", ".join([f"{fleet.workers} workers of {fleet.cpus:g} cores", *settings, *edits, *fleet.services])


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _used(used: Used | None) -> tuple[str, ...]:
    if used is None:
        return (NOT,) * 6
    shares = percent(used.worker), percent(used.throttled), percent(used.host)
    return (*shares, number(used.nginx), number(used.generator), f"{used.memory_mb:.0f}")


def _interval(found: Interval | None) -> str:
    """The ends only where they may be believed; the note below the tables says so once."""
    return interval(found) if found is not None and found.claim else number(found.value if found else None)


def _line(line: Line) -> tuple[str, ...]:
    latencies = (_interval(found) for found in (line.p50, line.p95, line.p99))
    shares = percent(line.refused), percent(line.failed)
    return (line.variant, str(line.runs), _interval(line.throughput), *latencies, *shares, *_used(line.used))


def _known(each: Known) -> tuple[str, ...]:
    shares = each.hit, each.coalesced, 1 - each.hit - each.coalesced, each.fewest
    return (each.variant, str(each.runs), *map(percent, shares))


def _versus(each: Versus) -> tuple[str, ...]:
    floor = NOT if each.floor is None else percent(each.floor)
    return (f"{each.before} → {each.after}", each.metric, interval(each.ratio), str(each.rounds), floor, each.verdict)


def _figures(found: Figures) -> tuple[str, ...]:
    return tuple(number(value) for value in (found.throughput, found.p50, found.p95))


def _slice(piece: Slice) -> tuple[str, ...]:
    found, used = piece.figures, piece.used
    shares = percent(found.refused), percent(found.failed)
    spent = (NOT,) * 3 if used is None else (percent(used.worker), percent(used.host), f"{used.memory_mb:.1f}")
    return (f"{piece.begin:g}", number(piece.due), *_figures(found), *shares, str(found.dropped), *spent)


def _run(run: Run) -> tuple[str, ...]:
    found, used = run.figures, run.used
    shares = percent(found.refused), percent(found.failed)
    cpu = (NOT, NOT) if used is None else (percent(used.worker), percent(used.host))
    return (run.id, *_figures(found), number(found.p99), *shares, *cpu, run.meaning, "; ".join(run.doubts) or "yes")
