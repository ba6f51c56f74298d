"""The dashboard *Worker*: one instance in depth.

Knows: what a worker exports (app/metrics.py). Does not know: Nginx, the fleet as a whole.
"""

from __future__ import annotations

from typing import Final

from grafana import engine
from grafana.boards import Board, Choice, Mark
from grafana.panels import Column, Panel, Query, graph, heat, number, rows
from grafana.promql import WINDOW, quantile, rate

ONE: Final = '{job="worker", instance="$instance"}'
PREDICTIONS: Final = '{job="worker", instance="$instance", route=~"/v1/predict/.*"}'
DURATION: Final = "kronos_request_duration_seconds"


def _now() -> list[Panel]:
    return [
        number(
            "Answers", "reqps",
            "Requests this worker answers in a second, whatever the status. 0 while others are busy: Nginx has ejected it, "
            "or it is not ready; read its log.",
            Query(rate(f"kronos_requests_total{ONE}"), "answers"),
        ),
        number(
            "Predictions, p95", "s",
            "95 % of predictions took at most this long inside the worker. High while utilisation is low: long horizons or "
            "many sample paths. High with a queue: add workers.",
            Query(quantile(0.95, DURATION, PREDICTIONS), "p95"),
        ),
        number(
            "Utilisation", "percentunit",
            "Part of the time the engine thread computes. Above 0.8 requests begin to wait for each other: add workers.",
            Query(engine.busy(ONE), "busy"),
            limits=(0.8, 0.95),
        ),
        number(
            "In flight", "short",
            "HTTP requests in progress, this scrape included. Many more than the slots: they wait; see the queue.",
            Query(f"kronos_concurrent_requests{ONE}", "requests"),
        ),
        number(
            "Resident memory", "bytes",
            "Memory of the process that serves. A steady slope over hours is a leak: report it with the graph below.",
            Query(f"process_resident_memory_bytes{ONE}", "resident"),
        ),
        number(
            "Age", "s",
            "Seconds since the process started. Small again and again: its supervisor replaces it; the log says why.",
            Query(f"time() - process_start_time_seconds{ONE}", "age"),
        ),
    ]  # fmt: skip


def _latency() -> list[Panel]:
    return [
        graph(
            "Duration of a prediction", "s",
            "From the first byte of a request to the last byte of its answer, queueing included. If p99 leaves p50 behind, "
            "compare with queue and batch below.",
            *engine.quantiles(DURATION, PREDICTIONS),
        ),
        heat(
            "Durations of predictions", "s",
            "How many predictions took how long. Two bands are two kinds of requests; a band that climbs is a queue that "
            "grows: add workers.",
            f"sum by (le) (increase({DURATION}_bucket{PREDICTIONS}[{WINDOW}]))",
        ),
        graph(
            "Time with the model, p95", "s",
            "Encode, prefill, decode and detokenise only, by endpoint. If this is short and the duration long, requests "
            "wait: see the queue.",
            Query(quantile(0.95, "kronos_model_inference_seconds", ONE, by="endpoint"), "{{endpoint}}"),
        ),
        graph(
            "Answers by route and status", "reqps",
            "429 is a refusal, 503 a worker that is not ready or draining, 504 a deadline that passed, 5xx else a fault: "
            "its log line has the request id.",
            Query(rate(f"kronos_requests_total{ONE}", by="route, status"), "{{route}} {{status}}"),
        ),
        engine.where_the_time_goes(ONE),
        engine.stages(ONE),
    ]  # fmt: skip


