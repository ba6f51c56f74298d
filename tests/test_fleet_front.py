"""What nginx itself promises: identities, limits, its own errors, second tries, fair shares."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fleet.host import Answer
from tests.fleet.live import Live, ask, document, live, wait_until
from tests.fleet.stub import PREDICT


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("front") / "run") as found:
        code, said = found.up(4)
        assert code == 0, said
        yield found


@pytest.fixture(autouse=True)
def no_faults(fleet: Live) -> Iterator[None]:
    yield
    for worker in fleet.fleet.workers:
        fleet.fault(worker, "")


def post(fleet: Live, path: str = PREDICT, seed: int = 1, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(fleet.port, "POST", path, json.dumps(document(seed)).encode(), named)


def problem(answer: Answer, status: int) -> dict[str, Any]:
    """The document of one of nginx's own errors, whose form is checked here."""
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(answer.body)
    assert set(found) == {"type", "title", "status", "detail", "request_id"}
    assert found["status"] == status and found["type"].startswith("urn:kronos-fleet:problem:")
    assert found["request_id"] == answer.headers["x-request-id"]
    return found


def test_nginx_answers_healthz_itself(fleet: Live) -> None:
    """Liveness of the front door says nothing about, and asks nothing of, workers."""
    answer = ask(fleet.port, "GET", "/healthz")
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"})
    assert "x-served-by" not in answer.headers


def test_status_shows_what_each_worker_does(fleet: Live) -> None:
    """Every worker and nginx with their state; requests under way are seen as in flight, the question itself not."""
    code, said = fleet.cli("status")
    assert code == 0 and said.count(" ready ") == 5
    with fleet.load(users=4, pause=(0.0, 0.0), sleep=4.0):
        time.sleep(0.3)
        rows = json.loads(fleet.cli("status", "--json")[1])["processes"]
    assert sum(row["in_flight"] or 0 for row in rows) == 4
    assert [row["name"] for row in rows] == ["worker-1", "worker-2", "worker-3", "worker-4", "nginx"]


def test_logs_are_shown_by_name_and_by_number(fleet: Live) -> None:
    """The last lines, each with the name of who wrote it; an unknown name is a clear error."""
    code, said = fleet.cli("logs", "2", "-n", "3")
    assert code == 0 and [line.split(" | ")[0].rstrip() for line in said.splitlines()] == ["worker-2"] * 3
    assert fleet.cli("logs", "worker-2", "-n", "3") == (code, said)
    assert fleet.cli("logs", "9")[0] == 3


def test_metrics_are_not_public(fleet: Live) -> None:
    """The workers' numbers stay inside."""
    assert problem(ask(fleet.port, "GET", "/metrics"), 403)["title"] == "Not public"
    assert ask(fleet.worker(1).port, "GET", "/metrics").status == 200


def test_only_predictions_are_tried_twice(fleet: Live) -> None:
    """What may change something goes to one worker once, whatever that worker answers."""
    wait_until(lambda: post(fleet, "/v1/jobs").status != 502, 5)  # while nobody is left out for an earlier fault
    for worker in fleet.fleet.workers:
        fleet.fault(worker, "500")
    answer = post(fleet, "/v1/jobs", X_Request_ID="job")
    assert answer.status == 500
    assert "," not in fleet.logged("job")[-1]["upstream"]


@pytest.mark.parametrize("given, kept", [("abc-123_X.y:z", True), ("x" * 64, True), ("x" * 65, False), ("a b", False),
                                         ('"},{"', False), ("", False), (None, False)])  # fmt: skip
def test_the_request_id_is_kept_or_made(fleet: Live, given: str | None, kept: bool) -> None:
    """A plain id comes back and is logged; anything else is replaced, so that no client writes into our logs."""
    headers = {} if given is None else {"X-Request-ID": given}
    answer = ask(fleet.port, "POST", PREDICT, json.dumps(document(1)).encode(), headers)
    found = answer.headers["x-request-id"]
    assert (found == given) if kept else re.fullmatch("[0-9a-f]{32}", found)
    assert fleet.logged(found)


def test_the_access_log_tells_who_answered_and_how_long(fleet: Live) -> None:
    """Every line is JSON with the upstream's address, status and times."""
    answer = post(fleet, X_Request_ID="log-me")
    entry = fleet.logged("log-me")[-1]
    assert entry["served_by"] == answer.headers["x-served-by"]
    assert entry["path"] == PREDICT and entry["status"] == 200 and entry["upstream_status"] == "200"
    assert entry["upstream"] in {f"127.0.0.1:{worker.port}" for worker in fleet.fleet.workers}
    assert float(entry["upstream_seconds"]) <= entry["seconds"] + 0.01


