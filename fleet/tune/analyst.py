"""What the runs so far say: evidence, law, model, chances. One Analyst per campaign remembers what is dear to compute.

Knows: which runs each of them is made from. Does not know: what is measured next, reports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fleet.tune import decide, laws
from fleet.tune.decide import Chance
from fleet.tune.evidence import Evidence, gather
from fleet.tune.gates import Verdict, judge
from fleet.tune.latency import Model, Prediction, calibrate
from fleet.tune.plan import Plan
from fleet.tune.protocol import Setting
from fleet.tune.raw import Record
from fleet.tune.response import Response
from fleet.tune.runstats import RunStats, summarise

Settings = Mapping[str, Setting]
FAR = 4.0
"""Run-level quantile over the objective: beyond it the host's moods change nothing."""
HOPELESS, CERTAIN = 0.01, 0.9999
"""P(objective met) by the runs alone that no mood of the host would raise to something, or lower when the quantile is below …"""
HALF = 0.5
"""… so large a part of the objective."""
MODELLED = ("sweep", "held-out")
"""Stages from which the model is made; later rounds go where it pointed, and would not be a fair sample of the counts."""


class Analyst:
    """Caches are by what was given: the same records give the same answers, in any order of asking."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._verdicts: dict[str, Verdict] = {}
        self._models: dict[str, Model | None] = {}
        self._responses: dict[str, Response] = {}
        self._stats: dict[str, RunStats] = {}

    def verdict(self, record: Record) -> Verdict:
        """The gates' verdict on one attempt."""
        key = f"{record.slot.id} {record.attempt}"
        if key not in self._verdicts:
            self._verdicts[key] = judge(record, self.plan.objective)
        return self._verdicts[key]

    def stats(self, record: Record, cut_s: float) -> RunStats:
        """The numbers of one attempt after a warm-up."""
        key = f"{record.slot.id} {record.attempt} {cut_s}"
        if key not in self._stats:
            self._stats[key] = summarise(record, cut_s, self.plan.objective)
        return self._stats[key]

    def evidence(self, records: Sequence[Record], settings: Settings) -> Evidence:
        """All runs of one setting."""
        return gather(self.plan, [record for record in records if record.slot.settings == settings], self)

    def model(self, records: Sequence[Record], settings: Settings) -> Model | None:
        """The latency model from sweep and held-out runs."""
        made_from = [one for one in records if one.slot.stage in MODELLED and one.slot.settings == settings]
        key = f"{_key(settings)} {len(made_from)}"
        if key not in self._models:
            evidence = gather(self.plan, made_from, self)
            self._models[key] = calibrate(evidence, laws.choose(*evidence.capacities()), self.plan.workers[-1])
        return self._models[key]

    def chances(self, records: Sequence[Record], settings: Settings) -> list[Chance]:
        """P(objective met) for every count that was asked about, from its runs; from the model where there are none."""
        evidence, model = self.evidence(records, settings), self.model(records, settings)
        return [self._chance(evidence, model, count, _key(settings)) for count in self.plan.workers]

    def _chance(self, evidence: Evidence, model: Model | None, workers: int, key: str) -> Chance:
        own = decide.chance(evidence, workers)
        if model is None:
            return own
        if own.p is None:
            guess = model.predict(workers, self.plan.rate, self.plan.rounds)
            return Chance(workers, guess.p, guess.p, own.capacity, own.runs, own.met, own.quantile)
        logs = np.log(evidence.values("open", workers, lambda stats: stats.quantile))
        part = math.exp(float(logs.mean())) / self.plan.objective.seconds
        plain = own.p < HOPELESS or part > FAR or (own.p > CERTAIN and part < HALF)
        if plain and not evidence.settling(workers):
            return own
        key = f"{key} {id(model)} {workers}"
        if key not in self._responses:
            self._responses[key] = model.response(workers, self.plan.rate)
        return decide.chance(evidence, workers, replace(self._responses[key], moods=evidence.moods))

    def predictions(self, records: Sequence[Record]) -> list[tuple[Settings, Prediction | None]]:
        """At the held-out count, for each setting; None where the runs do not suffice for a model."""
        found: list[tuple[Settings, Prediction | None]] = []
        for settings in self.plan.grid:
            model = self.model(records, settings)
            asked = None if model is None or self.plan.held_out is None else self.plan.held_out
            found.append((settings, model.predict(asked, self.plan.rate, self.plan.rounds) if model and asked else None))
        return found


def _key(settings: Settings) -> str:
    return json.dumps(dict(settings), sort_keys=True)
