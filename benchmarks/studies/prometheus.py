"""What a fleet's own Prometheus says of a run while it is under load.

Knows: the queries, and how they are asked. Does not know: what was run.
"""

from __future__ import annotations

from typing import Any

import httpx

TIMEOUT_S = 10.0
QUERIES = {
    "requests a second by status, at nginx": 'sum(rate(nginx_http_requests_total{route=~"/v1/.+"}[30s])) by (status)',
    "p95 of the time with the model, 5 minutes (s)": (
        "histogram_quantile(0.95, sum(rate(inference_duration_seconds_bucket[5m])) by (le))"
    ),
    "p95 of the time with the model, 30 seconds (s)": (
        "histogram_quantile(0.95, sum(rate(inference_duration_seconds_bucket[30s])) by (le))"
    ),
    "p95 of the answers at nginx, 30 seconds (s)": (
        'histogram_quantile(0.95, sum(rate(nginx_http_request_duration_seconds_bucket{class="2xx"}[30s])) by (le))'
    ),
    "series that wait for a slot": "sum(kronos_queue_depth) by (instance)",
    "cores used by each worker": 'rate(process_cpu_seconds_total{job="worker"}[30s])',
    "share of time that each worker's engine computes": "rate(kronos_engine_busy_seconds_total[30s])",
    "sample paths that share a decode step, mean": (
        "sum(rate(kronos_batch_sequences_sum[30s])) / sum(rate(kronos_batch_sequences_count[30s]))"
    ),
    "requests refused a second": "sum(rate(kronos_rejected_total[30s])) or vector(0)",
}


def ask(url: str) -> dict[str, dict[str, str]]:
    """The answer to every query, by its text: labels → value. A query that fails says so instead."""
    return {query: _answer(url, query) for query in QUERIES.values()}


def _answer(url: str, query: str) -> dict[str, str]:
    try:
        said = httpx.get(f"{url}/prometheus/api/v1/query", params={"query": query}, timeout=TIMEOUT_S, trust_env=False)
        result: list[dict[str, Any]] = said.json()["data"]["result"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return {"no answer": repr(error)}
    return {_labels(each["metric"]): str(each["value"][1]) for each in result}


def _labels(metric: dict[str, str]) -> str:
    shown = {name: value for name, value in metric.items() if name not in {"__name__", "job"}}
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(shown.items())) + "}"


def text(answers: dict[str, dict[str, str]]) -> str:
    """Query and answer, as an operator would read them."""
    lines = []
    for title, query in QUERIES.items():
        found = answers.get(query, {})
        lines += [f"# {title}", query]
        lines += [f"  {labels} {value}" for labels, value in sorted(found.items())] or ["  (no series)"]
        lines.append("")
    return "\n".join(lines)
