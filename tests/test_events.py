"""Events without a broker: their document, how they are counted whatever becomes of them, what they cost a prediction."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from hypothesis import given, settings
from hypothesis import strategies as st

from app import events_kafka
from app.events import CANDLE_BYTES, SCHEMA, Event, encode, event_of, weight
from app.events_kafka import KafkaEvents, make_events, options_of
from app.settings import Settings, SettingsError, load
from tests.logged import record
from tests.serving import client, request, until
from tests.sinks import OUTCOMES, Counts, is_up

SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 0.9}
KAFKA = Settings(kafka_servers="127.0.0.1:9")


def test_a_document_says_what_was_asked_and_answered() -> None:
    """Its members and their names are what other programs read: a change makes another version of the schema."""
    told = record(24, 3, 1700000000.25, series_id="BTC-5m", quantiles=[0.1, 0.9], return_paths=True)
    document = json.loads(encode(event_of(told)))
    candle = ["timestamp", "open", "high", "low", "close", "volume", "amount"]
    assert [list(each) for each in document["forecast"]] == 3 * [candle]
    assert document["forecast"] == msgspec.to_builtins(told.result.prediction)
    assert document["quantiles"] == msgspec.to_builtins(told.result.quantiles)
    rest = {name: member for name, member in document.items() if name not in ("forecast", "quantiles")}
    assert rest == {
        "schema": "kronos.forecast.v1",
        "record_id": told.record_id,
        "request_id": "request-1",
        "series_id": "BTC-5m",
        "answered": "2023-11-14T22:13:20.250000Z",
        "endpoint": "single",
        "worker": "worker-1",
        "model_version": told.model_version,
        "tokenizer_version": told.tokenizer_version,
        "cache": "miss",
        "stages": told.stages,
        "parameters": SAMPLING | {"pred_len": 3, "sample_count": 8, "seed": 7, "repair": False},
        "history": {"candles": 24, "until": told.prepared.asked.timestamps[-1]},
    }
    assert "quantiles" not in json.loads(encode(event_of(record())))


def test_an_event_lets_go_of_the_request() -> None:
    """The history, and the sample paths, are not held while an event waits."""
    told = record(return_paths=True)
    asked = weakref.ref(told.prepared)
    event = event_of(told)
    del told
    gc.collect()
    assert asked() is None and event.forecast


@pytest.mark.parametrize("horizon, quantiles", [(1, None), (120, None), (60, [0.1, 0.5, 0.9])])
def test_the_weight_of_an_event_is_about_its_memory(horizon: int, quantiles: list[float] | None) -> None:
    """Within a factor of two of what its candles take: the bounds of a buffer are kept by it."""
    event = event_of(record(24, horizon, quantiles=quantiles))
    curves = [event.forecast, *(event.quantiles.values() if isinstance(event.quantiles, dict) else ())]
    candle = event.forecast[0]
    taken = (sys.getsizeof(candle) + 6 * sys.getsizeof(1.5) + sys.getsizeof(candle.timestamp)) * horizon * len(curves)
    assert taken / 2 < CANDLE_BYTES * horizon * len(curves) < 2 * taken
    assert weight(event) > len(encode(event)) / 2


class FakeProducer:
    """librdkafka as far as it is used here: a bounded queue whose deliveries and errors the test decides."""

    def __init__(self, options: dict[str, Any], room: int = 6) -> None:
        self.options, self.room = options, room
        self.queue: list[Callable[..., None]] = []
        self.reports: list[Callable[[], None]] = []
        self.lock = threading.Lock()
        self.broken = self.answers = False
        self.blocked: threading.Event | None = None

    def produce(self, topic: str, value: bytes, key: bytes | None, *, on_delivery: Callable[..., None], **_: Any) -> None:
        if self.blocked:
            self.blocked.wait(20)
        if b'"too-large"' in value:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        if self.broken:
            raise KafkaException(KafkaError(KafkaError._FATAL))
        with self.lock:
            if len(self.queue) >= self.room:
                raise BufferError
            self.queue.append(on_delivery)

    def report(self, count: int, code: int | None) -> None:
        """The next ``count`` messages are delivered, or end with an error."""
        error = None if code is None else KafkaError(code)
        with self.lock:
            for on_delivery in self.queue[:count]:
                self.reports.append(lambda on_delivery=on_delivery: on_delivery(error, None))  # type: ignore[misc]
            del self.queue[:count]

    def poll(self, timeout: float) -> int:
        with self.lock:
            reports, self.reports = self.reports, []
        for each in reports:
            each()
        time.sleep(0 if reports else min(timeout, 0.001))
        return len(reports)

    def flush(self, timeout: float) -> int:
        self.poll(0)
        return len(self.queue)

    def purge(self) -> None:
        self.report(len(self.queue), KafkaError._PURGE_QUEUE)

    def list_topics(self, topic: str, timeout: float) -> None:
        """As librdkafka: while it waits for an answer, nobody is called back; what it has to say waits for the next poll."""
        with self.lock:
            for code in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                self.reports.append(lambda code=code: self.options["error_cb"](KafkaError(code)))  # type: ignore[misc]
        if not self.answers:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))


@contextmanager
def faked() -> Iterator[tuple[KafkaEvents, list[FakeProducer]]]:
    """A sink, and the producers it has made; the last one is in use."""
    made: list[FakeProducer] = []

    def make(options: dict[str, Any]) -> Any:
        made.append(FakeProducer(options))
        return made[-1]

    sink = KafkaEvents({}, "topic", make)
    try:
        yield sink, made
    finally:
        sink.close(1)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(1, 5)),
        st.tuples(st.just("too-large"), st.just(1)),
        st.tuples(st.just("written"), st.integers(1, 4)),
        st.tuples(st.just("late"), st.integers(1, 4)),
        st.tuples(st.just("refused"), st.integers(1, 4)),
        st.tuples(st.just("fatal"), st.just(1)),
    ),
    max_size=12,
)
CODES = {"written": None, "late": KafkaError._MSG_TIMED_OUT, "refused": KafkaError.TOPIC_AUTHORIZATION_FAILED}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_every_event_is_accounted_for(steps: list[tuple[str, int]]) -> None:
    """offered = written + failed + dropped + held, whatever librdkafka does; after the end nothing is held."""
    counts = Counts("kafka")
    offered = 0
    with faked() as (sink, made):
        for step, count in steps:
            if step in ("offer", "too-large"):
                offered += count
                for _ in range(count):
                    sink.offer(record(2, 1, series_id=step))
            elif step == "fatal":
                made[-1].broken = True
                sink._on_error(FatalError())  # type: ignore[arg-type]
                assert until(lambda: len(made) > 1 and not made[-1].broken)
            else:
                made[-1].report(count, CODES[step])
            assert until(lambda: sink._batcher.held == 0 and not made[-1].reports)
            assert until(lambda: counts.balance() == 0), (steps, counts)
            assert counts["offered"] == offered and counts["held"] == len(made[-1].queue)
    assert counts["held"] == 0 and counts["offered"] == offered == sum(counts[name] for name in OUTCOMES)


class FatalError:
    """As librdkafka's, which cannot be made here."""

    def fatal(self) -> bool:
        return True

    def str(self) -> str:
        return "fatal"


