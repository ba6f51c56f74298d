"""Every forecast as a row of a PostgreSQL table, written in batches by a thread, once each.

A batch is one statement. Whether a lost connection had committed it cannot be known, so it is sent again, and PostgreSQL
leaves out the rows that it has: their ids are unique. Each worker has one connection, so a fleet has as many as workers.
Knows: the table, SQL, what no try can insert. Does not know: what a row says, when to try again.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from app.batcher import Batcher, Bounds, Refused
from app.events import Event, event_of, weight
from app.records import Record
from app.settings import Settings, SettingsError

MOST_ITEMS: Final = 20_000
BATCH_ITEMS: Final = 100
BATCH_BYTES: Final = 2**20
"""Of memory; half of it in JSON, which is made in one go while no other thread runs Python: under a millisecond."""
AGE_S: Final = 0.5
CONNECT_TIMEOUT_S: Final = 3
STATEMENT_TIMEOUT_S: Final = 10
"""For a table that is locked, or a server that is slow: then the batch is tried later."""
SILENCE_S: Final = 15
"""For a server that does not keep that: it hangs, or the network swallows everything."""

SCHEMA_LOCK: Final = 0x6B726F6E6F73  # "kronos": workers that start at once look at the schema one after another
VERSIONS: Final = (
    # What each version of the schema adds. Databases have them already: add versions, change none.
    """
    CREATE TABLE kronos.forecasts (
        record_id uuid PRIMARY KEY,
        answered timestamptz NOT NULL,
        series_id text,
        request_id text NOT NULL,
        endpoint text NOT NULL,
        worker text NOT NULL,
        model_version text NOT NULL,
        tokenizer_version text NOT NULL,
        cache text NOT NULL,
        stages jsonb NOT NULL,
        parameters jsonb NOT NULL,
        history jsonb NOT NULL,
        forecast jsonb NOT NULL,
        quantiles jsonb
    );
    CREATE INDEX forecasts_of_series ON kronos.forecasts (series_id, answered);
    CREATE INDEX forecasts_by_time ON kronos.forecasts (answered);
    """,
)
COLUMNS: Final = """record_id, answered, series_id, request_id, endpoint, worker, model_version, tokenizer_version, cache,
    stages, parameters, history, forecast, quantiles"""
INSERT: Final = f"""INSERT INTO kronos.forecasts ({COLUMNS})
    SELECT {COLUMNS} FROM json_populate_recordset(NULL::kronos.forecasts, %s) ON CONFLICT (record_id) DO NOTHING"""
NUL: Final = "\0"
"""The one character that PostgreSQL's text cannot hold; a series' name may have it."""


class ForecastTable:
    """A sink that writes rows."""

    def __init__(self, url: str, most_bytes: int, application: str = "kronos") -> None:
        """Raises psycopg.ProgrammingError for an address that cannot be read; the server need not be there."""
        self._url = url
        self._password = str(conninfo_to_dict(url).get("password") or "")
        self._application = application
        self._connection: Connection[Any] | None = None
        bounds = Bounds(MOST_ITEMS, most_bytes, BATCH_ITEMS, BATCH_BYTES, AGE_S)
        self._batcher: Batcher[Event] = Batcher("postgres", self._write, bounds)

    def offer(self, record: Record) -> None:
        """As ``Sink.offer``."""
        event = event_of(record)
        self._batcher.put(event, weight(event))

    def close(self, timeout_s: float) -> None:
        """As ``Sink.close``."""
        left = self._batcher.close(timeout_s)
        if not left:  # otherwise its thread may be using the connection
            self._disconnect()

    def _write(self, events: list[Event]) -> None:
        """Insert a batch. Raises Refused when no try can, ConnectionError when a later one may."""
        for event in events:
            if event.series_id and NUL in event.series_id:
                event.series_id = event.series_id.replace(NUL, "\N{REPLACEMENT CHARACTER}")
        try:
            self._insert(msgspec.json.encode(events).decode())
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise Refused(self._without_password(error)) from None
        except psycopg.Error as error:
            self._disconnect()
            raise ConnectionError(self._without_password(error)) from None

    def _insert(self, rows: str) -> None:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                application_name=self._application,
                connect_timeout=CONNECT_TIMEOUT_S,
                options=f"-c statement_timeout={1000 * STATEMENT_TIMEOUT_S}",
            )
            with patience(self._connection):
                bring_up_to_date(self._connection)
        with patience(self._connection):
            self._connection.execute(INSERT, [rows])

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _without_password(self, error: psycopg.Error) -> str:
        return str(error).replace(self._password, "…") if self._password else str(error)


@contextmanager
def patience(connection: Connection[Any]) -> Iterator[None]:
    """Cut the line when the block takes longer than SILENCE_S: it ends with psycopg.OperationalError."""

    def cut() -> None:
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(SILENCE_S, cut)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def bring_up_to_date(connection: Connection[Any]) -> None:
    """Create what the schema lacks. One that is newer has all that is needed here and more, and is left as it is."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
        if connection.execute("SELECT to_regclass('kronos.versions')").fetchone() == (None,):
            connection.execute("CREATE SCHEMA IF NOT EXISTS kronos")
            connection.execute("CREATE TABLE kronos.versions (version integer PRIMARY KEY, since timestamptz DEFAULT now())")
        row = connection.execute("SELECT coalesce(max(version), 0) FROM kronos.versions").fetchone()
        found = row[0] if row else 0
        for version, statements in enumerate(VERSIONS[found:], found + 1):
            connection.execute(statements)
            connection.execute("INSERT INTO kronos.versions (version) VALUES (%s)", [version])


def make_table(settings: Settings) -> ForecastTable:
    """The sink that the settings ask for. Raises SettingsError, without the password, when the address cannot be read."""
    try:
        return ForecastTable(settings.postgres_url or "", settings.postgres_bytes, settings.worker_name)
    except psycopg.ProgrammingError:
        raise SettingsError("KRONOS_POSTGRES_URL: is no address that PostgreSQL's clients can read") from None
