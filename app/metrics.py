"""Every metric of the worker, once: name, help, labels, buckets; and the Timings of one request.

Knows: what is measured and in which unit. Does not know: who measures it, HTTP, the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. From a refusal (about 1 ms) to beyond the longest timeout a setting allows (600 s).
SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0, 900.0,
)  # fmt: skip
# Seconds of one stage: parsing takes tens of microseconds, decoding up to the timeout.
STAGE_BUCKETS: Final = (0.00005, 0.0001, 0.00025, 0.0005, *SECONDS)
CANDLES: Final = (1, 16, 32, 64, 128, 256, 400, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384, 65536)
SEQUENCES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 512)

# In the order a request passes through them.
STAGES: Final = (
    "read", "parse", "prepare_frame", "cache", "queue", "encode", "prefill", "decode", "detokenise", "inverse", "serialise",
)  # fmt: skip
MODEL_STAGES: Final = ("encode", "prefill", "decode", "detokenise")

REQUESTS = Counter(
    "kronos_requests_total", "Answers sent, by route template and HTTP status.", ["route", "status"], registry=REGISTRY
)
REQUEST_DURATION = Histogram(
    "kronos_request_duration_seconds",
    "Seconds from the first byte of the request to the last byte of the answer.",
    ["route"], buckets=SECONDS, registry=REGISTRY,
)  # fmt: skip
MODEL_INFERENCE = Histogram(
    "kronos_model_inference_seconds",
    "Seconds with the model (encode, prefill, decode, detokenise), without queueing, parsing or serialising.",
    ["endpoint"], buckets=SECONDS, registry=REGISTRY,
)  # fmt: skip
STAGE_SECONDS = Histogram(
    "kronos_stage_seconds", "Seconds of one stage of one request.", ["stage"], buckets=STAGE_BUCKETS, registry=REGISTRY
)
CONCURRENT_REQUESTS = Gauge("kronos_concurrent_requests", "HTTP requests in progress.", registry=REGISTRY)
QUEUE_DEPTH = Gauge("kronos_queue_depth", "Series admitted and waiting for a batch slot.", ["priority"], registry=REGISTRY)
TIMEOUTS = Counter("kronos_timeouts_total", "Requests answered 504.", ["endpoint"], registry=REGISTRY)
REJECTED = Counter("kronos_rejected_total", "Requests refused at the door.", ["reason"], registry=REGISTRY)
CANCELLED = Counter("kronos_cancelled_total", "Series given up before they were done.", ["reason"], registry=REGISTRY)
INPUT_SIZE = Histogram("kronos_prediction_input_size", "Candles in one series.", ["endpoint"], buckets=CANDLES, registry=REGISTRY)
BATCH_SEQUENCES = Histogram(
    "kronos_batch_sequences", "Sample paths that shared one decode step.", buckets=SEQUENCES, registry=REGISTRY
)
SLOTS = Gauge("kronos_slots", "Batch slots.", ["state"], registry=REGISTRY)
PAGES = Gauge("kronos_cache_pages", "Pages of the key and value cache.", ["state"], registry=REGISTRY)
DECODE_STEPS = Counter("kronos_decode_steps_total", "Decode steps made.", registry=REGISTRY)
ENGINE_BUSY = Counter(
    "kronos_engine_busy_seconds_total", "Seconds the engine thread computed (its rate is utilisation).",
    registry=REGISTRY,
)  # fmt: skip
CACHE_REQUESTS = Counter(
    "kronos_cache_requests_total", "Series asked for, by what the result cache did (hit, miss, coalesced, bypass).",
    ["result"], registry=REGISTRY,
)  # fmt: skip
CACHE_SHARED = Counter(
    "kronos_cache_shared_total", "Looks into the fleet's shared cache, by what came of them (hit, miss, coalesced, error).",
    ["result"], registry=REGISTRY,
)  # fmt: skip
CACHE_SHARED_UP = Gauge("kronos_cache_shared_up", "1 while the shared cache is asked, 0 while it is left out.", registry=REGISTRY)
CACHE_BYTES = Gauge("kronos_cache_bytes", "Bytes of outcomes kept in this worker's result cache.", registry=REGISTRY)
CACHE_ENTRIES = Gauge("kronos_cache_entries", "Outcomes kept in this worker's result cache.", registry=REGISTRY)
SINK_OFFERED = Counter(
    "kronos_sink_offered_total", "Forecasts told to one keeper of predictions (log, kafka, postgres).",
    ["sink"], registry=REGISTRY,
)  # fmt: skip
SINK_RECORDS = Counter(
    "kronos_sink_records_total",
    "Forecasts settled: written; failed (can never be written); dropped (no room, or no time at the end).",
    ["sink", "outcome"], registry=REGISTRY,
)  # fmt: skip
SINK_HELD_RECORDS = Gauge("kronos_sink_held_records", "Forecasts told and not settled yet.", ["sink"], registry=REGISTRY)
SINK_HELD_BYTES = Gauge("kronos_sink_held_bytes", "About how much memory they take.", ["sink"], registry=REGISTRY)
SINK_UP = Gauge(
    "kronos_sink_up", "1 while a keeper of predictions takes what it is given, 0 while not.", ["sink"], registry=REGISTRY
)
SINK_WRITE_SECONDS = Histogram(
    "kronos_sink_write_seconds", "Seconds of one try to write a batch.", ["sink"], buckets=SECONDS, registry=REGISTRY
)
POOL_WORKERS = Gauge("kronos_pool_workers", "Threads that a pool may have.", ["pool"], registry=REGISTRY)
POOL_ACTIVE = Gauge("kronos_pool_active", "Tasks that have one of them.", ["pool"], registry=REGISTRY)
POOL_QUEUED = Gauge("kronos_pool_queued", "Tasks that wait for one.", ["pool"], registry=REGISTRY)
POOL_TASKS = Counter(
    "kronos_pool_tasks_total",
    "Tasks that came to their end: done, failed, cancelled, expired (waited in vain), refused (the line was full).",
    ["pool", "outcome"], registry=REGISTRY,
)  # fmt: skip
POOL_WAIT = Histogram(
    "kronos_pool_wait_seconds", "Seconds that a task waited for a thread.", ["pool"], buckets=STAGE_BUCKETS, registry=REGISTRY
)
WEBHOOKS = Counter(
    "kronos_webhooks_total",
    "Calls of webhooks: delivered, failed (to be tried again), given_up (the last try), refused (no permitted target).",
    ["outcome"], registry=REGISTRY,
)  # fmt: skip
JOBS = Gauge(
    "kronos_jobs", "Jobs in the store, by state: the same number at every worker that shares it.", ["state"], registry=REGISTRY
)
JOBS_OLDEST = Gauge(
    "kronos_jobs_oldest_queued_seconds", "How long the oldest queued job has waited; 0: none waits.", registry=REGISTRY
)
JOBS_DELIVERIES = Gauge("kronos_jobs_deliveries", "Webhooks that are still to be called.", registry=REGISTRY)
JOBS_RUNNING = Gauge("kronos_jobs_running", "Jobs that this worker runs.", registry=REGISTRY)
JOBS_SUBMITTED = Counter(
    "kronos_jobs_submitted_total", "Submissions by what came of them: new, known (same Idempotency-Key), refused.",
    ["outcome"], registry=REGISTRY,
)  # fmt: skip
JOBS_ATTEMPTS = Counter(
    "kronos_jobs_attempts_total",
    "Attempts by what came of them: succeeded, failed, cancelled, expired, released (given back), lost (to another "
    "worker), retry (the engine failed), dead (too many attempts before this one).",
    ["outcome"], registry=REGISTRY,
)  # fmt: skip
JOBS_SECONDS = Histogram(
    "kronos_jobs_seconds", "Seconds of a job's parts: waiting (submission to attempt), running (attempt to end).",
    ["part"], buckets=(*SECONDS, 1800.0, 3600.0, 14_400.0, 86_400.0), registry=REGISTRY,
)  # fmt: skip
JOBS_STORE_ERRORS = Counter("kronos_jobs_store_errors_total", "Calls of the job store that failed.", registry=REGISTRY)
JOBS_STORE_UP = Gauge("kronos_jobs_store_up", "1 while the job store answers, 0 while not.", registry=REGISTRY)
LOG_DROPPED = Counter("kronos_log_lines_dropped_total", "Log lines lost because nobody read them in time.", registry=REGISTRY)
MODEL_INFO = Gauge(
    "kronos_model_info", "Always 1; the labels say what is served.",
    ["model_version", "tokenizer_version", "device", "dtype"], registry=REGISTRY,
)  # fmt: skip


def render() -> bytes:
    """The Prometheus text format of every metric."""
    return generate_latest(REGISTRY)


class Timings:
    """Seconds of each stage of one request; one source for the metric, log, header and body."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the block to stage ``name``, also when it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add ``seconds`` to stage ``name``."""
        self._stages[name] = self._stages.get(name, 0.0) + seconds

    def include(self, stages: Mapping[str, float]) -> None:
        """Add the seconds of several stages."""
        for name, seconds in stages.items():
            self.add(name, seconds)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order of ``STAGES``."""
        return {name: self._stages[name] for name in STAGES if name in self._stages}

    def total(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self._started

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds by stage and ``total``, rounded to microseconds."""
        stages = {name: round(1e3 * seconds, 3) for name, seconds in self.seconds().items()}
        return {**stages, "total": round(1e3 * self.total(), 3)}

    def server_timing(self) -> str:
        """The value of the ``Server-Timing`` header (milliseconds)."""
        return ", ".join(f"{name};dur={duration:g}" for name, duration in self.milliseconds().items())

    def observe(self, endpoint: Literal["single", "batch", "embeddings"]) -> None:
        """Put the stages into the histograms."""
        stages = self.seconds()
        for name, seconds in stages.items():
            STAGE_SECONDS.labels(name).observe(seconds)
        if any(name in stages for name in MODEL_STAGES):
            MODEL_INFERENCE.labels(endpoint).observe(sum(stages.get(name, 0.0) for name in MODEL_STAGES))
