"""Forecasts and embeddings through the API: what comes out is what the model said, in the client's terms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from app.model.frames import COLUMNS, fill_missing, normalise, restore
from app.settings import Settings
from tests.fakes import FakeRunner
from tests.serving import Json, client, fake_paths, request

SINGLE, BATCH, EMBEDDINGS = "/v1/predict/single", "/v1/predict/batch", "/v1/embeddings"


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with client(Settings(max_items=5, max_work=2000)) as ready:
        yield ready


def ask(http: TestClient, document: Json, path: str = SINGLE) -> Json:
    answer = http.post(path, json=document)
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    return body


def columns(document: Json) -> dict[str, Any]:
    return {name: np.array([candle[name] for candle in document["candles"]], float) for name in COLUMNS}


def expected_paths(document: Json, horizon: int, seed: int, count: int) -> Any:
    """The fake model's paths in the units of the history: float32[count, horizon, 6]."""
    scale = normalise(fill_missing(columns(document)))
    return restore(fake_paths(scale.x, [0] * horizon, horizon, seed, count), scale.mean, scale.std)


def values(candles: list[Json]) -> Any:
    return np.array([[candle[name] for name in COLUMNS] for candle in candles], np.float32)


def test_the_prediction_is_the_mean_of_the_paths_in_original_units(http: TestClient) -> None:
    """The model's normalised paths are averaged, then brought back to the scale of the history."""
    document = request(overrides={"pred_len": 6, "sample_count": 4, "seed": 11})
    paths = expected_paths(document, 6, 11, 4)
    answer = ask(http, document)
    assert np.allclose(values(answer["prediction"]), paths.mean(axis=0), rtol=1e-5)
    assert answer["series_id"] == "EXAMPLE-1h"
    assert answer["seed"] == 11
    assert (answer["model_version"], answer["tokenizer_version"]) == ("model@1", "tokenizer@1")


def test_paths_and_quantiles_are_those_of_the_samples(http: TestClient) -> None:
    """Paths come back one by one when asked for, and quantiles are taken over them column by column."""
    overrides = {"pred_len": 3, "sample_count": 5, "seed": 3}
    document = request(overrides=overrides, return_paths=True, quantiles=[0.0, 0.25, 1.0])
    paths = expected_paths(document, 3, 3, 5)
    answer = ask(http, document)
    assert np.array_equal([values(path) for path in answer["paths"]], paths)
    assert list(answer["quantiles"]) == ["0.0", "0.25", "1.0"]
    for level in (0.0, 0.25, 1.0):
        assert np.allclose(values(answer["quantiles"][str(level)]), np.quantile(paths, level, axis=0), rtol=1e-6)


def test_paths_and_quantiles_are_absent_unless_asked_for(http: TestClient) -> None:
    """An answer carries no more than was asked."""
    assert not {"paths", "quantiles"} & set(ask(http, request(overrides={"pred_len": 2})))


def test_same_seed_same_answer_and_the_drawn_seed_repeats_it(http: TestClient) -> None:
    """A forecast without a seed tells the one it drew; sending that back gives the same candles."""
    first = ask(http, request(overrides={"pred_len": 8}))
    again = ask(http, request(overrides={"pred_len": 8, "seed": first["seed"]}))
    assert again["prediction"] == first["prediction"]
    assert ask(http, request(overrides={"pred_len": 8}))["seed"] != first["seed"]
    assert first["seed"] < 2**53, "a reader that holds numbers as doubles could not send it back"


def test_the_forecast_goes_on_at_the_spacing_of_the_history(http: TestClient) -> None:
    """Without prediction_timestamps: as many steps as pred_len says, in the form of the timestamps."""
    answer = ask(http, request(overrides={"pred_len": 2}))
    assert [candle["timestamp"] for candle in answer["prediction"]] == ["2024-06-02T00:00:00Z", "2024-06-02T01:00:00Z"]


def test_the_default_horizon_is_120(http: TestClient) -> None:
    """Candles and timestamps are all that a request needs."""
    assert len(ask(http, request())["prediction"]) == 120


def test_prediction_timestamps_set_the_horizon_and_are_answered_as_sent(http: TestClient) -> None:
    """Their count is the horizon; irregular ones are fine, and so is a history with gaps."""
    document = request(prediction_timestamps=["2024-06-05T09:30:00Z", "2024-06-05T11:00:00Z", "2024-06-07T09:30:00Z"])
    document["timestamps"][-1] = "2024-06-03T00:00:00Z"
    answer = ask(http, document)
    assert [candle["timestamp"] for candle in answer["prediction"]] == document["prediction_timestamps"]


