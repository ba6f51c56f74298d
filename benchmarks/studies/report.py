"""Everything that follows from the raw runs of a study: study.json, table.md, pictures, and copies of what k6 said.

Knows: which files there are. Does not know: anything that is not in the folder; the same raw runs make the same files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence

import msgspec

from benchmarks.studies import figures, pictures, prometheus, tables, verdicts
from benchmarks.studies.figures import Asked, Figures, Used
from benchmarks.studies.folder import Begun, Folder, RunRecord
from benchmarks.studies.known import Known, known
from benchmarks.studies.study import Study
from benchmarks.studies.verdicts import Line, Run, Versus
from fleet.errors import BadSetting

QUERIES = "prometheus_queries.txt"


class Slice(msgspec.Struct, frozen=True):
    """A piece of one run: from when (s), its figures; requests that were due (a second), also those that were dropped."""

    begin: float
    due: float
    figures: Figures
    used: Used | None


class Results(msgspec.Struct, frozen=True):
    """study.json."""

    begun: Begun
    runs: list[Run]
    lines: list[Line]
    versus: list[Versus]
    slices: dict[str, list[Slice]]
    known: list[Known] = []


def write(folder: Folder, say: Callable[[str], None]) -> Results:
    """Make every file of the report. Raises BadSetting when no run is there."""
    begun, records = folder.begun(), folder.records()
    if not records:
        raise BadSetting(f"{folder.path} holds no runs", "measure first")
    asked = {record.id: figures.read(folder.points(record.id)) for record in records}
    results = analyse(begun, records, asked, {record.id: folder.rates(record.id) for record in records})
    folder.write("study.json", msgspec.json.format(msgspec.json.encode(_rounded(results)), indent=1) + b"\n")
    folder.write("table.md", tables.markdown(results).encode())
    for name, chosen in _pictures(results).items():
        shown = {run.variant: (asked[run.id], begun.study.seconds_of(begun.study.variant(run.variant))) for run in chosen}
        folder.write(name, pictures.over_time(shown).encode())
    _copies(folder, results, {record.id: record for record in records})
    say(f"Report: {folder.path}/table.md")
    return results


def analyse(
    begun: Begun, records: Sequence[RunRecord], asked: Mapping[str, Asked], rates: Mapping[str, Mapping[str, float]]
) -> Results:
    """All figures and verdicts. ``rates``: what k6 counted, by run and metric."""
    study, host_cores = begun.study, int(begun.origin.machine["cores"])
    runs = [_run(study, record, asked[record.id], host_cores) for record in records]
    runs.sort(key=lambda run: (run.round or len(records), run.id))
    names = [variant.name for variant in study.variants if any(run.variant == variant.name for run in runs)]
    lines = [verdicts.line(runs, name) for name in names]
    slices = {record.id: _slices(study, record, asked[record.id], host_cores) for record in records}
    shown = {run: found for run, found in sorted(slices.items()) if found}
    cached = [found for name in names if (found := known(runs, name, rates))]
    return Results(begun, runs, lines, verdicts.versus(study, runs), shown, cached)


def _run(study: Study, record: RunRecord, asked: Asked, host_cores: int) -> Run:
    window, cores = figures.steady(study, record), study.cores_of(study.variant(record.variant))
    spent, found = figures.used(record.samples, window, cores, host_cores), figures.figures(asked, *window)
    doubts = figures.doubts(study, record, asked, spent, host_cores)
    return Run(record.id, record.round, record.variant, record.begun, record.meaning, found, spent, doubts)


def _slices(study: Study, record: RunRecord, asked: Asked, host_cores: int) -> list[Slice]:
    variant = study.variant(record.variant)
    width, cores = variant.slice_s, study.cores_of(variant)
    found = []
    for number in range(round(study.seconds_of(variant) / width) if width else 0):
        window = number * width, (number + 1) * width
        each = figures.figures(asked, *window)
        spent = figures.used(record.samples, window, cores, host_cores)
        found.append(Slice(window[0], (each.requests + each.dropped) / width, each, spent))
    return found


def _pictures(results: Results) -> dict[str, list[Run]]:
    """File name → runs: the median run of each variant, and each run that is measured once by itself."""
    study = results.begun.study
    once = {variant.name for variant in study.variants if variant.once}
    chosen = [next(run for run in results.runs if run.id == line.median_run) for line in results.lines if line.median_run]
    rounds = [run for run in chosen if run.variant not in once]
    singles = {f"over-time-{run.variant}.svg": [run] for run in chosen if run.variant in once}
    return {**({"over-time.svg": rounds} if rounds else {}), **singles}


def _copies(folder: Folder, results: Results, records: Mapping[str, RunRecord]) -> None:
    """k6's own words on the median runs that the study names, and what Prometheus said at the end of these."""
    median = {line.variant: line.median_run for line in results.lines if line.median_run}
    said = []
    for name, variant in results.begun.study.texts.items():
        if variant in median:
            shutil.copyfile(folder.raw / median[variant] / "summary.txt", folder.path / name)
    for variant, run in median.items():
        if records[run].prometheus:
            head = f"#### {variant}: run {run}, begun {records[run].begun}, asked while the load was on\n\n"
            said.append(head + prometheus.text(records[run].prometheus))
    if said:
        folder.write(QUERIES, "\n".join(said).encode())


def _rounded(value: object) -> object:
    """Six significant digits are enough for any table, and are read more easily."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
