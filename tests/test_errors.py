"""The error table: one row, one class, one status for each way to fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from app import errors
from app.errors import ERROR_TABLE, PROBLEM_MEDIA_TYPE, KronosError
from tests.serving import application

EXAMPLES: list[KronosError] = [
    errors.BadJson("no"),
    errors.Unauthorized("no", "invalid_token"),
    errors.NotFound("no"),
    errors.MethodNotAllowed("no", "GET"),
    errors.BodyTimeout("no"),
    errors.TooLarge("no"),
    errors.UnsupportedMediaType("no"),
    errors.InvalidInput([("/candles/3/high", "no")]),
    errors.WorkTooLarge("no"),
    errors.Overloaded("requests", 2.2),
    errors.Cancelled("disconnected"),
    errors.EngineFailed("the secret reason"),
    errors.KeyReused(),
    errors.JobAbandoned(5),
    errors.JobsOff(),
    errors.JobsUnavailable("the secret reason"),
    errors.NotReady(),
    errors.PoolSaturated("io", "is full", "io_workers", 2.0),
    errors.Draining(),
    errors.DeadlinePassed(),
]
SENT = [error for error in EXAMPLES if not isinstance(error, errors.Cancelled)]


def kinds() -> Iterator[str]:
    pending = KronosError.__subclasses__()
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if hasattr(kind, "kind"):
            yield kind.kind


def test_every_row_has_one_class_and_every_class_one_row() -> None:
    """No kind without a status, no status that nothing raises, no kind twice."""
    assert sorted(kinds()) == sorted(ERROR_TABLE)


def test_the_examples_below_walk_the_whole_table() -> None:
    """The parametrised tests of this file leave out no kind."""
    assert {error.kind for error in EXAMPLES} == set(ERROR_TABLE)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: error.kind)
def test_a_problem_document_has_the_members_of_rfc_9457(error: KronosError) -> None:
    """Every error tells type, title, status, detail and the request's id, and its status is an error's."""
    problem = error.problem("id-1")
    assert {"type", "title", "status", "detail", "request_id"} <= set(problem)
    assert problem["type"] == f"urn:kronos-fleet:problem:{error.kind}"
    assert problem["status"] == ERROR_TABLE[error.kind].status
    assert 400 <= problem["status"] < 600


@pytest.mark.parametrize("error", SENT, ids=lambda error: error.kind)
def test_an_error_raised_anywhere_becomes_its_answer(error: KronosError) -> None:
    """Whatever a route raises is answered with the table's status, as a problem document with the request's id."""

    async def fail(request: Request) -> Response:
        raise error

    app = application()
    app.router.routes.append(Route("/fail", fail))
    answer = TestClient(app, raise_server_exceptions=False).get("/fail", headers={"x-request-id": "id-1"})
    assert answer.status_code == ERROR_TABLE[error.kind].status
    assert answer.headers["content-type"] == PROBLEM_MEDIA_TYPE
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "id-1"
    assert {name: answer.headers[name] for name in error.headers()} == error.headers()


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (2.2, "3"), (60.0, "60")])
def test_retry_after_is_whole_seconds_and_never_zero(seconds: float, header: str) -> None:
    """A refused client is told a whole number of seconds, at least one."""
    assert errors.Overloaded("work", seconds).headers() == {"retry-after": header}


def test_invalid_input_names_elements_and_counts_those_it_does_not_list() -> None:
    """The pointers are listed; when there are more, the detail says how many."""
    error = errors.InvalidInput([("/a", "bad"), ("/b", "bad")], total=7)
    assert error.problem("x")["errors"] == [{"pointer": "/a", "detail": "bad"}, {"pointer": "/b", "detail": "bad"}]
    assert "7 elements" in error.detail and "first 2" in error.detail


def test_a_failure_of_the_worker_shows_no_internals() -> None:
    """The reason of a 500 goes to the log only."""
    error = errors.EngineFailed("the secret reason")
    assert str(error) == "the secret reason"
    assert "secret" not in str(error.problem("x"))


@pytest.mark.parametrize("leaf", ["errors", "metrics"])
def test_errors_and_metrics_are_leaves(leaf: str) -> None:
    """They import nothing of the application, so that everything may import them."""
    tree = ast.parse(Path(f"app/{leaf}.py").read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module.split(".")[0] == "app"]
