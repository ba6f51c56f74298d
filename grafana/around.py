"""The dashboard *Around the prediction*: result cache, jobs, pools, and those who keep predictions (log, events, table).

Knows: what workers export of these. Does not know: the engine, Nginx. A feature that is off shows 0.
"""

from __future__ import annotations

from typing import Final

from grafana.boards import Board
from grafana.panels import Panel, Query, graph, number
from grafana.promql import or_zero, parts, quantile, rate, ratio, share

ASKED: Final = "kronos_cache_requests_total"
LOOKS: Final = "kronos_cache_shared_total"
RECORDS: Final = "kronos_sink_records_total"
LOST: Final = '{outcome=~"dropped|failed"}'


def _now() -> list[Panel]:
    return [
        number(
            "Known answers", "percentunit",
            "Part of the series asked for that the result cache knew, or that were computed once for several. Low: requests "
            "differ, or have no seed; that is no fault.",
            Query(share(rate(f'{ASKED}{{result=~"hit|coalesced"}}'), rate(ASKED)) + " or vector(0)", "known"),
        ),
        number(
            "Shared cache asked by", "short",
            "Workers that ask Valkey for answers of others. 0 with KRONOS_REDIS_URL set: it is away or slow, and every worker "
            "keeps its own; `docker compose ps valkey`.",
            Query(or_zero("sum(kronos_cache_shared_up)"), "workers"),
        ),
        number(
            "Oldest waiting job", "s",
            "How long the oldest queued job has waited. Jobs give way to requests; above a quarter of an hour somebody is told.",
            Query(or_zero("max(kronos_jobs_oldest_queued_seconds)"), "oldest"),
            limits=(900,),
        ),
        number(
            "Pool tasks refused", "ops",
            "Tasks that found a pool's line full, or waited in vain. Above 0: see the pools below.",
            Query(or_zero(rate('kronos_pool_tasks_total{outcome=~"refused|expired"}')), "refused"),
            limits=(0.001,),
        ),
        number(
            "Records lost", "ops",
            "Forecasts that a keeper dropped or could never write. Predictions are not touched. Above 0: see keepers below.",
            Query(or_zero(rate(f"{RECORDS}{LOST}")), "lost"),
            limits=(0.001,),
        ),
        number(
            "Keepers away", "short",
            "Log, event stream or table, counted in every worker, that take nothing now. Memory fills, then records are dropped.",
            Query(or_zero("count(kronos_sink_up == 0)"), "away"),
            limits=(1,),
        ),
    ]  # fmt: skip


def _cache() -> list[Panel]:
    return [
        graph(
            "What became of the series asked for", "percentunit",
            "`hit`: known. `coalesced`: computed for somebody else at the same moment. `miss`: computed. `bypass`: not looked "
            "for (no seed, Cache-Control, or the cache is off).",
            Query(parts(ASKED, "result"), "{{result}}"),
            stacked=True, full=1,
        ),
        graph(
            "Looks into the shared cache", "ops",
            "What workers found in Valkey when their own memory had nothing. `error`: the breaker is open, and nobody waits for "
            "it.",
            Query(or_zero(rate(LOOKS, by="result"), "result"), "{{result}}"),
        ),
        graph(
            "Memory of the result cache", "bytes",
            "Outcomes kept by the workers. At KRONOS_CACHE_BYTES the least recently used go before their time: hits fall.",
            Query("max(kronos_cache_bytes)", "fullest worker"),
            Query("sum(kronos_cache_bytes)", "all workers"),
        ),
        graph(
            "Outcomes kept", "short",
            "Entries of all workers. Many with few hits: keeping answers costs memory and saves nothing here.",
            Query("sum(kronos_cache_entries)", "outcomes"),
        ),
    ]  # fmt: skip


