"""The folder of a study: its plan, and one folder for each run. It is the only state there is.

Knows: files. Does not know: what they say.

A run counts once its folder has its name; until then it is called `.part`, so one that was interrupted was never there.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.studies.clock import Sample
from benchmarks.studies.study import Study
from fleet.errors import BadSetting
from fleet.tune.raw import Origin

POINTS, RECORD, SUMMARY = "points.json.gz", "run.json", "summary.json"
KEPT_METRICS = (b'"kronos_request_duration"', b'"dropped_iterations"')
POINT = b'"type":"Point"'


class RunRecord(msgspec.Struct, frozen=True):
    """run.json: what was run and when (UTC), how k6 ended, what was used meanwhile, what Prometheus said."""

    id: str
    round: int
    variant: str
    dials: dict[str, str]
    begun: str
    seconds: float
    code: int
    meaning: str
    samples: list[Sample]
    prometheus: dict[str, dict[str, str]] = {}


class Begun(msgspec.Struct, frozen=True):
    """plan.json: what is measured, where, since when."""

    study: Study
    origin: Origin


@dataclass(frozen=True)
class Folder:
    """``reports/DATE-capacity-STUDY``."""

    path: Path

    @property
    def raw(self) -> Path:
        return self.path / "raw"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    def begin(self, wanted: Begun) -> Begun:
        """Write the plan down; where one is already, it may only be given more rounds. Raises BadSetting."""
        if self.plan.exists():
            there = self.begun()
            same = msgspec.structs.replace(there.study, rounds=wanted.study.rounds)
            if same != wanted.study:
                raise BadSetting(f"{self.path} holds the study with another plan", "--into another folder")
            if there.origin.machine != wanted.origin.machine:
                raise BadSetting(f"{self.path} was measured on another machine", "--into another folder")
            wanted = Begun(wanted.study, there.origin)
        self.raw.mkdir(parents=True, exist_ok=True)
        self.write("plan.json", msgspec.json.format(msgspec.json.encode(wanted), indent=1) + b"\n")
        return wanted

    def begun(self) -> Begun:
        """Raises BadSetting when there is no plan."""
        try:
            return msgspec.json.decode(self.plan.read_bytes(), type=Begun)
        except (OSError, msgspec.MsgspecError) as error:
            raise BadSetting(f"{self.path} holds no study: {error}", "python -m benchmarks.capacity STUDY makes one") from None

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all."""
        part = self.path / f".{name}.part"
        part.write_bytes(content)
        os.replace(part, self.path / name)

    def draft(self, run: str) -> Path:
        """An empty folder for a run that is about to be made."""
        part = self.raw / f"{run}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        return part

    def keep(self, draft: Path, record: RunRecord) -> None:
        """From now on the run is there."""
        (draft / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        draft.rename(draft.with_suffix(""))

    def done(self) -> set[str]:
        """Ids of the runs that are there."""
        return {file.parent.name for file in self.raw.glob(f"*/{RECORD}") if file.parent.suffix != ".part"}

    def records(self) -> list[RunRecord]:
        """All runs, in the order in which they were made."""
        found = [msgspec.json.decode((self.raw / run / RECORD).read_bytes(), type=RunRecord) for run in self.done()]
        return sorted(found, key=lambda record: (record.begun, record.id))

    def rates(self, run: str) -> dict[str, float]:
        """Every share that k6 counted over the whole run, by metric; none of a run without k6's summary."""
        path = self.raw / run / SUMMARY
        if not path.exists():
            return {}
        metrics = msgspec.json.decode(path.read_bytes())["metrics"]
        return {name: float(metric["values"]["rate"]) for name, metric in metrics.items() if metric["type"] == "rate"}

    def points(self, run: str) -> list[bytes]:
        """k6's points of one run, a JSON line each."""
        with gzip.open(self.raw / run / POINTS) as lines:
            return list(lines)


def wanted_points(lines: Iterable[bytes]) -> Iterable[bytes]:
    """Of k6's raw output, the points that figures are made from; the rest is twenty times as much."""
    return (line for line in lines if POINT in line and any(metric in line for metric in KEPT_METRICS))


def store_points(raw: Path, target: Path) -> None:
    """The points of k6's raw file, compressed, byte for byte the same for the same points."""
    with gzip.open(raw) as lines, target.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.writelines(wanted_points(lines))