def test_a_body_above_the_limit_is_refused(fleet: Live) -> None:
    """413 in the service's own form, before the body is taken."""
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=10) as client:
        client.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {17 * 2**20}\r\n\r\n".encode())
        said = client.recv(65536).decode()
    assert said.startswith("HTTP/1.1 413") and "application/problem+json" in said and "16 MiB" in said


def test_a_body_below_the_limit_passes_whole(fleet: Live) -> None:
    """Bodies larger than the buffer reach the worker unchanged."""
    large = {**document(1), "series_id": "x" * 3 * 2**20}
    answer = ask(fleet.port, "POST", PREDICT, json.dumps(large).encode())
    assert answer.status == 200 and json.loads(answer.body)["series_id"] == large["series_id"]


def test_not_http_and_long_headers_have_problem_documents(fleet: Live) -> None:
    """Also what no worker ever sees is answered in the one form of errors."""
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=10) as client:
        client.sendall(b"NONSENSE\r\n\r\n")
        said = client.recv(65536).decode()
    assert said.startswith("HTTP/1.1 400") and "Not HTTP" in said
    problem(ask(fleet.port, "GET", "/healthz", headers={"X-Long": "x" * 9000}), 431)
    problem(ask(fleet.port, "GET", "/" + "x" * 9000), 414)


@pytest.mark.parametrize("status", [429, 404, 422, 504])
def test_workers_refusals_pass_through_untouched(fleet: Live, status: int) -> None:
    """They are answers, not failures: same body, Retry-After and all, one try, nobody ejected."""
    for worker in fleet.fleet.workers:
        fleet.fault(worker, str(status))
    for _ in range(6):
        answer = post(fleet, X_Request_ID=f"refused-{status}")
        assert answer.status == status and json.loads(answer.body)["title"] == "the stub refuses"
        assert answer.headers.get("retry-after") == ("3" if status == 429 else None)
    refused = fleet.logged(f"refused-{status}", 6)
    assert all("," not in line["upstream"] for line in refused)
    assert len({line["upstream"] for line in refused}) > 1


@pytest.mark.parametrize("status", ["500", "503"])
def test_a_worker_that_fails_fast_is_left_out(fleet: Live, status: str) -> None:
    """Broken, or still loading: least_conn alone would send everything to it; clients see none of its failures,
    and it gets few tries."""
    fleet.fault(fleet.worker(1), status)
    before = len(fleet.access_log())
    with fleet.load(users=8) as traffic:
        time.sleep(1.5)
    assert traffic.failures == []
    address = f"127.0.0.1:{fleet.worker(1).port}"
    lines = fleet.access_log()[before:]
    tries = [line for line in lines if address in line["upstream"].split(", ")[0]]
    assert tries and all(line["status"] == 200 and "," in line["upstream"] for line in tries)
    assert len(tries) <= 8 + 3  # those in flight at the first failure, then one look every two seconds


@pytest.mark.parametrize("status", [500, 503])
def test_a_failure_of_everybody_is_a_worker_s_own_answer(fleet: Live, status: int) -> None:
    """When all workers fail, the client gets their answer, not a bare 502, and they are asked again at once."""
    for worker in fleet.fleet.workers:
        fleet.fault(worker, str(status))
    answers = [post(fleet) for _ in range(6)]
    assert {answer.status for answer in answers} == {status}
    assert {json.loads(answer.body)["title"] for answer in answers} == {"the stub refuses"}
    for worker in fleet.fleet.workers:
        fleet.fault(worker, "")
    assert post(fleet).status == 200


@pytest.mark.slow
def test_shares_are_fair_and_a_slow_worker_gets_less(fleet: Live) -> None:
    """least_conn over the shared zone: equal workers share equally, a slow one gets its part of the time only."""
    with fleet.load(users=12, pause=(0.0, 0.02)) as even:
        time.sleep(1.5)
    assert all(0.15 < share < 0.35 for share in even.shares().values()), even.shares()
    fleet.fault(fleet.worker(1), "slow:1")
    with fleet.load(users=12, pause=(0.0, 0.02)) as uneven:
        time.sleep(4)
    assert uneven.shares()["worker-1"] < 0.4 * 0.25, uneven.shares()
    assert even.failures == uneven.failures == []


@pytest.mark.parametrize("reloads", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_reloads_under_load_lose_nothing(fleet: Live, reloads: int) -> None:
    """Reload after reload while clients keep their connections busy and idle: no request fails."""
    nginx = fleet.fleet.nginx
    assert nginx is not None
    with fleet.load(users=8) as traffic:
        for _ in range(reloads):
            os.kill(nginx.pid, signal.SIGHUP)
            time.sleep(0.1)
    assert traffic.failures == []
