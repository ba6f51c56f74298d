"""The stores that the suite of promises runs against, each with a clock that tests can move.

Knows: how to open each. Does not know: what is promised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.jobs.redis_store import RedisStore
from app.jobs.sqlite_store import SqliteStore
from app.jobs.store import Limits, NewJob, Store
from tests.kv_server import WHY_NOT, key_value_server


@dataclass
class Rig:
    """One database. Each ``open`` is another worker's view of it; ``advance`` lets seconds pass."""

    open: Callable[[Limits], Store]
    advance: Callable[[float], None]


class Shift:
    """Seconds that have passed beside the real ones."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@contextmanager
def sqlite(folder: Path) -> Iterator[Rig]:
    shift = Shift()
    yield Rig(lambda limits: SqliteStore(folder / "jobs.db", limits, clock=lambda: time.time() + shift.seconds), shift.advance)


@contextmanager
def redis(folder: Path) -> Iterator[Rig]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    shift = Shift()
    with key_value_server("--appendonly", "yes", "--appendfsync", "no", "--dir", str(folder)) as server:
        yield Rig(lambda limits: RedisStore(server.url, limits, skew=lambda: shift.seconds), shift.advance)


Opener = Callable[[Path], AbstractContextManager[Rig]]
STORES: dict[str, Opener] = {"sqlite": sqlite, "redis": redis}


def new(id: str, **facts: Any) -> NewJob:
    """A job that is nothing special but in ``facts``."""
    usual: dict[str, Any] = {
        "owner": "me", "endpoint": "single", "body": b"{}", "priority": "bulk", "steps": 10, "ttl": 1000.0, "request_id": "r",
    }  # fmt: skip
    return NewJob(id=id, **{**usual, **facts})
