"""The dashboard *Load test*: what k6 says beside what the servers say of the same minutes.

Knows: the names k6 writes to Prometheus (docs of its remote write; ours in tests/load), Nginx's and the workers'. Does not
know: how a load test is started or judged.
"""

from __future__ import annotations

from typing import Final

from app.metrics import STAGES
from grafana import engine
from grafana.boards import Board, Choice, Mark
from grafana.front import DURATION, OBJECTIVE, REFUSED, REQUESTS, SINGLE, USERS, shares
from grafana.panels import Panel, Query, graph, number
from grafana.promql import or_zero, quantile, rate, share

RUN: Final = '{testid=~"$testid"}'
SCENARIO: Final = '{testid=~"$testid", scenario!=""}'
"""Without the requests by which k6 gets ready: they belong to no scenario."""
RIGHT: Final = '{testid=~"$testid", scenario!="", status="200"}'
SO_FAR: Final = "k6's figures are of the whole run so far, the servers' of the last moments."


def _k6(metric: str, how: str = "max", by: str = "") -> str:
    """A gauge of k6. Its percentiles cannot be added or averaged: of several, the worst is shown."""
    return f"{how}{f' by ({by})' if by else ''} (k6_{metric}{SCENARIO})"


def _now() -> list[Panel]:
    return [
        number(
            "Users", "short",
            "Virtual users of k6 now. 0: no run in this moment; choose a time range that holds one (they are marked).",
            Query(or_zero(f"sum (k6_vus{RUN})"), "users"),
        ),
        number(
            "Right forecasts", "ops",
            "Series forecast and found right, a second: the throughput. A rate of requests would count refusals too.",
            Query(or_zero(rate(f"k6_kronos_forecasts_total{RUN}")), "forecasts"),
        ),
        number(
            "Goodput", "percentunit",
            "Requests answered right within the objective, of all requests so far; the worst scenario. Below its target, the "
            "rate is too high for this fleet.",
            Query(_k6("kronos_goodput_rate", "min"), "goodput"),
            limits=(0.95, 0.99), low=True,
        ),
        number(
            "Dropped", "ops",
            "Iterations k6 could not start because no user was free. Above 0, the percentiles are the survivors': give k6 more "
            "users, or the fleet more workers.",
            Query(or_zero(rate(f"k6_dropped_iterations_total{RUN}")), "dropped"),
            limits=(0.001,),
        ),
        number(
            "Client's p95", "s",
            "95 % of the answers 200 came within this time at the client, in the slowest scenario, so far in the run. Above the "
            "objective: compare with p95 below to see where.",
            Query(f"max (k6_http_req_duration_p95{RIGHT})", "p95"),
        ),
        engine.workers_up(),
    ]  # fmt: skip


