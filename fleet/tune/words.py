"""report.md: the summary in words and tables.

Knows: Markdown, how numbers are written. Does not know: where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fleet.tune.counts import Count
from fleet.tune.statistics import Interval
from fleet.tune.summary import Answer, Series, Summary

NOT = "–"
MEASURED = (
    "workers", "X at saturation /s", "X per worker /s", "goodput at the rate /s", "p50 ms", "p95 ms", "p99 ms", "pooled p95 ms",
    "runs",
)  # fmt: skip
SAID = (
    "workers", "worker CPU", "periods without quota left", "host CPU", "by workers", "generator CPU", "in a worker's queue ms",
    "in the worker ms", "outside ms", "series per step", "refused",
)  # fmt: skip
HOW = (
    "- The unit is the run. p50, p95, p99 are run-level statistics (geometric means over runs); pooled ones are of all requests.",
    "- Intervals are 95 % bootstrap intervals over rounds; below six rounds they only rank.",
    "- P(objective met) is for a long time on this host: its run-to-run noise is part of it, the shortness of a run is not.",
    "- Objective / slow hour: the objective over the long-run quantile in the slowest twentieth of its moods; above 1 holds.",
    "- `python -m fleet report` makes this file again from the raw runs, byte for byte.",
)


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits."""
    return NOT if value is None else f"{value:.3g}{unit}"


def interval(found: Interval | None, factor: float = 1.0) -> str:
    """Estimate and 95 % interval; without the interval when it would not be one."""
    if found is None:
        return NOT
    middle = number(found.value * factor)
    if not found.claim:
        return f"{middle} (ranks only)"
    return f"{middle} [{number(found.low * factor)}, {number(found.high * factor)}]"


def share(value: float | None) -> str:
    """Per cent, with the ends not rounded to certainty."""
    if value is None:
        return NOT
    return "> 99.9 %" if value > 0.999 else "< 0.1 %" if value < 0.001 else f"{100 * value:.1f} %"


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in body), ""]


def markdown(summary: Summary) -> str:
    """The whole report."""
    campaign, plan = summary.campaign, summary.campaign.plan
    lines = [f"# {campaign.name}", ""]
    lines += [f"How many workers, of {_range(plan.workers)}, for {plan.rate:g} requests a second with {plan.objective}?"]
    lines += ["", f"**{headline(summary.series[summary.best], plan.rate)}**", ""]
    for series in summary.series:
        if series.settings:
            lines += [f"# Setting: {_settings(series)}", ""]
        lines += _series(series, summary)
    lines += _axes(summary)
    lines += ["## How it was measured", ""]
    begun, runner = campaign.origin.begun, campaign.origin.runner
    lines += [
        f"- {summary.runs} runs of {plan.duration_s:g} s, preset {plan.preset}, seed {plan.seed}.",
        f"- Runner `{runner}`, begun {begun}.",
        f"- Machine: {_listed(campaign.origin.machine)}. Versions: {_listed(campaign.origin.versions)}.",
        *HOW,
    ]
    return "\n".join(lines) + "\n"


def _listed(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def headline(series: Series, rate: float) -> str:
    """The answer in one or two sentences."""
    answer = series.answer
    if answer.workers is None:
        return f"No measured count is sure to meet the objective at {rate:g}/s. Limit: {series.bottleneck.verdict}."
    proven = "" if answer.proven else " (ranked first, not proven)"
    words = f"{answer.workers} worker{'s' if answer.workers > 1 else ''}{proven}: P(objective met) = {share(answer.p)}"
    return f"{words}. With one lost: {answer.with_one_lost} workers. Limit at the top: {series.bottleneck.verdict}."


def _range(workers: Sequence[int]) -> str:
    whole = tuple(workers) == tuple(range(workers[0], workers[-1] + 1))
    return f"{workers[0]} to {workers[-1]}" if whole and len(workers) > 1 else ", ".join(str(count) for count in workers)


def _settings(series: Series) -> str:
    values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in series.settings.items()}
    return _listed(values)


def _series(series: Series, summary: Summary) -> list[str]:
    """All answers of one setting."""
    lines = ["## Answer", "", *_answer(series.answer, summary), ""]
    lines += ["## Throughput and latency", ""]
    lines += rows(
        MEASURED,
        [_measured(count) for count in series.counts if count.open_runs or count.closed_runs],
    )
    if any(count.figures for count in series.counts):
        lines += ["## What the fleet said at saturation", ""]
        lines += rows(SAID, [_said(count) for count in series.counts if count.figures])
    lines += ["## P(objective met)", ""]
    lines += rows(
        ("workers", "P", "latency", "capacity", "objective / slow hour", "runs that met it", "from", "the model holds up to /s"),
        [_chance(count) for count in series.counts],
    )
    lines += [*_law(series), *_prediction(series)]
    lines += ["## Bottleneck", "", f"**{series.bottleneck.verdict}**, because:", ""]
    lines += [f"{place}. {reason}" for place, reason in enumerate(series.bottleneck.evidence, 1)] + [""]
    lines += ["## Noise", ""]
    lines += [f"- A/A control, {name}: the same twice is {interval(found)} of itself." for name, found in series.noise.items()]
    lines += [f"- Host noise between runs (throughput): {100 * series.host_noise:.1f} %."]
    lines += [f"- Warm-up cut: {', '.join(f'{mode} {cut:g} s' for mode, cut in series.warm_up_s.items())}.", ""]
    lines += ["## Not decided", "", *([f"- {what}" for what in series.undecided] or ["- nothing is left open"]), ""]
    if series.invalid:
        lines += ["## Runs that do not count", "", *(f"- {what}" for what in series.invalid), ""]
    return lines


