"""Forecasts in a real PostgreSQL that is killed, stalled, locked or absent (F15): predictions do not notice, and the rows
that are missing are the ones that were counted as dropped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from app import batcher, table
from app.events import event_of
from app.settings import Settings, SettingsError, load
from app.table import VERSIONS, ForecastTable, bring_up_to_date, make_table
from tests.kv_server import free_port
from tests.logged import record
from tests.postgres_server import PASSWORD, WHY_NOT, Database, database
from tests.serving import application, server, until
from tests.sinks import Counts, Users, ask, is_up

needs_server = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture(scope="module")
def running() -> Iterator[Database]:
    with database() as made:
        yield made


@pytest.fixture
def empty(running: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The server runs and has no table; what waits, waits briefly."""
    if running.process is None or running.process.poll() is not None:
        running.start()
    with psycopg.connect(running.url) as connection:
        connection.execute("DROP SCHEMA IF EXISTS kronos CASCADE")
    monkeypatch.setattr(table, "AGE_S", 0.05)
    monkeypatch.setattr(batcher, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(batcher, "LAST_PAUSE_S", 0.3)
    return running


def told(db: Database, **others: Any) -> Settings:
    return Settings(prewarm=False, cache_ttl=0, postgres_url=db.url, **others)


def rows(db: Database) -> set[str]:
    """The series in the table; none twice."""
    found = [name for (name,) in db.ask("SELECT series_id FROM kronos.forecasts")]
    assert len(found) == len(set(found))
    return set(found)


@needs_server
def test_every_forecast_is_a_row(empty: Database) -> None:
    """It says what the answer said, in columns that SQL can ask."""
    counts = Counts("postgres")
    with server(told(empty)) as worker:
        answers = {answer["series_id"]: answer for answer in (ask(worker.url, number) for number in range(20))}
        ask(worker.url, 20, quantiles=[0.1, 0.9])
        assert counts.all_settled()
    assert (counts["offered"], counts["written"]) == (21, 21)
    found = empty.ask("SELECT series_id, request_id, forecast, (parameters->>'seed')::int, quantiles FROM kronos.forecasts")
    kept = {name: rest for name, *rest in found}
    for name, answer in answers.items():
        assert kept[name] == [answer["request_id"], answer["prediction"], answer["seed"], None]
    [[low]] = empty.ask("SELECT (quantiles->'0.1'->0->>'close')::float FROM kronos.forecasts WHERE series_id = 'series-20'")
    assert low == kept["series-20"][3]["0.1"][0]["close"]


@pytest.mark.slow
@needs_server
def test_a_killed_server_loses_no_row(empty: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Killed with all its processes and started again, twice, under load: every prediction is a row, once."""
    caplog.set_level(logging.INFO, "app.batcher")
    counts = Counts("postgres")
    with server(told(empty)) as worker:
        with Users(worker.url) as users:
            for _ in range(2):
                time.sleep(0.7)
                empty.kill()
                assert until(lambda: not is_up("postgres"))
                assert until(lambda: counts["held"] > 0)
                empty.start()
                assert until(lambda: is_up("postgres"))
        assert counts.all_settled(60), counts
    assert not users.errors
    assert (counts["written"], counts["dropped"], counts["failed"]) == (len(users.answers), 0, 0)
    assert rows(empty) == set(users.answers)
    said = [line.getMessage() for line in caplog.records if line.name == "app.batcher"]
    assert len(said) == 4 and PASSWORD not in caplog.text


@pytest.mark.slow
@needs_server
def test_what_is_dropped_is_what_is_missing(empty: Database) -> None:
    """With room for a few, an outage costs rows, no prediction, and the count says how many."""
    counts = Counts("postgres")
    with server(told(empty, postgres_bytes=2**16)) as worker:
        ask(worker.url, 0)
        assert counts.all_settled()
        empty.kill()
        with Users(worker.url, "lost") as users:
            assert until(lambda: counts["dropped"] > 0, 60)
        assert not users.errors
        empty.start()
        assert counts.all_settled()
    there = rows(empty)
    assert "series-0" in there
    assert counts["offered"] - len(there) == counts["dropped"] == len(users.answers) - (len(there) - 1)


@pytest.mark.slow
@needs_server
@pytest.mark.parametrize("fault", ["locked", "stalled"])
def test_a_server_that_lets_wait_is_waited_for_by_nobody(empty: Database, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is locked, a server that hangs: predictions go on, the line is cut, later every row is there once."""
    monkeypatch.setattr(table, "STATEMENT_TIMEOUT_S", 1)
    monkeypatch.setattr(table, "SILENCE_S", 2 if fault == "stalled" else 60)
    counts = Counts("postgres")
    with server(told(empty)) as worker, psycopg.connect(empty.url) as other:
        ask(worker.url, 0)
        assert counts.all_settled()
        if fault == "locked":
            other.execute("LOCK TABLE kronos.forecasts")
        else:
            empty.stall()
        try:
            with Users(worker.url, "waited") as users:
                assert until(lambda: not is_up("postgres"))
            assert not users.errors and counts["held"] > 0
        finally:
            other.rollback() if fault == "locked" else empty.resume()
        assert counts.all_settled()
    assert (counts["written"], counts["dropped"]) == (1 + len(users.answers), 0)
    assert rows(empty) == {"series-0", *users.answers}


@needs_server
def test_a_commit_that_nobody_heard_of_writes_nothing_twice(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is lost between the commit and its answer: the batch is sent again, and its rows stand there once."""
    insert, lost = ForecastTable._insert, threading.Event()

    def lose(self: ForecastTable, rows: str) -> None:
        insert(self, rows)
        if not lost.is_set():
            lost.set()
            raise psycopg.OperationalError("the line was lost")

    monkeypatch.setattr(ForecastTable, "_insert", lose)
    counts = Counts("postgres")
    with server(told(empty)) as worker:
        for number in range(5):
            ask(worker.url, number)
        assert counts.all_settled()
    assert lost.is_set() and (counts["written"], len(rows(empty))) == (5, 5)


@needs_server
def test_control_without_unique_ids_it_would(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The protection off: the same story writes rows twice."""
    monkeypatch.setattr(table, "INSERT", table.INSERT.removesuffix("ON CONFLICT (record_id) DO NOTHING"))
    monkeypatch.setattr(table, "VERSIONS", (VERSIONS[0].replace("uuid PRIMARY KEY", "uuid"),))
    with pytest.raises(AssertionError):
        test_a_commit_that_nobody_heard_of_writes_nothing_twice(empty, monkeypatch)


@pytest.mark.slow
@needs_server
def test_control_a_sink_that_waits_for_its_server_stops_predictions(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The protection off: written on the event loop, a stalled server is the predictions' stall."""
    monkeypatch.setattr(table, "SILENCE_S", 2)
    monkeypatch.setattr(ForecastTable, "offer", lambda self, told: self._write([event_of(told)]))
    with server(told(empty)) as worker:
        ask(worker.url, 0)
        empty.stall()
        try:
            began = time.monotonic()
            with pytest.raises(AssertionError):
                ask(worker.url, 1)
            assert time.monotonic() - began > 1.5
        finally:
            empty.resume()


@needs_server
def test_a_worker_starts_without_a_server(empty: Database, caplog: pytest.LogCaptureFixture) -> None:
    """One line says that it is away; what was predicted meanwhile is written when it comes."""
    empty.kill()
    counts = Counts("postgres")
    with server(told(empty)) as worker:
        for number in range(5):
            ask(worker.url, number)
        assert until(lambda: not is_up("postgres")) and counts["held"] == 5
        time.sleep(0.5)
        assert len([line for line in caplog.records if line.name == "app.batcher"]) == 1
        empty.start()
        assert counts.all_settled()
    assert len(rows(empty)) == 5


@pytest.mark.slow
@needs_server
def test_the_end_writes_what_it_can_and_waits_for_no_server(empty: Database) -> None:
    """A server that is there gets the last rows; one that is away does not hold up the end, and its rows are counted."""
    counts = Counts("postgres")
    with server(told(empty)) as worker:
        for number in range(10):
            ask(worker.url, number)
    assert (counts["written"], len(rows(empty))) == (10, 10)
    empty.kill()
    counts = Counts("postgres")
    with server(told(empty)) as worker:
        for number in range(10, 15):
            ask(worker.url, number)
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert (counts["written"], counts["dropped"], counts["held"]) == (0, 5, 0)
    empty.start()
    assert len(rows(empty)) == 10


@needs_server
def test_workers_that_start_at_once_make_the_schema_once(empty: Database) -> None:
    """Whoever comes first makes it; a newer one is left as it is and written to."""

    def begin(_: int) -> None:
        with psycopg.connect(empty.url, autocommit=True) as connection:
            bring_up_to_date(connection)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(begin, range(6)))
    assert empty.ask("SELECT version FROM kronos.versions") == [(len(VERSIONS),)]
    with psycopg.connect(empty.url) as connection:
        connection.execute("ALTER TABLE kronos.forecasts ADD COLUMN later text")
        connection.execute("INSERT INTO kronos.versions VALUES (%s)", [len(VERSIONS) + 1])
    counts = Counts("postgres")
    sink = ForecastTable(empty.url, 2**20)
    sink.offer(record())
    assert counts.all_settled() and counts["written"] == 1
    sink.close(1)


@needs_server
def test_a_name_with_a_character_that_text_cannot_hold_is_a_row(empty: Database) -> None:
    """NUL, which JSON can carry, becomes a replacement character; everything else stays."""
    counts = Counts("postgres")
    sink = ForecastTable(empty.url, 2**20)
    for name in ("a\0b", r"a\u0000b", "é \U0001f600 \" \\ '; DROP TABLE", None):
        sink.offer(record(series_id=name))
    assert counts.all_settled()
    sink.close(1)
    names = {name for (name,) in empty.ask("SELECT series_id FROM kronos.forecasts")}
    assert names == {"a\N{REPLACEMENT CHARACTER}b", r"a\u0000b", "é \U0001f600 \" \\ '; DROP TABLE", None}


@needs_server
def test_a_row_that_the_table_refuses_does_not_stop_the_others(empty: Database, caplog: pytest.LogCaptureFixture) -> None:
    """An operator's own constraint: the batch is counted as failed, and the next one is written."""
    with psycopg.connect(empty.url, autocommit=True) as connection:
        bring_up_to_date(connection)
        connection.execute("ALTER TABLE kronos.forecasts ADD CHECK (series_id <> 'bad')")
    counts = Counts("postgres")
    sink = ForecastTable(empty.url, 2**20)
    for name in ("bad", "good"):
        sink.offer(record(series_id=name))
        assert counts.all_settled()
    sink.close(1)
    assert (counts["failed"], counts["written"]) == (1, 1) and rows(empty) == {"good"}
    assert "can never be written" in caplog.text


@pytest.mark.slow
@needs_server
def test_a_wrong_password_is_said_without_it(empty: Database, caplog: pytest.LogCaptureFixture) -> None:
    """And the predictions do not care."""
    settings = told(empty).model_copy(update={"postgres_url": empty.url.replace(PASSWORD, "wrong-password")})
    with server(settings) as worker:
        ask(worker.url, 0)
        assert until(lambda: not is_up("postgres"))
    assert "authentication failed" in caplog.text and "wrong-password" not in caplog.text


@pytest.mark.slow
def test_no_server_no_matter() -> None:
    """A worker whose database is not there answers, and counts."""
    counts = Counts("postgres")
    with server(Settings(prewarm=False, postgres_url=f"postgresql://127.0.0.1:{free_port()}/x")) as worker:
        ask(worker.url, 0)
        assert until(lambda: not is_up("postgres"))
        assert counts["held"] == 1
    assert (counts["dropped"], counts["held"]) == (1, 0)


@pytest.mark.parametrize("url", [
    "me:hidden@host/db", "mysql://me:hidden@host/db", "postgresql://me:hid den@host", "postgresql//me:hidd/en@h@host",
    "postgres:/x?password=hidden&user=me",
])  # fmt: skip
def test_an_address_of_another_form_is_refused_without_its_password(url: str) -> None:
    """By name, at the start."""
    with pytest.raises(SettingsError, match="KRONOS_POSTGRES_URL") as caught:
        load({"KRONOS_POSTGRES_URL": url})
    assert "hid" not in str(caught.value)


def test_an_address_that_cannot_be_read_is_refused_without_its_password() -> None:
    """Also where only PostgreSQL's own library sees that it is wrong."""
    with pytest.raises(SettingsError, match="KRONOS_POSTGRES_URL") as caught:
        application(Settings(postgres_url="postgresql://me:hid%zzden@host/db"))
    assert "hid" not in str(caught.value)
    with pytest.raises(SettingsError):
        make_table(Settings(postgres_url="postgresql://me:hidden@host/db?no_such_option=1"))
