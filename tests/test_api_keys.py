"""API keys: who may pass, how they are told, and what never leaves."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.keys import hash_of, new_key
from app.api.openapi import make_openapi
from app.errors import PROBLEM_MEDIA_TYPE
from app.settings import Settings, SettingsError, load
from tests.caching import SINGLE
from tests.serving import client, request

OLD, NEW = new_key(), new_key()
ASKED = request(10, overrides={"pred_len": 2, "seed": 1})


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    """A worker that knows two keys."""
    with client(Settings(prewarm=False, api_keys=f"{hash_of(OLD)}, {hash_of(NEW).upper()}")) as ready:
        yield ready


@pytest.mark.parametrize("key", [OLD, NEW], ids=["old", "new"])
@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "X-API-Key"])
def test_a_valid_key_passes(http: TestClient, key: str, form: str) -> None:
    """In either header; while keys are changed, the old one and the new one."""
    headers = {"X-API-Key": key} if form == "X-API-Key" else {"Authorization": form.format(key)}
    assert http.post(SINGLE, json=ASKED, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ({}, False),
        ({"Authorization": "Bearer "}, False),
        ({"Authorization": "Basic " + OLD}, False),
        ({"X-API-Key": ""}, False),
        ({"Authorization": "Bearer " + new_key()}, True),
        ({"Authorization": "Bearer " + OLD[:-1]}, True),
        ({"Authorization": "Bearer " + hash_of(OLD)}, True),
        ({"X-API-Key": hash_of(OLD)}, True),
        ({"X-API-Key": "Schlüssel".encode()}, True),
        ({"Authorization": "Bearer " + new_key(), "X-API-Key": OLD}, True),
    ],
)
def test_nobody_else_does(http: TestClient, headers: Any, fault: bool) -> None:
    """No key, half a key, another key, and above all not the hash that the settings hold."""
    answer = http.post(SINGLE, json=ASKED, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == PROBLEM_MEDIA_TYPE
    assert answer.json()["type"].endswith(":unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert ("invalid_token" in answer.headers["www-authenticate"]) == fault
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_it_is_refused_before_its_body_is_read(http: TestClient) -> None:
    """Who has no key costs nothing: not JSON, and nobody looked."""
    assert http.post(SINGLE, content=b"{", headers={"content-type": "application/json"}).status_code == 401


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/predict/batch", "/v1/no-such-thing"])
def test_everything_below_v1_needs_one(http: TestClient, path: str) -> None:
    """Also what is added later, and what is not there: strangers learn nothing of it."""
    assert http.post(path, json={}).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"])
def test_the_rest_stays_open(http: TestClient, path: str) -> None:
    """Supervisors, Prometheus and readers have no keys."""
    assert http.get(path).status_code == 200


def test_without_keys_anybody_may_ask() -> None:
    """The default; a key that is sent all the same does no harm."""
    with client(Settings(prewarm=False)) as http:
        assert http.post(SINGLE, json=ASKED).status_code == 200
        assert http.post(SINGLE, json=ASKED, headers={"Authorization": "Bearer x"}).status_code == 200


def test_a_key_is_never_logged(http: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a valid one nor a wrong one, nor its hash, at any level."""
    wrong = new_key()
    with caplog.at_level(logging.DEBUG):
        for key in (OLD, wrong):
            http.post(SINGLE, json=ASKED, headers={"Authorization": f"Bearer {key}"})
    written = "\n".join(str(record.__dict__) for record in caplog.records)
    assert SINGLE in written
    assert not [key for key in (OLD, wrong) if key in written or hash_of(key) in written]


@pytest.mark.parametrize("given", [OLD, f"{hash_of(OLD)} {OLD}", hash_of(OLD)[:-1], " "])
def test_what_is_no_hash_is_refused_and_not_shown(given: str) -> None:
    """A key in place of its hash is a mistake that must not end up in a log."""
    with pytest.raises(SettingsError, match="KRONOS_API_KEYS") as caught:
        load({"KRONOS_API_KEYS": given})
    assert OLD not in str(caught.value) and hash_of(OLD)[:-1] not in str(caught.value)


def test_the_command_makes_a_key_and_its_hash() -> None:
    """What it prints works, and is another key each time."""
    made = [subprocess.run([sys.executable, "-m", "app.api.keys"], capture_output=True, text=True, check=True) for _ in range(2)]
    keys, hashes = zip(*([line.split()[-1] for line in run.stdout.splitlines()] for run in made), strict=True)
    assert [hash_of(key) for key in keys] == list(hashes)
    assert len(set(keys)) == 2 and min(map(len, keys)) > 40


def test_the_document_says_what_needs_a_key() -> None:
    """Where keys are set: the schemes, on every operation below /v1 and on no other, with its 401. Else nothing of it."""
    document = make_openapi(Settings(api_keys=hash_of(OLD)), 32)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == ("401" in operation["responses"]) == path.startswith("/v1/")
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert "security" not in json.dumps(make_openapi(Settings(), 32))
