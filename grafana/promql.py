"""The few PromQL idioms the dashboards are written in.

Knows: how to say rate, quantile, share, "0 when nothing happened". Does not know: which metrics there are, Grafana's panels.
Every function returns an expression that can be the argument of another one.
"""

from __future__ import annotations

WINDOW = "$__rate_interval"
"""Grafana's: as long as one pixel, and at least four scrapes."""


def rate(metric: str, *, by: str = "") -> str:
    """Increase per second of a counter, summed over what is not in ``by``. A reset of one series is seen before the sum."""
    return f"sum{_by(by)} (rate({metric}[{WINDOW}]))"


def mean(histogram: str, selector: str = "", *, by: str = "") -> str:
    """Average of what a histogram observed in the window; nothing when it observed nothing."""
    return ratio(rate(f"{histogram}_sum{selector}", by=by), rate(f"{histogram}_count{selector}", by=by))


def quantile(q: float, histogram: str, selector: str = "", *, by: str = "") -> str:
    """The ``q`` quantile of what a histogram observed in the window, over all its series; nothing when it observed nothing
    (the comparison drops the NaN that Grafana would print)."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket{selector}', by=labels)}) >= 0"


def ratio(part: str, whole: str) -> str:
    """``part`` / ``whole``; nothing when the whole is 0 (a share of nothing is not a number)."""
    return f"{part} / ({whole} > 0)"


def share(part: str, whole: str) -> str:
    """As `ratio` of two expressions without labels, 0 when the part has never been counted."""
    return ratio(f"({part} or vector(0))", whole)


def parts(counter: str, by: str) -> str:
    """The part of each value of the label ``by`` in the rate of all; they add up to 1, nothing when the rate is 0."""
    return f"{rate(counter, by=by)} / on () group_left () ({rate(counter)} > 0)"


def or_zero(expression: str, label: str = "", value: str = "none") -> str:
    """The expression, or 0 (labelled ``label="value"``) when it has no series: a counter appears with its first count."""
    zero = f'label_replace(vector(0), "{label}", "{value}", "", "")' if label else "vector(0)"
    return f"({expression}) or on () {zero}"


def each_worker(expression: str) -> str:
    """As `or_zero`, for every worker: 0 for one that has no such series yet. The expression keeps the label ``instance``."""
    return f'({expression}) or on (instance) (0 * sum by (instance) (up{{job="worker"}}))'


def busiest(count: int, expression: str) -> str:
    """At most ``count`` series, the largest at each moment: readable with 64 workers as with one."""
    return f"topk({count}, {expression})"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
