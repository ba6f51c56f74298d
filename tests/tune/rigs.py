"""Runs, plans and campaigns made by hand, for the tests of the tuning loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fleet.tune import plan as planning
from fleet.tune import simulate
from fleet.tune.objective import Objective
from fleet.tune.plan import Mode, Plan, Slot
from fleet.tune.protocol import Cpu, End, Points, RunSpec
from fleet.tune.raw import Campaign, Folder, Origin, Record
from fleet.tune.runner import RunResult
from fleet.tune.session import Session

OBJECTIVE = Objective(0.95, 0.5)
DURATION_S = 30.0
LAW = simulate.Law(service=simulate.Service(mean_s=0.1, cv=0.5), noise=simulate.Noise(run=0.01, round=0.01))


def points(due: Any, latency: Any, ok: Any = True) -> Points:
    """Requests from arrays; what is one number holds for all."""
    times = np.asarray(due, float)
    right = np.broadcast_to(np.asarray(ok, bool), times.shape)
    return Points(times, np.broadcast_to(np.asarray(latency, float), times.shape), right, ("1",) * len(times))


def record(made: Points | None, mode: Mode = "open", rate: float = 40.0, vus: int = 8, **end: Any) -> Record:
    """One run; without points one that failed."""
    spec = RunSpec(1, mode, rate if mode == "open" else None, vus if mode == "closed" else None, DURATION_S, 7, 0)
    slot = Slot("sweep", 0, 1, mode)
    if made is None:
        return Record(slot, 1, spec, None, None, "it exploded")
    cpu = end.pop("cpu", Cpu())
    return Record(slot, 1, spec, made, End(True, DURATION_S, cpu=cpu, **end))


def steady(rate: float = 40.0, latency: float = 0.1, spread: float = 0.3, seed: int = 1) -> Points:
    """An open run in which nothing changes."""
    due = np.arange(0, DURATION_S, 1 / rate)
    random = np.random.default_rng(seed)
    return points(due, latency * np.exp(spread * random.normal(size=len(due))))


def plan(**changes: Any) -> Plan:
    """Small enough for a test: four counts, three rounds of twelve seconds."""
    objective = changes.pop("objective", Objective(0.95, 0.3))
    small = {"rounds": 3, "duration_s": 12.0, "most_runs": 6, "confirm": 1, **changes}
    return planning.make(objective, small.pop("rate", 25.0), small.pop("workers", (1, 2, 3, 4, 5)), "quick", **small)


class Simulated:
    """A runner that simulates in this process; ``spoil`` may change what it prints, by number of the run."""

    def __init__(self, law: simulate.Law = LAW, stop_after: int | None = None) -> None:
        self.law, self.stop_after, self.made = law, stop_after, 0

    def run(self, spec: RunSpec) -> RunResult:
        if self.made == self.stop_after:
            raise KeyboardInterrupt
        self.made += 1
        return self.spoil(RunResult(b"".join(simulate.lines(self.law, spec))))

    def spoil(self, result: RunResult) -> RunResult:
        return result


def session(path: Path, runner: Any, made: Plan | None = None) -> Session:
    """A campaign in a folder, begun or gone on with."""
    folder = Folder(path)
    campaign = Campaign("test", made or plan(), Origin("test", "2026-01-01T00:00:00Z", {}, {}), price=0.1)
    if not (path / "plan.json").exists():
        folder.begin(campaign)
    return Session(folder, folder.campaign(), runner, lambda line: None)
