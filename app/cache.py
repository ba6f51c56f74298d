"""The result cache: one claim for each series, answered from the store, by work in flight, or by work of its own.

Identical work in flight is computed once. The one who began it may leave (its client has gone, its deadline has passed):
the work goes on while somebody awaits it, and if it ends for the beginner's reasons, those behind it begin anew, each
within its own deadline. An error of the work itself is theirs too, since the same work would fail again; none is kept.
With a shared cache behind it, what this worker has not got is first looked for there (``fetch``).
Knows: claims, flights, who leaves. Does not know: HTTP, the engine's step, how outcomes become answers.
Everything happens on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from app import metrics
from app.cache_store import Store
from app.errors import Cancelled, DeadlinePassed
from app.permit import Ticket
from app.scheduler import Priority
from app.work import Outcome

if TYPE_CHECKING:
    from app.cache_shared import Shared  # a worker without one never loads its client

Result = Literal["hit", "miss", "coalesced", "bypass"]
Submit = Callable[[], Ticket]
Place = tuple[bytes, Priority]  # of work in flight: who is interactive must not wait for the turn of bulk

BEGINNERS_OWN: Final = (Cancelled, DeadlinePassed)
"""How work ends for reasons of the one who began it."""


@dataclass(frozen=True)
class Policy:
    """What a request wants of the cache: to be answered from it, to leave its outcome there."""

    look: bool = True
    keep: bool = True


NOTHING: Final = Policy(look=False, keep=False)


def policy_of(directives: str) -> Policy:
    """What the value of a request's ``Cache-Control`` header asks for: ``no-cache``, ``no-store``; others are ignored."""
    named = {directive.partition("=")[0].strip().lower() for directive in directives.split(",")}
    return NOTHING if "no-store" in named else Policy(look="no-cache" not in named)


class Claim:
    """One series' claim on an outcome. ``future`` brings it, or the error of the work."""

    def __init__(self, submit: Submit) -> None:
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.result: Result = "bypass"
        self.flight: Flight | None = None
        self.waited_s = 0.0  # for others' work
        self._submit = submit
        self._began = time.perf_counter()

    def begin(self) -> Flight:
        """Begin work of one's own. Raises what submitting raises."""
        self.flight = Flight(self._submit(), self, [self])
        return self.flight

    def wait(self, flight: Flight) -> None:
        """Await work that another began."""
        flight.claims.append(self)
        self.result, self.flight = "coalesced", flight

    def note_wait(self) -> None:
        """Waiting for others ends now."""
        self.waited_s = time.perf_counter() - self._began

    def leave(self, reason: str) -> None:
        """Give up. Work that nobody else awaits is stopped; ``reason`` is the label of kronos_cancelled_total."""
        if self.flight and not self.future.done():
            self.flight.claims.remove(self)
            if not self.flight.claims:
                self.flight.ticket.cancel(reason)
        self.flight = None


@dataclass(eq=False)
class Flight:
    """Work in progress, and the claims on it."""

    ticket: Ticket
    beginner: Claim
    claims: list[Claim]


