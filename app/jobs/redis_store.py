"""The job store on Valkey or Redis, shared by the workers of a fleet.

Each step is one script of ``redis_store.lua``, so that nobody sees half of it, and reads the server's clock. Sorted sets
rather than streams: a place in the queue, two priorities, giving back in the old place, and cancelling what waits are each
one command there, and a consumer group knows none of them. Jobs have no expiry of Redis' own, so that only a server that
evicts any key could lose one; such a server is refused.
Knows: keys, replies, how long a call may take. Does not know: what a job is for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.resources import files
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.jobs.store import (
    STATES,
    Beat,
    Claim,
    Counts,
    Delivery,
    Ending,
    Job,
    KeyReused,
    Limits,
    NewJob,
    QueueFull,
    StoreFailed,
    Word,
)

PREFIX: Final = "kronos:{jobs}:2:"
"""The braces keep all keys on one node of a cluster; the number changes when what is kept changes."""
CONNECT_S: Final = 0.5
ANSWER_S: Final = 2.0
"""For one step, waiting for a connection included."""
CONNECTIONS: Final = 8
EVICTS_ANY: Final = "allkeys-"
CARELESS: Final = "jobs: refused, as maxmemory-policy %s of the server would throw them away; take noeviction or volatile-lru"
FORGETFUL: Final = "jobs: the server has appendonly no; when it is started again, jobs may be gone"

log = logging.getLogger(__name__)


class RedisStore:
    """A ``Store``. Belongs to one event loop."""

    def __init__(self, url: str, limits: Limits, *, skew: Callable[[], float] = lambda: 0.0) -> None:
        """``url``: redis://, rediss:// or unix://. Connects when it is first asked. ``skew``: seconds, for tests only."""
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=ANSWER_S, socket_timeout=None, socket_connect_timeout=CONNECT_S,
            retry=Retry(NoBackoff(), 0), protocol=2,
        )  # fmt: skip
        self._client = Redis.from_pool(pool)
        self._script = self._client.register_script(files("app.jobs").joinpath("redis_store.lua").read_text())
        self._limits = limits
        self._skew = skew
        self._safe = self._told = False

    async def submit(self, new: NewJob) -> tuple[Job, bool]:
        await self._check_server()
        idem = f"{new.owner}\0{new.idempotency_key}" if new.idempotency_key is not None else ""
        rest = {"owner": new.owner, "endpoint": new.endpoint, "request_id": new.request_id, "steps": new.steps,
                "steps_done": 0, "attempts": 0, "cancelling": 0}  # fmt: skip
        if new.webhook is not None:
            rest |= {"webhook": new.webhook, "receiver": new.receiver}
        reply = await self._do(
            "submit", new.id, new.priority, new.body, new.fingerprint, idem, new.ttl,
            self._limits.max_waiting, self._limits.max_bytes, *(part for item in rest.items() for part in item),
        )  # fmt: skip
        if reply == b"reused":
            raise KeyReused
        if reply == b"full":
            raise QueueFull
        return _job(reply[1]), bool(reply[0] == b"new")

    async def claim(self, most: int) -> list[Claim]:
        tokens = (secrets.token_hex(16) for _ in range(most))
        return [_claim(found) for found in await self._do("claim", self._limits.visibility, *tokens)]

    async def heartbeat(self, beats: Sequence[Beat]) -> dict[str, Word]:
        parts = (part for beat in beats for part in (beat.id, beat.token, beat.steps_done))
        words = await self._do("heartbeat", self._limits.visibility, *parts) if beats else []
        return {beat.id: word.decode() for beat, word in zip(beats, words, strict=True)}

    async def finish(self, id: str, token: str, state: Ending, result: bytes) -> bool:
        return bool(await self._do("finish", id, token, state, result))

    async def release(self, id: str, token: str) -> bool:
        return bool(await self._do("release", id, token))

    async def cancel(self, id: str) -> Job | None:
        found = await self._do("cancel", id)
        return _job(found) if found else None

    async def get(self, id: str) -> Job | None:
        found = await self._do("get", id)
        return _job(found) if found else None

    async def position(self, id: str) -> int | None:
        place: int | None = await self._do("position", id)
        return place

    async def ended(self, ids: Iterable[str]) -> set[str]:
        return {id.decode() for id in await self._do("ended", *ids)}

    async def sweep(self) -> list[Job]:
        return [_job(found) for found in await self._do("sweep")]

    async def counts(self) -> Counts:
        pairs, oldest, deliveries = await self._do("counts")
        known = {pairs[at].decode(): int(pairs[at + 1]) for at in range(0, len(pairs), 2)}
        return Counts({state: known.get(state, 0) for state in STATES}, float(oldest), deliveries)

    async def claim_delivery(self, hold: float, full: Collection[str] = ()) -> Delivery | None:
        if not (taken := await self._do("claim_delivery", hold, *full)):
            return None
        id, url, tries, receiver = taken
        return Delivery(id.decode(), url.decode(), tries, receiver.decode())

    async def settle_delivery(self, id: str, tries: int, again_in: float | None) -> bool:
        return bool(await self._do("settle_delivery", id, tries, *(() if again_in is None else (again_in,))))

    async def close(self) -> None:
        await self._client.aclose()

    async def _do(self, step: str, *arguments: Any) -> Any:
        return await _bounded(self._script([PREFIX], [step, self._skew(), *arguments]))

    async def _check_server(self) -> None:
        """Raise StoreFailed while the server may throw jobs away; look until it was found safe once."""
        if self._safe:
            return
        server = await _bounded(self._client.info("memory", "persistence"))
        policy, limit = server.get("maxmemory_policy", ""), server.get("maxmemory", 0)
        if limit and policy.startswith(EVICTS_ANY):
            if not self._told:
                log.error(CARELESS, policy)
                self._told = True
            raise StoreFailed(CARELESS % policy)
        if not server.get("aof_enabled"):
            log.warning(FORGETFUL)
        self._safe = True


async def _bounded(call: Any) -> Any:
    """The reply, in time, or StoreFailed.

    Bounded here and by no ``socket_timeout``: the client uses that for ``asyncio.wait_for``, which may lose a cancellation
    (Python 3.11), so that who asks for ever would not end.
    """
    try:
        async with asyncio.timeout(ANSWER_S):
            return await call
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreFailed(f"{type(error).__name__} {error}") from error


def _job(found: list[Any]) -> Job:
    """The job in a reply of ``read``."""
    id, owner, endpoint, state, priority, request_id = (part.decode() for part in found[:6])
    steps, steps_done, attempts, cancelling = map(int, found[6:10])
    created, started, ended, expires = (None if part is None else float(part) for part in found[10:14])
    return Job(
        id=id, owner=owner, endpoint=endpoint, state=state, priority=priority, request_id=request_id, steps=steps,
        steps_done=steps_done, attempts=attempts, cancelling=bool(cancelling), created=created or 0.0, started=started,
        ended=ended, expires=expires or 0.0, webhook=None if found[14] is None else found[14].decode(), result=found[15],
    )  # fmt: skip


def _claim(found: list[Any]) -> Claim:
    """The claim in a reply of ``take``."""
    id, token, endpoint = (part.decode() for part in found[:3])
    priority, request_id = (part.decode() for part in found[4:6])
    created, expires, now = map(float, found[8:11])
    return Claim(
        id=id, token=token, endpoint=endpoint, body=found[3], priority=priority, request_id=request_id, steps=int(found[6]),
        attempt=int(found[7]), created=created, remaining=expires - now,
    )  # fmt: skip
