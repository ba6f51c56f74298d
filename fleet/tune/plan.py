"""What is measured, in which order: rounds that hold every configuration once, in an order drawn anew each round.

Knows: the presets, rounds, the A/A control, the held-out count, seeds, expected duration. Does not know: results; which
rounds come after the sweep is decided in campaign.py from what was measured.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from typing import Literal

import msgspec

from fleet.errors import BadSetting
from fleet.tune.objective import Objective
from fleet.tune.protocol import RunSpec, Setting

Mode = Literal["open", "closed"]
Stage = Literal["sweep", "held-out", "boundary", "confirm", "lost"]

FEWEST_FOR_CLAIMS = 6
"""[min, max] of 6 runs covers the median with 96.9 %; fewer may rank but not claim."""
FEWEST_REQUESTS = 600
"""In one open run at the target rate: the 95th percentile then has 30 requests above it."""
OBJECTIVES_PER_RUN = 20
"""A run lasts at least so many times the objective's latency, or its queues never settle."""
BOUNDARY = 3
"""Counts among which the answer usually is."""
OVERHEAD_S = 8.0
"""Scaling, waiting until ready and warm, per run of a real fleet: a guess for the shown duration only."""


class Preset(msgspec.Struct, frozen=True):
    """``rounds`` of the sweep; at the boundary rounds go on until intervals are within ± ``precision``, at most ``most_runs``."""

    rounds: int
    duration_s: float
    most_counts: int
    most_runs: int
    precision: float
    confirm: int


PRESETS = {
    "quick": Preset(rounds=3, duration_s=20.0, most_counts=5, most_runs=10, precision=0.10, confirm=1),
    "full": Preset(rounds=6, duration_s=30.0, most_counts=16, most_runs=48, precision=0.05, confirm=3),
}


class Plan(msgspec.Struct, frozen=True):
    """Everything that decides what is measured. ``counts`` are swept; ``held_out`` is predicted first and measured after."""

    objective: Objective
    rate: float
    workers: tuple[int, ...]
    counts: tuple[int, ...]
    held_out: int | None
    rounds: int
    duration_s: float
    vus_per_worker: int
    most_runs: int
    precision: float
    confirm: int
    grid: tuple[dict[str, Setting], ...] = ({},)
    seed: int = 1
    attempts: int = 3
    preset: str = "full"

    @property
    def first_look(self) -> int:
        """Runs at a count when it is first asked whether they are enough."""
        return max(self.rounds, FEWEST_FOR_CLAIMS)

    @property
    def reference(self) -> int:
        """The count that is measured twice in each round: the A/A control."""
        return self.counts[-1]


class Slot(msgspec.Struct, frozen=True):
    """One place in the plan. ``twin`` is the second of an A/A pair."""

    stage: Stage
    round: int
    workers: int
    mode: Mode
    twin: bool = False
    settings: dict[str, Setting] = msgspec.field(default_factory=dict)

    @property
    def id(self) -> str:
        """Unique within a campaign, and fit to be a file name."""
        parts = [f"r{self.round:02d}", self.stage, f"w{self.workers}", self.mode, "twin" if self.twin else ""]
        parts += [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in self.settings.items()]
        return "-".join(part for part in parts if part).replace("/", "_")


def make(
    objective: Objective, rate: float, workers: tuple[int, ...], preset: str = "full", seed: int = 1, **changes: object
) -> Plan:
    """A plan from a preset; ``changes`` replace fields of the Plan. Raises BadSetting."""
    if rate <= 0:
        raise BadSetting(f"no rate: {rate:g}", "requests a second, like --rate 40")
    base = PRESETS[preset]
    counts, held_out = choose(workers, base.most_counts, seed)
    longest = max(base.duration_s, FEWEST_REQUESTS / rate, OBJECTIVES_PER_RUN * objective.seconds)
    plan = Plan(
        objective, rate, workers, counts, held_out, base.rounds, longest, vus_per_worker=8, most_runs=base.most_runs,
        precision=base.precision, confirm=base.confirm, seed=seed, preset=preset,
    )  # fmt: skip
    return msgspec.structs.replace(plan, **changes)


def choose(workers: tuple[int, ...], most: int, seed: int) -> tuple[tuple[int, ...], int | None]:
    """Counts of the sweep, spread evenly with both ends, and one held out between them (None when there are under four)."""
    if len(workers) < 4:
        return workers, None
    inner = workers[1:-1]
    held_out = random.Random(f"held-out {seed}").choice(inner)
    left = [count for count in workers if count != held_out]
    if len(left) > most:
        left = [left[round(place * (len(left) - 1) / (most - 1))] for place in range(most)]
    return tuple(left), held_out


def sweep(plan: Plan) -> list[Slot]:
    """All rounds of the sweep; each round has every count in both modes, and the reference twice."""
    slots = []
    for number in range(plan.rounds):
        slots += shuffled(plan, [*both(plan, "sweep", number, plan.counts), *both(plan, "sweep", number, [plan.reference], True)])
    return slots


def both(plan: Plan, stage: Stage, number: int, counts: Iterable[int], twin: bool = False) -> list[Slot]:
    """Open and closed runs of each count and setting."""
    modes: tuple[Mode, Mode] = ("open", "closed")
    return [Slot(stage, number, count, mode, twin, settings) for settings in plan.grid for count in counts for mode in modes]


def shuffled(plan: Plan, slots: list[Slot]) -> list[Slot]:
    """In an order that depends on the seed and the round."""
    order = sorted(slots, key=lambda slot: slot.id)
    random.Random(f"order {plan.seed} {slots[0].stage} {slots[0].round}" if slots else "").shuffle(order)
    return order


def spec(plan: Plan, slot: Slot, attempt: int) -> RunSpec:
    """What the runner is told."""
    is_open = slot.mode == "open"
    return RunSpec(
        slot.workers, slot.mode, plan.rate if is_open else None, None if is_open else plan.vus_per_worker * slot.workers,
        plan.duration_s, seed_of(plan, slot, attempt), slot.round, slot.settings,
    )  # fmt: skip


def seed_of(plan: Plan, slot: Slot, attempt: int) -> int:
    """Each attempt has a seed of its own that depends on nothing but the plan's seed and its place."""
    text = json.dumps([plan.seed, slot.id, attempt])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def expected_s(plan: Plan) -> tuple[float, float]:
    """Seconds on a real fleet, least and usually at most: repeats and the rounds at the boundary depend on what is found."""
    one = plan.duration_s + OVERHEAD_S
    series = len(plan.grid)
    base = len(sweep(plan)) + series * (2 * plan.rounds * (plan.held_out is not None) + 2 * plan.confirm)
    most = base + BOUNDARY * series * max(0, plan.most_runs - plan.rounds)
    return base * one, most * one
