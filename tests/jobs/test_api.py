"""Jobs over HTTP: the real application and engine around a fake model."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.jobs import runner, watch
from tests.caching import ASKED, BATCH, EMBED, OWN, SINGLE, lasting, value
from tests.jobs.asking import JOBS, database, ended, gate, kept, settings, sized, state, submitted
from tests.serving import Json, client, request, until, worker_of

SERIES = {name: ASKED[name] for name in ("candles", "timestamps")}
KINDS = {
    SINGLE: ASKED,
    BATCH: {"items": [ASKED, request(12, overrides={"pred_len": 2, "seed": 1}), {"candles": []}]},
    EMBED: SERIES,
}


@pytest.fixture
def http(tmp_path: Path) -> Iterator[TestClient]:
    with client(settings(tmp_path)) as ready:
        yield ready


def without_own(document: Json) -> Json:
    """A prediction's answer without what is its own request's, also in its items."""
    rest = {name: value for name, value in document.items() if name not in OWN}
    return rest | {"items": [without_own(item.get("error", item)) for item in rest["items"]]} if "items" in rest else rest


@pytest.mark.parametrize("route", KINDS)
def test_a_job_answers_what_its_route_answers(http: TestClient, route: str) -> None:
    """Single, batch with an item that fails, embedding: the same numbers, warnings, versions and errors."""
    job = KINDS[route] | ({"kind": "embedding"} if route == EMBED else {})
    found = ended(http, submitted(http, job))
    assert (found["state"], found["attempts"]) == ("succeeded", 1)
    assert found["progress"]["done"] == found["progress"]["total"] > 0
    direct = http.post(route, json=KINDS[route])
    assert without_own(found["result"]) == without_own(direct.json())
    assert found["result"]["request_id"] == found["request_id"]


def test_several_embeddings_are_a_job(http: TestClient) -> None:
    """`kind` and `items` together."""
    found = ended(http, submitted(http, {"kind": "embedding", "items": [SERIES, SERIES]}))
    assert lasting(http.post(EMBED, json=SERIES))["embedding"] == found["result"]["items"][1]["embedding"]


WRONG: dict[str, tuple[str, Any]] = {
    "no candles": (SINGLE, {"candles": []}),
    "unknown field": (SINGLE, ASKED | {"wait": 3}),
    "too long": (SINGLE, ASKED | {"overrides": {"pred_len": 10_000}}),
    "too much work": (SINGLE, ASKED | {"overrides": {"pred_len": 500, "sample_count": 100}}),
    "all items": (BATCH, {"items": [{"candles": []}, {}]}),
    "no object": (SINGLE, [1]),
    "bad batch": (BATCH, {"items": []}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_its_route_refuses_is_refused_at_submission(http: TestClient, name: str) -> None:
    """With the same problem, before anything is kept."""
    route, document = WRONG[name]
    refused, direct = http.post(JOBS, json=document), http.post(route, json=document)
    assert refused.status_code == direct.status_code == 422
    told = [{key: value for key, value in answer.json().items() if key != "request_id"} for answer in (refused, direct)]
    assert told[0] == told[1]
    assert kept(http) == 0


def test_terms_of_a_job_are_checked(http: TestClient) -> None:
    """Bounds, names and headers, each with a pointer where there is one."""
    terms: list[tuple[Json, str]] = [
        ({"ttl": 10**6}, "/ttl"), ({"ttl": 0}, "/ttl"), ({"timeout": 601}, "/timeout"), ({"kind": "both"}, "/kind"),
        ({"priority": "urgent"}, "/priority"), ({"webhook": "https://elsewhere.example/"}, "/webhook"),
    ]  # fmt: skip
    for term, pointer in terms:
        answer = http.post(JOBS, json=ASKED | term)
        assert (answer.status_code, [each["pointer"] for each in answer.json()["errors"]]) == (422, [pointer])
    for headers in ({"idempotency-key": "two words"}, {"idempotency-key": ""}, {"idempotency-key": "x" * 300}):
        assert http.post(JOBS, json=ASKED, headers=headers).status_code == 422
    assert http.post(JOBS, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert http.post(JOBS, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    path = submitted(http, ASKED)
    for wait in ("-1", "31", "1e1", "soon", ""):
        assert http.get(path, params={"wait": wait}).status_code == 422
    assert kept(http) == 1


def test_a_body_has_a_longest_length(tmp_path: Path) -> None:
    """As for predictions."""
    with client(settings(tmp_path, max_body=1024)) as http:
        assert http.post(JOBS, json=request(100)).status_code == 413


def test_an_idempotency_key_makes_one_job_of_two_submissions(http: TestClient) -> None:
    """Bare or quoted; with another body it is refused, and the first job is untouched."""
    path = submitted(http, ASKED, **{"idempotency-key": "k-1"})
    again = http.post(JOBS, json=ASKED, headers={"idempotency-key": '"k-1"'})
    assert (again.status_code, f"{JOBS}/{again.json()['task_id']}") == (200, path)
    other = http.post(JOBS, json=ASKED | {"ttl": 9}, headers={"idempotency-key": "k-1"})
    assert (other.status_code, other.json()["type"]) == (422, "urn:kronos-fleet:problem:key-reused")
    assert kept(http) == 1


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    """429 with Retry-After, counted; a submission that is known already is still found."""
    with gate(tmp_path, jobs_max_waiting=2, slots=4) as (http, held, _):
        before = value("kronos_rejected_total", reason="jobs")
        busy = []
        for seed in range(4):
            busy.append(submitted(http, sized(400, seed=seed)))
            assert until(lambda: state(http, busy[-1]) == "running")
        known = [submitted(http, ASKED, **{"idempotency-key": f"{number}"}) for number in range(2)]
        refused = http.post(JOBS, json=ASKED)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert value("kronos_rejected_total", reason="jobs") == before + 1
        assert http.post(JOBS, json=ASKED, headers={"idempotency-key": "1"}).status_code == 200
        assert [http.get(path).json()["position"] for path in known] == [0, 1]
        held.open.set()
        assert [ended(http, path)["state"] for path in (*busy, *known)] == ["succeeded"] * 6


def test_jobs_are_their_owners(tmp_path: Path) -> None:
    """With API keys, a job is there only for the key that made it, and ids say nothing about each other."""
    hashes = ",".join(hashlib.sha256(key.encode()).hexdigest() for key in ("one", "two"))
    one, two = {"x-api-key": "one"}, {"authorization": "Bearer two"}
    with client(settings(tmp_path, api_keys=hashes)) as http:
        path = submitted(http, ASKED, **one, **{"idempotency-key": "k"})
        assert http.get(path, headers=one).status_code == 200
        assert [http.get(path, headers=two).status_code, http.delete(path, headers=two).status_code] == [404, 404]
        assert http.get(path).status_code == 401
        assert submitted(http, ASKED, **two, **{"idempotency-key": "k"}) != path
        made_up = path[:-1] + ("A" if path[-1] != "A" else "B")
        assert http.get(made_up, headers=one).json()["type"] == http.get(path, headers=two).json()["type"]
    assert len(path.rpartition("/")[2]) >= 22  # of 64 letters: at least 128 bits


def test_a_long_poll_ends_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by looking again and again: the answer comes when the job ends, and at the latest when it was asked for."""
    monkeypatch.setattr(watch, "LOOK_S", 30.0)
    with gate(tmp_path) as (http, held, _):
        path = submitted(http, sized(5))
        assert until(lambda: state(http, path) == "running")
        began = time.monotonic()
        assert http.get(path, params={"wait": 0.3}).json()["state"] == "running"
        assert 0.3 <= time.monotonic() - began < 5
        threading.Timer(0.2, held.open.set).start()
        assert http.get(path, params={"wait": 20}).json()["state"] == "succeeded"
        assert time.monotonic() - began < 10


