"""Jobs over HTTP with a real Valkey or Redis behind them: while it is away, when it comes back, when it says nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.api.keys import hash_of
from app.jobs import runner, webhooks
from app.settings import Settings
from examples.webhook_receiver import is_genuine
from tests.caching import ASKED, SINGLE
from tests.jobs.asking import JOBS, ended, sized, state, submitted
from tests.jobs.receivers import receiver
from tests.kv_server import WHY_NOT, KeyValueServer, black_hole, key_value_server
from tests.serving import client, gated, until

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
SECRET = "a-secret-of-many-characters"


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KeyValueServer]:
    """A server that keeps jobs."""
    with key_value_server("--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path)) as running:
        yield running


def test_any_worker_runs_and_tells_of_a_job(kv: KeyValueServer) -> None:
    """Submitted to one, known to all; what one route answers alone is what the job answers."""
    settings = Settings(prewarm=False, jobs_url=kv.url)
    with client(settings) as one, client(settings) as other:
        paths = [submitted(one, ASKED) for _ in range(5)]
        alone = one.post(SINGLE, json=ASKED).json()["prediction"]
        for path in paths:
            found = ended(other, path)
            assert (found["state"], found["result"]["prediction"]) == ("succeeded", alone)


def test_a_server_that_is_away_costs_jobs_only(kv: KeyValueServer) -> None:
    """503 with Retry-After, at once; predictions and readiness as before; jobs again when it is back."""
    with client(Settings(prewarm=False, jobs_url=kv.url)) as http:
        path = submitted(http, ASKED)
        ended(http, path)
        kv.kill()
        for _ in range(3):
            began = time.monotonic()
            refused = http.post(JOBS, json=ASKED)
            assert time.monotonic() - began < 1.5  # a silent server is given two
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert http.get(path).status_code == 503 and http.delete(path).status_code == 503
            assert http.post(SINGLE, json=sized(4)).status_code == 200
            assert http.get("/readyz").status_code == 200
        kv.start()
        assert http.get(path).json()["state"] == "succeeded"
        assert ended(http, submitted(http, ASKED))["state"] == "succeeded"


def test_a_job_that_runs_while_the_server_is_away_ends_once(kv: KeyValueServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on, and its end is told when the server is back: not computed twice, not lost."""
    monkeypatch.setattr(runner, "AGAIN_S", 0.1)
    with gated(Settings(jobs_url=kv.url)) as (running, held), httpx.Client(base_url=running.url, timeout=30) as http:
        held.open.clear()
        path = submitted(http, sized(5))
        assert until(lambda: state(http, path) == "running")
        kv.kill()
        held.open.set()
        time.sleep(0.5)
        assert http.get(path).status_code == 503
        kv.start()
        found = ended(http, path)
        assert (found["state"], found["attempts"]) == ("succeeded", 1)


@pytest.mark.slow
def test_a_silent_server_holds_up_nobody_else() -> None:
    """It accepts and never answers: submissions are told in time, predictions do not wait, leaving does not either."""
    with black_hole() as hole:
        with client(Settings(prewarm=False, jobs_url=hole.url)) as http:
            began = time.monotonic()
            assert http.post(JOBS, json=ASKED).status_code == 503
            assert time.monotonic() - began < 3
            began = time.monotonic()
            for seed in range(5):
                assert http.post(SINGLE, json=sized(4, seed)).status_code == 200
            assert time.monotonic() - began < 5  # to wait for the server each time would take ten
            leaving = time.monotonic()
        assert time.monotonic() - leaving < 6
        assert hole.accepted


def test_a_server_that_would_evict_jobs_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Clients see 503; the operator reads which setting of the server is wrong."""
    options = ("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    with key_value_server(*options) as cache, client(Settings(prewarm=False, jobs_url=cache.url)) as http:
        assert http.post(JOBS, json=ASKED).status_code == 503
    assert any("allkeys-lru" in record.getMessage() for record in caplog.records)


def test_the_end_of_a_job_is_told(kv: KeyValueServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the submission to the receiver: signed, with the job's document, soon after its end."""
    monkeypatch.setattr(webhooks, "LOOK_S", 0.05)
    with receiver() as there:
        settings = Settings(prewarm=False, jobs_url=kv.url, webhook_targets=there.place, webhook_secrets=SECRET)
        with client(settings) as http:
            path = submitted(http, {**ASKED, "webhook": there.place + "/done"})
            found = ended(http, path)
            assert until(lambda: len(there.calls) == 1)
            cancelled = submitted(http, {**sized(400), "webhook": there.place})
            http.delete(cancelled)
            assert until(lambda: len(there.calls) == 2)
            refused = http.post(JOBS, json={**ASKED, "webhook": "http://127.0.0.1:1/"})
            assert refused.status_code == 422 and refused.json()["errors"][0]["pointer"] == "/webhook"
    told = [json.loads(call.body) for call in there.calls]
    assert all(is_genuine(call.headers, call.body, SECRET) for call in there.calls)
    assert told[0] == {name: value for name, value in found.items() if name != "result"}
    assert f"{JOBS}/{told[1]['task_id']}" == cancelled and told[1]["state"] in ("cancelled", "succeeded")


def test_a_job_belongs_to_its_key(kv: KeyValueServer) -> None:
    """With keys set: nobody without one, and another valid key sees nothing of it."""
    mine, theirs = {"Authorization": "Bearer mine"}, {"X-API-Key": "theirs"}
    keys = f"{hash_of('mine')},{hash_of('theirs')}"
    with client(Settings(prewarm=False, jobs_url=kv.url, api_keys=keys)) as http:
        assert http.post(JOBS, json=ASKED).status_code == 401
        path = http.post(JOBS, json=ASKED, headers=mine).headers["location"]
        assert [http.get(path, headers=headers).status_code for headers in ({}, theirs, mine)] == [401, 404, 200]
        assert [http.delete(path, headers=headers).status_code for headers in ({}, theirs)] == [401, 404]
