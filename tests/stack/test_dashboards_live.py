"""Every query of every dashboard, asked of the Prometheus of a real fleet that is under load of every kind.

The fleet gets right forecasts, batches, embeddings, mistakes (422), more than it can take (429), deadlines that pass (504),
clients that go away (499) and k6 with remote write; then each query is asked for one moment in the midst of it.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards import Asked, asked, documents, faults, fill, variables
from tests.fleet.live import document
from tests.stack.stack import ROOT, Stack, wait_until

BOARDS = documents()
QUERIES = [query for board in BOARDS.values() for query in asked(board)]
WORKERS = 3
K6_S = 40
"""Length of the k6 run, s. The moment asked for is shortly before its end, so windows of 30 s are full."""
WINDOW = "30s"

QUIET = {
    "Alerts firing: firing", "annotation Alerts: {{alertname}}", "Lines of Nginx not understood: lines",
    "Asked again: another worker", "Asked again: last resort", "Asked again: no worker left",
    "Queue: {{priority}}", "In flight and slots: slots busy", "Workers: queue",
    "Pages of the key and value cache: fullest worker", "Pages of the key and value cache: mean",
    "Garbage collections: generation {{generation}}", "Objects collected: collected", "Objects collected: uncollectable",
    "Dropped: dropped", "Refused: client, {{scenario}}", "Use of the error budget: over 6h",
    "Known to the cache: hit, {{scenario}}", "Known to the cache: coalesced, {{scenario}}", "CPU: standing still",
}  # fmt: skip
"""What may be 0 in every series: it happens only to a fleet that is ill, not at each scrape, or is computed too rarely."""

OFF = "kronos-around"
"""The dashboard of what is off in this fleet: it is answered with numbers, and 0 is right."""

BIG = {"pred_len": 500, "sample_count": 36}
"""18,000 of the 20,000 units of work that may wait in a worker: a second one is refused."""


@dataclass(frozen=True)
class Moment:
    """A fleet, a time (s since 1970) at which all kinds of load were on it, and the variables' values."""

    stack: Stack
    at: float
    values: Mapping[str, str]

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """The instant vector at that time, the dashboard's variables filled in."""
        parameters = urllib.parse.urlencode({"query": fill(expr, self.values), "time": f"{self.at:.3f}"})
        result: list[dict[str, Any]] = self.stack.prometheus(f"/api/v1/query?{parameters}")["data"]["result"]
        return result


def post(stack: Stack, path: str, body: Mapping[str, Any]) -> int:
    """The status of the answer."""
    return stack.ask("POST", path, json.dumps(body).encode()).status


def go_away(stack: Stack) -> None:
    """Send a request that takes long, and do not wait for the answer."""
    body = json.dumps({**history(), "overrides": BIG}).encode()
    head = f"POST /v1/predict/single HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.3)


def history() -> dict[str, Any]:
    """A request for as many candles as its overrides say."""
    made = document(seed=1, candles=40)
    del made["prediction_timestamps"]
    return made


def every_kind(stack: Stack, seen: dict[int, int]) -> None:
    """One round of what is not a plain forecast; counts the statuses."""
    big = {**history(), "overrides": BIG, "timeout": 2}
    with ThreadPoolExecutor(4 * WORKERS) as pool:  # more than the workers may queue
        statuses = list(pool.map(lambda _: post(stack, "/v1/predict/single", big), range(4 * WORKERS)))
    plain = history()
    statuses += [
        post(stack, "/v1/predict/batch", {"items": [{**plain, "overrides": {"pred_len": 4}}] * 3}),
        post(stack, "/v1/embeddings", plain),
        post(stack, "/v1/predict/single", {**plain, "candles": []}),
    ]
    go_away(stack)
    for status in statuses:
        seen[status] = seen.get(status, 0) + 1


