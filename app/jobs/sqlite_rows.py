"""What is done to the rows of jobs, within somebody else's transaction.

Knows: SQL. Does not know: connections, clocks, what follows from what.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from sqlite3 import Connection
from typing import Any, Final

from app.jobs.store import Claim, Ending, Job, KeyReused, NewJob
from app.scheduler import PRIORITIES

TOKEN_BYTES: Final = 16
COLUMNS: Final = (
    "id", "owner", "endpoint", "state", "priority", "request_id", "steps", "steps_done", "attempts", "cancelling", "created",
    "started", "ended", "expires", "webhook",
)  # fmt: skip
RESULT: Final = "CASE WHEN ended IS NOT NULL THEN (SELECT document FROM documents WHERE job = seq) END"


def first(db: Connection, query: str, values: dict[str, Any]) -> Any:
    """The first column of the first row."""
    return db.execute(query, values).fetchall()[0][0]


def same(db: Connection, now: float, new: NewJob) -> Job | None:
    """The job that was submitted with the idempotency key of ``new``. Raises KeyReused."""
    query = "SELECT id, fingerprint FROM jobs WHERE owner = ? AND idempotency_key = ?"
    for id, fingerprint in db.execute(query, (new.owner, new.idempotency_key)).fetchall():
        if job := get(db, now, id):
            if fingerprint != new.fingerprint:
                raise KeyReused
            return job
        db.execute("DELETE FROM jobs WHERE id = ?", (id,))  # it is to be forgotten by now
    return None


def insert(db: Connection, now: float, new: NewJob) -> None:
    """Queue a job."""
    row: dict[str, Any] = {
        "id": new.id, "owner": new.owner, "endpoint": new.endpoint, "state": "queued", "priority": new.priority,
        "rank": PRIORITIES.index(new.priority), "request_id": new.request_id, "steps": new.steps, "ttl": new.ttl,
        "created": now, "expires": now + new.ttl, "webhook": new.webhook, "receiver": new.receiver,
        "idempotency_key": new.idempotency_key, "fingerprint": new.fingerprint,
    }  # fmt: skip
    into_jobs = f"INSERT INTO jobs ({', '.join(row)}) VALUES ({', '.join(':' + name for name in row)})"
    db.execute("INSERT INTO documents VALUES (?, ?)", (db.execute(into_jobs, row).lastrowid, new.body))


def claim(db: Connection, now: float, visible: float, most: int) -> list[Claim]:
    """Give out up to ``most`` queued jobs until ``visible``."""
    free = "SELECT seq FROM jobs WHERE state = 'queued' AND expires > ? ORDER BY rank, seq LIMIT ?"
    take = (
        "UPDATE jobs SET state = 'running', token = :token, visible = :visible, started = :now, steps_done = 0, "
        "attempts = attempts + 1 WHERE seq = :seq "
        "RETURNING id, token, endpoint, (SELECT document FROM documents WHERE job = seq), "
        "priority, request_id, steps, attempts, created, expires - :now"
    )
    claims = []
    for (seq,) in db.execute(free, (now, most)).fetchall():
        values = {"token": secrets.token_hex(TOKEN_BYTES), "visible": visible, "now": now, "seq": seq}
        claims += [Claim(*row) for row in db.execute(take, values).fetchall()]
    return claims


def recover(db: Connection, now: float) -> None:
    """Queue again what was claimed by workers that give no sign of life."""
    gone = "state = 'running' AND visible <= ? AND NOT cancelling"
    db.execute(f"UPDATE jobs SET state = 'queued', token = NULL, steps_done = 0 WHERE {gone}", (now,))


def end(db: Connection, now: float, state: Ending, where: str, result: bytes | None = None, **values: Any) -> list[str]:
    """End the jobs ``where``, with all that follows from an end; their ids."""
    to_end = (
        "UPDATE jobs SET state = :state, ended = :now, expires = :now + ttl, cancelling = 0, token = NULL, "
        "steps_done = CASE :state WHEN 'succeeded' THEN steps ELSE steps_done END, "
        f"due = CASE WHEN webhook IS NOT NULL THEN :now END WHERE {where} RETURNING seq, id"
    )
    rows = db.execute(to_end, {"state": state, "now": now, **values}).fetchall()
    for seq, _ in rows:
        db.execute("DELETE FROM documents WHERE job = ?", (seq,))
        if result:
            db.execute("INSERT INTO documents VALUES (?, ?)", (seq, result))
    return [id for _, id in rows]


def due(db: Connection, now: float, full: Collection[str]) -> int | None:
    """The seq of the job whose webhook has been due for longest, but of no receiver in ``full``.

    From receiver to receiver along the index, of each only the first: the others of a long backlog are not looked at.
    """
    query = (
        "WITH RECURSIVE receivers (name) AS (SELECT MIN(receiver) FROM jobs WHERE due IS NOT NULL UNION ALL "
        "SELECT (SELECT MIN(receiver) FROM jobs WHERE due IS NOT NULL AND receiver > name) FROM receivers WHERE name NOT NULL) "
        "SELECT seq FROM jobs WHERE seq IN "
        "(SELECT (SELECT seq FROM jobs WHERE receiver = name AND due <= ? ORDER BY due LIMIT 1) FROM receivers "
        f"WHERE name NOT IN ({', '.join('?' * len(full))})) ORDER BY due LIMIT 1"
    )
    return next((seq for (seq,) in db.execute(query, (now, *full)).fetchall()), None)


def get(db: Connection, now: float, id: str) -> Job | None:
    """The job, unless it is to be forgotten by now."""
    query = f"SELECT {RESULT}, {', '.join(COLUMNS)} FROM jobs WHERE id = ? AND (ended IS NULL OR expires > ?)"
    for result, *row in db.execute(query, (id, now)).fetchall():
        named = dict(zip(COLUMNS, row, strict=True))
        return Job(**{**named, "cancelling": bool(named["cancelling"])}, result=result)
    return None
