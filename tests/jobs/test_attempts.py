"""Attempts at jobs: how far, until when, and what becomes of a job whose worker leaves, dies or fails."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.jobs import runner
from app.jobs.sqlite_file import SqliteFile
from app.jobs.store import Claim
from tests.caching import ASKED, SINGLE, value
from tests.fakes import FakeRunner
from tests.jobs.asking import JOBS, database, ended, gate, settings, sized, state, submitted
from tests.serving import client, engine_of, idle, request, server, until, worker_of


def test_a_job_tells_how_far_it_is(tmp_path: Path) -> None:
    """Steps done while it runs, and all of them at the end."""
    with gate(tmp_path) as (http, held, _):
        held.open.set()
        held.delay_s = 0.01
        path = submitted(http, sized(400))
        seen: list[int] = []

        def enough() -> bool:
            seen.append(http.get(path).json()["progress"]["done"])
            return len([done for done in set(seen) if 0 < done < 400]) >= 2

        assert until(enough) and seen == sorted(seen)
        held.delay_s = 0
        assert ended(http, path)["progress"] == {"done": 400, "total": 400}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_running_job_really_stops(tmp_path: Path, elsewhere: bool) -> None:
    """Within about a second, whichever worker is asked, the engine has nothing left of it."""
    with gate(tmp_path) as (http, held, running), server(settings(tmp_path)) as second:
        worker_of(second.app).leaving = True  # it only answers
        path = submitted(http, sized(400, sample_count=8))
        assert until(lambda: engine_of(running.app).stats().slots_busy > 0)
        held.open.set()
        held.delay_s = 0.02  # 400 steps of 2 rounds: many seconds
        with httpx.Client(base_url=second.url if elsewhere else running.url) as asked:
            began = time.monotonic()
            assert asked.delete(path).status_code == 202
            assert until(idle(running)) and time.monotonic() - began < 3
            assert ended(asked, path)["state"] == "cancelled"
            assert asked.delete(path).status_code == 200


def test_a_queued_job_never_runs_once_cancelled(tmp_path: Path) -> None:
    """DELETE before its turn: 200, cancelled, and the model has not seen it."""
    with gate(tmp_path, slots=1) as (http, held, _):
        first = submitted(http, sized(10))
        assert until(lambda: state(http, first) == "running")
        second = submitted(http, sized(11))
        answer = http.delete(second)
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        held.open.set()
        assert ended(http, first)["state"] == "succeeded" and state(http, second) == "cancelled"
        assert len(held.runner.batches) == 10


def test_a_worker_that_leaves_gives_its_jobs_back(tmp_path: Path) -> None:
    """At once, the attempt not counted; the engine lets go, and another worker answers."""
    with gate(tmp_path) as (http, held, running):
        path = submitted(http, sized(400))
        assert until(lambda: state(http, path) == "running")
        held.open.set()
        held.delay_s = 0.05
        worker_of(running.app).leaving = True
        assert until(lambda: state(http, path) == "queued", 3)
        assert http.get(path).json()["attempts"] == 0 and until(idle(running))
        with server(settings(tmp_path)) as second, httpx.Client(base_url=second.url) as asked:
            assert (ended(asked, path)["state"], state(http, path)) == ("succeeded", "succeeded")


def test_a_claim_under_way_when_a_worker_leaves_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has given the job and the worker has not heard of it yet: it is not nobody's until the claim runs out."""
    with gate(tmp_path) as (http, held, running):
        held.open.set()
        store = worker_of(running.app).desk.runner._store  # type: ignore[union-attr]
        claim = store.claim

        async def late(most: int) -> list[Claim]:
            found = await claim(most)
            await asyncio.sleep(1 if found else 0)
            return found

        monkeypatch.setattr(store, "claim", late)
        path = submitted(http, sized(30))
        assert until(lambda: state(http, path) == "running")
    with server(settings(tmp_path)) as second, httpx.Client(base_url=second.url) as asked:
        found = ended(asked, path)
        assert (found["state"], found["attempts"]) == ("succeeded", 1)


@pytest.mark.slow
def test_a_job_in_a_dead_worker_is_run_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No heartbeat for the visibility: somebody else begins anew, and what the first one says later does not count."""
    with gate(tmp_path, jobs_visibility=2) as (http, held, running):
        path = submitted(http, sized(30, seed=5))
        assert until(lambda: state(http, path) == "running")
        store = worker_of(running.app).desk.runner._store  # type: ignore[union-attr]
        monkeypatch.setattr(store, "heartbeat", silent)
        monkeypatch.setattr(store, "claim", nothing)
        with server(settings(tmp_path, jobs_visibility=2)) as second, httpx.Client(base_url=second.url) as asked:
            found = ended(asked, path)
            assert (found["state"], found["attempts"]) == ("succeeded", 2)
            held.open.set()
            assert until(idle(running))
            time.sleep(0.2)
            assert ended(asked, path) == found


async def silent(beats: Any) -> dict[str, str]:
    return {}


async def nothing(most: int) -> list[Claim]:
    return []


@pytest.mark.slow
def test_a_worker_may_take_up_its_own_lost_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first attempt stops, whose end leaves the second one its heartbeats: no third is begun."""
    with gate(tmp_path, jobs_visibility=2) as (http, held, running):
        jobs = worker_of(running.app).desk.runner  # type: ignore[union-attr]
        beat = jobs._store.heartbeat
        monkeypatch.setattr(jobs._store, "heartbeat", silent)
        path = submitted(http, sized(30))
        assert until(lambda: http.get(path).json()["attempts"] == 2)
        monkeypatch.setattr(jobs._store, "heartbeat", beat)
        assert until(lambda: len(jobs._tasks) == len(jobs.running) == 1)
        time.sleep(2.5)  # more than the visibility
        held.open.set()
        found = ended(http, path)
        assert (found["state"], found["attempts"]) == ("succeeded", 2) and until(lambda: not jobs.running)


