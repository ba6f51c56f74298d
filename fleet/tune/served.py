"""The built-in runner: a real fleet under k6, through the same runtime as the operator's verbs.

Knows: how k6's raw points become requests, whose CPU is whose. Does not know: containers or processes (fleet.runtime), dials'
meaning (fleet.load).
"""

from __future__ import annotations

import gzip
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec

from fleet import load, metrics, proc
from fleet.errors import BadSetting, FleetError
from fleet.k6 import ROOT
from fleet.runtime import Runtime
from fleet.tune.objective import Objective
from fleet.tune.protocol import Cpu, End, Request, RunSpec
from fleet.tune.runner import PATIENCE_S, RunResult

LATENCY = "kronos_request_duration"
DROPPED = "dropped_iterations"
GOOD_CODES = (0, 99)
"""k6 ended well, or a threshold failed: that is for the loop to judge."""


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


def requests(lines: Iterable[bytes]) -> tuple[list[Request], int]:
    """The requests of a run, due times from the first one on, and how many arrivals were dropped."""
    kinds, points = msgspec.json.Decoder(_Kind), msgspec.json.Decoder(_Point)
    found: list[tuple[float, float, _Data]] = []
    dropped = 0.0
    for line in lines:
        kind = kinds.decode(line)
        if kind.type != "Point" or kind.metric not in {LATENCY, DROPPED}:
            continue
        data = points.decode(line).data
        if kind.metric == DROPPED:
            dropped += data.value
            continue
        latency = data.value / 1000
        found.append((datetime.fromisoformat(data.time).timestamp() - latency, latency, data))
    zero = min((due for due, _, _ in found), default=0.0)
    made = [
        Request(due - zero, latency, (data.tags or {}).get("outcome") == "right", (data.tags or {}).get("worker"))
        for due, latency, data in found
    ]
    return sorted(made, key=lambda request: request.t), round(dropped)


@dataclass(frozen=True)
class Clock:
    """Seconds of CPU so far: of each worker by name, of the host's cores together, of children that have ended."""

    at: float
    workers: Mapping[str, float]
    host: float
    children: float


@dataclass(frozen=True)
class FleetRunner:
    """``worker_cores`` is a worker's CPU quota in cores; ``dials`` are k6's (fleet.load) for the shape of a request."""

    runtime: Runtime
    k6: Path
    objective: Objective
    worker_cores: float = 1.0
    dials: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = PATIENCE_S

    def run(self, spec: RunSpec) -> RunResult:
        """Scale, load, read the clocks. What the fleet refuses to do is the failure of the run."""
        try:
            self.runtime.scale(spec.workers)
            with tempfile.TemporaryDirectory() as folder:
                return self._loaded(spec, Path(folder))
        except FleetError as error:
            return RunResult(b"", error.what)

    def clock(self) -> Clock:
        """Now."""
        used = {look.name: _cpu_of(look.metrics) for look in self.runtime.looks() if look.is_worker and look.metrics}
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Clock(time.monotonic(), used, proc.cpu_seconds(), children.ru_utime + children.ru_stime)

    def _loaded(self, spec: RunSpec, folder: Path) -> RunResult:
        begun = self.clock()
        failure = self._k6(spec, folder)
        if failure:
            return RunResult(b"", failure)
        ended = self.clock()
        with gzip.open(folder / "raw.json.gz") as raw:
            made, dropped = requests(raw)
        encoder = msgspec.json.Encoder()
        end = End(True, spec.duration_s, dropped, cpu_between(begun, ended, self.worker_cores))
        return RunResult(b"".join(encoder.encode(one) + b"\n" for one in [*made, end]))

    def _k6(self, spec: RunSpec, folder: Path) -> str:
        """Run k6; why it failed, or ""."""
        dials = dials_of(spec, self.objective, self.runtime.front().url, self.dials)
        run = load.Run(str(self.k6), dials, str(folder), dashboard=False)
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                run.argv(), env=run.env(os.environ), cwd=ROOT, stdout=said, stderr=said, start_new_session=True
            )
            try:
                code = process.wait(spec.duration_s + self.patience_s)
            except subprocess.TimeoutExpired:
                return f"k6 did not end within {spec.duration_s + self.patience_s:g} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return "" if code in GOOD_CODES else load.meaning(code)


def dials_of(spec: RunSpec, objective: Objective, url: str, given: Mapping[str, str]) -> dict[str, str]:
    """What k6 is told for this run. Raises BadSetting for settings of a grid: a fleet is rolled for these by its operator."""
    if spec.settings:
        raise BadSetting("the built-in runner changes workers only", "--runner exec:COMMAND for a grid of settings")
    dials = {**given, "BASE_URL": url, "DURATION": f"{spec.duration_s:g}s", "SEED": str(spec.seed % 1_000_000)}
    dials["P95_MS"] = f"{1000 * objective.seconds:g}"
    if spec.mode == "open":
        return {**dials, "SCENARIO": "open", "RATE": f"{spec.rate:g}"}
    return {**dials, "SCENARIO": "baseline", "VUS": str(spec.vus)}


def cpu_between(begun: Clock, ended: Clock, worker_cores: float) -> Cpu:
    """Mean use between two moments; workers that were there at both."""
    wall, cores = max(ended.at - begun.at, 1e-9), os.cpu_count() or 1
    used = [ended.workers[name] - begun.workers[name] for name in ended.workers if name in begun.workers]
    worker = max(0.0, sum(used) / len(used) / wall / worker_cores) if used else None
    host, generator = (ended.host - begun.host) / wall / cores, (ended.children - begun.children) / wall / cores
    return Cpu(worker, max(0.0, host), max(0.0, generator))


def _cpu_of(text: str | None) -> float:
    samples = metrics.parse(text or "")
    return next((sample.value for sample in samples if sample.name == "process_cpu_seconds_total"), 0.0)
