"""Hostile input: each a clear 4xx that names the element, and the worker untouched."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from tests.serving import Json, client, engine_of, request, server

SINGLE = "/v1/predict/single"
GROWTH_BYTES = 50 * 2**20

Change = Callable[[Json], Any]


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with client() as ready:
        yield ready
        answer = ready.post(SINGLE, json=request(overrides={"pred_len": 2}))
        assert answer.status_code == 200, "the worker did not survive"
        stats = engine_of(ready.app).stats()  # type: ignore[arg-type]
        assert (stats.slots_busy, stats.queued_work, stats.pages_free) == (0, 0, stats.pages_total)


def candle(index: int, **fields: Any) -> Change:
    return lambda document: document["candles"][index].update(fields)


def without(index: int, name: str) -> Change:
    return lambda document: document["candles"][index].pop(name)


def put(name: str, value: Any) -> Change:
    return lambda document: document.update({name: value})


def stamp(index: int, value: Any) -> Change:
    def change(document: Json) -> None:
        document["timestamps"][index] = value

    return change


def override(**fields: Any) -> Change:
    return put("overrides", fields)


# What is wrong with the document → the pointers that must be named.
WRONG: dict[str, tuple[Change, list[str]]] = {
    "high below low": (candle(3, high=1.0, low=2.0, open=1.5, close=1.5), ["/candles/3/high"]),
    "high below close": (candle(3, high=100.0, low=1.0, open=50.0, close=101.0), ["/candles/3/high"]),
    "low above open": (candle(3, high=101.0, low=100.0, open=99.0, close=100.5), ["/candles/3/low"]),
    "negative volume": (candle(5, volume=-1), ["/candles/5/volume"]),
    "negative amount": (candle(5, amount=-0.5), ["/candles/5/amount"]),
    "volume missing once": (without(4, "volume"), ["/candles/4/volume"]),
    "amount null once": (candle(4, amount=None), ["/candles/4/amount"]),
    "price missing": (without(0, "open"), ["/candles/0/open"]),
    "price null": (candle(0, close=None), ["/candles/0/close"]),
    "price as text": (candle(2, open="1.0"), ["/candles/2/open"]),
    "price as boolean": (candle(2, low=True), ["/candles/2/low"]),
    "price as list": (candle(2, low=[1]), ["/candles/2/low"]),
    "price beyond single precision": (candle(1, high=1e39), ["/candles/1/high"]),
    "price below single precision": (candle(1, low=-1e39), ["/candles/1/low"]),
    "squares beyond single precision": (candle(1, high=3e38), ["/candles"]),
    "unknown field in a candle": (candle(7, vol=3), ["/candles/7/vol"]),
    "unknown field": (put("horizon", 5), ["/horizon"]),
    "unknown override": (override(temprature=1.0), ["/overrides/temprature"]),
    "pointer is escaped": (put("a/b~c", 5), ["/a~1b~0c"]),
    "no candles": (put("candles", []), ["/candles"]),
    "candles as object": (put("candles", {"0": 1}), ["/candles"]),
    "candle as number": (lambda document: document["candles"].__setitem__(2, 5), ["/candles/2"]),
    "no timestamps": (lambda document: document.pop("timestamps"), ["/timestamps"]),
    "empty timestamps": (put("timestamps", []), ["/timestamps"]),
    "fewer timestamps": (lambda document: document["timestamps"].pop(), ["/timestamps"]),
    "more timestamps": (lambda document: document["timestamps"].append("2024-07-01T00:00:00Z"), ["/timestamps"]),
    "duplicate timestamp": (stamp(6, "2024-06-01T05:00:00Z"), ["/timestamps/6"]),
    "unsorted timestamps": (stamp(6, "2023-06-01T05:00:00Z"), ["/timestamps/6"]),
    "mixed offsets": (stamp(6, "2024-06-01T06:00:00+02:00"), ["/timestamps/6"]),
    "mixed offsets of one length": (
        lambda document: document.update(
            timestamps=[text.replace("Z", "+01:00" if index < 20 else "+02:00")
                        for index, text in enumerate(document["timestamps"])]),
        [f"/timestamps/{index}" for index in range(20, 24)]),
    "naive among aware": (stamp(6, "2024-06-01T06:00:00"), ["/timestamps/6"]),
    "not a timestamp": (stamp(6, "yesterday"), ["/timestamps/6"]),
    "numpy's words are no timestamps": (stamp(0, "now"), ["/timestamps/0"]),
    "timestamp as number": (stamp(6, 1717200000), ["/timestamps/6"]),
    "day that is not": (stamp(6, "2024-06-31T00:00:00Z"), ["/timestamps/6"]),
    "hour that is not": (stamp(6, "2024-06-01T24:00:00Z"), ["/timestamps/6"]),
    "second that is not": (stamp(6, "2024-06-01T05:00:60Z"), ["/timestamps/6"]),
    "offset that is not": (stamp(6, "2024-06-01T05:00:00+99:00"), ["/timestamps/6"]),
    "digits of another script": (stamp(6, "٢٠٢٤-06-01T05:00:00Z"), ["/timestamps/6"]),
    "absurd year": (stamp(0, "0001-01-01T00:00:00Z"), ["/timestamps/0"]),
    "absurd future": (stamp(23, "9999-01-01T00:00:00Z"), ["/timestamps/23"]),
    "candle's own time disagrees": (candle(3, timestamp="2024-06-01T04:00:00Z"), ["/candles/3/timestamp"]),
    "candle's own time is none": (candle(3, timestamp="x"), ["/candles/3/timestamp"]),
    "gap without prediction_timestamps": (stamp(23, "2024-06-03T00:00:00Z"), ["/prediction_timestamps"]),
    "prediction before history's end": (put("prediction_timestamps", ["2024-06-01T23:00:00Z"]),
                                        ["/prediction_timestamps/0"]),
    "prediction with another offset": (put("prediction_timestamps", ["2024-06-03T00:00:00+01:00"]),
                                       ["/prediction_timestamps/0"]),
    "prediction unsorted": (put("prediction_timestamps", ["2024-06-03T00:00:00Z", "2024-06-03T00:00:00Z"]),
                            ["/prediction_timestamps/1"]),
    "prediction empty": (put("prediction_timestamps", []), ["/prediction_timestamps"]),
    "prediction and pred_len disagree": (
        lambda document: document.update(
            prediction_timestamps=["2024-06-03T00:00:00Z"], overrides={"pred_len": 2}), ["/overrides/pred_len"]),
    "pred_len 0": (override(pred_len=0), ["/overrides/pred_len"]),
    "pred_len above context": (override(pred_len=513), ["/overrides/pred_len"]),
    "pred_len absurd": (override(pred_len=10**30), ["/overrides/pred_len"]),
    "pred_len fraction": (override(pred_len=1.5), ["/overrides/pred_len"]),
    "sample_count absurd": (override(sample_count=10**6), ["/overrides/sample_count"]),
    "temperature 0": (override(temperature=0), ["/overrides/temperature"]),
    "temperature hot": (override(temperature=10.5), ["/overrides/temperature"]),
    "top_p 0": (override(top_p=0), ["/overrides/top_p"]),
    "top_p above 1": (override(top_p=1.01), ["/overrides/top_p"]),
    "top_k above vocabulary": (override(top_k=1025), ["/overrides/top_k"]),
    "negative seed": (override(seed=-1), ["/overrides/seed"]),
    "huge seed": (override(seed=2**63), ["/overrides/seed"]),
    "overrides null": (put("overrides", None), ["/overrides"]),
    "quantile above 1": (put("quantiles", [0.5, 1.5]), ["/quantiles/1"]),
    "quantiles descend": (put("quantiles", [0.9, 0.1]), ["/quantiles/1"]),
    "quantile twice": (put("quantiles", [0.5, 0.5]), ["/quantiles/1"]),
    "a hundred quantiles": (put("quantiles", [index / 100 for index in range(100)]), ["/quantiles"]),
    "long series_id": (put("series_id", "x" * 201), ["/series_id"]),
    "timeout 0": (put("timeout", 0), ["/timeout"]),
    "timeout beyond the limit": (put("timeout", 31), ["/timeout"]),
    "unknown priority": (put("priority", "urgent"), ["/priority"]),
    "several at once": (
        lambda document: (document["candles"][1].update(open="x"), document["candles"][9].update(high=None),
                          document.update(seed=3)),
        ["/candles/1/open", "/candles/9/high", "/seed"],
    ),
}  # fmt: skip


def spoilt(change: Change) -> bytes:
    document = request()
    change(document)
    return json.dumps(document).encode()


def post(http: TestClient, body: bytes, path: str = SINGLE) -> Any:
    return http.post(path, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize(("change", "pointers"), WRONG.values(), ids=WRONG)
def test_a_wrong_element_is_named(http: TestClient, change: Change, pointers: list[str]) -> None:
    """422, and the pointers of all that is wrong, each with a sentence."""
    answer = post(http, spoilt(change))
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert sorted({error["pointer"] for error in problem["errors"]}) == sorted(pointers)
    assert all(error["detail"] for error in problem["errors"])


LITERALS = {
    "NaN": "NaN", "Infinity": "Infinity", "-Infinity": "-Infinity", "1e999": "1e999", "-1e999": "-1e999",
    "5,000 digits": "9" * 5000, "400 digits": "9" * 400, "5,000 decimals and too large": "1" * 400 + ".5",
}  # fmt: skip


@pytest.mark.parametrize("literal", LITERALS.values(), ids=LITERALS)
def test_a_number_that_json_or_a_double_cannot_hold_is_named(http: TestClient, literal: str) -> None:
    """NaN, infinities and numbers out of range are refused where they stand."""
    body = spoilt(candle(3, high=123456789)).replace(b"123456789", literal.encode())
    answer = post(http, body)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/candles/3/high"]


NOT_JSON = {
    "empty": b"", "text": b"hello", "cut off": b'{"candles": [', "two documents": b"{} {}", "single quotes": b"{'a': 1}",
    "trailing comma": b'{"a": 1,}', "comment": b"{} // x", "byte order mark": b"\xef\xbb\xbf{}",
    "invalid UTF-8": b'{"series_id": "\xff\xfe"}', "UTF-16": '{"a": 1}'.encode("utf-16"),
    "half a surrogate pair": b'{"series_id": "\\ud800"}', "half a pair as key": b'{"\\udc00": 1}',
    "100k arrays": b"[" * 100_000, "100k objects": b'{"a":' * 100_000, "100k in candles": b'{"candles":' + b"[" * 100_000,
    "gzip": b"\x1f\x8b\x08\x00", "zero byte": b"\x00",
}  # fmt: skip


@pytest.mark.parametrize("path", [SINGLE, "/v1/predict/batch", "/v1/embeddings"])
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_refused(http: TestClient, body: bytes, path: str) -> None:
    """400 with a sentence, on every route."""
    answer = post(http, body, path)
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"].endswith("bad-json")


@pytest.mark.parametrize("document", [None, True, 5, "x", [], [1], {}])
@pytest.mark.parametrize("path", [SINGLE, "/v1/predict/batch", "/v1/embeddings"])
def test_json_that_is_no_request_is_refused(http: TestClient, document: Any, path: str) -> None:
    """422 for any other JSON value."""
    assert post(http, json.dumps(document).encode(), path).status_code == 422


def test_of_duplicate_keys_the_last_counts(http: TestClient) -> None:
    """As the documentation says; and a bad first one does no harm."""
    body = spoilt(lambda document: None).replace(b'"series_id":', b'"series_id": "first", "series_id":')
    answer = post(http, body)
    assert answer.json()["series_id"] == "EXAMPLE-1h"


def test_very_many_faults_are_counted_and_some_listed(http: TestClient) -> None:
    """An answer stays small however much is wrong."""
    document = request(2000)
    for index in range(2000):
        document["timestamps"][index] = "2024-06-01T00:00:00Z"
        document["candles"][index].update(high=0.0, low=1.0, open=0.5, close=0.5)
    answer = http.post(SINGLE, json=document)
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 32
    assert "3999 elements" in answer.json()["detail"]
    assert len(answer.content) < 8192


def test_a_long_hostile_document_is_refused_without_a_second_reading(http: TestClient) -> None:
    """Documents longer than any honest series get their first fault only, and quickly."""
    body = b'{"candles": [' + b"[]," * 1_000_000 + b"[]]}"
    answer = post(http, body)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/candles/0"]


def test_one_hundred_megabytes_are_refused_unread() -> None:
    """413 by the announced length alone: the client is answered before it sends the body."""
    with server() as running, running.connect() as connection:
        head = "POST /v1/predict/single HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {100 * 2**20}\r\nexpect: 100-continue\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_beyond_the_limit_is_refused() -> None:
    """413 also when the length is not announced; the rest of the body is not kept."""
    with server(Settings(max_body=65536)) as running, running.connect() as connection:
        head = "POST /v1/predict/single HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        for _ in range(8):
            connection.sendall(chunk)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_slow_body_is_given_up() -> None:
    """408 when the body does not come; the permit is free again."""
    with server(Settings(body_timeout=0.2, max_concurrency=1)) as running:
        with running.connect() as connection:
            head = "POST /v1/predict/single HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: 100\r\n\r\n".encode() + b'{"candles"')
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
        with running.connect() as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        engine_of(running.app).reserve("interactive").release()


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"A" * 20_000])
def test_what_is_not_http_does_no_harm(junk: bytes) -> None:
    """A port scan gets an error or a closed connection, and the next request its answer."""
    with server() as running:
        with running.connect() as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 " not in connection.recv(4096)
        with running.connect() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.slow
def test_memory_does_not_grow_under_hostile_input(http: TestClient) -> None:
    """Whatever is refused is forgotten."""
    bodies = [
        b"[" * 100_000,
        b'{"candles": [' + b"{}," * 100_000 + b"{}]}",
        b'{"a":' + b'"x' * 200_000,
        b"[" + b"1e999," * 50_000,
    ]
    for body in bodies:
        post(http, body)
    gc.collect()
    before = psutil.Process().memory_info().rss
    for _ in range(15):
        for body in bodies:
            assert 400 <= post(http, body).status_code < 500
    gc.collect()
    assert psutil.Process().memory_info().rss - before < GROWTH_BYTES
