"""Throughput and p95 over the time of a run, one run per variant, as SVG text that is the same for the same runs.

Knows: matplotlib. Does not know: where requests come from.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies.figures import Asked
from benchmarks.studies.study import warm_up_s
from fleet.tune.pictures import svg
from fleet.tune.runstats import quantile

BINS = 30
"""Of a run; a p95 of a few requests says nothing, so bins are not narrower than a second."""
SIZE = (8.0, 5.2)
SHADE = "#eceff1"


def bin_s(seconds: float) -> float:
    """Width of a bin."""
    return max(1.0, seconds / BINS)


def over_time(runs: Mapping[str, tuple[Asked, float]]) -> str:
    """``runs``: label → requests and seconds of one run."""
    figure = Figure(SIZE, layout="tight")
    above, below = figure.subplots(2, 1, sharex=True)
    for label, (asked, seconds) in runs.items():
        edges = np.linspace(0.0, seconds, round(seconds / bin_s(seconds)) + 1)
        middles, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
        done, latency = asked.done[asked.right], asked.latency[asked.right]
        above.plot(middles, np.histogram(done, edges)[0] / width, label=label)
        places = np.digitize(done, edges) - 1
        p95 = [quantile(latency[places == place], 0.95) for place in range(len(middles))]
        below.plot(middles, np.where(np.isfinite(p95), p95, np.nan))
    _dress(above, "right answers/s")
    _dress(below, "p95 of a bin, s")
    below.set_xlim(0, max(seconds for _, seconds in runs.values()))
    below.set_xlabel(f"seconds since the run's first request (bins of {width:.3g} s; shaded: warm-up, not counted)")
    for axes in (above, below):
        axes.axvspan(0, warm_up_s(max(seconds for _, seconds in runs.values())), color=SHADE, zorder=0)
    above.legend(fontsize="small", ncols=3)
    return svg(figure)


def _dress(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(color=SHADE)
    axes.spines[["top", "right"]].set_visible(False)