def _answer(answer: Answer, summary: Summary) -> list[str]:
    plan = summary.campaign.plan
    if answer.workers is None:
        lines = [f"- None of {_range(plan.workers)} workers meets the objective with 95 % at {plan.rate:g}/s."]
    else:
        lines = [
            f"- Workers: **{answer.workers}**, P(objective met) = {share(answer.p)}{'' if answer.proven else '; ranks only'}.",
            f"- With one worker lost the objective still holds from **{answer.with_one_lost}** workers on.",
            f"- Tested again: {_of(answer.again)} runs met it; with one worker less {_of(answer.lost)}.",
        ]
    if answer.naive is not None:
        off = "" if answer.naive_off is None else f", {answer.naive_off:+d} against the answer"
        lines.append(f"- Old rule, rate / per worker × 1.5: {answer.naive}{off}.")
    if answer.cost_per_million is not None:
        lines.append(f"- Cost: {answer.cost_per_million:.3g} per million requests at {plan.rate:g}/s.")
    return lines


def _of(met: tuple[int, int]) -> str:
    return f"{met[0]} of {met[1]}"


def _measured(count: Count) -> tuple[str, ...]:
    pooled = count.pooled.get("p95")
    runs = f"{count.open_runs} + {count.closed_runs}" + (f", {count.overloaded} overloaded" if count.overloaded else "")
    latencies = (interval(found, 1000) for found in (count.p50, count.p95, count.p99))
    rates = (interval(found) for found in (count.throughput, count.per_worker, count.goodput))
    return (str(count.workers), *rates, *latencies, number(None if pooled is None else 1000 * pooled), runs)


def _said(count: Count) -> tuple[str, ...]:
    said = count.figures
    shares = [share(said.get(name)) for name in ("worker", "throttled", "host", "fleet", "generator")]
    times = [number(None if (value := said.get(name)) is None else 1000 * value) for name in ("queue_s", "inside_s", "outside_s")]
    return (str(count.workers), *shares, *times, number(said.get("occupancy")), number(said.get("refused")))


def _chance(count: Count) -> tuple[str, ...]:
    chance = count.chance
    source = "runs" if chance.runs and not chance.settling else "model" + (", extrapolated" if count.extrapolated else "")
    met = f"{chance.met} of {chance.runs}" if chance.runs else NOT
    held = number(count.carries) + (" (extrapolated)" if count.extrapolated and count.carries is not None else "")
    shares = (share(chance.p), share(chance.latency), share(chance.capacity))
    return (str(count.workers), *shares, interval(chance.spare), met, source, held)


def _law(series: Series) -> list[str]:
    lines, law = ["## Scaling law", ""], series.law
    if law is None:
        return [*lines, "Too few runs at saturation for a law.", ""]
    lines += [f"**{law.family}** by AICc over {law.rounds} rounds, valid from {law.counts[0]} to {law.counts[-1]} workers.", ""]
    lines += rows(("parameter", "value"), [(name, interval(found)) for name, found in law.parameters.items()])
    best = min(law.aicc.values())
    lines += rows(("law", "AICc over the best"), [(name, f"{score - best:.1f}") for name, score in law.aicc.items()])
    if law.misfit is not None:
        lines += [f"Were it true, so bad a fit would come in {share(law.misfit)} of campaigns.", ""]
    return lines


def _prediction(series: Series) -> list[str]:
    held = series.held_out
    if held is None:
        return []
    one, lines = held.prediction, ["## Prediction of the held-out count", ""]
    said = f"{1000 * one.quantile:.3g} ms [{1000 * one.low:.3g}, {1000 * one.high:.3g}]"
    lines += [f"- Written down {held.written}, before the first run with {one.workers} workers at {one.rate:g}/s: {said}."]
    if held.measured is not None and held.error is not None:
        inside = "inside" if held.inside else "outside of"
        lines += [f"- Measured: {interval(held.measured, 1000)} ms; error {100 * held.error:+.0f} %, {inside} the interval."]
    kept = "the same prediction" if held.matches else "**another prediction**"
    return [*lines, f"- The raw runs of before give {kept} when it is made again.", ""]


def _axes(summary: Summary) -> list[str]:
    lines: list[str] = []
    for name, found in summary.axes.items():
        lines += [f"## Law along {name}", ""]
        for where, law in found.items():
            parameters = ", ".join(f"{key} {interval(value)}" for key, value in law.parameters.items())
            lines += [f"- {where}: {law.family}; {parameters}"]
        lines += [""]
    return lines
