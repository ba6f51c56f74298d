"""The built-in runner: a real fleet under k6, through the same runtime as the operator's verbs.

Knows: how k6's raw points become requests, when a fleet is ready for a run. Does not know: containers or processes
(fleet.runtime), dials' meaning (fleet.load), what the figures say.
"""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec

from fleet import load
from fleet.errors import FleetError, LoadFailed, WorkerFailed
from fleet.k6 import ROOT
from fleet.runtime import Runtime
from fleet.tune import vitals
from fleet.tune.objective import Objective
from fleet.tune.protocol import End, Request, RunSpec, Setting
from fleet.tune.runner import PATIENCE_S, RunResult

LATENCY, INSIDE, OUTSIDE = "kronos_request_duration", "kronos_worker_total", "kronos_outside_worker"
DROPPED = "dropped_iterations"
GOOD_CODES = (0, 99)
"""k6 ended well, or a threshold failed: that is for the loop to judge."""
WARM_S = 2.0
WARM_TRIES = 6
USERS_TO_WARM = 2
"""Per worker: least_conn then has to ask every one of them."""


class _Data(msgspec.Struct):
    time: str
    value: float
    tags: dict[str, str] | None = None


class _Point(msgspec.Struct):
    """One line of k6's ``--out json``. ``value`` of a trend is in milliseconds, ``time`` is when the request was done."""

    type: str
    metric: str
    data: _Data


class _Kind(msgspec.Struct):
    type: str
    metric: str


@dataclass
class Loaded:
    """What k6 saw: the requests (due times from the first one on), arrivals dropped, mean seconds in and outside of workers."""

    requests: list[Request] = field(default_factory=list)
    dropped: int = 0
    inside_s: float | None = None
    outside_s: float | None = None


def read(folder: Path) -> Loaded:
    """From the points that k6 has written there."""
    with gzip.open(folder / load.POINTS) as raw:
        return loaded(raw)


def loaded(lines: Iterable[bytes]) -> Loaded:
    """From k6's points, one JSON document a line."""
    kinds, points = msgspec.json.Decoder(_Kind), msgspec.json.Decoder(_Point)
    found: dict[str, list[_Data]] = {LATENCY: [], INSIDE: [], OUTSIDE: [], DROPPED: []}
    for line in lines:
        kind = kinds.decode(line)
        if kind.type == "Point" and kind.metric in found:
            found[kind.metric].append(points.decode(line).data)
    dropped = round(sum(data.value for data in found[DROPPED]))
    return Loaded(_requests(found[LATENCY]), dropped, _mean_s(found[INSIDE]), _mean_s(found[OUTSIDE]))


def _requests(points: list[_Data]) -> list[Request]:
    due = [datetime.fromisoformat(data.time).timestamp() - data.value / 1000 for data in points]
    zero = min(due, default=0.0)
    made = []
    for moment, data in zip(due, points, strict=True):
        tags = data.tags or {}
        made.append(Request(moment - zero, data.value / 1000, tags.get("outcome") == "right", tags.get("worker")))
    return sorted(made, key=lambda request: request.t)


def _mean_s(points: list[_Data]) -> float | None:
    return sum(data.value for data in points) / len(points) / 1000 if points else None


@dataclass
class FleetRunner:
    """``worker_cores`` is what a worker without a CPU quota may use; ``dials`` are k6's (fleet.load) for the shape of a request;
    ``configure`` brings other settings into all workers, whatever their number (None: there is nothing to configure)."""

    runtime: Runtime
    k6: Path
    objective: Objective
    worker_cores: float = 1.0
    dials: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = PATIENCE_S
    configure: Callable[[Mapping[str, Setting]], None] | None = None
    _fleet: tuple[int, Mapping[str, Setting]] | None = None
    """How many workers with which settings are known to be ready and warm."""

    def run(self, spec: RunSpec) -> RunResult:
        """Settings, workers, warm-up, load. What the fleet refuses to do is the failure of the run."""
        try:
            if self._fleet != (spec.workers, spec.settings):
                self._prepare(spec)
            return self._measure(spec)
        except FleetError as error:
            self._fleet = None
            return RunResult(b"", error.what)

    def _prepare(self, spec: RunSpec) -> None:
        if self.configure is not None and (self._fleet is None or self._fleet[1] != spec.settings):
            self.configure(spec.settings)
        self.runtime.scale(spec.workers)
        self._warm(spec.workers)
        self._fleet = spec.workers, spec.settings

    def _warm(self, workers: int) -> None:
        """A short load of the run's own kind, until every worker has answered through the door."""
        seen: set[str | int | None] = set()
        for _ in range(WARM_TRIES):
            vus = USERS_TO_WARM * workers
            warm = RunSpec(workers, "closed", None, vus, WARM_S, 0, 0)
            with tempfile.TemporaryDirectory() as folder:
                self._load(warm, Path(folder))
                seen = {request.worker for request in read(Path(folder)).requests if request.ok}
            if len(seen) >= workers:
                return
        raise WorkerFailed(f"of {workers} workers {len(seen)} answer through the door", f"{self.runtime.command} status")

    def _measure(self, spec: RunSpec) -> RunResult:
        with tempfile.TemporaryDirectory() as folder:
            begun = vitals.begin(self.runtime)
            self._load(spec, Path(folder))
            ended = vitals.end(self.runtime)
            seen = read(Path(folder))
        cpu = vitals.cpu(begun, ended, spec.duration_s, self.worker_cores)
        server = vitals.server(begun, ended, seen.inside_s, seen.outside_s)
        end = End(True, spec.duration_s, seen.dropped, cpu, server)
        encoder = msgspec.json.Encoder()
        return RunResult(b"".join(encoder.encode(one) + b"\n" for one in [*seen.requests, end]))

    def _load(self, spec: RunSpec, folder: Path) -> None:
        """Run k6 to its end; its points are in the folder. Raises LoadFailed."""
        dials = dials_of(spec, self.objective, self.runtime.front().url, self.dials)
        run = load.Run(str(self.k6), dials, str(folder), dashboard=False)
        limit_s = spec.duration_s + self.patience_s
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                run.argv(), env=run.env(os.environ), cwd=ROOT, stdout=said, stderr=said, start_new_session=True
            )
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise LoadFailed(f"k6 did not end within {limit_s:g} s", "give the run more --patience") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if code not in GOOD_CODES:
            last = (folder / "said").read_text(errors="replace").strip().splitlines()[-1:]
            raise LoadFailed(": ".join([load.meaning(code), *last]), "try the same load with python -m fleet.load")


def dials_of(spec: RunSpec, objective: Objective, url: str, given: Mapping[str, str]) -> dict[str, str]:
    """What k6 is told for this run."""
    dials = {**given, "BASE_URL": url, "DURATION": f"{spec.duration_s:g}s", "SEED": str(spec.seed % 1_000_000)}
    dials["P95_MS"] = f"{1000 * objective.seconds:g}"
    if spec.mode == "open":
        return {**dials, "SCENARIO": "open", "RATE": f"{spec.rate:g}"}
    return {**dials, "SCENARIO": "baseline", "VUS": str(spec.vus)}
