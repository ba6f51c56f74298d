"""The tables of jobs in SQLite. Knows: columns and indexes. Does not know: who uses them.

A row that changes its size is written whole, so what is large has a table of its own: a claim writes no megabytes.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = 2
"""Of this layout; a file with another one is refused."""

SCHEMA: Final = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY,             -- order of submission
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        state TEXT NOT NULL,
        priority TEXT NOT NULL,
        rank INTEGER NOT NULL,               -- of the priority, 0 goes first
        request_id TEXT NOT NULL,
        steps INTEGER NOT NULL,
        steps_done INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        cancelling INTEGER NOT NULL DEFAULT 0,
        created REAL NOT NULL,
        started REAL,
        ended REAL,
        expires REAL NOT NULL,
        ttl REAL NOT NULL,
        token TEXT,                          -- of the claim in force
        visible REAL,                        -- when it runs out
        webhook TEXT,
        receiver TEXT,                       -- whom the webhook goes to
        due REAL,                            -- when the webhook is to be called; NULL: not at all
        tries INTEGER NOT NULL DEFAULT 0,
        idempotency_key TEXT,
        fingerprint BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE documents (
        job INTEGER PRIMARY KEY,             -- its seq
        document BLOB NOT NULL               -- the request of a job that waits, the result of one that has ended
    )
    """,
    "CREATE TRIGGER jobs_gone AFTER DELETE ON jobs BEGIN DELETE FROM documents WHERE job = old.seq; END",
    "CREATE UNIQUE INDEX jobs_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL",
    "CREATE INDEX jobs_queue ON jobs (rank, seq, expires) WHERE state = 'queued'",
    "CREATE INDEX jobs_claims ON jobs (visible) WHERE state = 'running'",
    "CREATE INDEX jobs_due ON jobs (receiver, due) WHERE due IS NOT NULL",
    "CREATE INDEX jobs_expiry ON jobs (state, expires)",
    "CREATE INDEX jobs_age ON jobs (state, created)",
)