def _jobs() -> list[Panel]:
    return [
        graph(
            "Jobs by state", "short",
            "In the store that the workers share. More and more queued: bulk work fills only idle slots; add workers, or wait.",
            Query(or_zero("max by (state) (kronos_jobs)", "state"), "{{state}}"),
        ),
        graph(
            "Longest wait of a queued job", "s",
            "Of the oldest job that nobody has begun. Jobs give way to requests: it grows while workers are full.",
            Query(or_zero("max(kronos_jobs_oldest_queued_seconds)"), "oldest"),
        ),
        graph(
            "Submitted", "reqps",
            "`new`: kept. `known`: the same Idempotency-Key as before. `refused`: the queue is full; the client was told when to "
            "come back.",
            Query(or_zero(rate("kronos_jobs_submitted_total", by="outcome"), "outcome"), "{{outcome}}"),
        ),
        graph(
            "Attempts", "ops",
            "What became of each. `lost`, `released` and `retry` are tried again, by any worker. `dead`: tried too often; the "
            "job says so.",
            Query(or_zero(rate("kronos_jobs_attempts_total", by="outcome"), "outcome"), "{{outcome}}"),
        ),
        graph(
            "Waiting and running, p95", "s",
            "From submission to the attempt, and from there to its end. Long waits with idle workers: their logs say why nobody "
            "takes them.",
            Query(or_zero(quantile(0.95, "kronos_jobs_seconds", by="part"), "part"), "{{part}}"),
        ),
        graph(
            "Webhooks", "ops",
            "Calls, by outcome. `failed` is tried again, `given_up` was the last try: the receiver was away too long.",
            Query(or_zero(rate("kronos_webhooks_total", by="outcome"), "outcome"), "{{outcome}}"),
        ),
        graph(
            "Jobs being run, webhooks to be called", "short",
            "Jobs that workers compute now, and calls that are still due. Due calls that stay: their receivers do not answer.",
            Query("sum(kronos_jobs_running)", "running"),
            Query("max(kronos_jobs_deliveries)", "to be called"),
        ),
        graph(
            "Calls of the job store that failed", "ops",
            "Above 0: the store is away or slow; submissions are answered 503, running jobs go on, predictions are not touched.",
            Query(or_zero(rate("kronos_jobs_store_errors_total")), "failed"),
        ),
    ]  # fmt: skip


def _pools() -> list[Panel]:
    active, workers = "sum by (pool) (kronos_pool_active)", "sum by (pool) (kronos_pool_workers)"
    return [
        graph(
            "Use of the pools", "percentunit",
            "Tasks that run, of the threads there are. At 1 tasks wait; `performance.thread_pools` in config.yaml has the sizes.",
            Query(ratio(active, workers), "{{pool}}"),
            full=1,
        ),
        graph(
            "Tasks waiting for a thread", "short",
            "Of all workers. A line that stays: the pool is too small, or what its tasks wait for is slow.",
            Query("sum by (pool) (kronos_pool_queued)", "{{pool}}"),
        ),
        graph(
            "Wait for a thread, p95", "s",
            "95 % of the tasks waited at most this long. Near the patience of the pools (5 s) they are refused.",
            Query(or_zero(quantile(0.95, "kronos_pool_wait_seconds", by="pool"), "pool"), "{{pool}}"),
        ),
        graph(
            "Tasks that ended", "ops",
            "By outcome. `refused`: the line was full; `expired`: it waited in vain; `failed`: the log says why.",
            Query(rate("kronos_pool_tasks_total", by="pool, outcome"), "{{pool}} {{outcome}}"),
        ),
    ]  # fmt: skip


def _keepers() -> list[Panel]:
    return [
        graph(
            "Told and written", "ops",
            "Forecasts told to each keeper, and written by it. Written below told for long: it is away, or slower than the "
            "fleet.",
            Query(or_zero(rate("kronos_sink_offered_total", by="sink"), "sink"), "{{sink}} told"),
            Query(or_zero(rate(f'{RECORDS}{{outcome="written"}}', by="sink"), "sink"), "{{sink}} written"),
        ),
        graph(
            "Lost", "ops",
            "Dropped: no room left while the keeper was away, or no time at the end of a worker. Failed: can never be written.",
            Query(or_zero(rate(f'{RECORDS}{{outcome="dropped"}}', by="sink"), "sink"), "{{sink}} dropped"),
            Query(or_zero(rate(f'{RECORDS}{{outcome="failed"}}', by="sink"), "sink"), "{{sink}} failed"),
        ),
        graph(
            "Held in memory", "bytes",
            "Told and not written yet, the fullest worker. At its bound new records are dropped.",
            Query(or_zero("max by (sink) (kronos_sink_held_bytes)", "sink"), "{{sink}}"),
        ),
        graph(
            "One write, p95", "s",
            "A try to write a batch, in the background. Long: the keeper is slow; requests do not wait for it.",
            Query(or_zero(quantile(0.95, "kronos_sink_write_seconds", by="sink"), "sink"), "{{sink}}"),
        ),
    ]  # fmt: skip


def board() -> Board:
    """The dashboard."""
    return Board(
        uid="kronos-around",
        title="Kronos · Around the prediction",
        description="Result cache, jobs, pools and keepers of predictions. None of them may slow, fail or lose a prediction.",
        rows={
            "Now": _now(),
            "Result cache": _cache(),
            "Jobs": _jobs(),
            "Pools": _pools(),
            "Keepers: prediction log, events, table": _keepers(),
        },
    )
