"""The metrics: their names, what their buckets resolve, and the Timings of one request."""

from __future__ import annotations

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import metrics
from app.settings import LONGEST_TIMEOUT
from tests.serving import client, request

QUERIED = {
    "kronos_requests_total", "kronos_request_duration_seconds_bucket", "kronos_model_inference_seconds_bucket",
    "kronos_stage_seconds_bucket", "kronos_concurrent_requests", "kronos_queue_depth", "kronos_timeouts_total",
    "kronos_rejected_total", "kronos_cancelled_total", "kronos_prediction_input_size_bucket",
    "kronos_batch_sequences_bucket", "kronos_slots", "kronos_cache_pages", "kronos_decode_steps_total",
    "kronos_engine_busy_seconds_total", "kronos_model_info", "process_resident_memory_bytes", "process_open_fds",
}  # fmt: skip
SECONDS_HISTOGRAMS = [metrics.REQUEST_DURATION, metrics.MODEL_INFERENCE, metrics.STAGE_SECONDS]


def samples() -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(name: str, **labels: str) -> float:
    return sum(number for found, number in samples().get(name, []) if labels.items() <= found.items())


def test_the_names_that_users_query_exist() -> None:
    """After one forecast and one of each refusal, every documented series can be queried."""
    metrics.TIMEOUTS.labels("single").inc(0)
    metrics.REJECTED.labels("requests").inc(0)
    metrics.CANCELLED.labels("deadline").inc(0)
    with client() as http:
        assert http.post("/v1/predict/single", json=request(overrides={"pred_len": 2})).status_code == 200
        assert set(samples()) >= QUERIED


def test_one_forecast_counts_once_everywhere() -> None:
    """One request moves each of its metrics by what it did: one answer, its candles, its steps, its stages."""
    labels = {"route": "/v1/predict/single", "status": "200"}
    with client() as http:
        before = {name: value(name, **labels) for name in ("kronos_requests_total",)}
        sizes = value("kronos_prediction_input_size_sum", endpoint="single")
        steps = value("kronos_decode_steps_total")
        parses = value("kronos_stage_seconds_count", stage="parse")
        inferences = value("kronos_model_inference_seconds_count", endpoint="single")
        assert http.post("/v1/predict/single", json=request(30, overrides={"pred_len": 5})).status_code == 200
        assert value("kronos_requests_total", **labels) == before["kronos_requests_total"] + 1
        assert value("kronos_prediction_input_size_sum", endpoint="single") == sizes + 30
        assert value("kronos_decode_steps_total") == steps + 5
        assert value("kronos_stage_seconds_count", stage="parse") == parses + 1
        assert value("kronos_model_inference_seconds_count", endpoint="single") == inferences + 1
        assert value("kronos_concurrent_requests") == 0


def test_unknown_paths_share_one_label() -> None:
    """A scanner cannot blow up the number of series."""
    with client() as http:
        before = value("kronos_requests_total", route="other", status="404")
        for path in ("/a", "/b", "/c"):
            assert http.get(path).status_code == 404
        assert value("kronos_requests_total", route="other", status="404") == before + 3
        assert not [labels for labels, _ in samples()["kronos_requests_total"] if labels["route"] in ("/a", "/b", "/c")]


@pytest.mark.parametrize("histogram", SECONDS_HISTOGRAMS, ids=lambda histogram: histogram._name)
def test_buckets_resolve_beyond_the_longest_timeout(histogram: object) -> None:
    """No histogram of seconds tops out below the longest timeout that a setting allows."""
    finite = [bound for bound in histogram._upper_bounds if bound != float("inf")]  # type: ignore[attr-defined]
    assert finite == sorted(finite)
    assert finite[-1] >= LONGEST_TIMEOUT


def test_timings_add_up_and_keep_the_order_of_the_way() -> None:
    """Stages are reported in the order a request passes them, added up, also when a stage fails."""
    timings = metrics.Timings()
    timings.include({"decode": 0.002, "queue": 0.001})
    timings.add("decode", 0.003)
    with pytest.raises(ValueError), timings.stage("parse"):
        time.sleep(0.001)
        raise ValueError
    assert list(timings.seconds()) == ["parse", "queue", "decode"]
    assert timings.seconds()["decode"] == pytest.approx(0.005)
    assert timings.milliseconds()["decode"] == 5.0
    assert timings.seconds()["parse"] >= 0.001
    assert list(timings.milliseconds())[-1] == "total"


def test_server_timing_is_written_as_the_standard_says() -> None:
    """``name;dur=milliseconds``, separated by commas."""
    timings = metrics.Timings()
    timings.add("parse", 0.00125)
    first, total = timings.server_timing().split(", ")
    assert first == "parse;dur=1.25"
    assert total.startswith("total;dur=")
