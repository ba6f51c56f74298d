"""Panels about workers that more than one dashboard shows; a ``selector`` says which workers are meant.

Knows: what a worker exports (app/metrics.py). Does not know: where on a dashboard a panel stands.
"""

from __future__ import annotations

from typing import Final

from grafana.panels import Panel, Query, graph, number
from grafana.promql import WINDOW, mean, or_zero, parts, quantile, rate

ALL: Final = '{job="worker"}'
SINGLE: Final = '{job="worker", route="/v1/predict/single"}'
MANY: Final = 10
"""Lines in a graph of workers; the table has all of them."""
QUANTILES: Final = (0.5, 0.95, 0.99)


def busy(selector: str = ALL) -> str:
    """Utilisation of each worker's engine."""
    return f"rate(kronos_engine_busy_seconds_total{selector}[{WINDOW}])"


def quantiles(histogram: str, selector: str) -> list[Query]:
    """Median, p95 and p99."""
    return [Query(quantile(q, histogram, selector), f"p{100 * q:.0f}") for q in QUANTILES]


def workers_up() -> Panel:
    return number(
        "Workers up", "short",
        "Workers that answer Prometheus. Fewer than `replicas:` says: `docker compose ps` and the log of the missing one.",
        Query(or_zero('sum(up{job="worker"})'), "up"),
        limits=(1, 2), low=True,
    )  # fmt: skip


def utilisation() -> Panel:
    return graph(
        "Engine utilisation", "percentunit",
        "Part of the time the engine computes: the busiest, the middle and the idlest worker. All near 1: the fleet is full, "
        "add workers if there are cores. Only one near 1: the traffic is unevenly shared.",
        Query(f"max({busy()})", "busiest"),
        Query(f"quantile(0.5, {busy()})", "median"),
        Query(f"min({busy()})", "idlest"),
        full=1,
    )  # fmt: skip


def queue(selector: str = ALL) -> Panel:
    return graph(
        "Queue", "short",
        "Series admitted and waiting for a slot. Bulk waits first; if interactive waits too, add workers.",
        Query(f"sum by (priority) (kronos_queue_depth{selector})", "{{priority}}"),
        stacked=True,
    )  # fmt: skip


def batch(selector: str = ALL) -> Panel:
    return graph(
        "Batch occupancy", "short",
        "Sample paths that share one decode step. Near 1 under load: requests rarely meet in a worker. At its slots, "
        "a worker's batch is full, and more requests wait.",
        Query(mean("kronos_batch_sequences", selector), "mean"),
        Query(quantile(0.95, "kronos_batch_sequences", selector), "p95"),
        Query(f"max(sum by (instance) (kronos_slots{selector}))", "slots of a worker"),
    )  # fmt: skip


def where_the_time_goes(selector: str = ALL) -> Panel:
    return graph(
        "Where the time goes", "percentunit",
        "Share of each stage in the time of all requests. `queue` should be thin: a thick one means too few workers. "
        "`decode` is the model's own work.",
        Query(parts(f"kronos_stage_seconds_sum{selector}", "stage"), "{{stage}}"),
        stacked=True, full=1,
    )  # fmt: skip


def stages(selector: str = ALL) -> Panel:
    return graph(
        "Stages, p95", "s",
        "95 % of the requests spent at most this long in the stage. `read` follows the client's network, `parse` and "
        "`serialise` the size of the body; a long `queue` means too few workers.",
        Query(quantile(0.95, "kronos_stage_seconds", selector, by="stage"), "{{stage}}"),
    )  # fmt: skip


def refused(width: int = 12, selector: str = ALL) -> Panel:
    return graph(
        "Refused by reason", "reqps",
        "Answers 429 of workers. `requests` and `work`: the queue is full; `deadline`: it could not be done in time. "
        "Bursts are right; steadily: add workers.",
        Query(or_zero(rate(f"kronos_rejected_total{selector}", by="reason"), "reason"), "{{reason}}"),
        width=width,
    )  # fmt: skip


def given_up(width: int = 12, selector: str = ALL) -> Panel:
    return graph(
        "Given up", "ops",
        "Series stopped before they were done: `disconnected`, the client went away; `deadline`, it passed; `shutdown`. "
        "Often: clients' own timeouts are shorter than the work takes.",
        Query(or_zero(rate(f"kronos_cancelled_total{selector}", by="reason"), "reason"), "{{reason}}"),
        width=width,
    )  # fmt: skip


def late(width: int, selector: str) -> Panel:
    return graph(
        "Deadlines passed", "reqps",
        "Answers 504 by endpoint. Steadily above 0: too few workers, or `timeout` is shorter than the work takes.",
        Query(or_zero(rate(f"kronos_timeouts_total{selector}", by="endpoint"), "endpoint"), "{{endpoint}}"),
        width=width,
    )  # fmt: skip
