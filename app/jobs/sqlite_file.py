"""One SQLite file that many processes share: its connection, its transactions, its layout.

Whoever writes holds the file's only write lock for a fraction of a millisecond. Knows: locks, time limits, what is on the
disk when. Does not know: the statements.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from app.errors import Draining, PoolSaturated
from app.jobs.store import StoreFailed
from app.pools import run_in_pool

T = TypeVar("T")

BUSY_S: Final = 2.0
"""How long a call waits for another's write lock."""
PATIENCE_S: Final = 5.0
"""How long a caller waits for a call, those before it in this process included."""


class SqliteFile:
    """The file ``path``, made with ``schema`` when it is first used. Raises StoreFailed for whatever goes wrong."""

    def __init__(self, path: Path, schema: Sequence[str], version: int) -> None:
        self._path = path
        self._schema = schema
        self._version = version
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    async def read(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """What ``act`` finds, all as of one moment."""
        return await self._call(act, "BEGIN", durable=False)

    async def write(self, act: Callable[[sqlite3.Connection], T], durable: bool = False) -> T:
        """Do ``act`` wholly or not at all. ``durable``: also a loss of power after this does not undo it."""
        return await self._call(act, "BEGIN IMMEDIATE", durable)

    async def close(self) -> None:
        """Close the connection, after the call that is under way."""

        def close() -> None:
            with self._lock:
                self._drop()

        await asyncio.to_thread(close)  # the pool may be closed by now

    async def _call(self, act: Callable[[sqlite3.Connection], T], begin: str, durable: bool) -> T:
        try:
            async with asyncio.timeout(PATIENCE_S):  # asyncio.wait_for may lose a cancellation (Python 3.11)
                return await run_in_pool("db", self._do, act, begin, durable)
        except (sqlite3.Error, OSError, PoolSaturated, Draining) as error:  # a TimeoutError is an OSError
            raise StoreFailed(f"{self._path.name}: {error or 'no answer in time'}") from error

    def _do(self, act: Callable[[sqlite3.Connection], T], begin: str, durable: bool) -> T:
        with self._lock:
            try:
                db = self._connection = self._connection or self._connect()
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                with _transaction(db, begin):
                    return act(db)
            except sqlite3.Error:
                self._drop()  # whatever state it is in; the next call opens another
                raise

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))  # requests and answers are their owners'
        db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            with _transaction(db, "BEGIN IMMEDIATE"):
                (found,) = db.execute("PRAGMA user_version").fetchone()
                if found not in (0, self._version):
                    raise sqlite3.DatabaseError(f"its layout is {found}, this worker's is {self._version}")
                if not found:
                    for statement in (*self._schema, f"PRAGMA user_version = {self._version}"):
                        db.execute(statement)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _drop(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


@contextmanager
def _transaction(db: sqlite3.Connection, begin: str) -> Iterator[None]:
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
