"""The dashboard *Fleet*: is it well, is it full, where does the time go, which worker stands out.

Knows: what Nginx, the workers and Prometheus export. Does not know: the inside of one worker, load tests.
"""

from __future__ import annotations

from typing import Final

from grafana import engine, front
from grafana.boards import Board, Mark
from grafana.engine import MANY
from grafana.panels import Column, Link, Panel, Query, bars, graph, number, rows
from grafana.promql import busiest, each_worker, or_zero, quantile, rate, share

FIRING: Final = 'ALERTS{alertstate="firing", severity!="none"}'
"""Alerts that mean something is wrong: the dead man's switch always fires, with severity none."""


def _now() -> list[Panel]:
    return [
        engine.workers_up(),
        number(
            "Requests", "reqps",
            "Requests for forecasts and embeddings at the front door in a second, whatever became of them. 0 when there should "
            "be some: clients do not reach Nginx.",
            Query(or_zero(rate(f"{front.REQUESTS}{front.USERS}")), "requests"),
        ),
        number(
            "Failed", "percentunit",
            "Share of requests answered 5xx at the front door: what retries could not mend. Above 0: see answers and tries "
            "below.",
            Query(share(rate(f"{front.REQUESTS}{front.FAILED}"), rate(f"{front.REQUESTS}{front.USERS}")), "5xx"),
            limits=(0.001, 0.01),
        ),
        number(
            "Forecasts, p95", "s",
            "95 % of the single forecasts took at most this long, as clients see it at the front door. If it climbs, see "
            "utilisation and queue.",
            Query(quantile(0.95, front.DURATION, front.SINGLE), "p95"),
        ),
        number(
            "Utilisation", "percentunit",
            "Part of the time the workers' engines compute, on average. Above 0.8 requests begin to wait: more `replicas:`, "
            "if there are cores for them.",
            Query(f"avg({engine.busy()})", "busy"),
            limits=(0.8, 0.95),
        ),
        number(
            "Alerts firing", "short",
            "Alerts that ask for a person. The table at the end names them; each says what to do.",
            Query(or_zero(f"count({FIRING})"), "firing"),
            limits=(1,),
        ),
    ]  # fmt: skip


def _how_full() -> list[Panel]:
    held = 'sum by (instance) (kronos_cache_pages{state="held"}) / sum by (instance) (kronos_cache_pages)'
    return [
        engine.utilisation(),
        engine.queue(),
        graph(
            "In flight and slots", "short",
            "Requests in progress, and sample paths being decoded against the room for them. No slot free and a queue: "
            "the fleet is full; add workers.",
            Query("sum(kronos_concurrent_requests)", "requests in flight"),
            Query('sum(kronos_slots{state="busy"})', "slots busy"),
            Query("sum(kronos_slots)", "slots"),
        ),
        engine.batch(),
        graph(
            "Pages of the key and value cache", "percentunit",
            "Share that is held by paths in flight. At 1 nothing new can begin in that worker; above 0 in an idle fleet, pages "
            "leak: report it.",
            Query(f"max({held})", "fullest worker"),
            Query(f"avg({held})", "mean"),
            full=1,
        ),
        engine.given_up(),
    ]  # fmt: skip


def _columns() -> list[Column]:
    statuses = 'kronos_requests_total{{status=~"{}"}}'
    return [
        Column("utilisation", "percentunit", f"sum by (instance) ({engine.busy()})", bad=0.95),
        Column("requests/s", "reqps", rate("kronos_requests_total", by="instance")),
        Column("p95", "s", quantile(0.95, "kronos_request_duration_seconds", engine.SINGLE, by="instance")),
        Column("queue", "short", "sum by (instance) (kronos_queue_depth)", bad=16),
        Column("in flight", "short", "sum by (instance) (kronos_concurrent_requests)"),
        Column("5xx/s", "reqps", each_worker(rate(statuses.format("5.."), by="instance")), bad=0.001),
        Column("429/s", "reqps", each_worker(rate(statuses.format("429"), by="instance"))),
        Column("CPU cores", "short", rate(f"process_cpu_seconds_total{engine.ALL}", by="instance")),
        Column("memory", "bytes", f"sum by (instance) (process_resident_memory_bytes{engine.ALL})"),
        Column("age", "s", f"sum by (instance) (time() - process_start_time_seconds{engine.ALL})"),
    ]


