"""What every store of jobs promises, played by two workers on one database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from app.jobs.store import Beat, Claim, Delivery, Ending, Job, KeyReused, Limits, QueueFull, Store
from tests.jobs.conftest import VISIBILITY_S, Play
from tests.jobs.stores import new

Advance = Callable[[float], None]
TTL_S = 100.0
SHORT_S = 20.0  # less than a claim lasts


async def running(store: Store, id: str, **facts: object) -> Claim:
    """A job that was just claimed from an otherwise empty queue."""
    await store.submit(new(id, **facts))
    (claim,) = await store.claim(1)
    assert claim.id == id
    return claim


async def ended(store: Store, id: str, webhook: str, **facts: object) -> None:
    """A job whose owner is to be told at ``webhook`` from now on."""
    await store.submit(new(id, webhook=webhook, **facts))
    await store.cancel(id)


async def got(store: Store, id: str) -> Job:
    job = await store.get(id)
    assert job is not None
    return job


def test_a_job_is_kept_as_it_was_submitted(play: Play) -> None:
    """Another worker reads all of it; its request comes back byte for byte with the claim."""
    body = bytes(range(256)) * 20

    async def script(one: Store, other: Store, advance: Advance) -> None:
        facts = {"endpoint": "batch", "webhook": "https://x.example/", "steps": 7, "request_id": "q"}
        job, fresh = await one.submit(new("a", body=body, **facts))
        assert fresh and job == await other.get("a")
        assert (job.state, job.endpoint, job.priority, job.owner) == ("queued", "batch", "bulk", "me")
        assert (job.steps, job.steps_done, job.attempts, job.request_id) == (7, 0, 0, "q")
        assert (job.started, job.ended, job.result, job.webhook) == (None, None, None, "https://x.example/")
        assert job.expires - job.created == pytest.approx(1000)
        (claim,) = await other.claim(1)
        assert (claim.id, claim.body, claim.endpoint, claim.attempt, claim.steps) == ("a", body, "batch", 1, 7)
        assert claim.remaining == pytest.approx(1000, abs=5) and claim.request_id == "q"
        job = await got(one, "a")
        assert (job.state, job.attempts) == ("running", 1) and job.started is not None

    play(script)


def test_interactive_goes_first_then_who_came_first(play: Play) -> None:
    """The order of claims, and the place in it that a client is told."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        for id, priority in (("a", "bulk"), ("b", "bulk"), ("c", "interactive"), ("d", "interactive")):
            await one.submit(new(id, priority=priority))
        assert [await other.position(id) for id in "cdab"] == [0, 1, 2, 3]
        assert [claim.id for claim in await one.claim(3)] == ["c", "d", "a"]
        assert [await other.position(id) for id in "cb"] == [None, 0]
        assert [claim.id for claim in await other.claim(3)] == ["b"]
        assert await one.claim(1) == [] and await one.claim(0) == []
        assert await one.position("nobody") is None

    play(script)


def test_no_job_is_claimed_twice_however_many_ask_at_once(play: Play) -> None:
    """Forty claims at one moment, from two workers, of thirty jobs: each job once."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        await asyncio.gather(*(store.submit(new(f"{number}")) for number, store in enumerate([one, other] * 15)))
        claims = await asyncio.gather(*(store.claim(1) for store in [one, other] * 20))
        found = [claim for each in claims for claim in each]
        assert sorted(claim.id for claim in found) == sorted(f"{number}" for number in range(30))
        assert len({claim.token for claim in found}) == 30

    play(script)


def test_a_claim_lasts_as_long_as_its_worker_gives_signs_of_life(play: Play) -> None:
    """Heartbeats keep a job and tell its progress; after silence it is another's, from the start, with one more attempt."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        claim = await running(one, "a")
        for done in (2, 5):
            advance(0.7 * VISIBILITY_S)
            assert await one.heartbeat([Beat("a", claim.token, done)]) == {"a": "go on"}
            assert (await got(other, "a")).steps_done == done
            assert await other.claim(5) == []
        advance(1.1 * VISIBILITY_S)
        (again,) = await other.claim(5)
        assert (again.id, again.attempt, again.body) == ("a", 2, claim.body) and again.token != claim.token
        job = await got(one, "a")
        assert (job.state, job.steps_done, job.attempts) == ("running", 0, 2)

    play(script)


