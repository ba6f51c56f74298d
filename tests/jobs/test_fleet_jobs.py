"""1,000 jobs over real worker processes that are killed twenty times: all finished, none lost, none wrong (fault F13)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.fleet import Judge, ask_alone, bodies
from benchmarks.users import Request
from fleet.host import Machine
from tests.fleet.live import Live, live, wait_until
from tests.kv_server import WHY_NOT, key_value_server

pytestmark = pytest.mark.slow

WORKERS, JOBS, KILLS = 3, 1000, 20
VISIBILITY_S = 2
PATIENCE_S = 500.0
STUCK_S = 20.0
"""Without any job ending for so long, no more will: several times the visibility and a worker's start."""
OLDEST = 50
"""So many of those that have not ended are asked for in turn; the queue is in order."""


@dataclass
class Backend:
    """Where a fleet keeps its jobs: its settings, and what a restart of the server is."""

    settings: dict[str, str]
    restart: Callable[[], None]


@contextmanager
def sqlite(folder: Path) -> Iterator[Backend]:
    """What `make up` has without any setting; there is no server to restart."""
    yield Backend({}, lambda: None)


@contextmanager
def redis(folder: Path) -> Iterator[Backend]:
    """A server that is killed in the middle and comes back a second later, with what it wrote to its file."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    (folder / "kept").mkdir()
    with key_value_server("--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder / "kept")) as server:

        def restart() -> None:
            server.kill()
            time.sleep(1)
            server.start()

        yield Backend({"KRONOS_JOBS_URL": server.url}, restart)


BACKENDS: dict[str, Callable[[Path], AbstractContextManager[Backend]]] = {"sqlite": sqlite, "redis": redis}


class Jobs:
    """A client that never gives up, and knows what each answer should be."""

    def __init__(self, fleet: Live, asked: Sequence[Request]) -> None:
        self.fleet = fleet
        self.asked = asked
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{fleet.port}", timeout=60)
        self.paths: list[str] = []
        self.documents: dict[str, dict[str, Any]] = {}

    def submit(self, count: int) -> None:
        """``count`` more jobs, each until the fleet has it."""
        for number in range(len(self.paths), len(self.paths) + count):
            headers = {"content-type": "application/json", "idempotency-key": f"job-{number}"}
            document = self._until_ok("POST", "/v1/jobs", content=self.asked[number % len(self.asked)].body, headers=headers)
            self.paths.append(f"/v1/jobs/{document['task_id']}")

    def kill(self, number: int) -> None:
        """Kill -9 a worker in the midst of a job."""
        worker = self.fleet.fleet.workers[number % WORKERS]
        wait_until(lambda: runs_jobs(worker.port), 60)
        os.kill(self.fleet.child(worker), signal.SIGKILL)

    def wait(self) -> None:
        """Until all have ended, or nothing ends any more."""
        end, last = time.monotonic() + PATIENCE_S, time.monotonic()
        while len(self.documents) < len(self.paths) and time.monotonic() < min(end, last + STUCK_S):
            for path in [path for path in self.paths if path not in self.documents][:OLDEST]:
                if "ended_at" in (found := self._until_ok("GET", path)):
                    self.documents[path], last = found, time.monotonic()
            time.sleep(0.2)

    def tally(self) -> dict[str, int]:
        """Jobs by what became of them; ``wrong``: succeeded with another answer than the same request got alone."""
        return dict(Counter(self._became(number, self.documents.get(path)) for number, path in enumerate(self.paths)))

    def _became(self, number: int, document: dict[str, Any] | None) -> str:
        if document is None:
            return "lost"
        if document["state"] != "succeeded":
            return str(document["state"])
        check = self.asked[number % len(self.asked)].check
        return "wrong" if check(json.dumps(document["result"]).encode()) else "right"

    def _until_ok(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        end = time.monotonic() + 60
        while True:
            try:
                answer = self.http.request(method, path, **more)
                if answer.status_code in (200, 202):
                    document: dict[str, Any] = answer.json()
                    return document
                assert answer.status_code in (429, 502, 503, 504), answer.text
            except httpx.TransportError:
                pass
            assert time.monotonic() < end, f"no answer to {method} {path} for a minute"
            time.sleep(0.2)


def runs_jobs(port: int) -> bool:
    return figure(port, "kronos_jobs_running") > 0


def figure(port: int, name: str) -> float:
    """What a worker's metrics say; 0 for nothing."""
    answer = Machine().get("127.0.0.1", port, "/metrics")
    lines = answer.body.decode().splitlines() if answer else []
    return sum(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextmanager
def fleet_of_jobs(folder: Path, backend: Backend, visibility_s: int, paths: int = 16) -> Iterator[Jobs]:
    """A fleet of its own, and a client that knows the answers."""
    with live(folder / "run", app=()) as fleet:
        code, said = fleet.up(WORKERS, env={**backend.settings, "KRONOS_JOBS_VISIBILITY": f"{visibility_s}"})
        assert code == 0, said
        asked = requests(40, paths)
        alone = asyncio.run(ask_alone("127.0.0.1", fleet.port, asked))
        client = Jobs(fleet, [Judge().request(body, answer) for body, answer in zip(asked, alone, strict=True)])
        with client.http:
            yield client


def campaign(folder: Path, backend: Backend, jobs: int, kills: int, visibility_s: int) -> Jobs:
    """Jobs for a fleet whose workers are killed one after the other while it is at work."""
    with fleet_of_jobs(folder, backend, visibility_s) as client, ThreadPoolExecutor(1) as submitter:
        submitting = submitter.submit(client.submit, jobs)
        for number in range(kills):
            client.kill(number)
            if number == kills // 2:
                backend.restart()
        submitting.result()
        client.wait()
    return client


def requests(different: int, paths: int) -> list[bytes]:
    """Forecasts; with 16 paths they take a tenth of a second or so: with 1,000 of them there is always one to kill."""
    documents = [json.loads(body) for body in bodies(lookback=100, horizon=120, different=different)]
    for document in documents:
        document["overrides"]["sample_count"] = paths
    return [json.dumps(document).encode() for document in documents]


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.timeout(1000)
def test_no_job_is_lost_or_answered_wrongly(kind: str, tmp_path: Path) -> None:
    """Every job ends, once, with the answer that the same request got alone, whatever was killed meanwhile."""
    with BACKENDS[kind](tmp_path) as backend:
        client = campaign(tmp_path, backend, JOBS, KILLS, VISIBILITY_S)
    assert client.tally() == {"right": JOBS}
    # not the number of jobs: where workers start slowly the same jobs are killed again
    again = sum(document["attempts"] - 1 for document in client.documents.values())
    print(f"{kind}: {JOBS} jobs, {KILLS} kills, {again} attempts begun again")
    assert again >= KILLS // 2


@pytest.mark.timeout(600)
def test_workers_that_stood_still_change_nothing(tmp_path: Path) -> None:
    """SIGSTOP in the midst of jobs until others have done them, then SIGCONT: late work is given up, every job has one right
    answer."""
    with fleet_of_jobs(tmp_path, Backend({}, lambda: None), VISIBILITY_S) as client, ThreadPoolExecutor(1) as submitter:
        submitting = submitter.submit(client.submit, 100)
        still = client.fleet.fleet.workers[:2]
        for worker in still:
            wait_until(partial(runs_jobs, worker.port), 60)
            os.kill(client.fleet.child(worker), signal.SIGSTOP)
        time.sleep(2 * VISIBILITY_S)  # less than gunicorn's patience
        for worker in still:
            os.kill(client.fleet.child(worker), signal.SIGCONT)
        submitting.result()
        client.wait()
        lost = sum(figure(worker.port, 'kronos_jobs_attempts_total{outcome="lost"}') for worker in still)
    assert client.tally() == {"right": 100}
    assert lost > 0 and any(document["attempts"] > 1 for document in client.documents.values())


@pytest.mark.timeout(600)
def test_without_visibility_jobs_would_be_lost(tmp_path: Path) -> None:
    """The control: claims that never run out stay with the dead, and the tally sees that."""
    client = campaign(tmp_path, Backend({}, lambda: None), jobs=60, kills=3, visibility_s=3600)
    tally = client.tally()
    assert tally["lost"] > 0 and tally["lost"] + tally["right"] == 60


@pytest.mark.timeout(600)
def test_a_roll_costs_no_job_an_attempt(tmp_path: Path) -> None:
    """Every worker is replaced while jobs run that take longer than its leaving: each gives its own back at once, and none waits
    for a claim to run out."""
    rolled, usual = threading.Event(), Backend({}, lambda: None)
    with fleet_of_jobs(tmp_path, usual, visibility_s=3600, paths=64) as client, ThreadPoolExecutor(1) as submitter:

        def keep_busy() -> None:
            while not rolled.wait(0.2):  # more than three workers on two cores can do
                client.submit(1)

        submitting = submitter.submit(keep_busy)
        try:
            wait_until(lambda: len(client.paths) > 10, 60)
            code, said = client.fleet.cli("roll")
        finally:
            rolled.set()
        assert code == 0, said
        submitting.result()
        client.wait()
    assert client.tally() == {"right": len(client.paths)}
    assert {document["attempts"] for document in client.documents.values()} == {1}
    assert any('"job released"' in log.read_text() for log in (tmp_path / "run" / "logs").glob("worker-*"))
