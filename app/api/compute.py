"""From prepared series to outcomes: out of the cache, by work under way, or by work of their own.

Knows: deadlines, leaving clients, what each series waited for. Does not know: how a request is read or answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from app import metrics
from app.api.answer import Result
from app.api.door import Door
from app.api.prepare import PreparedEmbedding, PreparedForecast
from app.api.schema import BatchEnvelope, EmbedRequest, PredictRequest, Priority, Series
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
    terms: PredictRequest | EmbedRequest | BatchEnvelope
    batch: bool

    @property
    def units(self) -> int:
        """Work of all its series: paths × steps."""
        return sum(entry.prepared.units for entry in self.entries if entry.prepared)


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


Gone = Callable[[], Coroutine[Any, Any, str]]
"""Returns when nobody wants the answer any more, with the reason: the label of kronos_cancelled_total."""


async def compute(door: Door, cache: Cache, policy: Policy, asked: Asked, deadline: float, gone: Gone) -> None:
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
        if why := await _left_before_end(_claims(asked.entries), deadline, gone):
            reason = why
            raise Cancelled(why)
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


def steps_done(entries: Iterable[Entry]) -> int:
    """Of the units of work of these series, those that are done."""
    done = 0
    for entry in entries:
        if entry.prepared and entry.claim and entry.claim.future.done():
            done += entry.prepared.units
        elif entry.claim and entry.claim.flight:
            done += entry.claim.flight.ticket.steps_done
    return done


async def _left_before_end(claims: list[Claim], deadline: float, gone: Gone) -> str:
    """Wait until all claims are settled, the deadline passes or nobody waits any more: the reason in the last case, else ""."""
    if all(claim.future.done() for claim in claims):
        return ""
    settled = asyncio.gather(*(claim.future for claim in claims), return_exceptions=True)
    left = asyncio.ensure_future(gone())
    try:
        await asyncio.wait((settled, left), timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        return left.result() if left.done() and not settled.done() else ""
    finally:
        left.cancel()


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