def test_what_becomes_of_an_event_has_the_right_name() -> None:
    """Acknowledged: written. Refused: failed. Too late, no room, or the end: dropped."""
    counts = Counts("kafka")
    with faked() as (sink, made):
        for _ in range(6):
            sink.offer(record(2, 1))
        assert until(lambda: bool(made) and len(made[0].queue) == 6)
        sink.offer(record(2, 1))
        assert until(lambda: counts["dropped"] == 1), "librdkafka's queue was full"
        made[0].report(2, None)
        made[0].report(1, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        made[0].report(1, KafkaError._MSG_TIMED_OUT)
        assert until(lambda: (counts["written"], counts["failed"], counts["dropped"]) == (2, 1, 2))
    assert (counts["dropped"], counts["held"]) == (4, 0)


def test_an_offer_never_waits() -> None:
    """Not for librdkafka, not for room: what does not fit is dropped, and the memory is bounded."""
    counts = Counts("kafka")
    with faked() as (sink, made):
        made[0].blocked = threading.Event()
        told = record(2, 1)
        began = time.monotonic()
        for _ in range(3 * events_kafka.BUFFER.most_items):
            sink.offer(told)
        assert time.monotonic() - began < 5
        assert sink._batcher.held <= events_kafka.BUFFER.most_items
        assert counts["dropped"] >= 2 * events_kafka.BUFFER.most_items - events_kafka.BUFFER.batch_items
        made[0].blocked.set()
    assert counts.balance() == 0


def test_an_outage_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """However often librdkafka says so, and one more when it is over; refusals are said once for each kind."""
    caplog.set_level(logging.INFO, "app.events_kafka")
    with faked() as (sink, made):
        for _ in range(5):
            sink._on_error(KafkaError(KafkaError._TRANSPORT, "connection refused"))
            sink._on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        assert not is_up("kafka")
        for _ in range(4):
            sink.offer(record(2, 1))
        assert until(lambda: len(made[0].queue) == 4)
        made[0].report(2, KafkaError._MSG_TIMED_OUT)
        made[0].report(2, None)
        assert until(lambda: is_up("kafka"))
        for _ in range(3):
            sink.offer(record(2, 1, series_id="too-large"))
        assert until(lambda: sink._batcher.held == 0)
    down, up, refused = (line.getMessage() for line in caplog.records)
    assert "connection refused" in down and "answers again" in up and "was refused" in refused


def test_an_answer_is_newer_than_the_errors_before_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that comes back while it is asked is back; that it was away a moment ago is no second outage."""
    caplog.set_level(logging.INFO, "app.events_kafka")
    monkeypatch.setattr(events_kafka, "PROBE_EVERY_S", 0.02)
    with faked() as (sink, made):
        sink._on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        made[0].answers = True
        assert until(lambda: is_up("kafka"))
        time.sleep(0.1)
    assert ["answers again" in line.getMessage() for line in caplog.records] == [False, True]


def test_a_real_librdkafka_takes_the_options() -> None:
    """All of them, without a word of complaint; its own built-in broker acknowledges what is published."""
    counts = Counts("kafka")
    options = options_of(KAFKA) | {"test.mock.num.brokers": 1, "log_level": 6}
    sink = KafkaEvents(options, "topic", Producer)
    for number in range(20):
        sink.offer(record(2, 1, series_id=f"series-{number}" if number % 2 else None))
    assert counts.all_settled(), counts
    sink.close(3)
    assert (counts["written"], counts["offered"]) == (20, 20)


@pytest.mark.slow
def test_no_broker_no_matter() -> None:
    """A worker whose broker is not there answers, in memory and time, as one that publishes nothing."""
    with client(KAFKA.model_copy(update={"prewarm": False})) as http:
        answers = [http.post("/v1/predict/single", json=request(10, overrides={"pred_len": 2})) for _ in range(10)]
        assert {answer.status_code for answer in answers} == {200}
        assert until(lambda: not is_up("kafka"))


@pytest.mark.parametrize("text, words", [
    ("{", "is not JSON"), ("[]", "is no object"), ('{"bootstrap.servers": "x", "sasl.password": "hidden"}', "bootstrap.servers"),
    ('{"security.protocol": "sasl_ssl", "sasl.mechanism": "hidden-mechanism", "sasl.password": "hidden"}', "mechanism"),
])  # fmt: skip
def test_wrong_security_options_are_refused_without_their_values(tmp_path: Path, text: str, words: str) -> None:
    """At the start, by name."""
    file = tmp_path / "security.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match=words) as caught:
        make_events(KAFKA.model_copy(update={"kafka_security": str(file)}))
    assert "hidden" not in str(caught.value)
    with pytest.raises(SettingsError, match="No such file"):
        make_events(KAFKA.model_copy(update={"kafka_security": str(tmp_path / "none")}))


@pytest.mark.parametrize("servers", ["kafka", "kafka:port", "http://kafka:9092", "a:1,", "a:1 b:2"])
def test_servers_of_another_form_are_refused_by_name(servers: str) -> None:
    """At the start, not when the first event is lost."""
    with pytest.raises(SettingsError, match="KRONOS_KAFKA_SERVERS"):
        load({"KRONOS_KAFKA_SERVERS": servers})


def test_without_servers_the_client_is_not_even_loaded() -> None:
    """Who publishes nothing pays nothing for it."""
    code = "import sys; from app.main import create_app, load; create_app(load({})); assert 'confluent_kafka' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_schema_names_its_version() -> None:
    """Consumers choose by it."""
    assert msgspec.json.decode(encode(event_of(record())), type=Event).schema == SCHEMA == "kronos.forecast.v1"
