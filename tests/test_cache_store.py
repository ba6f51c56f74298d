"""The key and the store of the result cache: what shares an entry, what never does, how long and how much is kept."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.decode import decode
from app.api.prepare import Bounds, prepare_forecast
from app.api.schema import PredictRequest
from app.api.state import Served
from app.cache_store import Store, key_of, weight
from app.model.runner import build_of
from app.work import Embed, Forecast, Outcome
from tests.fakes import FakeRunner
from tests.serving import Json, request

IDENTITY = bytes(32)
BOUNDS = Bounds(2048, 512, 128, 64, 20_000, 30.0, 512, 1024)
ASKED = request(8, overrides={"pred_len": 3, "seed": 7})
SHOWN_ONLY: dict[str, Any] = {
    "series_id": "another", "quantiles": [0.5], "return_paths": True, "repair": True, "timeout": 3.0, "priority": "bulk",
}  # fmt: skip
DECIDING: dict[str, Any] = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "sample_count": 2, "seed": 8, "pred_len": 4}


def key_for(asked: Json) -> bytes:
    work = prepare_forecast(decode(json.dumps(asked).encode(), PredictRequest), BOUNDS).work
    return key_of(IDENTITY, work)


def works() -> st.SearchStrategy[Forecast]:
    """Small works, few enough that two are often equal in all but one field."""

    def build(length: int, horizon: int, cell: float, minute: int, later: int, **sampling: Any) -> Forecast:
        history = np.zeros((length, 6), np.float32)
        history[-1, 2] = cell
        stamps, future = np.ones((length, 5), np.int16), np.ones((horizon, 5), np.int16)
        stamps[0, 0], future[-1, 0] = minute, later
        return Forecast(history, stamps, future, **sampling)

    few, size = st.sampled_from([1, 2, 3]), st.sampled_from([1, 2])
    return st.builds(
        build, length=size, horizon=size, cell=st.sampled_from([0.0, 1e-7, 1.0]), minute=few, later=few, seed=few,
        temperature=st.sampled_from([1.0, 1.0 + 2**-52]), top_k=st.sampled_from([0, 1, 2]),
        top_p=st.sampled_from([0.5, 0.9]), sample_count=few,
    )  # fmt: skip


def told(work: Forecast) -> tuple[Any, ...]:
    """All that decides the outcome of ``work``, readable."""
    arrays = [array.tolist() for array in (work.history, work.history_stamps, work.future_stamps)]
    return *arrays, work.temperature, work.top_k, work.top_k or work.top_p, work.sample_count, work.seed


@given(works(), works())
def test_work_shares_a_key_exactly_when_nothing_that_decides_differs(one: Forecast, other: Forecast) -> None:
    """Neither too few hits nor a wrong one."""
    assert (key_of(IDENTITY, one) == key_of(IDENTITY, other)) == (told(one) == told(other))


def test_top_p_counts_only_where_it_is_used() -> None:
    """With ``top_k`` the sampler never reads it."""
    narrow, wide = {"pred_len": 3, "seed": 7, "top_p": 0.5}, {"pred_len": 3, "seed": 7, "top_p": 0.9}
    assert key_for(ASKED | {"overrides": narrow}) != key_for(ASKED | {"overrides": wide})
    assert key_for(ASKED | {"overrides": narrow | {"top_k": 5}}) == key_for(ASKED | {"overrides": wide | {"top_k": 5}})


@given(st.sampled_from(sorted(DECIDING)), st.integers(0, 7), st.sampled_from(["open", "high", "low", "close", "volume"]))
def test_requests_that_may_get_different_answers_never_share_a_key(field: str, index: int, column: str) -> None:
    """Each sampling parameter, each candle, each time."""
    keys = {key_for(ASKED), key_for(ASKED | {"overrides": ASKED["overrides"] | {field: DECIDING[field]}})}
    touched = json.loads(json.dumps(ASKED))
    touched["candles"][index][column] += -0.001 if column == "low" else 0.001
    if column in ("open", "close"):
        touched["candles"][index]["high"] += 0.002
    keys.add(key_for(touched))
    later = json.loads(json.dumps(ASKED))
    later["timestamps"] = [stamp.replace("2024-06-01", "2024-06-02") for stamp in later["timestamps"]]
    keys.add(key_for(later))
    assert len(keys) == 4


@pytest.mark.parametrize("field", SHOWN_ONLY)
def test_what_only_shows_the_forecast_differently_shares_its_key(field: str) -> None:
    """Names, quantiles, paths, repair, patience and urgency do not change the forecast."""
    assert key_for(ASKED | {field: SHOWN_ONLY[field]}) == key_for(ASKED)


def test_spelling_does_not_matter() -> None:
    """The order of keys, 1 for 1.0, defaults said aloud, volumes without a fraction."""
    shuffled = random.Random(1).sample(sorted(ASKED.items()), len(ASKED))
    candles = [{name: int(value) if value == int(value) else value for name, value in reversed(candle.items())}
               for candle in ASKED["candles"]]  # fmt: skip
    spelled = dict(shuffled) | {"candles": candles}
    spelled["overrides"] = {"temperature": 1, "seed": 7, "top_p": 0.9, "sample_count": 1, "top_k": 0, "pred_len": 3}
    assert json.dumps(spelled) != json.dumps(ASKED)
    assert key_for(spelled) == key_for(ASKED)


def test_an_embedding_is_no_forecast() -> None:
    """The same history asked for otherwise has another key, and each history its own."""
    work = Forecast(np.zeros((2, 6), np.float32), np.ones((2, 5), np.int16), np.ones((1, 5), np.int16))
    embed = Embed(work.history, work.history_stamps)
    longer = Embed(np.zeros((3, 6), np.float32), np.ones((3, 5), np.int16))
    assert len({key_of(IDENTITY, each) for each in (work, embed, longer)}) == 3


@pytest.mark.parametrize("field", ["model_version", "tokenizer_version", "max_context", "device", "dtype", "build"])
def test_another_model_has_other_keys(field: str) -> None:
    """All that makes two workers answer differently is in what names the model."""
    served = Served(None, "m@1", "t@1", 512, 1024, "cpu", "float32", "runner")  # type: ignore[arg-type]
    other = dataclasses.replace(served, **{field: 256 if field == "max_context" else "other"})  # type: ignore[arg-type]
    work = Embed(np.zeros((2, 6), np.float32), np.ones((2, 5), np.int16))
    assert key_of(served.identity, work) != key_of(other.identity, work)
    assert len(served.identity) == 32
    assert served.identity == dataclasses.replace(served).identity


def test_the_build_of_torch_runners_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel computes, torch's version and the GPU decide the last bits."""
    torch = SimpleNamespace(__version__="2.15.0", cuda=SimpleNamespace(get_device_name=lambda: "H200"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    runner = FakeRunner()
    assert build_of(runner) == "torch 2.15.0 cpu"
    runner.device = "cuda"
    assert build_of(runner) == "torch 2.15.0 H200"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def outcome(horizon: int = 10) -> Outcome:
    return Outcome(np.zeros((1, horizon, 6), np.float32), None, {"decode": 1.0}, rolled=False)


def test_an_entry_lives_as_long_as_its_ttl() -> None:
    """Found until then, however often it was used; gone afterwards, and its bytes with it at the next occasion."""
    clock = Clock()
    store = Store(10.0, 10**6, clock)
    kept = outcome()
    store.put(b"a", kept)
    for clock.now in (0.0, 5.0, 9.9):
        assert store.get(b"a") is kept
    clock.now = 10.0
    assert store.get(b"a") is None and b"a" not in store
    store.put(b"b", outcome())
    assert (len(store), store.bytes) == (1, weight(kept))


def test_the_least_recently_used_goes_first() -> None:
    """At the limit of bytes, what was asked for last stays."""
    each = weight(outcome())
    store = Store(10.0, 2 * each)
    store.put(b"a", outcome())
    store.put(b"b", outcome())
    assert store.get(b"a")
    store.put(b"c", outcome())
    assert [key in store for key in (b"a", b"b", b"c")] == [True, False, True]
    assert store.bytes == 2 * each


def test_what_is_larger_than_all_room_is_not_kept() -> None:
    """It would throw out everything else for nothing."""
    store = Store(10.0, weight(outcome(10)))
    store.put(b"a", outcome(10))
    store.put(b"b", outcome(11))
    assert b"a" in store and b"b" not in store


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 200), st.floats(0, 3)), max_size=60))
def test_bytes_are_bounded_and_add_up(puts: list[tuple[int, int, float]]) -> None:
    """Whatever is kept, replaced or expires: never above the limit, and the sum of what is there."""
    clock = Clock()
    store = Store(5.0, 8000, clock)
    for key, horizon, pause in puts:
        clock.now += pause
        store.put(bytes([key]), outcome(horizon))
        assert store.bytes == sum(weight(entry) for entry, _ in store._entries.values()) <= 8000
        assert (bytes([key]) in store) == (weight(outcome(horizon)) <= 8000)


def test_what_is_kept_cannot_be_changed() -> None:
    """Who answers from an entry cannot spoil it for the next."""
    store = Store(10.0, 10**6)
    kept = outcome()
    store.put(b"a", kept)
    assert kept.paths is not None
    with pytest.raises(ValueError):
        kept.paths[0, 0, 0] = 1.0
