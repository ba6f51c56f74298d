"""From raw records to numbers that can be compared: which attempt counts, the warm-up, one table per mode.

Knows: slots, attempts, verdicts, rounds. Does not know: laws, models, decisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import msgspec
import numpy as np

from fleet.tune import warmup
from fleet.tune.gates import Verdict
from fleet.tune.moods import Moods, moods
from fleet.tune.plan import FEWEST_FOR_CLAIMS, Mode, Plan, Slot
from fleet.tune.protocol import Floats
from fleet.tune.raw import Record
from fleet.tune.runstats import RunStats

SETTLED, SETTLED_T = 0.1, 4.0
"""Latency that falls by less (log), or by less than so many standard errors, from the third to the fourth quarter of runs."""


@dataclass(frozen=True)
class Judged:
    """One attempt; ``stats`` is None when it is invalid."""

    record: Record
    verdict: Verdict
    stats: RunStats | None

    @property
    def slot(self) -> Slot:
        return self.record.slot


@dataclass(frozen=True)
class Evidence:
    """All attempts of one setting of the grid, in the order in which they were made; ``cuts`` are the warm-ups (s) by mode."""

    plan: Plan
    attempts: tuple[Judged, ...]
    cuts: Mapping[Mode, float]

    @cached_property
    def used(self) -> tuple[Judged, ...]:
        """Of each slot the first attempt that may be used."""
        first: dict[str, Judged] = {}
        for attempt in self.attempts:
            if attempt.stats is not None:
                first.setdefault(attempt.slot.id, attempt)
        return tuple(first.values())

    @cached_property
    def refused(self) -> tuple[Judged, ...]:
        """Invalid attempts."""
        return tuple(attempt for attempt in self.attempts if attempt.stats is None)

    @cached_property
    def given_up(self) -> tuple[Slot, ...]:
        """Slots of which no attempt may be used."""
        used = {judged.slot.id for judged in self.used}
        slots = {judged.slot.id: judged.slot for judged in self.refused}
        return tuple(slot for name, slot in slots.items() if name not in used)

    def of(self, mode: Mode, workers: int, twin: bool = False) -> list[Judged]:
        """Usable runs of one configuration, by round."""
        chosen = [run for run in self.used if (run.slot.mode, run.slot.workers, run.slot.twin) == (mode, workers, twin)]
        return sorted(chosen, key=lambda run: run.slot.round)

    def counts(self, mode: Mode) -> tuple[int, ...]:
        """Worker counts with at least one usable run."""
        return tuple(sorted({run.slot.workers for run in self.used if run.slot.mode == mode and not run.slot.twin}))

    def values(self, mode: Mode, workers: int, value: Callable[[RunStats], float], twin: bool = False) -> Floats:
        """One number per usable run."""
        return np.array([value(run.stats) for run in self.of(mode, workers, twin) if run.stats is not None])

    def settling(self, workers: int) -> bool:
        """Whether latency still falls at the end of the open runs at this count, taken together: the queue of a warm-up that
        takes longer than they last. They say nothing of a long time then; longer runs would."""
        moved = self.values("open", workers, lambda stats: stats.moved)
        if len(moved) < FEWEST_FOR_CLAIMS:
            return False
        error = float(moved.std(ddof=1)) / math.sqrt(len(moved))
        return float(moved.mean()) < -max(SETTLED, SETTLED_T * error)

    def figures(self, mode: Mode, workers: int) -> dict[str, float]:
        """Means over the usable runs of what the runner said of CPU and fleet, by field of protocol.Cpu and protocol.Server."""
        said: dict[str, list[float]] = {}
        for run in self.of(mode, workers):
            if (end := run.record.end) is not None:
                for name, value in (msgspec.structs.asdict(end.cpu) | msgspec.structs.asdict(end.server)).items():
                    said.setdefault(name, []).extend([] if value is None else [value])
        return {name: float(np.mean(values)) for name, values in said.items() if values}

    def capacities(self) -> tuple[Floats, tuple[int, ...]]:
        """log X at saturation (rounds, counts), NaN where a run is missing."""
        return self.table("closed", lambda stats: stats.throughput)

    @cached_property
    def moods(self) -> Moods:
        """How much throughput at one count scatters between runs; the host's moods are taken to be alike at all counts."""
        table, counts = self.capacities()
        errors = [self.values("closed", count, lambda stats: stats.throughput_error) for count in counts]
        return moods(table, float((np.concatenate(errors) ** 2).mean()) if errors else 0.0)

    def table(self, mode: Mode, value: Callable[[RunStats], float]) -> tuple[Floats, tuple[int, ...]]:
        """Logarithms of a positive number, (rounds, counts); NaN where there is none."""
        counts = self.counts(mode)
        runs = [run for run in self.used if run.slot.mode == mode and not run.slot.twin]
        rounds = sorted({run.slot.round for run in runs})
        table = np.full((len(rounds), len(counts)), np.nan)
        for run in runs:
            assert run.stats is not None
            number = value(run.stats)
            if number > 0:
                table[rounds.index(run.slot.round), counts.index(run.slot.workers)] = math.log(number)
        return table, counts


class Reader(Protocol):
    """Whoever judges and summarises single runs."""

    def verdict(self, record: Record) -> Verdict:
        """The gates' verdict."""

    def stats(self, record: Record, cut_s: float) -> RunStats:
        """The run's numbers after the warm-up (s)."""


def gather(plan: Plan, records: Sequence[Record], reader: Reader) -> Evidence:
    """Judge and summarise runs of one setting."""
    verdicts = [reader.verdict(record) for record in records]
    modes: tuple[Mode, ...] = ("open", "closed")
    cuts: dict[Mode, float] = {mode: _cut(plan, records, verdicts, mode) for mode in modes}
    judged = [
        Judged(record, found, reader.stats(record, cuts[record.slot.mode]) if found.usable else None)
        for record, found in zip(records, verdicts, strict=True)
    ]
    return Evidence(plan, tuple(judged), cuts)


def _cut(plan: Plan, records: Sequence[Record], verdicts: Sequence[Verdict], mode: Mode) -> float:
    """The warm-up of a mode, from its valid runs."""
    of_mode = warmup.latency_series if mode == "open" else warmup.throughput_series
    series = [
        of_mode(record.points, plan.duration_s)
        for record, found in zip(records, verdicts, strict=True)
        if found.kind == "valid" and record.slot.mode == mode and record.points is not None
    ]
    return warmup.cut_s(series, plan.duration_s)
