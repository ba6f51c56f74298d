"""What a study is: fleets, variants of load on them, and in which order they are measured.

Knows: rounds, the A/A twin, seeds, names of runs. Does not know: which studies there are (``catalogue``), how one run is made.

All fleets of a study run side by side and one of them at a time gets load, so that rounds interleave without anything being
changed between two runs. A round holds every variant once, in an order drawn anew; a round's order does not depend on how
many there are, so a study can be given more rounds later.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

START_S = 1.0
"""From k6's start to its first request, about."""
WARM_UP_SHARE = 1 / 3
MOST_WARM_UP_S = 30.0
"""The first third of a run is not counted, of a long run so many seconds: users who all begin at once are answered in waves,
which are gone after two latencies."""
SECONDS = "DURATION"
"""The dial of k6 that says how long a run lasts."""


class Fleet(msgspec.Struct, frozen=True):
    """One fleet: ``workers`` containers of ``cpus`` cores each.

    ``env`` is given to every worker; ``edits`` replace text in files that nginx mounts (path in the repository → text → text);
    ``services`` is laid over docker-compose.yml.
    """

    name: str
    workers: int
    cpus: float
    env: dict[str, str] = {}
    edits: dict[str, dict[str, str]] = {}
    services: dict[str, dict[str, object]] = {}
    other_cores: float = 0.0
    """Of the workers in ``services``."""


class Variant(msgspec.Struct, frozen=True):
    """One load on one fleet; ``dials`` are k6's. ``twin_of``: the variant that this one is the same as (A/A).

    ``once``: measured in one run after all rounds. ``slice_s``: width of the slices of a run that are shown one by one.
    """

    name: str
    fleet: str
    dials: dict[str, str]
    twin_of: str = ""
    once: bool = False
    slice_s: float = 0.0

    @property
    def open(self) -> bool:
        """Whether arrivals do not wait for answers."""
        return self.dials["SCENARIO"] in {"open", "ramp"}


class Study(msgspec.Struct, frozen=True):
    """``pairs`` are compared (before, after). ``seconds`` is how long a run lasts unless its dials say otherwise."""

    name: str
    question: str
    fleets: tuple[Fleet, ...]
    variants: tuple[Variant, ...]
    rounds: int
    seconds: float
    pairs: tuple[tuple[str, str], ...] = ()
    prometheus: bool = False
    texts: dict[str, str] = {}
    """File name → variant whose median run's text summary it is."""
    seed: int = 1

    def variant(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)

    def fleet_of(self, variant: Variant) -> Fleet:
        return next(fleet for fleet in self.fleets if fleet.name == variant.fleet)

    def cores_of(self, variant: Variant) -> float:
        """Of all workers of its fleet."""
        fleet = self.fleet_of(variant)
        return fleet.workers * fleet.cpus + fleet.other_cores

    def seconds_of(self, variant: Variant) -> float:
        """How long requests are begun in one run."""
        return float(variant.dials[SECONDS].removesuffix("s")) if SECONDS in variant.dials else self.seconds

    def dials_of(self, slot: Slot, url: str) -> dict[str, str]:
        """k6's dials for one run. All variants of a round ask the same; another round asks something else."""
        variant = slot.variant
        duration = f"{self.seconds_of(variant):g}s"
        return {**variant.dials, SECONDS: duration, "BASE_URL": url, "SEED": str(self.seed + slot.round)}


class Slot(msgspec.Struct, frozen=True):
    """One place in the plan. Round 0 holds what is measured once."""

    round: int
    variant: Variant

    @property
    def id(self) -> str:
        """Unique within a study, and fit to be a folder's name."""
        return f"r{self.round:02d}-{self.variant.name}" if self.round else f"once-{self.variant.name}"


def plan(study: Study) -> list[Slot]:
    """Every run, in the order in which they are made."""
    slots = []
    for number in range(1, study.rounds + 1):
        variants = [variant for variant in study.variants if not variant.once]
        random.Random(f"{study.seed} {study.name} {number}").shuffle(variants)
        slots += [Slot(number, variant) for variant in variants]
    return slots + [Slot(0, variant) for variant in study.variants if variant.once]


def expected_s(study: Study, slots: list[Slot], overhead: Mapping[str, float]) -> float:
    """Seconds that these runs will take. ``overhead``: seconds per "run", "fleet" and "worker" beyond the load itself."""
    fleets = {slot.variant.fleet for slot in slots}
    workers = sum(fleet.workers for fleet in study.fleets if fleet.name in fleets)
    load = sum(study.seconds_of(slot.variant) + overhead["run"] for slot in slots)
    return load + overhead["fleet"] * len(fleets) + overhead["worker"] * workers


def warm_up_s(duration_s: float) -> float:
    """How much of the beginning of a run is not counted."""
    return min(WARM_UP_SHARE * duration_s, MOST_WARM_UP_S)