def test_the_model_reads_the_wall_clock_of_the_series() -> None:
    """Minute, hour, weekday, day and month are those of the timestamps' own offset, not of UTC."""
    runner = FakeRunner()
    seen: list[Any] = []
    runner.prefill = lambda tokens, stamps, pages: seen.append(stamps)  # type: ignore[method-assign]
    with client(runner=runner) as http:
        seen.clear()
        document = request(2, timestamps=["2024-06-02T23:30:00-05:00", "2024-06-03T00:45:00-05:00"])
        ask(http, document | {"overrides": {"pred_len": 1}})
    assert seen[0].tolist() == [[30, 23, 6, 2, 6]], "a Sunday at 23:30; the last candle is fed by the first step"


def test_a_candles_own_timestamp_may_agree_in_another_spelling(http: TestClient) -> None:
    """Extra timestamps inside candles are accepted when they mean the same time."""
    document = request(3, overrides={"pred_len": 1})
    document["candles"][1]["timestamp"] = "2024-06-01 01:00:00.000+00:00"
    document["candles"][2]["timestamp"] = document["timestamps"][2]
    ask(http, document)


@pytest.mark.parametrize(
    ("missing", "code"), [(("volume", "amount"), "volume_missing"), (("amount",), "amount_missing"),
                          (("volume",), "volume_missing")],
)  # fmt: skip
@pytest.mark.parametrize("null", [True, False])
def test_missing_volumes_and_amounts_are_filled_and_told(
    http: TestClient, missing: tuple[str, ...], code: str, null: bool
) -> None:
    """Left out of all candles, or null as pandas writes it: filled as the reference does, with a warning."""
    document = request(overrides={"pred_len": 1})
    for candle in document["candles"]:
        for name in missing:
            if null:
                candle[name] = None
            else:
                del candle[name]
    assert code in [warning["code"] for warning in ask(http, document)["warnings"]]


def test_broken_order_is_counted_and_mended_when_asked(http: TestClient) -> None:
    """Candles whose mean breaks low ≤ open, close ≤ high are counted; ``repair`` mends them all."""
    document = request(overrides={"pred_len": 4, "sample_count": 2, "seed": 1}, return_paths=True, quantiles=[0.5])
    plain, mended = ask(http, document), ask(http, document | {"repair": True})
    (warning,) = plain["warnings"]
    assert warning["code"] == "order_broken"
    assert warning["count"] == sum(not ordered(candle) for candle in plain["prediction"]) > 0
    every = [*mended["prediction"], *mended["quantiles"]["0.5"], *mended["paths"][0], *mended["paths"][1]]
    assert all(ordered(candle) for candle in every)
    assert mended["warnings"][0]["count"] == warning["count"], "what was mended is still told"


def ordered(candle: Json) -> bool:
    low, high = min(candle["open"], candle["close"]), max(candle["open"], candle["close"])
    return bool(candle["low"] <= low and high <= candle["high"] and candle["volume"] >= 0 and candle["amount"] >= 0)


def test_a_long_history_is_told_to_be_cut() -> None:
    """The scale comes from all candles, the window from the last max_context, and the answer says so."""
    with client(runner=FakeRunner(max_context=16)) as http:
        answer = ask(http, request(20, overrides={"pred_len": 1}))
    (warning,) = [warning for warning in answer["warnings"] if warning["code"] == "window_cut"]
    assert warning["count"] == 4


def test_a_rolled_window_is_told() -> None:
    """Past the model's context the window rolls, and the timings say so."""
    with client(runner=FakeRunner(max_context=16)) as http:
        assert ask(http, request(10, overrides={"pred_len": 7}))["timings"]["rolled"] is False
        assert ask(http, request(10, overrides={"pred_len": 8}))["timings"]["rolled"] is True


def test_timings_tell_each_stage_once(http: TestClient) -> None:
    """The answer's timings name the stages of the way; they do not exceed the whole."""
    timings = ask(http, request(overrides={"pred_len": 4}))["timings"]
    stages = {name: value for name, value in timings.items() if name not in ("total", "rolled")}
    assert list(stages) == ["read", "parse", "prepare_frame", "cache", "queue", "encode", "prefill", "decode", "detokenise",
                            "inverse", "serialise"]  # fmt: skip
    assert sum(stages.values()) <= timings["total"] + 0.01


def test_work_is_bounded(http: TestClient) -> None:
    """series × paths × steps above the limit is refused as such, for one series and for a batch."""
    one = http.post(SINGLE, json=request(overrides={"pred_len": 100, "sample_count": 21}))
    items = [request(overrides={"pred_len": 100, "sample_count": 7})] * 3
    many = http.post(BATCH, json={"items": items})
    for answer in (one, many):
        assert answer.status_code == 422
        assert answer.json()["type"].endswith("work-too-large")
        assert "2100" in answer.json()["detail"]


