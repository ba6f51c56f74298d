"""Every forecast as an event on a Kafka topic: fire and forget, counted to the last one.

A record goes from the event loop into a bounded buffer; its thread makes JSON of it and hands it to librdkafka, which has a
bounded queue of its own, connects, retries and waits while the brokers are away. A poller hears of each event's delivery.
Always: offered = written + failed + dropped + held. Written: the brokers have it, on all replicas in sync. Failed: they, or
librdkafka, refuse it. Dropped: no room, no delivery in time, or the worker ended first; of these a few may be on the topic
all the same, since their acknowledgement was lost.
Knows: librdkafka. Does not know: what an event says.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from app.batcher import Batcher, Bounds, Settled
from app.events import SCHEMA, Event, encode, event_of, weight
from app.records import Record
from app.settings import Settings, SettingsError

log = logging.getLogger(__name__)

SECURITY: Final = ("security.", "sasl.", "ssl.", "enable.ssl.")
"""What the options in ``KRONOS_KAFKA_SECURITY`` begin with; all others are ours."""
BUFFER: Final = Bounds(most_items=2_000, most_bytes=8 * 2**20, batch_items=200, batch_bytes=2**20, age_s=0.05)
MOST_QUEUED: Final = 20_000
LINGER_MS: Final = 20
REQUEST_TIMEOUT_MS: Final = 10_000
RECONNECT_MS: Final = 2_000
POLL_S: Final = 0.25
PROBE_EVERY_S: Final = 5.0
PROBE_S: Final = 1.0
CLOSING_S: Final = 0.2
"""Kept of the time to close, for the reports of what is given up."""
LATE: Final = (KafkaError._MSG_TIMED_OUT, KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._FATAL)

Config = dict[str, Any]
Headers = list[tuple[str, str | bytes | None]]


class KafkaEvents:
    """A sink that publishes. ``make`` builds a producer from its options; another one in tests."""

    def __init__(self, options: Config, topic: str, make: Callable[[Config], Producer] = Producer) -> None:
        """Raises KafkaException when librdkafka does not take the options; brokers need not be there."""
        self._make = make
        self._options = options | {"error_cb": self._on_error}
        self._topic = topic
        self._headers: Headers = [("schema", SCHEMA.encode()), ("content-type", b"application/json")]
        self._producer = make(self._options)
        self._held = 0  # by librdkafka
        self._lock = threading.Lock()
        self._last_error = ""
        self._down_since: float | None = None
        self._broken = False
        self._refusals: set[int] = set()
        self._stopped = threading.Event()
        self._batcher: Batcher[Event] = Batcher("kafka", self._publish, BUFFER, settles=False)
        self._poller = threading.Thread(target=self._poll, name="kafka-poll", daemon=True)
        self._poller.start()

    def offer(self, record: Record) -> None:
        """As ``Sink.offer``."""
        event = event_of(record)
        self._batcher.put(event, weight(event))

    def close(self, timeout_s: float) -> None:
        """As ``Sink.close``."""
        deadline = time.monotonic() + timeout_s - CLOSING_S
        self._batcher.close(max(0.0, deadline - time.monotonic()))
        self._stopped.set()
        self._poller.join()
        self._producer.flush(max(0.0, deadline - time.monotonic()))
        left = self._give_up()
        if left:
            log.warning("kafka: %d events were not delivered when the worker ended", left)

    def _publish(self, events: list[Event]) -> None:
        """Hand events to librdkafka. Called by the buffer's thread; never raises, since none may be handed over twice."""
        self._hold(len(events))
        for event in events:
            key = None if event.series_id is None else event.series_id.encode()
            headers: Headers = [*self._headers, ("record_id", event.record_id.encode())]
            try:
                self._producer.produce(
                    self._topic, encode(event), key, timestamp=int(1e3 * event.answered.timestamp()),
                    headers=headers, on_delivery=self._on_delivery,
                )  # fmt: skip
            except BufferError:
                self._settle("dropped")
            except KafkaException as error:
                self._on_failure(error.args[0])

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._settle("written")
            self._recovered()
        else:
            self._on_failure(error)

    def _on_failure(self, error: KafkaError) -> None:
        if error.code() in LATE:
            self._settle("dropped")
            if error.code() == KafkaError._MSG_TIMED_OUT:
                self._outage(self._last_error or error.str())
            return
        self._settle("failed")
        if error.code() not in self._refusals:
            self._refusals.add(error.code())
            log.warning("kafka: an event was refused: %s; counted, and not said again", error.str())

    def _on_error(self, error: KafkaError) -> None:
        """What librdkafka says of brokers; it goes on trying by itself, unless the error is fatal."""
        if error.fatal():
            self._broken = True
            log.warning("kafka: %s; beginning anew", error.str())
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._outage(self._last_error or error.str())
        elif error.code() == KafkaError._AUTHENTICATION:
            self._outage(error.str())
        else:
            self._last_error = error.str()  # of one broker; librdkafka says so before it says that all are down

    def _outage(self, why: str) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            self._batcher.tally.up(False)
            log.warning("kafka at %s: %s; events are kept while there is room", self._options.get("bootstrap.servers"), why)

    def _recovered(self) -> None:
        if self._down_since is not None:
            log.info("kafka: answers again after %.0f s", time.monotonic() - self._down_since)
            self._down_since, self._last_error = None, ""
            self._batcher.tally.up(True)

    def _poll(self) -> None:
        """Hear of deliveries and errors, ask whether brokers that were away are back, replace a broken producer."""
        probed = time.monotonic()
        while not self._stopped.is_set():
            self._producer.poll(POLL_S)
            if self._broken:
                self._give_up()
                self._producer, self._broken = self._make(self._options), False
            if self._down_since is not None and time.monotonic() - probed > PROBE_EVERY_S:
                self._probe()
                probed = time.monotonic()

    def _probe(self) -> None:
        try:
            self._producer.list_topics(self._topic, timeout=PROBE_S)
        except KafkaException:
            return
        self._producer.poll(0)  # what it said while the probe waited is older than the answer
        self._recovered()

    def _give_up(self) -> int:
        """Let go of what the producer holds; how many events that were."""
        with self._lock:
            left = self._held
        self._producer.purge()
        self._producer.flush(CLOSING_S)
        return left

    def _hold(self, more: int) -> None:
        with self._lock:
            self._held += more
            self._batcher.tally.hold(self._held)

    def _settle(self, outcome: Settled) -> None:
        self._hold(-1)
        self._batcher.tally.settle(outcome, 1)


