"""Simulated fleets whose right answers are known: how many workers they need, and what their limit is.

Knows: the families that fleets are drawn from, the truth by the law. Does not know: campaigns, scores.

The truth is computed from the law, not from a campaign: a long simulation at the slow end of the host's moods (its 95th
percentile), so that the right answer is the smallest count that meets the objective in 95 % of long runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from fleet.tune import campaign, queueing, simulate
from fleet.tune import plan as planning
from fleet.tune.objective import Objective
from fleet.tune.plan import Plan, Slot
from fleet.tune.protocol import End, Points
from fleet.tune.raw import Record
from fleet.tune.runstats import quantile

RATE = 40.0
WORKERS = tuple(range(1, 9))
LONG = 400_000
"""Requests of the simulation that is the truth: a tenth of it scatters as much as what campaigns err by (4 to 8 %)."""
SLOW = 1.6449
"""Standard normal quantile of 95 %."""


@dataclass(frozen=True)
class Case:
    """A fleet, what is asked of it, and the right answers (``workers`` None: no count meets the objective, or it cannot be
    measured)."""

    family: str
    law: simulate.Law
    objective: Objective
    workers: int | None
    bottleneck: str
    quantiles: dict[int, float] = field(default_factory=dict)


def in_memory(law: simulate.Law, plan: Plan) -> campaign.Measure:
    """Measures without files: the same simulated runs that ``fleet simulate`` prints."""

    def measure(slot: Slot, attempt: int) -> Record:
        spec = planning.spec(plan, slot, attempt)
        trace = simulate.play(law, spec)
        points = Points(trace.due, trace.latency, trace.ok, ())
        end = End(True, spec.duration_s, trace.dropped, simulate.cpu(law, spec, trace))
        return Record(slot, attempt, spec, points, end)

    return measure


def long_run(law: simulate.Law, workers: int, share: float, moods: float, count: int = LONG) -> float:
    """The objective's quantile (s) over a long time, with all work as slow as ``moods`` standard deviations of the noise."""
    random = np.random.default_rng([law.seed, 99, workers])
    slow = math.exp(moods * math.hypot(law.noise.run, law.noise.round))
    free = msgspec.structs.replace(law, generator=simulate.Generator())
    gaps = random.exponential(1 / RATE, count) if law.arrivals == "poisson" else np.full(count, 1 / RATE)
    work = simulate.works(law.service, count, random) * slow
    trace = queueing.open_loop(simulate.shape(free, workers), np.cumsum(gaps), work.tolist())
    half = len(trace.due) // 10
    return quantile(np.where(trace.ok, trace.latency, math.inf)[half:], share)


def truth(law: simulate.Law, objective: Objective) -> tuple[int | None, dict[int, float]]:
    """The smallest count that holds the objective at the slow end, and the long-run quantiles that were looked at."""
    seen = {}
    for workers in WORKERS:
        if capacity(law, workers) <= RATE:
            continue
        seen[workers] = long_run(law, workers, objective.share, SLOW)
        if seen[workers] <= objective.seconds:
            return workers, seen
    return None, seen


def capacity(law: simulate.Law, workers: int) -> float:
    """Requests a second when all are busy, by the law."""
    shape = simulate.shape(law, workers)
    batch = shape.slots / (1 + shape.batch_cost * (shape.slots - 1))
    return workers * shape.speeds[workers] * batch / law.service.mean_s


def _service(random: np.random.Generator, family: str, needed: float) -> simulate.Service:
    mean = needed / RATE
    if family == "heavy":
        return simulate.Service(family="pareto", mean_s=mean, tail_index=random.uniform(2.2, 3.0))
    return simulate.Service(family="lognormal", mean_s=mean, cv=random.uniform(0.2, 1.0))


def draw(family: str, seed: int) -> Case:
    """A random fleet of a family."""
    random = np.random.default_rng([seed, *family.encode()])
    change = FAMILIES[family](random)
    needed = float(change.pop("needed", random.uniform(1.2, 5.5)))
    noise = change.pop("noise", simulate.Noise(run=random.uniform(0, 0.03), round=random.uniform(0, 0.03)))
    base = simulate.Law(service=_service(random, family, needed), name=family, seed=seed, noise=noise, overhead_s=0.002)
    law = msgspec.structs.replace(base, **change)
    alone = msgspec.structs.replace(law, queue_limit=None, serial=0.0, crosstalk=0.0, host_cores=64.0)
    ideal = long_run(alone, 40, 0.95, 0.0, 8000)
    objective = Objective(0.95, round(ideal * random.uniform(1.2, 4.0), 3))
    right, seen = truth(law, objective)
    generator = family == "generator"
    return Case(family, law, objective, None if generator else right, EXPECTED[family], seen)


FAMILIES: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "light": lambda random: {},
    "poisson": lambda random: {"arrivals": "poisson"},
    "heavy": lambda random: {"arrivals": "poisson"},
    "noisy": lambda random: {"noise": simulate.Noise(run=random.uniform(0.03, 0.07), round=random.uniform(0.03, 0.07))},
    "warm-up": lambda random: {"warm_up": simulate.WarmUp(seconds=random.uniform(1, 4), extra=random.uniform(0.2, 1.0))},
    "serial": lambda random: {"serial": random.uniform(0.06, 0.15), "needed": random.uniform(1.0, 3.0)},
    "crosstalk": lambda random: {"crosstalk": random.uniform(0.012, 0.03), "needed": random.uniform(1.0, 3.0)},
    "host": lambda random: {"host_cores": float(random.integers(2, 6)), "needed": random.uniform(1.0, 4.5)},
    "batching": lambda random: {"slots": 4, "batch_cost": random.uniform(0.3, 0.8), "needed": random.uniform(1.5, 6.0)},
    "queue limit": lambda random: {"queue_limit": int(random.integers(6, 12)), "arrivals": "poisson"},
    "generator": lambda random: {"generator": simulate.Generator(max_rate=random.uniform(15, 36))},
}
EXPECTED = {
    "light": "workers", "poisson": "workers", "heavy": "workers", "noisy": "workers", "warm-up": "workers", "serial": "serial",
    "crosstalk": "crosstalk", "host": "host", "batching": "workers", "queue limit": "workers", "generator": "generator",
}  # fmt: skip
