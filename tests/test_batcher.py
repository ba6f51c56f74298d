"""The buffer between the event loop and slow writers: whatever writers do, every item is accounted for, and ``put`` is cheap."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import batcher
from app.batcher import Batcher, Bounds, Refused
from tests.caching import value
from tests.serving import until

ROOMY = Bounds(most_items=1000, most_bytes=10**6, batch_items=10, batch_bytes=10**5, age_s=0.02)
OUTCOMES = ("written", "failed", "dropped")


@pytest.fixture(autouse=True)
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(batcher, "LAST_PAUSE_S", 0.004)


def counts(name: str) -> dict[str, float]:
    found = {outcome: value("kronos_sink_records_total", sink=name, outcome=outcome) for outcome in OUTCOMES}
    return {"offered": value("kronos_sink_offered_total", sink=name), **found}


def since(name: str, before: dict[str, float]) -> dict[str, float]:
    return {key: now - before[key] for key, now in counts(name).items()}


class Writer:
    """Writes as its script says, then well; keeps what it wrote."""

    def __init__(self, script: list[str]) -> None:
        self.script = list(script)
        self.written: list[Any] = []
        self.refused: list[Any] = []

    def __call__(self, batch: list[Any]) -> None:
        act = self.script.pop(0) if self.script else "write"
        if act == "fail":
            raise OSError("away")
        if act == "refuse":
            self.refused += batch
            raise Refused("no")
        self.written += batch


@pytest.mark.slow
@given(
    bursts=st.lists(st.integers(0, 40), max_size=6), script=st.lists(st.sampled_from(["write", "fail", "refuse"]), max_size=12),
    most=st.integers(1, 30), most_bytes=st.integers(1, 60), batch=st.integers(1, 12),
)  # fmt: skip
def test_counters_equal_what_is_missing(bursts: list[int], script: list[str], most: int, most_bytes: int, batch: int) -> None:
    """For any bursts, failures and bounds: what was offered and is not where it belongs was counted as dropped or failed."""
    before, writer = counts("test"), Writer(script)
    buffer = Batcher("test", writer, Bounds(most, 2 * most_bytes, batch, 8, 0.001))
    taken, number = [], 0
    for burst in bursts:
        for _ in range(burst):
            number += 1
            if buffer.put(number, 2):
                taken.append(number)
            assert buffer.held <= most and buffer.held_bytes <= 2 * most_bytes
        time.sleep(0.001)
    left = buffer.close(5)
    found = since("test", before)
    assert found["offered"] == number
    assert found["written"] == len(writer.written)
    assert found["failed"] == len(writer.refused)
    assert found["dropped"] == number - len(taken) + left == number - len(writer.written) - len(writer.refused)
    assert sorted(writer.written + writer.refused) == taken[: len(taken) - left]
    assert writer.written == sorted(writer.written)
    assert (buffer.held, buffer.held_bytes) == (0, 0)


def test_a_batch_is_due_by_count_by_bytes_and_by_age() -> None:
    """Whichever comes first."""
    for bounds, size, expected in (
        (Bounds(100, 10**6, 3, 10**6, 60), 1, [3, 3]),
        (Bounds(100, 10**6, 100, 20, 60), 10, [2, 2, 2]),
        (Bounds(100, 10**6, 100, 10**6, 0.05), 1, [6]),
    ):
        sizes: list[int] = []
        buffer = Batcher[int]("test", lambda batch, sizes=sizes: sizes.append(len(batch)), bounds)  # type: ignore[misc]
        for number in range(6):
            buffer.put(number, size)
        assert until(lambda sizes=sizes: sum(sizes) == 6), sizes  # type: ignore[misc]
        assert sizes == expected
        buffer.close(5)


def test_the_same_batch_is_tried_again_until_it_is_written() -> None:
    """After a failure the writer gets the same list; one line says that it is away, one that it is back."""
    batches: list[list[int]] = []

    def write(batch: list[int]) -> None:
        batches.append(batch)
        if len(batches) < 4:
            raise OSError("away")

    buffer = Batcher("test", write, ROOMY)
    buffer.put(1, 1)
    assert until(lambda: buffer.held == 0)
    assert len(batches) == 4 and all(batch is batches[0] for batch in batches)
    assert value("kronos_sink_up", sink="test") == 1
    buffer.close(1)


def test_an_outage_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """However long it lasts and however much is dropped."""
    caplog.set_level("INFO", "app.batcher")
    writer = Writer(["fail"] * 30)
    buffer = Batcher("test", writer, Bounds(5, 100, 5, 100, 0.001))
    for number in range(50):
        buffer.put(number, 1)
    assert until(lambda: buffer.held == 0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    buffer.close(1)


@pytest.mark.parametrize("fails", ["raises", "blocks"])
def test_the_end_is_bounded(fails: str) -> None:
    """A writer that is away or silent gets its time at the end, not more; what is left is dropped and counted."""
    release = threading.Event()

    def write(batch: list[int]) -> None:
        if fails == "raises":
            raise OSError("away")
        release.wait(10)

    before = counts("test")
    buffer = Batcher("test", write, ROOMY)
    for number in range(25):
        buffer.put(number, 1)
    time.sleep(0.05)
    began = time.monotonic()
    assert buffer.close(0.2) == 25
    assert time.monotonic() - began < 5  # the writer takes ten
    release.set()
    assert not buffer.put(1, 1), "too late"
    time.sleep(0.05)
    assert since("test", before) == {"offered": 26, "written": 0, "failed": 0, "dropped": 26}


def test_the_end_does_not_wait_for_a_long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an outage the next try may be 15 s away; closing tries at once."""
    monkeypatch.setattr(batcher, "FIRST_PAUSE_S", 30.0)
    writer = Writer(["fail"])
    buffer = Batcher("test", writer, ROOMY)
    buffer.put(1, 1)
    assert until(lambda: not writer.script)
    assert buffer.close(5) == 0 and writer.written == [1]


def longest_put(make: Callable[[Callable[[list[int]], None]], Callable[[int], object]]) -> float:
    """Seconds of the slowest of 200 puts before a writer that takes 20 ms."""
    put = make(lambda batch: time.sleep(0.02))
    slowest = 0.0
    for number in range(200):
        began = time.perf_counter()
        put(number)
        slowest = max(slowest, time.perf_counter() - began)
    return slowest


@pytest.mark.slow
def test_put_does_not_wait_for_the_writer() -> None:
    """With the negative control: the same writer, called where the item is offered, is seen."""
    buffers = []

    def buffered(write: Callable[[list[int]], None]) -> Callable[[int], object]:
        buffers.append(Batcher("test", write, ROOMY))
        return lambda item: buffers[0].put(item, 1)

    assert min(longest_put(buffered) for _ in range(3)) < 0.015
    assert longest_put(lambda write: lambda item: write([item])) >= 0.02
    for buffer in buffers:
        buffer.close(5)
