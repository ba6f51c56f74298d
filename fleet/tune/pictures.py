"""Plots of a summary as SVG text that is the same for the same summary.

Knows: matplotlib. Does not know: HTML.
"""

from __future__ import annotations

import io
import re

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fleet.tune.counts import Count
from fleet.tune.laws import FAMILIES
from fleet.tune.plan import Plan
from fleet.tune.response import SURE
from fleet.tune.summary import Series

SIZE = (7.0, 3.6)
MEASURED, LAW, TARGET = "#1f5fa8", "#c2571a", "#8a1c1c"


def scaling(series: Series, plan: Plan) -> str:
    """X(N): every run, the law where it was measured, and dashed where it is a guess."""
    figure = Figure(SIZE, layout="tight")
    axes = figure.add_subplot(xlabel="workers", ylabel="requests/s at saturation", title="Throughput")
    for count in series.counts:
        axes.plot([count.workers] * len(count.run_throughput), count.run_throughput, ".", color=MEASURED, alpha=0.5)
    law = series.law
    if law is not None:
        values = {name: np.array([found.value]) for name, found in law.parameters.items()}
        inside = np.linspace(law.counts[0], law.counts[-1], 60)
        axes.plot(inside, FAMILIES[law.family].predict(values, inside)[0], color=LAW, label=f"{law.family} law")
        if plan.workers[-1] > law.counts[-1]:
            beyond = np.linspace(law.counts[-1], plan.workers[-1], 20)
            axes.plot(beyond, FAMILIES[law.family].predict(values, beyond)[0], "--", color=LAW, label="not measured")
    axes.axhline(plan.rate, color=TARGET, linewidth=0.8, label=f"{plan.rate:g}/s wanted")
    axes.set_ylim(bottom=0)
    axes.legend()
    return svg(figure)


def latency(series: Series, plan: Plan) -> str:
    """The objective's quantile of every run at the rate, on a logarithmic scale, with the prediction that was made before."""
    figure = Figure(SIZE, layout="tight")
    name = f"p{plan.objective.share * 100:g}"
    axes = figure.add_subplot(xlabel="workers", ylabel=f"{name} of a run, ms", title=f"Latency at {plan.rate:g}/s", yscale="log")
    for count in series.counts:
        axes.plot([count.workers] * len(count.run_quantile), _ms(count), ".", color=MEASURED, alpha=0.5)
    if series.held_out is not None:
        one = series.held_out.prediction
        bars = [[1000 * (one.quantile - one.low)], [1000 * (one.high - one.quantile)]]
        axes.errorbar([one.workers + 0.12], [1000 * one.quantile], yerr=bars, fmt="d", color=LAW, label="predicted before")
    axes.axhline(1000 * plan.objective.seconds, color=TARGET, linewidth=0.8, label=str(plan.objective))
    axes.legend()
    return svg(figure)


def chances(series: Series) -> str:
    """P(objective met): filled where runs say so, hollow where the model does."""
    figure = Figure(SIZE, layout="tight")
    axes = figure.add_subplot(xlabel="workers", ylabel="P(objective met)", title="Is it enough?")
    for count in series.counts:
        if count.chance.p is not None:
            measured = count.chance.runs > 0
            axes.bar(count.workers, count.chance.p, color=MEASURED if measured else "none", edgecolor=MEASURED)
    axes.axhline(SURE, color=TARGET, linewidth=0.8)
    axes.set_ylim(0, 1.02)
    return svg(figure)


def _ms(count: Count) -> list[float]:
    return [1000 * seconds for seconds in count.run_quantile]


def svg(figure: Figure) -> str:
    """Without date and with fixed ids, so that the same figure is the same text."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "kronos", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
