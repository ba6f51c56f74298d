"""From the raw points and clocks of one run to its figures.

Knows: the steady window, throughput, latency quantiles, shares of refusals and failures, CPU. Does not know: other runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.studies.clock import Sample
from benchmarks.studies.folder import RunRecord
from benchmarks.studies.study import START_S, Study, warm_up_s
from fleet.compose import commands
from fleet.tune import gates
from fleet.tune.objective import Objective
from fleet.tune.plan import Mode, Slot
from fleet.tune.protocol import Cpu, End, Floats, Points, RunSpec
from fleet.tune.raw import Record
from fleet.tune.runstats import quantile
from fleet.tune.served import DROPPED

OBJECTIVE = Objective(0.95, 10.0)
"""Of tests/load/baseline.js; here it only tells a slow fleet from a broken run in an open loop."""
EARLY_S, LATE_S = 0.5, 2.5
"""A reading may be so far outside of a window and still be meant for its edge: looking takes its time on a busy host."""
OUTCOMES = ("right", "refused", "failed")


class _Data(msgspec.Struct):
    time: str
    value: float
    tags: dict[str, str] = {}


class _Point(msgspec.Struct):
    """A point of k6's ``--out json``: ``value`` in milliseconds, ``time`` when the request was done."""

    metric: str
    data: _Data


@dataclass(frozen=True)
class Asked:
    """All requests of a run, in the order in which they were due; seconds since the first one was. ``outcome``: index in
    ``OUTCOMES``. ``dropped``: when arrivals found no free user."""

    due: Floats
    latency: Floats
    outcome: npt.NDArray[np.int_]
    dropped: Floats

    @property
    def done(self) -> Floats:
        return self.due + self.latency

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = self.outcome == OUTCOMES.index("right")
        return found


class Figures(msgspec.Struct, frozen=True):
    """Of one window: right answers a second, latencies of right answers (s), shares of the requests due in it."""

    requests: int
    throughput: float
    p50: float
    p95: float
    p99: float
    refused: float
    failed: float
    dropped: int


class Used(msgspec.Struct, frozen=True):
    """CPU over the steady window. ``worker``: of the workers' quota; ``throttled``: share of quota periods in which it ran out;
    ``nginx``, ``generator``: cores; ``host``: of all cores. ``memory_mb``: of all workers, at the end."""

    worker: float
    throttled: float
    nginx: float
    generator: float
    host: float
    memory_mb: float


def read(lines: Iterable[bytes]) -> Asked:
    """k6's points. Raises ValueError when there is no request among them."""
    decode = msgspec.json.Decoder(_Point).decode
    rows: list[tuple[float, float, int]] = []
    dropped: list[float] = []
    for point in map(decode, lines):
        moment = datetime.fromisoformat(point.data.time).timestamp()
        if point.metric == DROPPED:
            dropped += [moment] * round(point.data.value)
        else:
            latency = point.data.value / 1000
            rows.append((moment - latency, latency, OUTCOMES.index(point.data.tags["outcome"])))
    if not rows:
        raise ValueError("the run has no requests")
    due, latencies, outcomes = (np.array(column) for column in zip(*sorted(rows), strict=True))
    return Asked(due - due[0], latencies, outcomes, np.array(sorted(dropped)) - due[0])


def figures(asked: Asked, begin: float, end: float) -> Figures:
    """Of the window from ``begin`` to ``end`` (s)."""
    inside = (asked.due >= begin) & (asked.due < end)
    ended = asked.right & (asked.done >= begin) & (asked.done < end)
    latency, count = asked.latency[inside & asked.right], int(inside.sum())
    shares = [float((asked.outcome[inside] == number).mean()) if count else 0.0 for number in range(len(OUTCOMES))]
    lost = int(((asked.dropped >= begin) & (asked.dropped < end)).sum())
    p50, p95, p99 = (quantile(latency, share) for share in (0.5, 0.95, 0.99))
    return Figures(count, float(ended.sum()) / (end - begin), p50, p95, p99, shares[1], shares[2], lost)


def used(samples: list[Sample], window: tuple[float, float], cores: float, host_cores: int) -> Used | None:
    """Between the first and the last reading in a window of the run (s); ``cores``: of all workers. None without two of them."""
    begin, end = (START_S + edge for edge in window)
    there = [sample for sample in samples if sample.generator_s]  # 0 in older runs: the generator had gone
    inside = [sample for sample in there if begin - EARLY_S <= sample.at <= end + LATE_S]
    if len(inside) < 2:
        return None
    first, last = inside[0], inside[-1]
    wall = last.at - first.at

    def grown(field: str, nginx: bool) -> float:
        names = [name for name in last.containers if name in first.containers and name.startswith(commands.NGINX) == nginx]
        return sum(float(getattr(last.containers[name], field) - getattr(first.containers[name], field)) for name in names)

    memory = sum(usage.memory for name, usage in last.containers.items() if not name.startswith(commands.NGINX))
    return Used(
        grown("cpu_s", False) / wall / cores,
        grown("throttled", False) / max(grown("periods", False), 1.0),
        grown("cpu_s", True) / wall,
        (last.generator_s - first.generator_s) / wall,
        (last.host_s - first.host_s) / wall / host_cores,
        memory / 1e6,
    )


def doubts(study: Study, record: RunRecord, asked: Asked, spent: Used | None, host_cores: int) -> tuple[str, ...]:
    """Why a run does not count, by the gates of the tuning loop."""
    variant = study.variant(record.variant)
    if variant.dials["SCENARIO"] == "ramp":
        return ()  # it is not meant to be steady
    cpu = Cpu(generator=spent.generator / host_cores if spent else None)
    verdict = gates.judge(judged(study, record, asked, cpu), OBJECTIVE)
    return () if verdict.usable else verdict.reasons


def judged(study: Study, record: RunRecord, asked: Asked, cpu: Cpu) -> Record:
    """The run in the words of the tuning loop."""
    variant = study.variant(record.variant)
    seconds, workers, users = study.seconds_of(variant), study.fleet_of(variant).workers, int(variant.dials.get("VUS", 0)) or None
    mode: Mode = "open" if variant.open else "closed"
    rate = float(variant.dials["RATE"]) if variant.open else None
    spec = RunSpec(workers, mode, rate, None if variant.open else users, seconds, study.seed, record.round)
    points = Points(asked.due, asked.latency, asked.right, ("",) * len(asked.due))
    return Record(Slot("sweep", record.round, workers, mode), 0, spec, points, End(True, seconds, len(asked.dropped), cpu))


def steady(study: Study, record: RunRecord) -> tuple[float, float]:
    """Begin and end (s) of the window that counts."""
    seconds = study.seconds_of(study.variant(record.variant))
    return warm_up_s(seconds), seconds