def test_who_lost_a_claim_changes_nothing(play: Play) -> None:
    """A worker that comes back late neither ends, nor gives back, nor keeps alive what is another's by now."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        late = await running(one, "a")
        advance(1.1 * VISIBILITY_S)
        (claim,) = await other.claim(1)
        before = await got(other, "a")
        assert await one.heartbeat([Beat("a", late.token, 9), Beat("nobody", "x", 1)]) == {"a": "lost", "nobody": "lost"}
        assert not await one.finish("a", late.token, "succeeded", b"late")
        assert not await one.release("a", late.token)
        assert await got(other, "a") == before
        assert await other.finish("a", claim.token, "succeeded", b"right")
        assert not await one.finish("a", late.token, "failed", b"late")
        assert (await got(one, "a")).result == b"right"

    play(script)


def test_a_claim_that_ran_out_is_lost_before_anybody_takes_it(play: Play) -> None:
    """Between running out and the next claim a job is nobody's: who sweeps queues it again, in its old place."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        late = await running(one, "a")
        await one.submit(new("b"))
        advance(1.1 * VISIBILITY_S)
        assert await other.sweep() == []
        assert (await got(one, "a")).state == "queued"
        assert [await one.position(id) for id in "ab"] == [0, 1]
        assert not await one.finish("a", late.token, "succeeded", b"late")

    play(script)


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "expired"])
def test_an_end_is_final(play: Play, state: Ending) -> None:
    """Nothing changes a job that has ended: no second end, no cancelling, no claim."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        claim = await running(one, "a", ttl=TTL_S)
        assert await one.finish("a", claim.token, state, b"the end")
        end = await got(other, "a")
        assert (end.state, end.result) == (state, b"the end") and end.ended is not None
        assert end.expires - end.ended == pytest.approx(TTL_S)
        assert end.steps_done == (10 if state == "succeeded" else 0)
        assert not await one.finish("a", claim.token, "succeeded", b"again")
        assert not await one.release("a", claim.token)
        assert await one.heartbeat([Beat("a", claim.token, 1)]) == {"a": "lost"}
        assert await other.cancel("a") == end
        advance(2 * VISIBILITY_S)
        assert await other.claim(1) == [] and await other.sweep() == []
        assert await got(one, "a") == end

    play(script)


def test_a_job_given_back_keeps_its_place_and_its_attempts(play: Play) -> None:
    """A worker that leaves in order costs a job nothing but time."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        claim = await running(one, "a")
        await one.heartbeat([Beat("a", claim.token, 3)])
        await one.submit(new("b"))
        assert await one.release("a", claim.token)
        job = await got(other, "a")
        assert (job.state, job.attempts, job.steps_done) == ("queued", 0, 0)
        assert not await one.release("a", claim.token)
        (again,) = await other.claim(1)
        assert (again.id, again.attempt) == ("a", 1)

    play(script)


def test_a_queued_job_is_cancelled_at_once(play: Play) -> None:
    """It is never run; a job that nobody knows cannot be cancelled."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        await one.submit(new("a"))
        job = await other.cancel("a")
        assert job is not None and (job.state, job.cancelling) == ("cancelled", False)
        assert await one.claim(1) == [] and await one.cancel("nobody") is None

    play(script)


def test_a_running_job_is_cancelled_through_its_worker(play: Play) -> None:
    """The worker hears of it with its next heartbeat and ends the job; giving it back ends it as well."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        for id in "ab":
            claim = await running(one, id)
            job = await other.cancel(id)
            assert job is not None and (job.state, job.cancelling) == ("running", True)
            assert await one.heartbeat([Beat(id, claim.token, 1)]) == {id: "cancel"}
            assert await (one.finish(id, claim.token, "cancelled", b"") if id == "a" else one.release(id, claim.token))
            job = await got(other, id)
            assert (job.state, job.cancelling) == ("cancelled", False) and not job.result

    play(script)


def test_a_cancelled_job_whose_worker_is_gone_does_not_run_again(play: Play) -> None:
    """Nobody takes it up; the next sweep ends it."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        await running(one, "a")
        await other.cancel("a")
        advance(1.1 * VISIBILITY_S)
        assert await other.claim(1) == []
        assert [job.id for job in await other.sweep()] == ["a"]
        assert (await got(one, "a")).state == "cancelled"
        assert await one.sweep() == []

    play(script)


def test_the_same_submission_is_the_same_job(play: Play) -> None:
    """A client that does not know whether it was heard may say it again; its key means nothing for others."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        first, _ = await one.submit(new("a", idempotency_key="k", body=b"1"))
        again, fresh = await other.submit(new("b", idempotency_key="k", body=b"1"))
        assert (again.id, fresh) == ("a", False) and again == first
        assert await one.get("b") is None
        for changed in ({"body": b"2"}, {"endpoint": "batch", "body": b"1"}):
            with pytest.raises(KeyReused):
                await other.submit(new("c", idempotency_key="k", **changed))
        assert (await other.submit(new("d", idempotency_key="k", body=b"2", owner="you")))[1]
        assert (await other.submit(new("e", body=b"1")))[1]
        (claim, *_) = await one.claim(1)
        await one.finish("a", claim.token, "succeeded", b"done")
        assert (await other.submit(new("f", idempotency_key="k", body=b"1")))[0].result == b"done"

    play(script)


