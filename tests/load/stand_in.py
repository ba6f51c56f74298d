"""A server that keeps the contract of the predict routes without a model, or breaks it in exactly one way.

``/v1/predict/…`` keeps it; ``/lie/NAME/v1/predict/…`` breaks it as ``LIES[NAME]`` says. Fast enough to find out how much
load a generator can make on its own: `python -m uvicorn tests.load.stand_in:app --port 21350 --no-access-log`.
Knows: what answers look like. Does not know: forecasting, k6, ``app``.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

Document = dict[str, Any]
Scope = dict[str, Any]
Message = dict[str, Any]

ROUTES: Final = ("/v1/predict/single", "/v1/predict/batch")
STAGES: Final = (
    "read", "parse", "prepare_frame", "cache", "queue", "encode", "prefill", "decode", "detokenise", "inverse", "serialise",
)  # fmt: skip
TIMINGS: Final = {**dict.fromkeys(STAGES, 0.01), "total": 0.1, "rolled": False}
WORKER: Final = "stand-in"


@functools.lru_cache(maxsize=1024)
def continued(before: str, last: str, steps: int) -> tuple[str, ...]:
    """The next ``steps`` timestamps after ``last``, spaced as it is from ``before``."""
    end = datetime.fromisoformat(last)
    spacing = end - datetime.fromisoformat(before)
    return tuple((end + k * spacing).isoformat().replace("+00:00", "Z") for k in range(1, steps + 1))


def candles(asked: Document, shift: float) -> list[Document]:
    """Straight on from the last close; another ``shift``, another path; the seed moves it a little."""
    overrides = asked["overrides"]
    close = asked["candles"][-1]["close"] * (1 + shift / 1000 + overrides["seed"] % 7 / 1e6)
    stamps = continued(*asked["timestamps"][-2:], overrides["pred_len"])
    prices = {"open": close, "high": close, "low": close, "close": close}
    return [{"timestamp": stamp, **prices, "volume": 1.0, "amount": close} for stamp in stamps]


def forecast(asked: Document) -> Document:
    """The answer to one series."""
    answer = {"series_id": asked["series_id"], "prediction": candles(asked, 0), "seed": asked["overrides"]["seed"]}
    if quantiles := asked.get("quantiles"):
        answer["quantiles"] = {str(q): candles(asked, q - 0.5) for q in quantiles}
    return {**answer, "warnings": [], "timings": TIMINGS}


def answer_to(asked: Document, request_id: str) -> Document:
    """The answer to one request, single or batch."""
    own: Document = {"items": [forecast(item) for item in asked["items"]]} if "items" in asked else forecast(asked)
    return {**own, "model_version": WORKER, "tokenizer_version": WORKER, "request_id": request_id, "timings": TIMINGS}


Lie = Callable[[Document], Any]


def last(change: Lie) -> Lie:
    """``change`` done to the answer, or to the last item of a batch."""
    return lambda answer: change(answer["items"][-1] if "items" in answer else answer)


def shift_stamps(answer: Document) -> None:
    """Every candle five minutes late."""
    for row in answer["prediction"]:
        row["timestamp"] = (datetime.fromisoformat(row["timestamp"]) + timedelta(minutes=5)).isoformat().replace("+00:00", "Z")


def shuffle_quantiles(answer: Document) -> None:
    """The lowest and the highest change places."""
    low, high = min(answer["quantiles"]), max(answer["quantiles"])
    answer["quantiles"][low], answer["quantiles"][high] = answer["quantiles"][high], answer["quantiles"][low]


tick = itertools.count(1)
seen: Counter[str] = Counter()
"""Requests by path; every path that is no route answers with it."""
series: dict[str, int] = {}
"""How often each series, by path and id, was asked for; ``SERIES`` answers with it. The least recent is forgotten."""
SERIES: Final = "/series"
MOST_SERIES: Final = 1000

LIES: Final[Mapping[str, Lie]] = {
    "series-id": last(lambda answer: answer.update(series_id="somebody-else")),
    "request-id": lambda answer: answer.update(request_id="somebody-else"),
    "too-few": last(lambda answer: answer["prediction"].pop()),
    "too-late": last(shift_stamps),
    "null": last(lambda answer: answer["prediction"][-1].update(close=None)),
    "text": last(lambda answer: answer["prediction"][0].update(high="1.0")),
    "negative": last(lambda answer: answer["prediction"][0].update(low=-1.0)),
    "quantiles": last(shuffle_quantiles),
    "quantile-missing": last(lambda answer: answer["quantiles"].popitem()),
    "unrepeatable": last(lambda answer: answer["prediction"][0].update(volume=float(next(tick)))),
    "shapeless": last(lambda answer: answer.update(prediction=[None] * len(answer["prediction"]))),
    "itemless": lambda answer: answer.update(items=[None]),
    "untimed": lambda answer: answer.pop("timings"),
}
NOT_JSON: Final = "not-json"
# What X-Cache says instead of the truth.
CACHE_LIES: Final = {"never-cached": b"miss", "cache-nonsense": b"maybe"}
# Refusals by the name of the lie: status, headers, document. Only ``refusal`` is as it should be.
PROBLEM: Final = (b"content-type", b"application/problem+json")
REFUSALS: Final = {
    "refusal": (429, [PROBLEM, (b"retry-after", b"1")]),
    "refusal-without-retry": (429, [PROBLEM]),
    "refusal-as-page": (503, [(b"content-type", b"text/html"), (b"retry-after", b"1")]),
    "broken": (500, [PROBLEM]),
    "locked": (401, [PROBLEM]),
}
LOCKED, KEY = "/locked", "open-sesame"
"""What begins with it is answered to who shows the key."""


async def app(scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """The ASGI application."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    sent = dict(scope["headers"])
    request_id = sent.get(b"x-request-id", b"none")
    has_key = sent.get(b"authorization") == f"Bearer {KEY}".encode()
    path = scope["path"].replace(LOCKED, "" if has_key else "/lie/locked", 1)
    status, headers, content = respond(path, body, request_id.decode())
    length = (b"content-length", str(len(content)).encode())
    named = [(b"x-request-id", request_id), (b"x-served-by", WORKER.encode()), length]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *named]})
    await send({"type": "http.response.body", "body": content})


