"""Events on a real Kafka broker that is killed, stopped, absent and started again (F15): predictions do not notice, and
every event is where its count says."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Message

from app import events_kafka
from app.events import SCHEMA, Event
from app.events_kafka import KafkaEvents, options_of
from app.settings import Settings, SettingsError
from tests.kafka_server import PASSWORD, USER, WHY_NOT, Broker, broker
from tests.serving import application, server, until
from tests.sinks import Counts, Users, ask, is_up

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

RETRIED_S = 60.0


@pytest.fixture(scope="module")
def node() -> Iterator[Broker]:
    with broker() as made:
        made.start()
        yield made


@pytest.fixture
def up(node: Broker) -> Iterator[Broker]:
    """The broker runs, whatever the test before did to it."""
    if node.process is None or node.process.poll() is not None:
        node.start()
    yield node
    node.resume()


def told(node: Broker, topic: str, **others: Any) -> Settings:
    """Settings of a worker that publishes to a topic of its own."""
    return Settings(prewarm=False, cache_ttl=0, kafka_servers=node.servers, kafka_topic=topic, **others)


def read(node: Broker, topic: str) -> dict[str, list[Event]]:
    """The events on a topic by their record, and all of them are what the schema says."""
    found: dict[str, list[Event]] = {}
    for message in node.read(topic):
        event = decoded(message)
        found.setdefault(event.record_id, []).append(event)
    return found


def decoded(message: Message) -> Event:
    event = msgspec.json.decode(message.value() or b"", type=Event)
    headers = dict(message.headers() or [])
    assert headers["schema"] == SCHEMA.encode() and headers["record_id"] == event.record_id.encode()
    assert message.key() == (event.series_id or "").encode()
    return event


def test_every_forecast_is_an_event(up: Broker) -> None:
    """Its document says what the answer said, and its key is its series."""
    counts = Counts("kafka")
    with server(told(up, "all")) as running:
        answers = {answer["series_id"]: answer for answer in (ask(running.url, number) for number in range(20))}
        assert counts.all_settled(RETRIED_S)
    assert (counts["offered"], counts["written"]) == (20, 20)
    events = [event for copies in read(up, "all").values() for event in copies]
    assert len(events) == 20
    for event in events:
        answer = answers[event.series_id or ""]
        assert msgspec.to_builtins(event.forecast) == answer["prediction"]
        assert (event.request_id, event.parameters.seed) == (answer["request_id"], answer["seed"])


def test_a_killed_broker_loses_nothing_that_was_counted(up: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Killed without a goodbye and started again, twice, under load: no prediction fails, every event is there, once."""
    caplog.set_level(logging.INFO, "app.events_kafka")
    counts = Counts("kafka")
    with server(told(up, "killed")) as running:
        with Users(running.url) as users:
            for _ in range(2):
                time.sleep(1.5)
                up.kill()
                assert until(lambda: not is_up("kafka"))
                time.sleep(1)
                assert until(lambda: counts.balance() == 0)
                assert counts["held"] > 0
                up.start()
                assert until(lambda: is_up("kafka"), RETRIED_S)
        assert counts.all_settled(RETRIED_S), counts
    assert not users.errors
    assert (counts["written"], counts["dropped"], counts["failed"]) == (len(users.answers), 0, 0)
    events = read(up, "killed")
    assert {copies[0].series_id for copies in events.values()} == set(users.answers)
    assert all(len(copies) == 1 for copies in events.values())
    outages = [line.getMessage() for line in caplog.records if "kept while there is room" in line.getMessage()]
    assert len(outages) == 2 and all("127.0.0.1" in line for line in outages)


def test_what_is_dropped_is_what_is_missing(up: Broker) -> None:
    """With room for a few and little patience, an outage costs events, no prediction, and the count says how many."""
    counts = Counts("kafka")
    with server(told(up, "dropped", kafka_bytes=2**16, kafka_timeout=8.0)) as running:
        for number in range(10):
            ask(running.url, number)
        assert counts.all_settled(RETRIED_S) and counts["written"] == 10
        up.kill()
        with Users(running.url, "lost") as users:
            time.sleep(3)
        assert not users.errors
        assert until(lambda: counts["dropped"] == len(users.answers), RETRIED_S), counts
        up.start()
        assert until(lambda: is_up("kafka"), RETRIED_S)
        ask(running.url, 99, "after")
        assert counts.all_settled(RETRIED_S), counts
    there = {copies[0].series_id for copies in read(up, "dropped").values()}
    assert counts["offered"] - len(there) == counts["dropped"] == len(users.answers) > 0
    assert "after-99" in there