def _side_by_side() -> list[Panel]:
    return [
        graph(
            "Requests", "reqps",
            "What k6 sent, what Nginx answered, what workers answered. k6 above Nginx: requests do not arrive. Workers above "
            "Nginx: retries. Nginx above k6: other clients disturb the run.",
            Query(rate(f"k6_http_reqs_total{RUN}"), "k6"),
            Query(rate(f"{REQUESTS}{USERS}"), "Nginx"),
            Query(rate('kronos_requests_total{job="worker", route=~"/v1/.*"}'), "workers"),
        ),
        graph(
            "p95", "s",
            f"{SO_FAR} Client above Nginx: the network, or k6 itself is the limit. Nginx above workers: retries, or connections "
            "that wait. Workers above the model: the queue.",
            Query(f"max by (scenario) (k6_http_req_duration_p95{RIGHT})", "client, {{scenario}}"),
            Query(quantile(0.95, DURATION, SINGLE), "Nginx, single"),
            Query(quantile(0.95, "kronos_request_duration_seconds", engine.SINGLE), "workers, single"),
            Query(quantile(0.95, "kronos_model_inference_seconds", engine.ALL), "model"),
            Query(OBJECTIVE, "objective"),
        ),
        graph(
            "Achieved and target", "ops",
            "Iterations begun a second, and with those that were dropped: the target rate of an open-loop run. Achieved below "
            "0.99 of it: the run does not show this rate.",
            Query(rate(f"k6_iterations_total{RUN}"), "achieved"),
            Query(f"{rate(f'k6_iterations_total{RUN}')} + ({or_zero(rate(f'k6_dropped_iterations_total{RUN}'))})", "target"),
        ),
        graph(
            "Users and requests in flight", "short",
            "Virtual users, and requests in progress in the workers. All of k6's users in flight: it has none left to send with.",
            Query(f"sum (k6_vus{RUN})", "users"),
            Query(f"sum (k6_vus_max{RUN})", "most users"),
            Query("sum (kronos_concurrent_requests)", "in flight"),
        ),
        graph(
            "Answers by status, at the client", "reqps",
            "Status 0 is no answer at all. 429 and 503 are refusals in order; anything else than 200 fails the run's checks.",
            Query(rate(f"k6_http_reqs_total{RUN}", by="status"), "{{status}}"),
        ),
        graph(
            "Refused", "percentunit",
            f"Of all requests, as the client and as Nginx saw it. {SO_FAR} Steady refusals: the rate is above the capacity.",
            Query(_k6("kronos_refused_rate", by="scenario"), "client, {{scenario}}"),
            Query(share(rate(f"{REQUESTS}{REFUSED}"), rate(f"{REQUESTS}{USERS}")), "Nginx"),
            full=1,
        ),
    ]  # fmt: skip


def _client() -> list[Panel]:
    return [
        graph(
            "Client's p95 by outcome", "s",
            "Right, refused and failed requests, so far in the run; of the workers' p95 the worst. Refusals should be fast; slow "
            "ones cost twice.",
            Query(_k6("kronos_request_duration_p95", by="outcome"), "{{outcome}}"),
        ),
        graph(
            "Inside and outside the worker, p95", "s",
            "The worker's own account of its time (Server-Timing), and the rest: network, Nginx, waiting to be accepted. A long "
            "rest under load: k6 or the host is the limit, not the workers.",
            Query(_k6("kronos_worker_total_p95"), "inside"),
            Query(_k6("kronos_outside_worker_p95"), "outside"),
        ),
        graph(
            "Stages as the client got them, p95", "s",
            "From Server-Timing, so far in the run. Compare with the fleet's own: they should agree. A long `queue`: too few "
            "workers for this rate.",
            *(Query(_k6(f"kronos_stage_{stage}_p95"), stage) for stage in STAGES),
            width=24,
        ),
        graph(
            "Known to the cache", "percentunit",
            "Part of the right answers that were known, or computed once for several (X-Cache), so far in the run. Above 0 in a "
            "run that should measure workers: give it another SEED, or the workers KRONOS_CACHE_TTL=0.",
            Query(_k6("kronos_cache_hit_rate", by="scenario"), "hit, {{scenario}}"),
            Query(_k6("kronos_cache_coalesced_rate", by="scenario"), "coalesced, {{scenario}}"),
            full=1,
        ),
        graph(
            "Checks that held", "percentunit",
            "By question, so far in the run. Below 1, answers were wrong, not only slow: the run is void; read k6's report.",
            Query(_k6("checks_rate", "min", by="check"), "{{check}}"),
            full=1,
        ),
    ]  # fmt: skip


def board() -> Board:
    """The dashboard."""
    return Board(
        uid="kronos-load",
        title="Kronos · Load test",
        description="What k6 measured beside what the servers measured. Runs are marked; the time range should hold one.",
        choices=[Choice("testid", "Run", "Test id of a k6 run; all by default.", of="k6_vus", label="testid", every=True)],
        marks=[Mark("Runs", f"sum by (testid) (k6_vus{RUN})", "{{testid}}", "purple")],
        rows={
            "Now": _now(),
            "Client and servers, side by side": _side_by_side(),
            "What the client saw": _client(),
            "Who is the limit": [engine.utilisation(), engine.queue(), engine.batch(), shares()],
        },
    )
