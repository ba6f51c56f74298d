"""Jobs in one SQLite file: the store that needs no server, shared by the workers of one host.

What was promised to a client (a job taken in, its end) is on the disk before it is told; a claim or a heartbeat need not
be. The clock is the host's: a jump forward lets claims run out early, which costs work done twice and no answer.
Knows: SQL. Does not know: what a job asks for, who runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from sqlite3 import Connection, DatabaseError
from typing import Final

from app.jobs import sqlite_rows
from app.jobs.sqlite_file import SqliteFile
from app.jobs.sqlite_schema import SCHEMA, VERSION
from app.jobs.store import STATES, WAITING, Beat, Claim, Counts, Delivery, Ending, Job, Limits, NewJob, QueueFull, Word

SWEPT: Final = 200
"""Most jobs of each kind that one sweep deals with, so that it never holds the lock for long."""
MINE: Final = "id = :id AND token = :token AND state = 'running'"


class SqliteStore:
    """A ``Store`` in the file ``path``, made when it is first used. Any number of processes may open it."""

    def __init__(self, path: str | Path, limits: Limits, *, clock: Callable[[], float] = time.time) -> None:
        self._file = SqliteFile(Path(path), SCHEMA, VERSION)
        self._limits = limits
        self._clock = clock

    async def submit(self, new: NewJob) -> tuple[Job, bool]:
        def submit(db: Connection) -> tuple[Job, bool]:
            now = self._clock()
            if job := sqlite_rows.same(db, now, new):
                return job, False
            self._check_room(db)
            sqlite_rows.insert(db, now, new)
            if job := sqlite_rows.get(db, now, new.id):
                return job, True
            raise DatabaseError("a job that was just stored is not there")

        return await self._file.write(submit, durable=True)

    async def claim(self, most: int) -> list[Claim]:
        anything = (
            "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'queued' AND expires > :now) "
            "OR EXISTS (SELECT 1 FROM jobs WHERE state = 'running' AND visible <= :now)"
        )

        def claim(db: Connection) -> list[Claim]:
            now = self._clock()
            sqlite_rows.recover(db, now)
            return sqlite_rows.claim(db, now, now + self._limits.visibility, most)

        if most < 1 or not await self._file.read(lambda db: sqlite_rows.first(db, anything, {"now": self._clock()})):
            return []
        return await self._file.write(claim)

    async def heartbeat(self, beats: Sequence[Beat]) -> dict[str, Word]:
        note = f"UPDATE jobs SET visible = :visible, steps_done = :done WHERE {MINE} RETURNING cancelling"

        def hear(db: Connection, beat: Beat, visible: float) -> Word:
            values = {"visible": visible, "done": beat.steps_done, "id": beat.id, "token": beat.token}
            rows = db.execute(note, values).fetchall()
            return "lost" if not rows else "cancel" if rows[0][0] else "go on"

        def heartbeat(db: Connection) -> dict[str, Word]:
            visible = self._clock() + self._limits.visibility
            return {beat.id: hear(db, beat, visible) for beat in beats}

        return await self._file.write(heartbeat) if beats else {}

    async def finish(self, id: str, token: str, state: Ending, result: bytes) -> bool:
        def finish(db: Connection) -> bool:
            return bool(sqlite_rows.end(db, self._clock(), state, MINE, result, id=id, token=token))

        return await self._file.write(finish, durable=True)

    async def release(self, id: str, token: str) -> bool:
        back = f"UPDATE jobs SET state = 'queued', token = NULL, steps_done = 0, attempts = attempts - 1 WHERE {MINE}"

        def release(db: Connection) -> bool:
            stopped = sqlite_rows.end(db, self._clock(), "cancelled", f"{MINE} AND cancelling", id=id, token=token)
            return bool(stopped) or db.execute(back, {"id": id, "token": token}).rowcount == 1

        return await self._file.write(release)

    async def cancel(self, id: str) -> Job | None:
        def cancel(db: Connection) -> Job | None:
            now = self._clock()
            sqlite_rows.recover(db, now)
            sqlite_rows.end(db, now, "cancelled", "id = :id AND state = 'queued'", id=id)
            db.execute("UPDATE jobs SET cancelling = 1 WHERE id = ? AND state = 'running'", (id,))
            return sqlite_rows.get(db, now, id)

        return await self._file.write(cancel, durable=True)

    async def get(self, id: str) -> Job | None:
        return await self._file.read(lambda db: sqlite_rows.get(db, self._clock(), id))

    async def position(self, id: str) -> int | None:
        ahead = (
            "SELECT COUNT(*) FROM jobs AS mine JOIN jobs AS other ON other.state = 'queued' "
            "AND (other.rank, other.seq) < (mine.rank, mine.seq) WHERE mine.id = :id"
        )

        def position(db: Connection) -> int | None:
            queued = sqlite_rows.first(db, "SELECT EXISTS (SELECT 1 FROM jobs WHERE id = :id AND state = 'queued')", {"id": id})
            return int(sqlite_rows.first(db, ahead, {"id": id})) if queued else None

        return await self._file.read(position)

    async def ended(self, ids: Iterable[str]) -> set[str]:
        asked = list(ids)
        waiting = f"SELECT id FROM jobs WHERE id IN ({', '.join('?' * len(asked))}) AND state IN {WAITING}"
        return set(asked) - await self._file.read(lambda db: {row[0] for row in db.execute(waiting, asked)})

    async def sweep(self) -> list[Job]:
        overdue = f"seq IN (SELECT seq FROM jobs WHERE state IN {WAITING} AND expires <= :now LIMIT {SWEPT})"
        stopped = f"seq IN (SELECT seq FROM jobs WHERE state = 'running' AND visible <= :now AND cancelling LIMIT {SWEPT})"
        old = f"DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE ended IS NOT NULL AND expires <= :now LIMIT {SWEPT})"

        def sweep(db: Connection) -> list[Job]:
            now = self._clock()
            sqlite_rows.recover(db, now)
            ids = sqlite_rows.end(db, now, "cancelled", stopped) + sqlite_rows.end(db, now, "expired", overdue)
            db.execute(old, {"now": now})
            return [job for id in ids if (job := sqlite_rows.get(db, now, id))]

        return await self._file.write(sweep)

    async def counts(self) -> Counts:
        def counts(db: Connection) -> Counts:
            found = dict(db.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())
            oldest = sqlite_rows.first(db, "SELECT MIN(created) FROM jobs WHERE state = 'queued'", {})
            return Counts(
                by_state={state: found.get(state, 0) for state in STATES},
                oldest_queued_s=0.0 if oldest is None else max(self._clock() - oldest, 0.0),
                deliveries=sqlite_rows.first(db, "SELECT COUNT(*) FROM jobs WHERE due IS NOT NULL", {}),
            )

        return await self._file.read(counts)

    async def claim_delivery(self, hold: float, full: Collection[str] = ()) -> Delivery | None:
        take = "UPDATE jobs SET due = ?, tries = tries + 1 WHERE seq = ? RETURNING id, webhook, tries, receiver"

        def claim(db: Connection) -> Delivery | None:
            now = self._clock()
            rows = db.execute(take, (now + hold, sqlite_rows.due(db, now, full))).fetchall()
            return Delivery(*rows[0]) if rows else None

        if not await self._file.read(lambda db: sqlite_rows.due(db, self._clock(), full)):
            return None
        return await self._file.write(claim)

    async def settle_delivery(self, id: str, tries: int, again_in: float | None) -> bool:
        settle = "UPDATE jobs SET due = ? WHERE id = ? AND tries = ? AND due IS NOT NULL"

        def settled(db: Connection) -> bool:
            due = None if again_in is None else self._clock() + again_in
            return db.execute(settle, (due, id, tries)).rowcount == 1

        return await self._file.write(settled)

    async def close(self) -> None:
        await self._file.close()

    def _check_room(self, db: Connection) -> None:
        queued = sqlite_rows.first(db, "SELECT COUNT(*) FROM jobs WHERE state = 'queued'", {})
        pages, free, size = (
            sqlite_rows.first(db, f"PRAGMA {name}", {}) for name in ("page_count", "freelist_count", "page_size")
        )
        if queued >= self._limits.max_waiting or (pages - free) * size >= self._limits.max_bytes:
            raise QueueFull
