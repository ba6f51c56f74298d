"""What workers and host say of themselves before and after a run, and what that comes to.

Knows: the names of the workers' metrics, whose CPU is whose. Does not know: how a run is made, what is made of the figures.
"""

from __future__ import annotations

import os
import resource
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from fleet import metrics, proc
from fleet.runtime import Runtime
from fleet.tune.protocol import Cpu, Server

CPU, QUOTA = "process_cpu_seconds_total", "kronos_cpu_quota_cores"
PERIODS, THROTTLED = "kronos_cpu_periods_total", "kronos_cpu_throttled_periods_total"
REJECTED, STEPS, STAGES = "kronos_rejected_total", "kronos_batch_sequences", "kronos_stage_seconds"
QUEUE = {"stage": "queue"}


@dataclass(frozen=True)
class Vitals:
    """At one moment (``at``, monotonic seconds): seconds of CPU of all cores and of ended children, each worker's counters."""

    at: float
    host: float
    children: float
    workers: Mapping[str, Mapping[str, float]]


def begin(runtime: Runtime) -> Vitals:
    """Before a run: workers first, since asking them costs CPU that is not the run's."""
    workers = _workers(runtime)
    return Vitals(*_machine(), workers)


def end(runtime: Runtime) -> Vitals:
    """After a run: workers last."""
    return Vitals(*_machine(), _workers(runtime))


def _machine() -> tuple[float, float, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), proc.cpu_seconds(), children.ru_utime + children.ru_stime


def _workers(runtime: Runtime) -> Mapping[str, Mapping[str, float]]:
    return {look.name: counters(look.metrics) for look in runtime.looks() if look.is_worker and look.metrics}


def counters(text: str) -> dict[str, float]:
    """By name, added up over labels; of the stages only the queue."""
    found: dict[str, float] = defaultdict(float)
    for sample in metrics.parse(text):
        if not sample.name.startswith(STAGES) or QUEUE.items() <= sample.labels.items():
            found[sample.name] += sample.value
    return dict(found)


def grown(begun: Vitals, ended: Vitals) -> list[dict[str, float]]:
    """Of each worker that was there at both moments: by how much its counters grew; its quota as it is."""
    pairs = [(begun.workers[name], now) for name, now in ended.workers.items() if name in begun.workers]
    return [{name: value if name == QUOTA else value - old.get(name, 0.0) for name, value in now.items()} for old, now in pairs]


def cpu(begun: Vitals, ended: Vitals, busy_s: float, worker_cores: float) -> Cpu:
    """Mean use: of workers over the ``busy_s`` seconds in which there was load, as a share of their quota (``worker_cores``
    without one) and together of all cores; of host and generator over the whole time between the moments, of all cores."""
    used = grown(begun, ended)
    shares = [one.get(CPU, 0.0) / busy_s / one.get(QUOTA, worker_cores) for one in used]
    count = os.cpu_count() or 1
    host, children = ((now - before) / count / max(ended.at - begun.at, 1e-9) for now, before in (
        (ended.host, begun.host), (ended.children, begun.children)
    ))  # fmt: skip
    together = sum(one.get(CPU, 0.0) for one in used) / busy_s / count
    return Cpu(sum(shares) / len(shares) if shares else None, max(0.0, host), max(0.0, children), together if used else None)


def server(begun: Vitals, ended: Vitals, inside_s: float | None, outside_s: float | None) -> Server:
    """All workers together; the two means of time come from the generator."""
    total: dict[str, float] = defaultdict(float)
    for one in grown(begun, ended):
        for name, value in one.items():
            total[name] += value
    return Server(
        throttled=_share(total[THROTTLED], total[PERIODS]),
        queue_s=_share(total[f"{STAGES}_sum"], total[f"{STAGES}_count"]),
        occupancy=_share(total[f"{STEPS}_sum"], total[f"{STEPS}_count"]),
        refused=round(total[REJECTED]),
        inside_s=inside_s,
        outside_s=outside_s,
    )


def _share(part: float, whole: float) -> float | None:
    return max(0.0, part) / whole if whole > 0 else None
