"""The HTTP side: ids, headers, refusals by header, state routes, the log line."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import cast

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from app.api import state
from app.api.state import Served, Worker
from app.errors import PROBLEM_MEDIA_TYPE, KronosError, NotReady
from app.logs import JsonFormatter
from app.settings import Settings
from tests.serving import application, client, request, worker_of

SINGLE = "/v1/predict/single"


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with client(Settings(worker_name="worker-7", max_body=100_000)) as ready:
        yield ready


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/nowhere"])
def test_every_answer_names_request_worker_and_time(http: TestClient, path: str) -> None:
    """X-Request-ID, X-Served-By and Server-Timing are on every answer, errors included."""
    answer = http.get(path, headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["x-served-by"] == "worker-7"
    assert "total;dur=" in answer.headers["server-timing"]


def test_a_request_id_is_made_when_absent(http: TestClient) -> None:
    """Two requests without an id get two."""
    first, second = (http.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second and len(first) >= 16


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>", "a\tb", "naïve".encode("latin-1")])
def test_a_request_id_that_could_harm_a_log_is_replaced(http: TestClient, given: str | bytes) -> None:
    """Odd characters and lengths do not reach log lines or answers."""
    answer = http.get("/healthz", headers={b"x-request-id": given.encode() if isinstance(given, str) else given})
    assert answer.headers["x-request-id"].isalnum()


def test_the_answer_carries_its_request_id_in_the_body_too(http: TestClient) -> None:
    """The id can be found again in a stored answer."""
    document = request(overrides={"pred_len": 1})
    assert http.post(SINGLE, json=document, headers={"x-request-id": "abc-1"}).json()["request_id"] == "abc-1"


def test_unknown_paths_and_methods_are_problems(http: TestClient) -> None:
    """404 and 405 are told in the house's form; 405 says what is allowed."""
    missing, wrong = http.get("/v2/predict"), http.get(SINGLE)
    assert (missing.status_code, missing.json()["type"][-9:]) == (404, "not-found")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert http.post(SINGLE + "/", json={}).status_code == 404, "no redirects: a POST would lose its body"


@pytest.mark.parametrize(
    "headers",
    [{"content-type": "text/csv"}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": ""},
     {"content-type": "application/json", "content-encoding": "gzip"}],
)  # fmt: skip
def test_other_media_types_are_refused(http: TestClient, headers: dict[str, str]) -> None:
    """415 for anything but plain JSON."""
    answer = http.post(SINGLE, content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"] or "compressed" in answer.json()["detail"]


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_known_by_any_spelling(http: TestClient, media_type: str) -> None:
    """Parameters and case of the media type do not matter."""
    body = json.dumps(request(overrides={"pred_len": 1})).encode()
    assert http.post(SINGLE, content=body, headers={"content-type": media_type}).status_code == 200


def test_a_body_without_a_media_type_is_taken_as_json(http: TestClient) -> None:
    """The shortest possible client works."""
    body = json.dumps(request(overrides={"pred_len": 1})).encode()
    sent = http.build_request("POST", SINGLE, content=body)
    sent.headers.pop("content-type", None)
    assert http.send(sent).status_code == 200


def test_too_large_a_body_is_refused(http: TestClient) -> None:
    """413 tells the limit."""
    answer = http.post(SINGLE, content=b" " * 100_001, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "100000 bytes" in answer.json()["detail"]


def test_an_unknown_priority_header_is_refused(http: TestClient) -> None:
    """422 tells which there are."""
    answer = http.post(SINGLE, json=request(), headers={"x-priority": "urgent"})
    assert answer.status_code == 422
    assert "interactive, bulk" in answer.json()["errors"][0]["detail"]


def test_state_routes_tell_what_is_served(http: TestClient) -> None:
    """Live, ready, and by which model."""
    assert http.get("/healthz").json() == {"status": "live", "engine": "idle"}
    ready = http.get("/readyz").json()
    assert (ready["status"], ready["model_version"], ready["max_context"]) == ("ready", "model@1", 512)
    assert http.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_an_unexpected_error_is_a_500_without_internals(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets an id to quote, the log gets the traceback under the same id."""

    async def fail(_: Request) -> Response:
        raise KeyError("a secret")

    app = application()
    app.router.routes.append(Route("/fail", fail))
    answer = TestClient(app, raise_server_exceptions=False).get("/fail", headers={"x-request-id": "abc-1"})
    assert (answer.status_code, answer.headers["content-type"]) == (500, PROBLEM_MEDIA_TYPE)
    assert answer.json()["request_id"] == "abc-1"
    assert "secret" not in answer.text and "KeyError" not in answer.text
    records = [record for record in caplog.records if record.exc_info]
    assert [record.context["request_id"] for record in records] == ["abc-1"]  # type: ignore[attr-defined]
    assert "a secret" in str(records[0].exc_info[1])  # type: ignore[index]


def test_the_log_line_has_sizes_and_times_and_no_content(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each request: what, how large, how long; never a price, a time or an id of a series."""
    caplog.set_level(logging.INFO, "app.access")
    document = request(7, series_id="SECRET", overrides={"pred_len": 3, "sample_count": 2})
    with client() as http:
        http.post(SINGLE, json=document, headers={"x-request-id": "abc-1"})
    (record,) = [record for record in caplog.records if record.name == "app.access" and "POST" in record.getMessage()]
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == f"POST {SINGLE} 200"
    assert (line["request_id"], line["route"], line["status"]) == ("abc-1", SINGLE, 200)
    assert (line["series"], line["candles"], line["units"], line["priority"]) == (1, 7, 6, "interactive")
    assert line["timings"]["decode"] >= 0 and line["duration_ms"] > 0
    text = json.dumps(line)
    assert "SECRET" not in text and str(document["candles"][0]["amount"]) not in text


def test_a_worker_that_loads_is_live_and_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is there: live, and after some patience 503 with Retry-After for everything that needs it."""
    monkeypatch.setattr(state, "LOADING_PATIENCE_S", 0.05)
    app = application()
    http = TestClient(app, raise_server_exceptions=False)
    assert worker_of(app).served is None
    assert http.get("/healthz").json()["engine"] == "loading"
    for answer in (http.get("/readyz"), http.post(SINGLE, json=request())):
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("not-ready")
        assert int(answer.headers["retry-after"]) >= 1


def test_a_request_waits_for_a_worker_that_is_about_to_serve() -> None:
    """A worker that loads does not refuse at once; but no more wait than may be admitted."""

    async def meet(max_concurrency: int) -> list[Served | KronosError]:
        worker = Worker(Settings(max_concurrency=max_concurrency))
        waiting = [asyncio.ensure_future(worker.loaded()) for _ in range(3)]
        await asyncio.sleep(0.05)
        worker.served = served
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert worker.waiting == 0
        return [each for each in found if isinstance(each, Served | KronosError)]

    with client() as http:
        served = worker_of(cast(FastAPI, http.app)).require()
        assert asyncio.run(meet(3)) == [served] * 3
        first, second, third = asyncio.run(meet(2))
        assert first is served and second is served and isinstance(third, NotReady)
