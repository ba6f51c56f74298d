"""Single flight: identical work is computed once, and whose going stops what. With tickets in the test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from app.cache import NOTHING, Cache, Claim, Policy, policy_of
from app.errors import Cancelled, DeadlinePassed, Draining, EngineFailed, KronosError, Overloaded
from app.permit import Ticket
from app.scheduler import Priority
from app.work import Outcome

KEY = b"k" * 32
USUAL = Policy()


class Desk:
    """Submits work that ends when the test says so."""

    def __init__(self) -> None:
        self.futures: list[Future[Outcome]] = []
        self.cancelled: list[str] = []
        self.refusal: KronosError | None = None
        self.cache = Cache(10.0, 10**6)

    def submit(self) -> Ticket:
        if self.refusal:
            raise self.refusal
        future: Future[Outcome] = Future()
        self.futures.append(future)

        def cancel(reason: str) -> None:
            self.cancelled.append(reason)
            future.set_exception(Cancelled(reason))

        return Ticket(future, cancel)

    def claim(self, policy: Policy = USUAL, priority: Priority = "interactive", key: bytes | None = KEY) -> Claim:
        return self.cache.claim(key, policy, priority, self.submit)


def outcome() -> Outcome:
    return Outcome(np.ones((1, 2, 6), np.float32), None, {}, rolled=False)


def played(story: Callable[[Desk], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that plays on an event loop."""

    def play() -> None:
        asyncio.run(story(Desk()))

    play.__doc__ = story.__doc__
    return play


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@played
async def test_identical_claims_share_one_work(desk: Desk) -> None:
    """One is computed, all get that very outcome; the next claim is a hit."""
    claims = [desk.claim() for _ in range(5)]
    assert len(desk.futures) == 1
    made = outcome()
    desk.futures[0].set_result(made)
    assert all([await claim.future is made for claim in claims])
    assert [claim.result for claim in claims] == ["miss"] + 4 * ["coalesced"]
    after = desk.claim()
    assert after.result == "hit" and after.future.result() is made


@played
async def test_the_beginner_may_leave(desk: Desk) -> None:
    """While anybody awaits the work it goes on; those behind get its outcome, and it is not begun again."""
    first, second = desk.claim(), desk.claim()
    first.leave("disconnected")
    assert desk.cancelled == []
    desk.futures[0].set_result(outcome())
    await second.future
    assert len(desk.futures) == 1 and not first.future.done()


@played
async def test_the_last_to_leave_stops_the_work(desk: Desk) -> None:
    """Work that nobody awaits is given up, once, for the reason of the last; a newcomer begins anew."""
    first, second = desk.claim(), desk.claim()
    first.leave("disconnected")
    second.leave("deadline")
    second.leave("deadline")
    assert desk.cancelled == ["deadline"]
    newcomer = desk.claim()
    await settle()
    assert newcomer.result == "miss" and len(desk.futures) == 2
    desk.futures[1].set_result(outcome())
    await newcomer.future


@played
async def test_the_deadline_of_the_beginner_is_not_that_of_the_others(desk: Desk) -> None:
    """The work ended for the beginner's deadline: one of those behind begins anew, the rest wait for that one."""
    first, second, third = desk.claim(), desk.claim(), desk.claim()
    desk.futures[0].set_exception(DeadlinePassed())
    with pytest.raises(DeadlinePassed):
        await first.future
    assert [claim.result for claim in (second, third)] == ["miss", "coalesced"]
    desk.futures[1].set_result(outcome())
    await asyncio.gather(second.future, third.future)
    assert len(desk.futures) == 2


@pytest.mark.parametrize("error", [EngineFailed("broken"), Draining()])
def test_an_error_of_the_work_is_everybodys_and_not_kept(error: KronosError) -> None:
    """The same work would fail again: those behind hear it at once, and the next claim tries anew."""

    async def story(desk: Desk) -> None:
        claims = [desk.claim(), desk.claim()]
        desk.futures[0].set_exception(error)
        await settle()
        assert [claim.future.exception() for claim in claims] == [error, error]
        assert desk.claim().result == "miss" and len(desk.futures) == 2

    asyncio.run(story(Desk()))


@played
async def test_who_must_begin_anew_may_be_refused(desk: Desk) -> None:
    """Then the refusal is the answer, and to each of those behind."""
    claims = [desk.claim(), desk.claim(), desk.claim()]
    desk.refusal = Overloaded("work", 1.0)
    desk.futures[0].set_exception(DeadlinePassed())
    await settle()
    assert [type(claim.future.exception()) for claim in claims] == [DeadlinePassed, Overloaded, Overloaded]


@played
async def test_a_refused_beginner_leaves_nothing_behind(desk: Desk) -> None:
    """The refusal is raised at once, and the next claim begins."""
    desk.refusal = Overloaded("work", 1.0)
    with pytest.raises(Overloaded):
        desk.claim()
    desk.refusal = None
    assert desk.claim().result == "miss"


@played
async def test_interactive_does_not_wait_for_the_turn_of_bulk(desk: Desk) -> None:
    """Identical work of the other class is begun by itself; its outcome is a hit for both afterwards."""
    bulk, interactive = desk.claim(priority="bulk"), desk.claim(priority="interactive")
    assert (bulk.result, interactive.result, len(desk.futures)) == ("miss", "miss", 2)
    desk.futures[1].set_result(outcome())
    await interactive.future
    assert desk.claim(priority="bulk").result == "hit"
    desk.futures[0].set_result(outcome())
    await bulk.future


@played
async def test_a_bypass_is_alone(desk: Desk) -> None:
    """no-cache computes by itself and leaves its outcome there; no-store and work without a key leave nothing."""
    behind = [desk.claim(), desk.claim(policy_of("no-cache")), desk.claim(NOTHING), desk.claim(key=None)]
    assert [claim.result for claim in behind] == ["miss", "bypass", "bypass", "bypass"]
    assert len(desk.futures) == 4
    for future in desk.futures[2:]:
        future.set_result(outcome())
    await settle()
    assert len(desk.cache.store) == 0
    desk.futures[1].set_result(outcome())
    await settle()
    assert desk.claim().result == "hit"
    behind[0].leave("deadline")
    assert desk.cancelled == ["deadline"]
    await settle()


@pytest.mark.parametrize(
    ("directives", "policy"),
    [
        ("", Policy()), ("max-age=0", Policy()), ("no-cache", Policy(look=False)), ("max-age=0, No-Cache", Policy(look=False)),
        ("no-store", NOTHING), ("no-cache,no-store", NOTHING), ('no-cache="x"', Policy(look=False)), ("no-cachet", Policy()),
    ],
)  # fmt: skip
def test_what_cache_control_asks_for(directives: str, policy: Policy) -> None:
    """Directives as RFC 9111 writes them; unknown ones are ignored."""
    assert policy_of(directives) == policy


def test_off_means_off() -> None:
    """Without a TTL nothing is looked up, kept or coalesced, whatever a request says."""
    assert {Cache(0.0, 10**6).policy(directives) for directives in ("", "no-cache", "no-store")} == {NOTHING}


@played
async def test_only_what_is_there_covers(desk: Desk) -> None:
    """All keys must be hits; work without a key never is, and work on its way is not there yet."""
    claim = desk.claim()
    assert not desk.cache.covers([KEY])
    desk.futures[0].set_result(outcome())
    await claim.future
    assert desk.cache.covers([KEY, KEY]) and desk.cache.covers([])
    assert not desk.cache.covers([KEY, b"other"]) and not desk.cache.covers([None])