def test_a_key_lives_as_long_as_its_job(play: Play) -> None:
    """Once the job is forgotten its idempotency key names a new one."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        await one.submit(new("a", idempotency_key="k", ttl=TTL_S))
        await one.cancel("a")
        advance(1.1 * TTL_S)
        job, fresh = await other.submit(new("b", idempotency_key="k", body=b"other"))
        assert (job.id, fresh) == ("b", True) and await one.get("a") is None
        assert [claim.id for claim in await one.claim(9)] == ["b"]

    play(script)


def test_a_job_that_nobody_ran_in_time_expires(play: Play) -> None:
    """It is not begun any more; what is left of a running one ends too. That it expired is told for as long again."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        claim = await running(one, "a", ttl=SHORT_S)
        await one.submit(new("b", ttl=SHORT_S))
        await one.submit(new("c", ttl=10 * SHORT_S))
        advance(0.9 * SHORT_S)
        await one.heartbeat([Beat("a", claim.token, 1)])
        advance(0.2 * SHORT_S)
        assert [each.id for each in await other.claim(9)] == ["c"]
        assert sorted(job.id for job in await other.sweep()) == ["a", "b"]
        assert [(await got(one, id)).state for id in "abc"] == ["expired", "expired", "running"]
        assert not await one.finish("a", claim.token, "succeeded", b"late")
        advance(0.9 * SHORT_S)
        assert (await got(one, "b")).state == "expired"
        advance(0.2 * SHORT_S)
        assert await one.get("b") is None

    play(script)


def test_a_result_is_kept_for_its_ttl_after_the_end(play: Play) -> None:
    """Then it is gone for readers at once, and for the disk with the next sweep, which tells nobody."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        claim = await running(one, "a", ttl=TTL_S)
        advance(0.2 * TTL_S)
        assert await one.finish("a", claim.token, "succeeded", b"done")
        advance(0.9 * TTL_S)
        assert (await got(other, "a")).result == b"done"
        advance(0.2 * TTL_S)
        assert await other.get("a") is None and await other.cancel("a") is None
        assert await other.ended(["a"]) == {"a"}
        assert await other.sweep() == []
        assert sum((await one.counts()).by_state.values()) == 0

    play(script)


def test_the_queue_is_bounded_by_number(play: Play) -> None:
    """One more than allowed is refused, the same one again is not; what runs makes room."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        await one.submit(new("a", idempotency_key="k"))
        await other.submit(new("b"))
        with pytest.raises(QueueFull):
            await other.submit(new("c"))
        assert (await other.submit(new("d", idempotency_key="k")))[0].id == "a"
        await one.claim(1)
        assert (await other.submit(new("c")))[1]

    play(script, Limits(VISIBILITY_S, max_waiting=2))


def test_what_is_kept_is_bounded_by_bytes(play: Play) -> None:
    """Requests and results count; what is forgotten makes room."""
    part = 2**18

    async def script(one: Store, other: Store, advance: Advance) -> None:
        claims = []
        with pytest.raises(QueueFull):
            for number in range(9):
                await one.submit(new(f"{number}", body=bytes(part), ttl=TTL_S))
                claims += await one.claim(1)
        assert 2 <= len(claims) <= 4
        for claim in claims:
            await one.finish(claim.id, claim.token, "succeeded", bytes(part))
        with pytest.raises(QueueFull):
            await other.submit(new("more"))
        advance(1.1 * TTL_S)
        await other.sweep()
        assert (await other.submit(new("more")))[1]

    play(script, Limits(VISIBILITY_S, max_bytes=4 * part))


def test_what_the_metrics_are_told(play: Play) -> None:
    """Jobs by state, the age of the oldest that waits, webhooks to be called."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        claim = await running(one, "a", webhook="https://x.example/")
        await one.finish("a", claim.token, "failed", b"why")
        await running(one, "b")
        await one.submit(new("c"))
        advance(20)
        await one.submit(new("d"))
        counts = await other.counts()
        assert {state: count for state, count in counts.by_state.items() if count} == {"failed": 1, "running": 1, "queued": 2}
        assert len(counts.by_state) == 6 and counts.deliveries == 1
        assert counts.oldest_queued_s == pytest.approx(20, abs=5)
        await one.claim(9)
        assert (await other.counts()).oldest_queued_s == 0

    play(script)


def test_many_ask_at_once_who_has_ended(play: Play) -> None:
    """Ended and unknown jobs are not waited for."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        await one.submit(new("a"))
        await running(one, "b", priority="interactive")
        await one.submit(new("c"))
        await one.cancel("c")
        assert await other.ended(["a", "b", "c", "nobody"]) == {"c", "nobody"}
        assert await other.ended([]) == set()

    play(script)


