"""Asking for jobs over HTTP, and looking at what is kept of them.

Knows: the routes and the table. Does not know: what is promised.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

from app.settings import Settings
from tests.serving import Gate, Json, Server, gated, request, until, worker_of

JOBS = "/v1/jobs"


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(jobs_url=f"sqlite:{folder / 'jobs.db'}", **more)


def submitted(http: TestClient | httpx.Client, document: Json, **headers: str) -> str:
    """The path of a new job."""
    answer = http.post(JOBS, json=document, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def ended(http: TestClient | httpx.Client, path: str) -> Json:
    """The document of a job that has ended."""
    found: Json = {}

    def has_ended() -> bool:
        found.update(http.get(path, params={"wait": 5}).json())
        return "ended_at" in found

    assert until(has_ended), found
    return found


def kept(http: TestClient) -> int:
    """Jobs in the store."""
    path = worker_of(http.app).settings.jobs_url  # type: ignore[arg-type]
    return database(Path(str(path).removeprefix("sqlite:")).parent, "SELECT COUNT(*) FROM jobs")


def database(folder: Path, statement: str) -> int:
    """The number that a statement gives; 0 where it gives none or there is no table yet."""
    with sqlite3.connect(folder / "jobs.db", timeout=5) as found:
        row = None
        with suppress(sqlite3.OperationalError):  # no such table
            row = found.execute(statement).fetchone()
    found.close()
    return int(row[0]) if row else 0


@contextmanager
def gate(folder: Path, **more: Any) -> Iterator[tuple[httpx.Client, Gate, Server]]:
    """A worker whose model waits until it is let go, once it is warm."""
    with gated(settings(folder, **more)) as (running, held), httpx.Client(base_url=running.url, timeout=30) as http:
        held.runner.batches.clear()
        held.open.clear()
        yield http, held, running


def state(http: TestClient | httpx.Client, path: str) -> str:
    return str(http.get(path).json()["state"])


def sized(steps: int, seed: int = 1, **overrides: Any) -> Json:
    return request(overrides={"pred_len": steps, "seed": seed, **overrides})
