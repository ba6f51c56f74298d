"""From prepared series to outcomes: out of the cache, by work under way, or by work of their own.

Knows: deadlines, leaving clients, what each series waited for. Does not know: how a request is read or answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

from starlette.types import Receive

from app import metrics
from app.api.answer import Result
from app.api.door import Door
from app.api.incoming import GONE, wait_until_gone
from app.api.prepare import PreparedEmbedding, PreparedForecast
from app.api.schema import Priority, Series
from app.api.state import Served
from app.cache import Cache, Claim, Policy
from app.cache import Result as CacheResult
from app.cache_store import key_of
from app.errors import Cancelled, DeadlinePassed, KronosError, Overloaded
from app.work import Outcome


@dataclass
class Entry:
    """One series on its way through a request. An error ends its way, and no other's."""

    prefix: str  # its JSON pointer
    asked: Series | None = None
    prepared: PreparedForecast | PreparedEmbedding | None = None
    key: bytes | None = None  # of the outcome, where another request may have the same
    awaited: bool = False  # another worker was computing it
    claim: Claim | None = None
    outcome: Outcome | None = None
    result: Result | None = None
    error: KronosError | None = None


@dataclass(frozen=True)
class Asked:
    """A parsed request."""

    entries: list[Entry]
    batch: bool
    timeout: float | None
    priority: Priority


def name(entries: list[Entry], served: Served, policy: Policy) -> None:
    """Give keys to the series whose outcome may be another request's too."""
    for entry in entries:
        if entry.prepared and entry.prepared.repeatable and (policy.look or policy.keep):
            entry.key = key_of(served.identity, entry.prepared.work)


async def look_around(entries: list[Entry], cache: Cache, policy: Policy, priority: Priority, deadline: float) -> None:
    """Bring here what the other workers of the fleet know, or are about to."""
    if policy.look:
        awaited = await cache.fetch([entry.key for entry in entries], priority, deadline)
        for entry in entries:
            entry.awaited = entry.key in awaited


async def compute(door: Door, cache: Cache, policy: Policy, asked: Asked, deadline: float, receive: Receive) -> None:
    """Fill in outcomes or errors. Work that is not done by ``deadline``, or that nobody awaits, is stopped."""
    reason = "refused"
    try:
        for entry in asked.entries:
            if entry.prepared and time.monotonic() >= deadline:
                entry.error = DeadlinePassed()
            elif entry.prepared:
                submit = partial(door.submit, entry.prepared.work, deadline)
                entry.claim = cache.claim(entry.key, policy, door.priority, submit)
                if entry.awaited and entry.claim.result == "hit":
                    entry.claim.result = "coalesced"
        reason = "shutdown"  # should this task be cancelled from outside
        if await _left_before_end(_claims(asked.entries), deadline, receive):
            reason = GONE
            raise Cancelled(GONE)
        reason = "deadline"
        for entry in asked.entries:
            _settle(entry)
            if isinstance(entry.error, Overloaded):
                raise entry.error  # a batch is refused whole
    finally:
        for claim in _claims(asked.entries):
            claim.leave(reason)
            metrics.CACHE_REQUESTS.labels(claim.result).inc()


def _claims(entries: Iterable[Entry]) -> list[Claim]:
    return [entry.claim for entry in entries if entry.claim]


async def _left_before_end(claims: list[Claim], deadline: float, receive: Receive) -> bool:
    """Wait until all claims are settled, the deadline passes or the client leaves; True in the last case."""
    if all(claim.future.done() for claim in claims):
        return False
    settled = asyncio.gather(*(claim.future for claim in claims), return_exceptions=True)
    gone = asyncio.ensure_future(wait_until_gone(receive))
    try:
        await asyncio.wait((settled, gone), timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        return gone.done() and not settled.done()
    finally:
        gone.cancel()


def _settle(entry: Entry) -> None:
    if entry.claim is None:
        return
    if not entry.claim.future.done():
        entry.error = DeadlinePassed()
        return
    error = entry.claim.future.exception()
    if error is None:
        entry.outcome = _own_times(entry.claim)
    elif isinstance(error, KronosError):
        entry.error = error
    else:
        raise error


def _own_times(claim: Claim) -> Outcome:
    """The outcome, with what it took of this request's time: waiting for others, and work of its own."""
    outcome = claim.future.result()
    stages = outcome.stages if claim.result in ("miss", "bypass") else {}
    return replace(outcome, stages={"cache": claim.waited_s, **stages})


def results(entries: list[Entry]) -> list[CacheResult]:
    """What the cache did for these series, each word once."""
    found = {claim.result for claim in _claims(entries)}
    return [result for result in get_args(CacheResult) if result in found]
