"""The same request gives the same forecast, locally and through the container fleet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks.fleet import TOLERANCE, bodies
from tests.fleet.live import Live, ask, live
from tests.stack.proof import Figures
from tests.stack.stack import Stack

SINGLE, BATCH, EMBEDDINGS = "/v1/predict/single", "/v1/predict/batch", "/v1/embeddings"
OWN = {"request_id", "timings"}
"""What is each answer's own."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One local worker behind nginx."""
    with live(tmp_path_factory.mktemp("same") / "run", app=()) as found:
        code, said = found.up(1)
        assert code == 0, said
        yield found


def series(
    lookback: int, horizon: int, count: int, more: Mapping[str, Any] | None = None, **overrides: Any
) -> list[dict[str, Any]]:
    """``count`` different documents of one shape, each with a seed of its own."""
    documents = [json.loads(body) for body in bodies(lookback, horizon, count)]
    return [{**each, **(more or {}), "overrides": {**each["overrides"], **overrides}} for each in documents]


def all_requests() -> list[tuple[str, str, dict[str, Any]]]:
    """(what it is, route, document)."""
    found = [("short", SINGLE, each) for each in series(64, 4, 10)]
    found += [("usual", SINGLE, each) for each in series(400, 120, 4)]
    found += [("longer than the context", SINGLE, each) for each in series(700, 24, 2)]
    found += [("two candles", SINGLE, each) for each in series(2, 1, 2)]
    found += [("quantiles and paths", SINGLE, each)
              for each in series(128, 12, 3, {"quantiles": [0.1, 0.5, 0.9], "return_paths": True}, sample_count=20)]  # fmt: skip
    found += [("sampling", SINGLE, each) for each in series(128, 12, 3, temperature=0.6, top_k=20, top_p=0.7)]
    found += [("greedy", SINGLE, each) for each in series(128, 12, 2, top_k=1)]
    mixed = [*series(64, 4, 2), *series(300, 30, 2), *series(20, 50, 2, sample_count=5)]
    found.append(("batch of six shapes", BATCH, {"items": mixed}))
    candles = [{key: each[key] for key in ("candles", "timestamps")} for each in series(200, 1, 3)]
    return [*found, ("embeddings", EMBEDDINGS, {"items": candles})]


def numbers(document: Any) -> list[float]:
    """All numbers of a JSON document, in a fixed order."""
    if isinstance(document, dict):
        return [number for key in sorted(document) if key not in OWN for number in numbers(document[key])]
    if isinstance(document, list):
        return [number for each in document for number in numbers(each)]
    return [float(document)] if isinstance(document, int | float) else []


def texts(document: Any) -> Any:
    """Everything of a JSON document but its numbers and what is each answer's own."""
    if isinstance(document, dict):
        return {key: texts(value) for key, value in document.items() if key not in OWN}
    if isinstance(document, list):
        return [texts(each) for each in document]
    return document if isinstance(document, str | None) else ...


def test_the_same_request_gives_the_same_forecast_locally_and_in_containers(stack: Stack, local: Live, figures: Figures) -> None:
    """Every shape of request: same structure, same versions, same numbers; asked three times, so that all workers answer."""
    exact = compared = 0
    worst = 0.0
    for what, route, document in all_requests():
        body = json.dumps(document).encode()
        expected = ask(local.port, "POST", route, body)
        assert expected.status == 200, (what, expected)
        for _ in range(3):
            found = stack.ask("POST", route, body)
            assert found.status == 200, (what, found)
            ours, theirs = json.loads(found.body), json.loads(expected.body)
            assert texts(ours) == texts(theirs), what
            a, b = np.array(numbers(ours)), np.array(numbers(theirs))
            np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=0, err_msg=what)
            exact += np.array_equal(a, b)
            worst = max(worst, float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-300), initial=0)))
            compared += 1
    figures.keep(compared=compared, bit_for_bit=exact, largest_relative_difference=worst)


@pytest.mark.parametrize("change", [lambda found: found["prediction"][0].update(close=1.0),
                                    lambda found: found["prediction"].pop(), lambda found: found.update(model_version="x")],
                         ids=["number", "length", "version"])  # fmt: skip
def test_a_difference_would_be_seen(stack: Stack, local: Live, change: Any) -> None:
    """Negative control: the comparison is none that always holds."""
    body = bodies(64, 4, 1)[0]
    ours = json.loads(stack.ask("POST", SINGLE, body).body)
    theirs = json.loads(ask(local.port, "POST", SINGLE, body).body)
    change(ours)
    a, b = numbers(ours), numbers(theirs)
    assert texts(ours) != texts(theirs) or len(a) != len(b) or not np.allclose(a, b, rtol=TOLERANCE, atol=0)
