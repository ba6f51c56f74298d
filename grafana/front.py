"""What Nginx counts, and the panels about it: rate, errors, duration, and how it shares the traffic out.

Knows: the names of nginx/exporter and of the objectives in prometheus/rules. Does not know: the inside of a worker.
"""

from __future__ import annotations

from typing import Final

from grafana import engine
from grafana.engine import MANY
from grafana.panels import Panel, Query, graph
from grafana.promql import busiest, or_zero, parts, quantile, rate

REQUESTS: Final = "nginx_http_requests_total"
TRIES: Final = "nginx_upstream_requests_total"
DURATION: Final = "nginx_http_request_duration_seconds"
SINGLE: Final = '{route="/v1/predict/single", class="2xx"}'
"""The answers that the latency objective is about; a refusal is fast and would flatter."""
BATCH: Final = '{route="/v1/predict/batch", class="2xx"}'
OBJECTIVE: Final = "fleet:objective_latency:seconds"
USERS: Final = '{route=~"/v1/.*"}'
"""What clients ask for; the rest are people who look at Grafana, and probes."""
FAILED: Final = '{route=~"/v1/.*", status=~"5.."}'
REFUSED: Final = '{route=~"/v1/.*", status=~"429|503|504"}'
WORKERS: Final = 'upstream!~"kronos|.+:(3000|9090)"'
"""Tries at a worker, or at another host's door: not at nobody (no worker was left), Grafana or Prometheus."""


def shares() -> Panel:
    return graph(
        "Share of the traffic", "percentunit",
        f"Of each worker, by address, the largest {MANY}. Identical workers have about equal shares; least_conn gives a slow "
        "one less. One with far less is ejected or slow: look at it.",
        Query(busiest(MANY, parts(f"{TRIES}{{{WORKERS}}}", "upstream")), "{{upstream}}"),
        many=True, full=1,
    )  # fmt: skip


def _burn(window: str) -> str:
    return f"fleet:errors_per_request:ratio{window} / (1 - scalar(fleet:objective_availability:ratio))"


def row() -> list[Panel]:
    """Rate, errors, duration: the dashboard *Fleet*'s."""
    return [
        graph(
            "Rate by route", "reqps",
            "What is asked for, people looking at Grafana included. A drop to nothing without an error: clients do not reach "
            "Nginx.",
            Query(rate(REQUESTS, by="route"), "{{route}}"),
            stacked=True,
        ),
        graph(
            "Answers that are not 2xx", "reqps",
            "By status. 4xx are clients' mistakes, 429 a refusal, 499 the client left, 502 no worker reached, 503 none ready, "
            "504 too late.",
            Query(or_zero(rate(f'{REQUESTS}{{route=~"/v1/.*", status!~"2.."}}', by="status"), "status"), "{{status}}"),
        ),
        graph(
            "Duration of a forecast", "s",
            "Single forecasts, first byte in to last byte out at Nginx, retries included; the objective is for their p95. Above "
            "it: see utilisation and queue. Far above p95 by worker: Nginx, the network or slow clients.",
            *engine.quantiles(DURATION, SINGLE),
            Query(OBJECTIVE, "objective"),
            Query(quantile(0.95, DURATION, BATCH), "batches, p95"),
        ),
        shares(),
        engine.refused(8),
        graph(
            "Asked again", "reqps",
            "Requests that Nginx gave to another worker because one failed; those that came to the last resort; tries when no "
            "worker was left. A few while a worker restarts are right; else find it under 5xx by worker.",
            Query(or_zero(rate("nginx_http_requests_retried_total")), "another worker"),
            Query(or_zero(rate("nginx_http_requests_last_resort_total")), "last resort"),
            Query(or_zero(rate(f'{TRIES}{{upstream="kronos"}}')), "no worker left"),
            width=8,
        ),
        graph(
            "Use of the error budget", "short",
            "How many times faster than allowed errors use up what the objective grants for 30 days. Above 1 for long, it will "
            "be missed; above 14 for an hour, someone is called.",
            *(Query(or_zero(_burn(window)), f"over {window}") for window in ("5m", "1h", "6h")),
            width=8,
        ),
    ]  # fmt: skip