class Cache:
    """Outcomes of this worker, kept ``ttl`` seconds (0: not at all, and nothing is coalesced) in ``max_bytes``."""

    def __init__(self, ttl: float = 0.0, max_bytes: int = 0, shared: Shared | None = None) -> None:
        self.store = Store(ttl, max_bytes)
        self.shared = shared
        self._flights: dict[Place, Flight] = {}
        self._fetches: dict[Place, asyncio.Task[bool]] = {}

    def publish(self) -> None:
        """Let the gauges read this cache whenever they are scraped."""
        metrics.CACHE_BYTES.set_function(lambda: self.store.bytes)
        metrics.CACHE_ENTRIES.set_function(lambda: len(self.store))

    def policy(self, directives: str) -> Policy:
        """What this cache does for a request with this value of ``Cache-Control``."""
        return policy_of(directives) if self.store.ttl else NOTHING

    def covers(self, keys: Sequence[bytes | None]) -> bool:
        """True if all of ``keys`` would be hits now."""
        return all(key is not None and key in self.store for key in keys)

    async def fetch(self, keys: Iterable[bytes | None], priority: Priority, deadline: float) -> set[bytes]:
        """Bring here what the rest of the fleet has of ``keys``, or is computing, until ``deadline`` (monotonic).

        Gives the keys that were waited for. Without a shared cache it does nothing.
        """
        if self.shared is None:
            return set()
        places = {(key, priority) for key in keys if key is not None and key not in self.store}
        fetches = {place: self._fetch(self.shared, place) for place in places if place not in self._flights}
        if fetches:
            await asyncio.wait(fetches.values(), timeout=max(0.0, deadline - time.monotonic()))
        return {key for (key, _), task in fetches.items() if task.done() and task.result()}

    async def close(self) -> None:
        """Let go of the shared cache."""
        if self.shared:
            await self.shared.close()

    def claim(self, key: bytes | None, policy: Policy, priority: Priority, submit: Submit) -> Claim:
        """Claim the outcome of the work that ``submit`` would begin. Raises what ``submit`` raises.

        ``key`` None: work whose outcome nobody else may have, such as sampling without a seed.
        """
        claim = Claim(submit)
        if key is not None and policy.look:
            self._seek(claim, (key, priority))
        else:
            self._await(claim.begin(), key if policy.keep else None)
        return claim

    def _fetch(self, shared: Shared, place: Place) -> asyncio.Task[bool]:
        """Look for work in the shared cache, once for all who want it here."""

        async def bring() -> bool:
            try:
                found = await shared.seek(*place)
            finally:
                del self._fetches[place]
            if found is None:
                return False
            self.store.put(place[0], found.outcome, found.ttl)
            return found.awaited

        if place not in self._fetches:
            self._fetches[place] = asyncio.get_running_loop().create_task(bring())
        return self._fetches[place]

    def _seek(self, claim: Claim, place: Place) -> None:
        """Take the outcome that is there, await one that is coming, or begin: whatever is possible first."""
        if (outcome := self.store.get(place[0])) is not None:
            claim.result = "hit"
            claim.note_wait()
            claim.future.set_result(outcome)
        elif flight := self._flights.get(place):
            claim.wait(flight)
        else:
            claim.result = "miss"
            claim.note_wait()
            try:
                self._flights[place] = claim.begin()
            except Exception:
                self._forget(place)
                raise
            self._await(self._flights[place], place[0], place)

    def _await(self, flight: Flight, key: bytes | None, place: Place | None = None) -> None:
        landed = partial(self._land, flight, key, place)
        asyncio.wrap_future(flight.ticket.future).add_done_callback(landed)

    def _land(self, flight: Flight, key: bytes | None, place: Place | None, done: asyncio.Future[Outcome]) -> None:
        """The work has ended: hand its end on to all who await it."""
        if place:
            del self._flights[place]
        error = done.exception()
        if error is None and key is not None:
            self.store.put(key, done.result())
        for claim in flight.claims:
            if claim is not flight.beginner:
                claim.note_wait()
            if error is None:
                claim.future.set_result(done.result())
            elif place and claim is not flight.beginner and isinstance(error, BEGINNERS_OWN):
                self._again(claim, place)
            else:
                claim.future.set_exception(error)
        if self.shared and error is None and key is not None:
            self.shared.tell(key, done.result())
        elif place and place not in self._flights:
            self._forget(place)

    def _forget(self, place: Place) -> None:
        """Tell the fleet that nothing will come of this work here."""
        if self.shared:
            self.shared.forget(*place)

    def _again(self, claim: Claim, place: Place) -> None:
        try:
            self._seek(claim, place)
        except Exception as error:  # whatever it is, the one who claims hears of it
            claim.future.set_exception(error)