def test_a_job_that_no_worker_survives_fails_with_a_reason(tmp_path: Path) -> None:
    """After the attempts allowed it is not run again; its problem says why."""
    dead = value("kronos_jobs_attempts_total", outcome="dead")
    with gate(tmp_path, jobs_attempts=2) as (http, held, _):
        path = submitted(http, ASKED)
        assert until(lambda: state(http, path) == "running")
        database(tmp_path, "UPDATE jobs SET attempts = 2, state = 'queued', token = NULL")
        found = ended(http, path)
        assert (found["state"], found["error"]["type"]) == ("failed", "urn:kronos-fleet:problem:job-abandoned")
        assert "2 attempts" in found["error"]["detail"] and "result" not in found
        assert found["error"]["request_id"] == found["request_id"]
        assert value("kronos_jobs_attempts_total", outcome="dead") == dead + 1
        held.open.set()


def test_a_job_on_which_the_model_fails_is_tried_again(tmp_path: Path) -> None:
    """It may be this worker's own fault; the last attempt tells that it was not."""

    def fail(name: str) -> None:
        if name == "detokenise":
            raise RuntimeError("the secret reason")

    with server(settings(tmp_path, jobs_attempts=2, jobs_visibility=1, prewarm=False), FakeRunner(on_errand=fail)) as running:
        with httpx.Client(base_url=running.url) as http:
            found = ended(http, submitted(http, ASKED))
        assert (found["state"], found["attempts"]) == ("failed", 2)
        assert found["error"]["type"].endswith("engine-failed") and "secret" not in str(found)


@pytest.mark.slow
def test_a_job_has_a_time_for_an_attempt_and_a_time_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` passed: failed with 504's problem. `ttl` passed: expired, also if nobody sweeps. The work has stopped."""
    monkeypatch.setattr(runner, "SWEEP_S", 60.0)
    with gate(tmp_path) as (http, held, running):
        held.open.set()
        held.delay_s = 0.05
        late = ended(http, submitted(http, sized(400) | {"timeout": 0.3}))
        assert (late["state"], late["error"]["status"]) == ("failed", 504)
        old = ended(http, submitted(http, sized(400) | {"ttl": 2}))
        assert old["state"] == "expired" and "error" not in old
        assert until(idle(running))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Somebody else holds the write lock."""
    other = sqlite3.connect(folder / "jobs.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    yield
    other.close()


@contextmanager
def torn(folder: Path) -> Iterator[None]:
    """The file is none of a database."""
    (folder / "jobs.db").write_bytes(b"not a database, not at all" * 200)
    yield


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """The disk has no room for another page."""
    connect = SqliteFile._connect

    def connect_small(self: SqliteFile) -> sqlite3.Connection:
        db = connect(self)
        db.execute("PRAGMA max_page_count = 1")  # as few as there are
        return db

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SqliteFile, "_connect", connect_small)
        yield


@pytest.mark.parametrize("trouble", [locked, torn, full])
def test_a_store_in_trouble_costs_jobs_only(
    tmp_path: Path, trouble: Callable[[Path], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After for jobs; every prediction is answered as before."""
    monkeypatch.setattr("app.jobs.sqlite_file.BUSY_S", 0.2)
    with trouble(tmp_path), client(settings(tmp_path)) as http:
        refused = http.post(JOBS, json=request(200))
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["type"] == "urn:kronos-fleet:problem:jobs-unavailable"
        assert "jobs.db" not in refused.text
        for seed in range(5):
            assert http.post(SINGLE, json=request(10, overrides={"pred_len": 4, "seed": seed})).status_code == 200


def test_an_end_waits_for_a_store_that_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result is not lost because the store was locked when it was ready; the job is not run twice for that."""
    monkeypatch.setattr("app.jobs.sqlite_file.BUSY_S", 0.1)
    monkeypatch.setattr(runner, "AGAIN_S", 0.1)
    with gate(tmp_path) as (http, held, _):
        path = submitted(http, sized(5))
        assert until(lambda: state(http, path) == "running")
        with locked(tmp_path):
            held.open.set()
            time.sleep(0.5)
        found = ended(http, path)
        assert (found["state"], found["attempts"]) == ("succeeded", 1)