def _engine() -> list[Panel]:
    return [
        graph(
            "Engine utilisation", "percentunit",
            "Part of the time the engine thread computes. At 1 the worker cannot do more; 0 with a queue is a stuck engine, "
            "and the watchdog ends the process.",
            Query(engine.busy(ONE), "busy"),
            full=1,
        ),
        graph(
            "Decode steps", "ops",
            "Steps a second, each shared by all sample paths in flight. Fewer steps at full utilisation: the batch or the "
            "histories are longer, or the core is shared.",
            Query(rate(f"kronos_decode_steps_total{ONE}"), "steps"),
        ),
        engine.batch(ONE),
        graph(
            "Slots", "short",
            "Sample paths being decoded now, and room for more. No room and a queue: this worker is full.",
            Query(f"sum by (state) (kronos_slots{ONE})", "{{state}}"),
            stacked=True,
        ),
        engine.queue(ONE),
        graph(
            "Pages of the key and value cache", "short",
            "Held pages belong to paths in flight; all are free when idle. If some stay held without requests, pages leak: "
            "restart the worker and report it.",
            Query(f"sum by (state) (kronos_cache_pages{ONE})", "{{state}}"),
            stacked=True,
        ),
    ]  # fmt: skip


def _asked() -> list[Panel]:
    return [
        graph(
            "Candles in one series, p95", "short",
            "What is asked: 95 % of the series have at most so many candles. A jump explains a jump of the durations.",
            Query(quantile(0.95, "kronos_prediction_input_size", ONE, by="endpoint"), "{{endpoint}}"),
        ),
        rows(
            "What is served",
            "The checkpoint in this worker. Versions that differ between workers: a roll is under way, or was halted.",
            [Column("served", "short", f"max by (model_version, tokenizer_version, device, dtype) (kronos_model_info{ONE})")],
            sort="served", width=12,
        ),
    ]  # fmt: skip


def _process() -> list[Panel]:
    return [
        graph(
            "CPU", "short",
            "Cores in use by the serving process, the container's quota, and threads that stand still without quota: durations "
            "rise then without a queue; raise WORKER_CPUS or add workers.",
            Query(rate(f"process_cpu_seconds_total{ONE}"), "in use"),
            Query(f"kronos_cpu_quota_cores{ONE}", "quota"),
            Query(rate(f"kronos_cpu_throttled_seconds_total{ONE}"), "standing still"),
            width=8,
        ),
        graph(
            "Memory", "bytes",
            "Resident memory of the serving process. A steady slope over hours is a leak; the container's limit ends it.",
            Query(f"process_resident_memory_bytes{ONE}", "resident"),
            width=8,
        ),
        graph(
            "File descriptors", "short",
            "Open files and sockets, and the limit. Rising towards it: connections are not closed; look at Nginx's keep-alive.",
            Query(f"process_open_fds{ONE}", "open"),
            Query(f"process_max_fds{ONE}", "limit"),
            width=8,
        ),
        graph(
            "Garbage collections", "ops",
            "Runs of Python's collector by generation. Generation 2 is the long pause; more than one a second costs latency.",
            Query(rate(f"python_gc_collections_total{ONE}", by="generation"), "generation {{generation}}"),
        ),
        graph(
            "Objects collected", "ops",
            "Objects in cycles that the collector freed, and those it could not. The latter should be 0: else report it.",
            Query(rate(f"python_gc_objects_collected_total{ONE}"), "collected"),
            Query(rate(f"python_gc_objects_uncollectable_total{ONE}"), "uncollectable"),
        ),
    ]  # fmt: skip


def board() -> Board:
    """The dashboard."""
    return Board(
        uid="kronos-worker",
        title="Kronos · Worker",
        description="One worker in depth. Come here from the table of workers on the fleet's dashboard.",
        choices=[
            Choice("instance", "Worker", "Its address, as Prometheus names it.", of='up{job="worker"}', label="instance"),
        ],
        marks=[
            Mark("Started", f"process_start_time_seconds{ONE} * 1000", "worker started", "blue", time=True),
        ],
        rows={
            "Now": _now(),
            "Latency": _latency(),
            "Engine": _engine(),
            "Refused, given up, late": [engine.refused(8, ONE), engine.given_up(8, ONE), engine.late(8, ONE)],
            "What is asked, what is served": _asked(),
            "Process": _process(),
        },
    )  # fmt: skip