def respond(path: str, body: bytes, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of one answer."""
    seen[path] += 1
    plain = [(b"content-type", b"application/json")]
    if not path.endswith(ROUTES):
        return 200, plain, json.dumps(series if path == SERIES else seen).encode()
    _, _, lie = path.removesuffix(ROUTES[0]).removesuffix(ROUTES[1]).rpartition("/lie/")
    if lie in REFUSALS:
        status, headers = REFUSALS[lie]
        problem = {"type": "urn:stand-in", "title": "No", "status": status, "detail": "as told", "request_id": request_id}
        return status, headers, json.dumps(problem).encode()
    asked = msgspec.json.decode(body)
    plain.append((b"x-cache", CACHE_LIES.get(lie, cache(path, asked))))
    answer = answer_to(asked, request_id)
    if lie == NOT_JSON:
        return 200, plain, msgspec.json.encode(answer).replace(b"1.0", b"NaN")
    if lie in LIES:
        LIES[lie](answer)
    return 200, plain, msgspec.json.encode(answer)


def cache(path: str, asked: Document) -> bytes:
    """Whether every series has been asked for on this path before, in the words of a worker."""
    names = [f"{path} {item['series_id']}" for item in asked.get("items", [asked])]
    known = [name in series for name in names]
    for name in names:
        series[name] = series.pop(name, 0) + 1
        if len(series) > MOST_SERIES:
            del series[next(iter(series))]
    return b"hit" if all(known) else b"hit, miss" if any(known) else b"miss"
