"""The OpenAPI document and the application tell the same story."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.specs.openapi import checks
from starlette.testclient import TestClient

from app.api.job_openapi import CANCEL_KINDS, READ_KINDS, SUBMIT_KINDS, job_examples
from app.api.openapi import REQUEST_KINDS, example_series, examples, make_openapi
from app.api.routes import make_routes
from app.api.state import Worker
from app.errors import ERROR_TABLE
from app.settings import Settings
from tests.serving import client, server

DOCUMENT = make_openapi(Settings(), listed=32)
ELSEWHERE = {"method-not-allowed", "cancelled", "unauthorized", "pool-saturated"}
"""Kinds that no prediction is answered with: the router's, a client's that has gone, the keys', the pools'."""


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with client() as ready:
        yield ready


def test_every_route_is_documented_and_every_documented_route_exists() -> None:
    """Paths and methods of the application and of the document are the same."""
    routes = {(route.path, method) for route in make_routes(Worker(Settings())) for method in route.methods or ()}
    told = {(path, method.upper()) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert {(path, method) for path, method in routes if method != "HEAD"} == told


def test_the_document_is_served(http: TestClient) -> None:
    """/openapi.json is the document, /docs the page that shows it."""
    assert http.get("/openapi.json").json() == DOCUMENT
    assert "/openapi.json" in http.get("/docs").text


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, named in examples().items() for name in named])
def test_the_examples_run(http: TestClient, path: str, name: str) -> None:
    """What the documentation shows can be sent as it is."""
    assert http.post(path, json=examples()[path][name]).status_code == 200
    shown = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert shown[name]["value"] == examples()[path][name]


def test_every_error_a_prediction_can_give_is_documented() -> None:
    """All kinds of the table but those of the router, of jobs, and of a client that has gone."""
    of_jobs = set(SUBMIT_KINDS + READ_KINDS + CANCEL_KINDS) - set(REQUEST_KINDS) | {"job-abandoned"}
    assert set(REQUEST_KINDS) == set(ERROR_TABLE) - of_jobs - ELSEWHERE
    statuses = {str(ERROR_TABLE[kind].status) for kind in REQUEST_KINDS} | {"200"}
    for path in examples():
        assert set(DOCUMENT["paths"][path]["post"]["responses"]) == statuses


def test_the_document_names_the_limits_in_force() -> None:
    """The operator's settings show in the documentation."""
    document = make_openapi(Settings(max_candles=77, max_samples=13), listed=32)
    description = document["paths"]["/v1/predict/single"]["post"]["description"]
    assert "77 candles" in description and "13 sample paths" in description


# The schema cannot say that low ≤ high or that times ascend, so documents that fit it may still be refused: the check
# that all such documents are accepted is left out, all others of the OpenAPI kind are kept.
HASTY_S = 1.0


def no_server_error(context: Any, response: Any, case: Any) -> None:
    """As the check of that name, but 504 is right when the client asked for an answer in next to no time."""
    # Only a valid request can be answered 504, so its timeout is a number.
    if response.status_code != 504 or case.body.get("timeout", HASTY_S) >= HASTY_S:
        schemathesis.checks.not_a_server_error(context, response, case)


CHECKS = [
    no_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(Settings(jobs_url=f"sqlite:{tmp_path_factory.mktemp('jobs') / 'jobs.db'}")) as running:
        yield running.url


@pytest.mark.parametrize("name", job_examples(example_series()))
def test_the_examples_of_jobs_run(url: str, name: str) -> None:
    """What the documentation shows can be sent as it is, and succeeds."""
    shown = DOCUMENT["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    answer = httpx.post(f"{url}/v1/jobs", json=shown[name]["value"])
    assert answer.status_code == 202
    assert httpx.get(url + answer.headers["location"], params={"wait": 20}).json()["state"] == "succeeded"


@SCHEMA.parametrize()
@hypothesis.settings(
    max_examples=60, derandomize=True, deadline=None, database=None,
    phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_the_application_keeps_its_contract(case: Any, url: str) -> None:
    """Whatever fits the schema, or just misses it: a documented answer that fits its schema, never a server error."""
    case.call_and_validate(base_url=url, checks=CHECKS)