def test_a_worker_starts_without_a_broker(up: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """One line says that it is away; what was published meanwhile arrives when it comes."""
    up.kill()
    counts = Counts("kafka")
    with server(told(up, "late")) as running:
        for number in range(5):
            ask(running.url, number)
        assert until(lambda: not is_up("kafka")) and counts["held"] == 5
        assert len([line for line in caplog.records if line.name == "app.events_kafka"]) == 1
        up.start()
        assert counts.all_settled(RETRIED_S)
    assert counts["written"] == 5 and len(read(up, "late")) == 5


def test_the_end_waits_for_no_broker(up: Broker) -> None:
    """What the broker has not when the worker ends is counted as dropped, and the end comes in time."""
    counts = Counts("kafka")
    with server(told(up, "end")) as running:
        ask(running.url, 1)
        assert counts.all_settled(RETRIED_S)
        up.kill()
        for number in range(2, 12):
            ask(running.url, number)
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert (counts["written"], counts["dropped"], counts["held"]) == (1, 10, 0)
    up.start()
    assert len(read(up, "end")) == 1


def test_the_end_delivers_what_it_can(up: Broker) -> None:
    """A worker that ends with events in its hands and a broker there loses none."""
    counts = Counts("kafka")
    with server(told(up, "drain")) as running:
        ask(running.url, 0)
        assert counts.all_settled(RETRIED_S)
        for number in range(1, 30):
            ask(running.url, number)
    assert (counts["written"], counts["held"]) == (30, 0)
    assert len(read(up, "drain")) == 30


def test_a_silent_broker_is_no_predictions_business(up: Broker) -> None:
    """It listens and answers nothing; later it goes on, and every event is there once."""
    counts = Counts("kafka")
    with server(told(up, "silent")) as running:
        ask(running.url, 0)
        assert counts.all_settled(RETRIED_S)
        up.stall()
        try:
            with Users(running.url, "stalled") as users:
                time.sleep(3)
        finally:
            up.resume()
        assert not users.errors and counts["dropped"] == 0
        assert counts.all_settled(RETRIED_S)
    events = read(up, "silent")
    assert len(events) == counts["offered"] and all(len(copies) == 1 for copies in events.values())


def test_control_a_sink_that_waits_for_its_broker_stops_predictions(up: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The protection off: published on the event loop and waited for, an outage is the predictions' outage."""

    def wait(self: KafkaEvents, record: object) -> None:
        offer(self, record)  # type: ignore[arg-type]
        time.sleep(2 * events_kafka.BUFFER.age_s)
        self._producer.flush(3)

    offer = KafkaEvents.offer
    monkeypatch.setattr(KafkaEvents, "offer", wait)
    with server(told(up, "control")) as running:
        ask(running.url, 0)
        up.kill()
        with Users(running.url, "control", threads=1) as users:
            time.sleep(3)
        assert max(users.seconds) > 2


def test_control_without_acknowledgements_the_count_is_wrong(up: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The protection off: a producer that is told of no arrival counts what a silent, then killed broker never had."""
    careless = {"enable.idempotence": False, "acks": 0}
    monkeypatch.setattr(events_kafka, "options_of", lambda settings: options_of(settings) | careless)
    counts = Counts("kafka")
    with server(told(up, "careless")) as running:
        for number in range(20):  # to all partitions, so that the producer knows who leads them
            ask(running.url, number)
        assert counts.all_settled(RETRIED_S)
        up.stall()
        for number in range(20, 30):
            ask(running.url, number)
        assert counts.all_settled(RETRIED_S)
        up.kill()
    up.start()
    assert len(read(up, "careless")) < counts["written"]


def test_a_password_opens_the_door(up: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SASL options come from a file; a wrong password is said once, without the password."""
    file = tmp_path / "security.json"
    options = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": USER}
    settings = told(up, "sasl").model_copy(update={"kafka_servers": f"127.0.0.1:{up.sasl_port}", "kafka_security": str(file)})
    counts = Counts("kafka")
    file.write_text(json.dumps(options | {"sasl.password": PASSWORD}))
    with server(settings) as running:
        ask(running.url, 1)
        assert until(lambda: counts["written"] == 1, RETRIED_S)
    file.write_text(json.dumps(options | {"sasl.password": "wrong-password"}))
    with server(settings) as running:
        ask(running.url, 2)
        assert until(lambda: not is_up("kafka"))
    lines = [line.getMessage() for line in caplog.records if line.name == "app.events_kafka" and "kept" in line.getMessage()]
    assert len(lines) == 1 and "uthentication failed" in lines[0] and "wrong-password" not in caplog.text


def test_options_that_librdkafka_refuses_stop_the_start(up: Broker, tmp_path: Path) -> None:
    """By name, and without the values."""
    file = tmp_path / "security.json"
    file.write_text(json.dumps({"security.protocol": "no-such-protocol", "sasl.password": PASSWORD}))
    with pytest.raises(SettingsError) as caught:
        application(told(up, "none", kafka_security=str(file)))
    assert "security.protocol" in str(caught.value) and PASSWORD not in str(caught.value)