def _worker_by_worker() -> list[Panel]:
    in_depth = "/d/kronos-worker?var-instance=${__value.text}&${datasource:queryparam}&${__url_time_range}"
    slowest = quantile(0.95, "kronos_request_duration_seconds", engine.SINGLE, by="instance")
    failing = rate(f'{front.TRIES}{{{front.WORKERS}, status=~"5.."}}', by="upstream")
    return [
        rows(
            "Workers",
            "Utilisation, saturation and errors of each. One that differs from the others is the one to look at: click it.",
            _columns(), sort="utilisation", link=Link("instance", "This worker in depth", in_depth),
        ),
        graph(
            "Engine utilisation by worker", "percentunit",
            f"The busiest {MANY}. One line far from the others: it gets other requests, or its host is slower.",
            Query(busiest(MANY, f"sum by (instance) ({engine.busy()})"), "{{instance}}"),
            many=True, full=1,
        ),
        graph(
            "p95 by worker", "s",
            f"95 % of the single forecasts inside a worker, the slowest {MANY}. One above the others: a slow or shared host.",
            Query(busiest(MANY, slowest), "{{instance}}"),
            many=True,
        ),
        graph(
            "Memory by worker", "bytes",
            f"Resident memory, the largest {MANY}. A slope that never ends is a leak; the container's limit ends the worker.",
            Query(busiest(MANY, f"process_resident_memory_bytes{engine.ALL}"), "{{instance}}"),
            many=True,
        ),
        graph(
            "5xx by worker", "reqps",
            f"Of tries, as Nginx saw them, the worst {MANY}. One worker alone is broken: its log says why, a restart mends it. "
            "All of them: look at what was rolled out last.",
            Query(or_zero(busiest(MANY, failing), "upstream"), "{{upstream}}"),
            many=True,
        ),
    ]  # fmt: skip


def _who_watches() -> list[Panel]:
    return [
        rows(
            "Alerts",
            "What fires now; each alert's annotation says what to do (Prometheus, page Alerts). The dead man's switch is always "
            "here: if it is missing, nobody would be told.",
            [Column("firing", "short", 'count by (alertname, severity) (ALERTS{alertstate="firing"})')],
            sort="firing", width=12,
        ),
        bars(
            "Answering Prometheus", "percentunit",
            "Part of each job's targets that answer. Below 1: a container is down or hung. Workers that DNS no longer names "
            "are not counted.",
            Query("avg by (job) (up)", "{{job}}"),
            full=1,
        ),
        graph(
            "Longest scrape", "s",
            "Of the slowest target of each job. Near the scrape interval, figures have gaps: an event loop is blocked, or the "
            "host is full.",
            Query("max by (job) (scrape_duration_seconds)", "{{job}}"),
            width=8,
        ),
        graph(
            "Series held by Prometheus", "short",
            "In memory. It grows with workers and load tests; a steep climb means a label with too many values, and in the end "
            "no memory: find it under Status, TSDB.",
            Query("prometheus_tsdb_head_series", "series"),
            width=8,
        ),
        graph(
            "Lines of Nginx not understood", "ops",
            "Log lines that became no figure. Above 0, the rates at the front door are too small: nginx/exporter and Nginx's log "
            "format have drifted apart.",
            Query(rate("nginx_log_lines_unread_total"), "lines"),
            width=8,
        ),
    ]  # fmt: skip


def board() -> Board:
    """The dashboard."""
    started = f"process_start_time_seconds{engine.ALL} * 1000"
    return Board(
        uid="kronos-fleet",
        title="Kronos · Fleet",
        description="Is the fleet well, is it full, where does the time go, and which worker stands out.",
        marks=[
            Mark("Workers started", started, "{{instance}} started", "blue", time=True),
            Mark("Alerts", or_zero(f"sum by (alertname) ({FIRING})", "alertname"), "{{alertname}}", "red"),
        ],
        rows={
            "Now": _now(),
            "At the front door: rate, errors, duration": front.row(),
            "How full: saturation": _how_full(),
            "Where the time goes": [engine.where_the_time_goes(), engine.stages()],
            "Worker by worker: utilisation, saturation, errors": _worker_by_worker(),
            "Who watches": _who_watches(),
        },
    )
