"""Does the tuning loop tell the truth? Campaigns on simulated fleets whose law is known.

    python -m benchmarks.tuner_truth [--fleets 300] [--preset full] [--seed 1] [--json FILE]

The fleets and their right answers are in benchmarks/tuner_fleets.py.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.tuner_fleets import FAMILIES, RATE, WORKERS, Case, capacity, draw, in_memory
from fleet.tune import bottleneck, campaign, compare, decide, laws
from fleet.tune import plan as planning
from fleet.tune.analyst import Analyst
from fleet.tune.evidence import Evidence
from fleet.tune.plan import Plan, Slot
from fleet.tune.raw import Record
from fleet.tune.runstats import summarise
from fleet.tune.statistics import Interval, mean_interval

INDIFFERENT = 0.10
"""A count whose long-run quantile is so close to the objective may be judged either way; named before, as for any verdict."""
AA_EFFECT = math.log(1.05)
PROGRESS = 20
"""Fleets between two words on how far it is."""


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
    if answer is not None and answer.quantile is not None:
        mean = math.exp(run_level(case, plan, answer.workers, evidence.cuts["open"]))
        score.covers("run-level quantile", answer.quantile, mean)
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
        left_s = (given.fleets / (number + 1) - 1) * (time.perf_counter() - began)
        if (number + 1) % PROGRESS == 0:
            print(f"{number + 1} of {given.fleets} fleets, about {left_s / 60:.0f} min left", file=sys.stderr, flush=True)
    print(table(scores))
    if given.json:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(scores), indent=1) + b"\n")
    print(f"{len(scores)} campaigns in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