@pytest.mark.parametrize("end", ["finish", "cancel", "release", "sweep"])
def test_a_webhook_is_due_when_its_job_has_ended(play: Play, end: str) -> None:
    """However it ended, and not before; one worker at a time has it."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        claim = await running(one, "a", webhook="https://x.example/", ttl=TTL_S)
        assert await other.claim_delivery(10.0) is None
        if end == "finish":
            await one.finish("a", claim.token, "succeeded", b"done")
        elif end == "cancel":
            await one.release("a", claim.token)
            await other.cancel("a")
        elif end == "release":
            await other.cancel("a")
            await one.release("a", claim.token)
        else:
            advance(1.1 * TTL_S)
            await other.sweep()
        assert await other.claim_delivery(10.0) == Delivery("a", "https://x.example/", 1, "https://x.example")
        assert await one.claim_delivery(10.0) is None

    play(script)


def test_a_webhook_is_called_until_it_is_settled(play: Play) -> None:
    """Who took it and died is followed by another; who was too late changes nothing; a delivered one is due no more."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        claim = await running(one, "a", webhook="https://x.example/")
        await one.finish("a", claim.token, "succeeded", b"done")
        await one.claim_delivery(10.0)
        advance(11)
        second = await other.claim_delivery(10.0)
        assert second is not None and second.tries == 2
        assert not await one.settle_delivery("a", 1, None)
        assert await other.settle_delivery("a", 2, 60.0)
        advance(30)
        assert await one.claim_delivery(10.0) is None
        advance(31)
        third = await one.claim_delivery(10.0)
        assert third is not None and third.tries == 3 and await one.settle_delivery("a", 3, None)
        advance(120)
        assert await other.claim_delivery(10.0) is None and (await other.counts()).deliveries == 0
        assert not await one.settle_delivery("a", 3, 1.0)

    play(script)


def test_webhooks_are_taken_past_those_of_receivers_that_are_full(play: Play) -> None:
    """However many these are; the others come by when they became due, and the full ones when they are full no more.

    A receiver is a scheme, a host and a port, whatever the rest of its URLs.
    """
    long, other_scheme, other_port, late = "https://a.example", "http://a.example", "https://a.example:8443", "https://b.example"

    async def script(one: Store, other: Store, advance: Advance) -> None:
        for number in range(30):
            await ended(one, f"long-{number:02}", (f"{long}/?{number}", "https://A.example:443/x")[number % 2])
        others = (("1", late), ("2", other_port), ("3", late), ("4", other_scheme))
        for id, receiver in reversed(others):
            await one.submit(new(id, webhook=f"{receiver}/{id}"))
        for id, _ in others:
            await one.cancel(id)

        async def taken(*full: str) -> tuple[str, str]:
            delivery = await other.claim_delivery(1000.0, full)
            return (delivery.id, delivery.receiver) if delivery else ("", "")

        assert await taken() == ("long-00", long)
        assert await taken(long) == ("1", late)
        assert await taken(long, late) == ("2", other_port)
        assert await taken(long) == ("3", late)
        assert await taken(long, late, other_port) == ("4", other_scheme)
        assert await taken(long) == ("", "") and (await one.counts()).deliveries == 34
        assert [await taken(late) for _ in range(30)] == [*((f"long-{number:02}", long) for number in range(1, 30)), ("", "")]

    play(script)


def test_a_receiver_s_turn_is_that_of_its_first_webhook(play: Play) -> None:
    """Also when others of it were due before, and were settled, put off or forgotten since."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        for id, ttl in (("delivered", 1000.0), ("put off", 1000.0), ("forgotten", 20.0)):
            await ended(one, id, "https://a.example/", ttl=ttl)
        for tries_again in (None, 40.0):
            delivery = await one.claim_delivery(10.0)
            assert delivery and await one.settle_delivery(delivery.id, 1, tries_again)
        await ended(one, "b", "https://b.example/")
        await ended(one, "a", "https://a.example/")
        advance(21)
        await one.sweep()
        order = [await other.claim_delivery(1000.0) for _ in range(3)]
        assert [delivery and delivery.id for delivery in order] == ["b", "a", None]
        advance(21)
        last = await other.claim_delivery(1000.0, ["https://b.example"])
        assert last and (last.id, last.tries) == ("put off", 2)

    play(script)


def test_a_webhook_is_forgotten_with_its_job(play: Play) -> None:
    """Nobody is told of a job that is not there any more."""

    async def script(one: Store, other: Store, advance: Advance) -> None:
        await one.submit(new("a", webhook="https://x.example/", ttl=TTL_S))
        await one.cancel("a")
        advance(1.1 * TTL_S)
        await one.sweep()
        assert await other.claim_delivery(10.0) is None and (await other.counts()).deliveries == 0

    play(script)