def options_of(settings: Settings) -> Config:
    """librdkafka's options. Raises SettingsError, without the values, when those for security cannot be used."""
    timeout_ms = int(1e3 * settings.kafka_timeout)
    return {
        "bootstrap.servers": settings.kafka_servers,
        "client.id": settings.worker_name,
        "enable.idempotence": True,  # retries make no copies and keep the order, and all replicas in sync have it
        "message.timeout.ms": timeout_ms,
        "socket.timeout.ms": min(REQUEST_TIMEOUT_MS, timeout_ms),
        "reconnect.backoff.max.ms": RECONNECT_MS,
        "queue.buffering.max.kbytes": max(1, settings.kafka_bytes // 1024),
        "queue.buffering.max.messages": MOST_QUEUED,
        "linger.ms": LINGER_MS,
        "compression.type": "lz4",
        "partitioner": "murmur2_random",  # a series goes where Java's clients look for it
        "log_level": 2,  # errors come by callback, and are logged once
        **(_security(Path(settings.kafka_security)) if settings.kafka_security else {}),
    }


def make_events(settings: Settings) -> KafkaEvents:
    """The sink that the settings ask for. Raises SettingsError, without passwords, when it cannot be."""
    options = options_of(settings)
    try:
        return KafkaEvents(options, settings.kafka_topic)
    except KafkaException as error:
        said = error.args[0].str()
        for name, value in options.items():
            if name.startswith(SECURITY):
                said = said.replace(str(value), "…")
        raise SettingsError(f"KRONOS_KAFKA_SERVERS, KRONOS_KAFKA_SECURITY: {said}") from None


def _security(path: Path) -> Config:
    name = f"KRONOS_KAFKA_SECURITY ({path})"
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{name}: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"{name}: is not JSON in UTF-8") from None
    if not isinstance(options, dict):
        raise SettingsError(f'{name}: is no object such as {{"security.protocol": "sasl_ssl"}}')
    if others := [key for key in options if not key.startswith(SECURITY)]:
        raise SettingsError(f"{name}: {', '.join(others)}: only names that begin with {' '.join(SECURITY)} may stand there")
    return options
