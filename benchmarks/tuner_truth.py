"""Does the tuning loop tell the truth? Campaigns on simulated fleets whose law is known.

    python -m benchmarks.tuner_truth [--fleets 300] [--preset full] [--seed 1] [--json FILE]

The truth is computed from the law, not from the campaign: a long simulation at the slow end of the host's moods (its 95th
percentile), so that the right answer is the smallest count that meets the objective in 95 % of long runs.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fleet.tune import bottleneck, campaign, compare, decide, laws, queueing, simulate
from fleet.tune import plan as planning
from fleet.tune.analyst import Analyst
from fleet.tune.evidence import Evidence
from fleet.tune.objective import Objective
from fleet.tune.plan import Plan, Slot
from fleet.tune.protocol import End, Points
from fleet.tune.raw import Record
from fleet.tune.runstats import quantile, summarise
from fleet.tune.statistics import Interval, mean_interval

RATE = 40.0
WORKERS = tuple(range(1, 9))
LONG = 40_000
"""Requests of the simulation that is the truth."""
INDIFFERENT = 0.10
"""A count whose long-run quantile is so close to the objective may be judged either way; named before, as for any verdict."""
AA_EFFECT = math.log(1.05)
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


@dataclass
class Score:
    """What one campaign said, against the truth. Coverage lists hold one bool per interval."""

    family: str
    asked: int | None
    got: int | None
    near: bool
    runs: int
    bottleneck: str
    said: str
    false_alarms: list[bool] = field(default_factory=list)
    coverage: dict[str, list[bool]] = field(default_factory=dict)
    error: float | None = None

    @property
    def right(self) -> bool:
        return self.got == self.asked

    @property
    def under(self) -> bool:
        """Fewer than are needed, or a number where there is none."""
        return self.got is not None and (self.asked is None or self.got < self.asked)

    def covers(self, kind: str, interval: Interval, value: float) -> None:
        """One interval more, if it claims anything."""
        if interval.claim:
            self.coverage.setdefault(kind, []).append(interval.low <= value <= interval.high)


def near_miss(case: Case, got: int | None) -> bool:
    """Whether the answer is one off and the smaller of the two is within the minimum effect of the objective."""
    if got is None or case.workers is None or abs(got - case.workers) != 1:
        return False
    smaller = min(got, case.workers)
    value = case.quantiles.get(smaller, math.inf)
    return abs(math.log(value / case.objective.seconds)) < math.log1p(INDIFFERENT)


def judge(case: Case, preset: str, seed: int) -> Score:
    """One campaign from its plan to its answer."""
    plan = planning.make(case.objective, RATE, WORKERS, preset, seed=seed)
    records: list[Record] = []
    analyst = Analyst(plan)
    for _ in campaign.go_on(analyst, records, in_memory(case.law, plan), lambda slots: None):
        pass
    evidence, model = analyst.evidence(records, {}), analyst.model(records, {})
    answer = decide.recommended(analyst.chances(records, {}))
    got = answer.workers if answer else None
    law = laws.choose(*evidence.capacities())
    said = bottleneck.find(evidence, law).verdict
    score = Score(case.family, case.workers, got, near_miss(case, got), len(records), case.bottleneck, said)
    if case.family == "generator":
        return score
    for metric in compare.METRICS:
        alike, _ = compare.floor(evidence, metric)
        if alike is not None and alike.claim:
            score.covers(f"A/A {metric}", alike, 1.0)
            found = compare.judge(Interval(math.log(alike.value), math.log(alike.low), math.log(alike.high)), AA_EFFECT, True)
            score.false_alarms.append(found in {"better", "worse"})
    capacities(score, case, evidence, law)
    if got is not None:
        logs = np.log(evidence.values("open", got, lambda stats: stats.quantile))
        score.covers("run-level quantile", mean_interval(logs), run_level(case, plan, got, evidence.cuts["open"]))
    if model is not None and plan.held_out is not None:
        [(_, predicted)] = analyst.predictions([record for record in records if record.slot.stage == "sweep"])
        logs = np.log([r.stats.quantile for r in evidence.of("open", plan.held_out) if r.stats and r.slot.stage == "held-out"])
        if predicted is not None and len(logs):
            measured = math.exp(float(logs.mean()))
            score.error = measured / predicted.quantile - 1
            score.coverage["prediction"] = [predicted.low <= measured <= predicted.high]
    return score


def capacities(score: Score, case: Case, evidence: Evidence, law: laws.Law | None) -> None:
    """Throughput at each count, its ratio to the smallest count within rounds, and the parameters of the right law."""
    table, counts = evidence.capacities()
    for place, count in enumerate(counts):
        column = table[~np.isnan(table[:, place]), place]
        score.covers("throughput", mean_interval(column), math.log(capacity(case.law, count)))
        step = table[:, place] - table[:, 0]
        if place and not np.isnan(step).all():
            true = math.log(capacity(case.law, count) / capacity(case.law, counts[0]))
            score.covers("ratio", mean_interval(step[~np.isnan(step)]), true)
    values = {"per_worker": capacity(case.law, 1), "sigma": case.law.serial, "kappa": case.law.crosstalk}
    fits = {"serial": "amdahl", "crosstalk": "usl", "host": "ceiling"}.get(case.family, "linear")
    if law is not None and law.family == fits:
        for name, interval in law.parameters.items():
            if name in values:
                score.covers(f"parameter {name}", interval, values[name])


def run_level(case: Case, plan: Plan, workers: int, cut_s: float, runs: int = 150) -> float:
    """Mean logarithm of the quantile of runs like those of the campaign, over the noise of the law."""
    measure = in_memory(case.law, plan)
    made = [summarise(measure(Slot("sweep", 1000 + run, workers, "open"), 1), cut_s, case.objective) for run in range(runs)]
    return float(np.mean([math.log(stats.quantile) for stats in made]))


def table(scores: list[Score]) -> str:
    """One line per family, then the sums."""
    heads = " ".join(f"{head:>6s}" for head in ("right", "within", "under", "(far)", "over", "limit", "runs"))
    lines = [f"{'family':12s} {'n':>4s} {heads}"]
    for family in [*FAMILIES, "all"]:
        mine = [score for score in scores if family in {score.family, "all"}]
        if not mine:
            continue
        within = [score.right or score.near for score in mine]
        over = [not score.right and not score.under for score in mine]
        shares = [
            np.mean([score.right for score in mine]), np.mean(within), np.mean([score.under for score in mine]),
            np.mean([score.under and not score.near for score in mine]), np.mean(over),
            np.mean([score.said == score.bottleneck for score in mine]),
        ]  # fmt: skip
        words = " ".join(f"{100 * share:5.1f}%" for share in shares)
        lines.append(f"{family:12s} {len(mine):4d} {words} {np.mean([score.runs for score in mine]):6.0f}")
    lines += ["", f"{'intervals':24s} {'n':>5s} covered"]
    kinds = sorted({kind for score in scores for kind in score.coverage})
    for kind in kinds:
        inside = [one for score in scores for one in score.coverage.get(kind, [])]
        lines.append(f"{kind:24s} {len(inside):5d} {100 * np.mean(inside):5.1f}%")
    alarms = [alarm for score in scores for alarm in score.false_alarms]
    errors = [abs(score.error) for score in scores if score.error is not None]
    if alarms:
        lines.append(f"{'A/A false alarms':24s} {len(alarms):5d} {100 * np.mean(alarms):5.1f}%")
    if errors:
        lines.append(f"held-out error: median {100 * np.median(errors):.0f} %, 90 % below {100 * np.quantile(errors, 0.9):.0f} %")
    return "\n".join(lines)


def main() -> None:
    """Print the tables; the last line is JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--fleets", type=int, default=300)
    options.add_argument("--preset", choices=list(planning.PRESETS), default="full")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", choices=list(FAMILIES))
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    names, scores, began = [given.only] if given.only else list(FAMILIES), [], time.perf_counter()
    for number in range(given.fleets):
        case = draw(names[number % len(names)], given.seed * 1000 + number)
        scores.append(judge(case, given.preset, number))
        if not (scores[-1].right and scores[-1].said == case.bottleneck):
            print(number, case, scores[-1].got, scores[-1].said, file=sys.stderr, flush=True)
    print(table(scores))
    if given.json:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(scores), indent=1) + b"\n")
    print(f"{len(scores)} campaigns in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
