"""The result cache that the workers of a fleet share: a Valkey or Redis server beside them.

It is asked after a worker's own store and before its engine. Whoever finds nothing takes a lock and computes; others of
the same priority wait for the outcome while the lock lasts, not longer. The server may be dead, slow or silent: a breaker
bounds what that costs, and no prediction ever fails for it.
Knows: keys, outcomes, locks. Does not know: requests, the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app import metrics
from app.cache_breaker import PURSE_S, Breaker
from app.cache_wire import FORMAT, pack, unpack
from app.scheduler import PRIORITIES, Priority
from app.work import Outcome

LOCK_S: Final = 1.0
"""How long others wait for a worker that computes: longer work is computed by several, a dead worker costs this once."""
FIRST_LOOK_S, LAST_LOOK_S = 0.01, 0.05
"""Pauses between looks at work that another worker has begun."""
WRITE_S: Final = 0.5
MOST_WRITES: Final = 64
"""Writes on their way at once; beyond, outcomes are not shared."""
MOST_BYTES: Final = 2**20
"""Larger outcomes are not shared: they would take longer to fetch than a prediction should wait."""
CONNECTIONS: Final = 8
MINE, THEIRS = b"mine", b"theirs"
"""Whose lock it is."""
# The value and its remaining ms; else whose lock it is: ours when it was free.
SEEK: Final = """
local value = redis.call('GET', KEYS[1])
if value then return {value, redis.call('PTTL', KEYS[1])} end
return redis.call('SET', KEYS[2], '', 'NX', 'PX', ARGV[1]) and 'mine' or 'theirs'
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """An outcome that another worker left, the seconds it has left, and whether it had to be waited for."""

    outcome: Outcome
    ttl: float
    awaited: bool = False


class Shared:
    """Outcomes of the fleet, kept ``ttl`` seconds. Belongs to one event loop."""

    def __init__(self, url: str, ttl: float) -> None:
        """``url``: redis://, rediss:// or unix://, as redis-py reads it. Connects when it is first asked."""
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=PURSE_S, socket_timeout=None, socket_connect_timeout=WRITE_S,
            retry=Retry(NoBackoff(), 0), protocol=2,
        )  # fmt: skip
        # each call is bounded below; a socket_timeout would be an asyncio.wait_for, which may lose a cancellation (Python 3.11)
        self._client = Redis.from_pool(pool)
        self._seek = self._client.register_script(SEEK)
        self._ttl_ms = max(1, round(1e3 * ttl))
        self._writes: set[asyncio.Task[None]] = set()
        self.breaker = Breaker(self._client.ping, "shared cache")
        metrics.CACHE_SHARED_UP.set_function(lambda: float(not self.breaker.open))

    async def seek(self, key: bytes, priority: Priority) -> Found | None:
        """What another worker has found out, or is about to. None: compute it, then ``tell`` or ``forget``."""
        until, pause, awaited = time.monotonic() + LOCK_S, FIRST_LOOK_S, False
        while True:
            found = await self.breaker.ask(lambda: self._look(key, priority))
            if isinstance(found, Found):
                metrics.CACHE_SHARED.labels("coalesced" if awaited else "hit").inc()
                return replace(found, awaited=awaited)
            if found is not THEIRS or time.monotonic() > until:
                metrics.CACHE_SHARED.labels("error" if self.breaker.open else "miss").inc()
                return None
            awaited = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_LOOK_S)

    async def _look(self, key: bytes, priority: Priority) -> Found | bytes | None:
        """One round trip: an outcome, MINE, THEIRS; None for a value that is no outcome."""
        reply = await self._seek([_name(key), _lock(key, priority)], [round(1e3 * LOCK_S)])
        if not isinstance(reply, list):
            return MINE if reply == MINE else THEIRS
        outcome = unpack(key, reply[0])
        if outcome is None:
            log.warning("shared cache: a value that no worker of this version wrote was ignored")
            return None
        return Found(outcome, max(reply[1], 0) / 1e3)

    def tell(self, key: bytes, outcome: Outcome) -> None:
        """Leave an outcome for the others, in the background."""
        value = pack(key, outcome)
        self._write(self._store(key, value if len(value) <= MOST_BYTES else None))

    def forget(self, key: bytes, priority: Priority) -> None:
        """Give the lock back without an outcome, in the background, so that nobody waits in vain."""
        self._write(self._unlock(_lock(key, priority)))

    async def close(self) -> None:
        """Let writes finish, within their time, and disconnect."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=WRITE_S)
        await self.breaker.close()
        await self._client.aclose()

    def _write(self, write: Coroutine[Any, Any, None]) -> None:
        if self.breaker.open or len(self._writes) >= MOST_WRITES:
            write.close()
            return
        task = asyncio.get_running_loop().create_task(self._try(write))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _try(self, write: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(WRITE_S):
                await write
        except Exception as error:  # nothing that happens here is a prediction's business
            self.breaker.trip(error)

    async def _store(self, key: bytes, value: bytes | None) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            if value is not None:
                pipe.set(_name(key), value, px=self._ttl_ms)
            pipe.delete(*(_lock(key, priority) for priority in PRIORITIES))
            await pipe.execute()

    async def _unlock(self, lock: str) -> None:
        await self._client.delete(lock)


def _name(key: bytes) -> str:
    """Where an outcome is; the braces keep it and its locks on one node of a cluster."""
    return f"kronos:{FORMAT}:{{{key.hex()}}}"


def _lock(key: bytes, priority: Priority) -> str:
    return f"{_name(key)}:{priority}"