def test_a_long_poll_does_not_hold_up_a_worker_that_leaves(tmp_path: Path) -> None:
    """It is answered with the job as it stands."""
    with gate(tmp_path, slots=1) as (http, held, running):
        submitted(http, sized(10))
        second = submitted(http, sized(11))
        threading.Timer(0.2, setattr, (worker_of(running.app), "leaving", True)).start()
        began = time.monotonic()
        assert http.get(second, params={"wait": 20}).json()["state"] == "queued"
        assert time.monotonic() - began < 5
        held.open.set()


def test_without_a_store_there_are_no_jobs() -> None:
    """501 that names the setting, and nothing else is different."""
    with client() as http:
        for answer in (http.post(JOBS, json=ASKED), http.get(f"{JOBS}/x"), http.delete(f"{JOBS}/x")):
            assert (answer.status_code, "KRONOS_JOBS_URL" in answer.text) == (501, True)
        assert http.post(SINGLE, json=ASKED).status_code == 200


def test_a_second_file_layout_is_refused(tmp_path: Path) -> None:
    """A worker of another version does not write into what it does not know."""
    with sqlite3.connect(tmp_path / "jobs.db") as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with client(settings(tmp_path)) as http:
        assert http.post(JOBS, json=ASKED).status_code == 503


def test_requests_and_answers_are_their_owners_on_disk_too(http: TestClient, tmp_path: Path) -> None:
    """Nobody else on the host may read the file; the request is dropped from it when it is answered."""
    ended(http, submitted(http, ASKED))
    assert {path.stat().st_mode & 0o77 for path in tmp_path.glob("jobs.db*")} == {0}
    assert database(tmp_path, "SELECT COUNT(*) FROM documents WHERE document LIKE '%\"candles\"%'") == 0


def test_the_log_does_not_hold_the_ids_of_jobs(http: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """Without API keys an id is all that is needed to read a job, so it is not for those who read logs."""
    with caplog.at_level("DEBUG"):
        path = submitted(http, ASKED)
        ended(http, path)
        http.delete(path)
    lines = [record.getMessage() for record in caplog.records if record.name == "app.access"]
    assert len(lines) >= 3 and "GET /v1/jobs/{task_id} 200" in lines
    assert path.rpartition("/")[2] not in "".join(f"{record.__dict__}" for record in caplog.records if record.name[:4] == "app.")


@pytest.mark.slow
def test_the_metrics_tell_of_jobs(http: TestClient) -> None:
    """Submissions, attempts, seconds, and what the store holds."""
    new, done = value("kronos_jobs_submitted_total", outcome="new"), value("kronos_jobs_attempts_total", outcome="succeeded")
    seconds = value("kronos_jobs_seconds_count", part="running")
    ended(http, submitted(http, ASKED))
    assert value("kronos_jobs_submitted_total", outcome="new") == new + 1
    assert value("kronos_jobs_attempts_total", outcome="succeeded") == done + 1
    assert value("kronos_jobs_seconds_count", part="running") == seconds + 1
    assert until(lambda: value("kronos_jobs", state="succeeded") == 1, runner.SWEEP_S + 5)