@contextmanager
def repeated(stack: Stack, seen: dict[int, int]) -> Iterator[None]:
    """Rounds of `every_kind`, one after another, for as long as the block lasts."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            every_kind(stack, seen)
            ended.wait(1)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def k6(stack: Stack, into: Path) -> subprocess.Popen[str]:
    """A run in the open loop with remote write, in the background."""
    dials = {"BASE_URL": f"http://127.0.0.1:{stack.port}", "DURATION": f"{K6_S}s", "RATE": "8", "VUS": "4", "TESTID": "live"}
    given = [argument for name, value in dials.items() for argument in ("-e", f"{name}={value}")]
    small = ["-e", "LOOKBACK=64", "-e", "HORIZON=8"]
    return subprocess.Popen(
        [sys.executable, "-m", "fleet.load", "open", *given, *small, "--into", str(into), "--no-raw", "--no-dashboard"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def moment(project: Stack, tmp_path_factory: pytest.TempPathFactory) -> Moment:
    """The fleet under every kind of load, and the time to ask for."""
    project.up(WORKERS)
    wait_until(lambda: len(project.query('up{job="worker"} == 1')) == WORKERS, 60)
    seen: dict[int, int] = {}
    with project.load(project.requests(), users=3, pause=(0.1, 0.3)) as traffic, repeated(project, seen):
        generator = k6(project, tmp_path_factory.mktemp("k6"))
        try:
            wait_until(lambda: bool(project.query("k6_vus")), 120)
            time.sleep(K6_S - 10)
            at = time.time()
            said, _ = generator.communicate(timeout=120)
        finally:
            generator.terminate()  # which it passes on to k6; nothing if both have ended
    assert generator.returncode in (0, 99), said
    assert not [each for each in traffic.exchanges if each.failure and each.status not in (429, 504)]
    assert {200, 422, 429, 504} <= seen.keys(), seen
    had_all = " and on (instance) ".join(
        f"(count by (instance) (kronos_{each}_total))" for each in ("cancelled", "rejected", "timeouts")
    )
    values = {"__rate_interval": WINDOW, "testid": "live", "instance": project.query(had_all)[0]["metric"]["instance"]}
    return Moment(project, at, values)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.board}-{query.place}-{query.legend}")
def test_every_query_is_answered(moment: Moment, query: Asked) -> None:
    """The answer is there, finite, within the bounds of its unit, with the labels of its legend; and where there was load,
    it is not only the 0 that stands in for nothing."""
    samples = moment.ask(query.expr)
    assert faults(query, samples) == []
    if f"{query.place}: {query.legend}" not in QUIET and query.board != OFF:
        assert any(float(sample["value"][1]) > 0 for sample in samples), samples


def test_what_may_be_quiet_is_on_a_dashboard() -> None:
    """The exceptions are those of today's dashboards."""
    assert {f"{query.place}: {query.legend}" for query in QUERIES} >= QUIET


@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_has_values(moment: Moment, name: str) -> None:
    """Each variable offers what there is, the value that the other tests choose included."""
    for variable in variables(BOARDS[name]).values():
        if variable["type"] != "query":
            continue
        series, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        parameters = urllib.parse.urlencode({"match[]": series})
        offered = moment.stack.prometheus(f"/api/v1/label/{label}/values?{parameters}")["data"]
        assert moment.values[variable["name"]] in offered


def test_the_table_of_workers_has_every_worker_in_every_column(moment: Moment) -> None:
    """The columns meet by the label `instance`: no worker is missing in one, none stands apart."""
    workers = {f"{container.address}:8000" for container in moment.stack.containers()}
    columns = [query for query in QUERIES if (query.board, query.place) == ("kronos-fleet", "Workers")]
    assert len(columns) == 10
    for column in columns:
        assert {sample["metric"]["instance"] for sample in moment.ask(column.expr)} == workers, column.legend


def test_shares_of_the_traffic_add_up(moment: Moment) -> None:
    """Nginx's tries are attributed to the workers, all of them and nobody else."""
    (shares,) = (query for query in QUERIES if (query.board, query.place) == ("kronos-fleet", "Share of the traffic"))
    samples = moment.ask(shares.expr)
    assert {sample["metric"]["upstream"] for sample in samples} == {f"{c.address}:8000" for c in moment.stack.containers()}
    assert sum(float(sample["value"][1]) for sample in samples) == pytest.approx(1, abs=1e-6)