def test_a_batch_is_ragged_and_answers_in_order(http: TestClient) -> None:
    """Different lengths, horizons and sampling in one request; each item as if it were alone."""
    items = [
        request(5, series_id="a", overrides={"pred_len": 3, "seed": 1}),
        request(30, series_id="b", overrides={"pred_len": 7, "sample_count": 3, "seed": 2}, quantiles=[0.5]),
        request(12, series_id=None, overrides={"pred_len": 1, "seed": 3}),
    ]
    answer = ask(http, {"items": items}, BATCH)
    assert [item["series_id"] for item in answer["items"]] == ["a", "b", None]
    for item, document in zip(answer["items"], items, strict=True):
        alone = ask(http, document)
        assert item["prediction"] == alone["prediction"]
        assert item.get("quantiles") == alone.get("quantiles")
        assert set(item["timings"]) >= {"queue", "decode", "total", "rolled"}
    assert answer["model_version"] == "model@1"


def test_a_bad_item_fails_alone(http: TestClient) -> None:
    """200 with the item's problem in its place, its pointers counted from the whole request."""
    broken, unknown = request(4), request(4, colour="red")
    broken["candles"][2]["low"] = None
    good = request(4, overrides={"pred_len": 2})
    answer = ask(http, {"items": [good, broken, 7, unknown, good]}, BATCH)
    first, second, third, fourth, fifth = answer["items"]
    assert "prediction" in first and "prediction" in fifth
    for item, pointer in ((second, "/items/1/candles/2/low"), (third, "/items/2"), (fourth, "/items/3/colour")):
        assert item["error"]["status"] == 422
        assert item["error"]["request_id"] == answer["request_id"]
        assert [error["pointer"] for error in item["error"]["errors"]] == [pointer]


def test_a_number_json_cannot_hold_fails_its_item_alone(http: TestClient) -> None:
    """Even what breaks the JSON of the whole document is blamed on its item."""
    candle = '{"open":1,"high":1,"low":1,"close":1}'
    good = '{"candles":[' + candle + '],"timestamps":["2024-06-01"],"prediction_timestamps":["2024-06-02"]}'
    bad = good.replace('"high":1', '"high":NaN')
    body = '{"items":[' + bad + "," + good + "]}"
    answer = http.post(BATCH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["items"][0]["error"]["errors"][0]["pointer"] == "/items/0/candles/0/high"
    assert len(answer.json()["items"][1]["prediction"]) == 1


def test_a_batch_in_which_all_fail_is_an_error(http: TestClient) -> None:
    """422 with the pointers of every item."""
    answer = http.post(BATCH, json={"items": [{}, request(2, timestamps=["x", "y"])]})
    assert answer.status_code == 422
    pointers = [error["pointer"] for error in answer.json()["errors"]]
    assert pointers == ["/items/0/candles", "/items/0/timestamps", "/items/1/timestamps/0", "/items/1/timestamps/1"] or (
        set(pointers) >= {"/items/0/candles", "/items/0/timestamps", "/items/1/timestamps/0", "/items/1/timestamps/1"}
    )


@pytest.mark.parametrize("path", [BATCH, EMBEDDINGS])
def test_the_number_of_items_is_bounded(http: TestClient, path: str) -> None:
    """One more than the limit is refused, none is refused."""
    for count in (0, 6):
        answer = http.post(path, json={"items": [request(2)] * count})
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/items"]


def test_an_embedding_is_the_models_vector(http: TestClient) -> None:
    """One series gives one vector, several give one each; a bad one fails alone."""
    document = request(20)
    vector = normalise(fill_missing(columns(document))).x.mean(0)
    assert np.array_equal(np.array(ask(http, document, EMBEDDINGS)["embedding"], np.float32), vector)
    answer = ask(http, {"items": [document, {}, document]}, EMBEDDINGS)
    assert np.array_equal(np.array(answer["items"][2]["embedding"], np.float32), vector)
    assert answer["items"][1]["error"]["status"] == 422


def test_a_number_that_is_not_finite_never_leaves() -> None:
    """A model gone wrong is a 500, not a NaN in JSON; in a batch it is its item's error."""
    runner = FakeRunner()
    runner.detokenise = lambda history, generated: np.full((*generated.shape[:2], 6), np.nan, np.float32)  # type: ignore[method-assign]
    with client(runner=runner) as http:
        answer = http.post(SINGLE, json=request(overrides={"pred_len": 1}))
        assert answer.status_code == 500
        assert "finite" not in answer.text
        assert http.post(BATCH, json={"items": [request(overrides={"pred_len": 1})]}).status_code == 500
