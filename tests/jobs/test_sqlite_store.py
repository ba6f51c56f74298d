"""What only a store in a file can get wrong. What every store promises is in test_store.py."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from app.jobs import sqlite_rows
from app.jobs.sqlite_schema import SCHEMA
from app.jobs.sqlite_store import SqliteStore
from app.jobs.store import Beat, Limits
from app.pools import Pools, installed
from tests.jobs.stores import new

PAGES = 20
"""Of 4 kB: some for the row and its indexes, far from the two megabytes of the request."""


def test_a_heartbeat_does_not_write_the_request_again(tmp_path: Path) -> None:
    """A row may be written whole when it changes, so what is large is not in it: several workers write twice a second."""

    async def beat() -> int:
        store = SqliteStore(tmp_path / "jobs.db", Limits())
        await store.submit(new("a", body=bytes(2**21)))
        (claim,) = await store.claim(1)
        with sqlite3.connect(tmp_path / "jobs.db", isolation_level=None) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            assert await store.heartbeat([Beat("a", claim.token, 3)]) == {"a": "go on"}
            (_, written, _) = other.execute("PRAGMA wal_checkpoint").fetchone()
        other.close()
        await store.close()
        return int(written)

    with installed(Pools()):
        assert 0 < asyncio.run(beat()) < PAGES


def test_a_backlog_of_webhooks_is_not_looked_through() -> None:
    """Who is told next is found in as many steps with one due at a receiver as with a thousand, if it is full or not."""

    def steps(backlog: int, full: list[str]) -> int:
        db, taken = sqlite3.connect(":memory:", isolation_level=None), []
        for statement in SCHEMA:
            db.execute(statement)
        for number in range(backlog):
            sqlite_rows.insert(db, 0.0, new(f"{number}", webhook="https://a.example/"))
        sqlite_rows.insert(db, 0.0, new("other", webhook="https://b.example/"))
        sqlite_rows.end(db, 1.0, "cancelled", "TRUE")
        db.set_progress_handler(lambda: taken.append(1), 1)
        assert sqlite_rows.due(db, 2.0, full) == (backlog + 1 if full else 1)
        db.close()
        return len(taken)

    for full in ([], ["https://a.example"]):
        assert steps(1000, full) == steps(1, full) > 50
