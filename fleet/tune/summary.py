"""summary.json: all that a campaign says, from its raw records alone. Reports and tables are made from it and nothing else.

Knows: how the answers are put together. Does not know: how they are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import msgspec
import numpy as np

from fleet.tune import axes, bottleneck, compare, decide, laws
from fleet.tune.analyst import Analyst, Settings
from fleet.tune.bottleneck import Bottleneck
from fleet.tune.counts import Count, count
from fleet.tune.decide import Chance
from fleet.tune.evidence import Evidence
from fleet.tune.latency import Prediction
from fleet.tune.laws import Law
from fleet.tune.plan import FEWEST_FOR_CLAIMS, Stage
from fleet.tune.protocol import Setting
from fleet.tune.raw import Campaign, Record
from fleet.tune.response import SURE
from fleet.tune.statistics import Interval, mean_interval

SIGNIFICANT = 6
"""Digits that are written: what differs beyond them is the order of additions, not the fleet."""
NAIVE_MARGIN = 1.5


class HeldOut(msgspec.Struct, frozen=True):
    """``error`` is measured over predicted, less one; ``matches`` says that the raw data gives what was written down before."""

    prediction: Prediction
    written: str
    measured: Interval | None
    error: float | None
    inside: bool | None
    matches: bool


class Answer(msgspec.Struct, frozen=True):
    """``workers`` None: no measured count is sure enough. ``with_one_lost``: the count whose loss of one leaves enough.

    ``again`` and ``lost`` are (runs that met the objective, runs) of the tests after the decision.
    """

    workers: int | None
    p: float | None
    proven: bool
    with_one_lost: int | None
    again: tuple[int, int]
    lost: tuple[int, int]
    naive: int | None
    naive_off: int | None
    cost_per_million: float | None


class Series(msgspec.Struct, frozen=True):
    """One setting of the grid."""

    settings: dict[str, Setting]
    answer: Answer
    counts: list[Count]
    law: Law | None
    held_out: HeldOut | None
    model_errors: dict[str, float]
    bottleneck: Bottleneck
    noise: dict[str, Interval | None]
    host_noise: float
    warm_up_s: dict[str, float]
    undecided: list[str]
    invalid: list[str]


class Written(msgspec.Struct, frozen=True):
    """predictions.json: made from ``made_from`` (hashes of runs) before the held-out count was measured."""

    written: str
    made_from: list[str]
    predictions: list[tuple[dict[str, Setting], Prediction | None]]


class Summary(msgspec.Struct, frozen=True):
    """``best`` is the place of the setting that needs the fewest workers; ``runs`` are all attempts."""

    campaign: Campaign
    runs: int
    best: int
    series: list[Series]
    axes: dict[str, dict[str, Law]]


def summarise(campaign: Campaign, records: Sequence[Record], written: Written | None) -> Summary:
    """Everything, from the records."""
    analyst = Analyst(campaign.plan)
    series = [_series(campaign, analyst, records, settings, written) for settings in campaign.plan.grid]
    needs = [one.answer.workers if one.answer.workers is not None else math.inf for one in series]
    laws_along = axes.along(campaign.plan.grid, [analyst.evidence(records, settings) for settings in campaign.plan.grid])
    return Summary(campaign, len(records), needs.index(min(needs)), series, laws_along)


def to_json(summary: Summary) -> bytes:
    """The same bytes for the same summary: six significant digits, null for what is not a number."""
    text = json.dumps(_rounded(msgspec.to_builtins(summary)), indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value


def _series(
    campaign: Campaign, analyst: Analyst, records: Sequence[Record], settings: dict[str, Setting], written: Written | None
) -> Series:
    evidence, model = analyst.evidence(records, settings), analyst.model(records, settings)
    chances = analyst.chances(records, settings)
    law = laws.choose(*evidence.capacities())
    held_out = _held_out(analyst, evidence, records, settings, written)
    answer = _answer(campaign, evidence, chances)
    return Series(
        settings=settings,
        answer=answer,
        counts=[count(evidence, model, law, chance) for chance in chances],
        law=law,
        held_out=held_out,
        model_errors={} if model is None else {str(count): error for count, error in model.errors.items()},
        bottleneck=bottleneck.find(evidence, law),
        noise={metric: compare.floor(evidence, metric)[0] for metric in compare.METRICS},
        host_noise=evidence.moods.host,
        warm_up_s={str(mode): cut for mode, cut in evidence.cuts.items()},
        undecided=_undecided(evidence, chances, answer, law, held_out),
        invalid=[f"{one.slot.id} attempt {one.record.attempt}: {'; '.join(one.verdict.reasons)}" for one in evidence.refused],
    )


def _held_out(
    analyst: Analyst, evidence: Evidence, records: Sequence[Record], settings: Settings, written: Written | None
) -> HeldOut | None:
    if written is None or analyst.plan.held_out is None:
        return None
    predicted = next((one for setting, one in written.predictions if setting == settings), None)
    if predicted is None:
        return None
    before = [record for record in records if record.sha256 in set(written.made_from)]
    again = next((one for setting, one in analyst.predictions(before) if setting == settings), None)
    runs = [run.stats.quantile for run in evidence.of("open", predicted.workers) if run.stats and run.slot.stage == "held-out"]
    measured = mean_interval(np.log(runs)).exp() if runs else None
    return HeldOut(
        predicted, written.written, measured,
        None if measured is None else measured.value / predicted.quantile - 1,
        None if measured is None else predicted.low <= measured.value <= predicted.high,
        again is not None and math.isclose(again.quantile, predicted.quantile, rel_tol=1e-6),
    )  # fmt: skip


def _answer(campaign: Campaign, evidence: Evidence, chances: list[Chance]) -> Answer:
    plan, found = campaign.plan, decide.recommended(chances)
    measured = evidence.counts("closed")
    naive = None
    if measured:
        alone = evidence.values("closed", measured[0], lambda stats: stats.throughput).mean() / measured[0]
        naive = math.ceil(plan.rate / float(alone) * NAIVE_MARGIN)
    if found is None:
        return Answer(None, None, False, None, (0, 0), (0, 0), naive, None, None)
    cost = None if campaign.price is None else campaign.price * found.workers / 3600 / plan.rate * 1e6
    return Answer(
        found.workers, found.p, found.runs >= FEWEST_FOR_CLAIMS, found.workers + 1, _tested(evidence, "confirm", found.workers),
        _tested(evidence, "lost", found.workers - 1), naive, None if naive is None else naive - found.workers, cost,
    )  # fmt: skip


def _tested(evidence: Evidence, stage: Stage, workers: int) -> tuple[int, int]:
    runs = [run.stats for run in evidence.of("open", workers) if run.slot.stage == stage and run.stats is not None]
    return sum(stats.met for stats in runs), len(runs)


def _undecided(evidence: Evidence, chances: list[Chance], answer: Answer, law: Law | None, held_out: HeldOut | None) -> list[str]:
    """What could not be decided, and what it would take."""
    found = []
    for chance in chances:
        unclear = chance.p is not None and 1 - SURE < chance.p < SURE
        if chance.settling:
            longer = f"longer runs (--duration {2 * evidence.plan.duration_s:g}) would tell"
            found.append(f"latency with {chance.workers} workers, which still fell as the runs ended: the model speaks; {longer}")
        elif unclear and (answer.workers is None or chance.workers < answer.workers):
            more = decide.runs_needed(evidence, chance.workers)
            needs = "no number of runs like these would tell" if more is None else f"needs about {more} more runs"
            found.append(f"whether {chance.workers} workers meet the objective (P = {chance.p:.0%}): {needs}")
    if answer.workers is None:
        found.append(f"a worker count that is sure: none of {evidence.plan.workers[0]} to {evidence.plan.workers[-1]}")
    elif not answer.proven:
        have = next(chance.runs for chance in chances if chance.workers == answer.workers)
        found.append(f"{answer.workers} workers rank first, but {have} runs do not prove it: {FEWEST_FOR_CLAIMS - have} more")
    if law is None:
        found.append("the scaling law: fewer than three counts have valid runs at saturation")
    elif not law.fits:
        found.append(f"the scaling law: even the best ({law.family}) does not describe the runs (p = {law.misfit:.2g})")
    if evidence.plan.held_out is not None and (held_out is None or held_out.measured is None):
        found.append(f"the prediction at {evidence.plan.held_out} workers: not made or not measured")
    found += [f"{slot.id}: no valid run in {evidence.plan.attempts} attempts" for slot in evidence.given_up]
    return found
