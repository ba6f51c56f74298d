"""Any history of a store of jobs, compared with the one that a dictionary would have."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from app.jobs.store import Beat, Claim, Delivery, Ending, Limits, Store
from app.pools import Pools, installed
from app.scheduler import PRIORITIES, Priority
from tests.jobs.stores import STORES, new

T = TypeVar("T")
VISIBILITY_S, TTL_S, HOLD_S = 28.0, 98.0, 7.0
"""Like all times here multiples of seven seconds, so that what passes meanwhile makes no difference."""
RECEIVERS = ("https://a.example", "https://b.example", "https://b.example:81")


@dataclass
class Known:
    """What is known of one job."""

    number: int
    priority: Priority
    expires: float
    receiver: str | None
    state: str = "queued"
    attempts: int = 0
    claim: Claim | None = None
    visible: float = 0.0
    cancelling: bool = False
    due: tuple[float, int] | None = None
    """Of its webhook: when, and by which call, since time stands still between two calls."""
    tries: int = 0

    @property
    def place(self) -> tuple[int, int]:
        return PRIORITIES.index(self.priority), self.number


class Histories(RuleBasedStateMachine):
    """Two workers, their clock, and what each call should do by the words of ``Store``."""

    kind = "sqlite"
    examples = 40

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = ExitStack()
        self.jobs: dict[str, Known] = {}
        self.old: list[Claim] = []
        self.now, self.calls = 0.0, 0

    @initialize()
    def open(self) -> None:
        self.stack.enter_context(installed(Pools()))
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.rig = self.stack.enter_context(STORES[self.kind](folder))
        self.stores: list[Store] = [self.rig.open(Limits(visibility=VISIBILITY_S)) for _ in range(2)]

    def teardown(self) -> None:
        for store in getattr(self, "stores", []):
            self.do(store.close())
        self.stack.close()
        self.loop.close()

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        self.calls += 1
        return self.loop.run_until_complete(call)

    def recover(self) -> None:
        for job in self.jobs.values():
            if job.state == "running" and job.visible <= self.now and not job.cancelling:
                job.state, job.claim = "queued", None

    def end(self, job: Known, state: str) -> None:
        job.state, job.claim, job.cancelling, job.expires = state, None, False, self.now + TTL_S
        job.due = (self.now, self.calls) if job.receiver else None

    def queued(self) -> list[str]:
        return sorted((id for id, job in self.jobs.items() if job.state == "queued"), key=lambda id: self.jobs[id].place)

    @rule(priority=st.sampled_from(PRIORITIES), receiver=st.sampled_from([None, *RECEIVERS]), worker=st.integers(0, 1))
    def submit(self, priority: Priority, receiver: str | None, worker: int) -> None:
        id = f"job-{len(self.jobs)}"
        webhook = receiver and f"{receiver}/{id}"
        _, fresh = self.do(self.stores[worker].submit(new(id, priority=priority, ttl=TTL_S, webhook=webhook)))
        assert fresh
        self.jobs[id] = Known(len(self.jobs), priority, self.now + TTL_S, receiver)

    @rule(most=st.integers(1, 3), worker=st.integers(0, 1))
    def claim(self, most: int, worker: int) -> None:
        claims = self.do(self.stores[worker].claim(most))
        self.recover()
        free = [id for id in self.queued() if self.jobs[id].expires > self.now]
        assert [claim.id for claim in claims] == free[:most]
        for claim in claims:
            job = self.jobs[claim.id]
            job.state, job.claim, job.visible, job.attempts = "running", claim, self.now + VISIBILITY_S, job.attempts + 1
            assert claim.attempt == job.attempts
            self.old.append(claim)

    @precondition(lambda self: self.old)
    @rule(pick=st.randoms(use_true_random=False), what=st.sampled_from(["beat", "release", "succeeded", "failed"]))
    def hold(self, pick: Any, what: str) -> None:
        claim = pick.choice(self.old[-6:])
        store, job = pick.choice(self.stores), self.jobs[claim.id]
        # A claim that ran out and that nobody has touched since may be found either way: the words leave it open.
        if job.claim is claim and job.visible <= self.now:
            self.do(self.stores[0].sweep())
            self.swept()
        mine = job.claim is claim and job.state == "running"
        if what == "beat":
            word = self.do(store.heartbeat([Beat(claim.id, claim.token, 1)]))[claim.id]
            assert word == ("lost" if not mine else "cancel" if job.cancelling else "go on")
            if mine:
                job.visible = self.now + VISIBILITY_S
        elif what == "release":
            assert self.do(store.release(claim.id, claim.token)) == mine
            if mine and job.cancelling:
                self.end(job, "cancelled")
            elif mine:
                job.state, job.claim, job.attempts = "queued", None, job.attempts - 1
        else:
            ending: Ending = "succeeded" if what == "succeeded" else "failed"
            assert self.do(store.finish(claim.id, claim.token, ending, b"done")) == mine
            if mine:
                self.end(job, ending)

    @precondition(lambda self: self.jobs)
    @rule(pick=st.randoms(use_true_random=False))
    def cancel(self, pick: Any) -> None:
        self.do(self.stores[0].sweep())
        self.swept()
        id = pick.choice(sorted(self.jobs))
        job = self.jobs[id]
        found = self.do(pick.choice(self.stores).cancel(id))
        if job.state == "queued":
            self.end(job, "cancelled")
        elif job.state == "running":
            job.cancelling = True
        assert (found.state if found else "forgotten") == job.state

    @rule(seconds=st.sampled_from([7.0, 14.0, 35.0, 105.0]))
    def advance(self, seconds: float) -> None:
        self.rig.advance(seconds)
        self.now += seconds

    @rule(worker=st.integers(0, 1))
    def sweep(self, worker: int) -> None:
        ended = {job.id: job.state for job in self.do(self.stores[worker].sweep())}
        assert ended == self.swept()

    def swept(self) -> dict[str, str]:
        self.recover()
        ended = {}
        for id, job in self.jobs.items():
            if job.state == "running" and job.cancelling and job.visible <= self.now:
                ended[id] = "cancelled"
            elif job.state in ("queued", "running") and job.expires <= self.now:
                ended[id] = "expired"
            elif job.expires <= self.now:
                job.state, job.due = "forgotten", None
        for id, state in ended.items():
            self.end(self.jobs[id], state)
        return ended

    @invariant()
    def states_are_the_same(self) -> None:
        for id, job in self.jobs.items():
            found = self.do(self.stores[0].get(id))
            gone = job.state not in ("queued", "running") and job.expires <= self.now
            if found is None or gone:
                assert found is None and gone, id
            elif not (job.state == "running" and job.visible <= self.now and not job.cancelling):
                assert (found.state, found.attempts, found.cancelling) == (job.state, job.attempts, job.cancelling)


class Tellings(Histories):
    """Much ends here, and its owners are told."""

    examples = 20  # each has more jobs than one of the above

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Delivery] = []

    @rule(receivers=st.permutations(RECEIVERS), worker=st.integers(0, 1))
    def end_some(self, receivers: list[str], worker: int) -> None:
        """In another order than that of their submission."""
        for receiver in receivers:
            self.submit("bulk", receiver, worker)
        for id in list(self.jobs)[: -1 - len(receivers) : -1]:
            self.do(self.stores[worker].cancel(id))
            self.recover()
            self.end(self.jobs[id], "cancelled")

    @rule(most=st.integers(1, 4), full=st.sets(st.sampled_from(RECEIVERS), max_size=2), worker=st.integers(0, 1))
    def tell(self, most: int, full: set[str], worker: int) -> None:
        for _ in range(most):
            delivery = self.do(self.stores[worker].claim_delivery(HOLD_S, full))
            due = [job.due for job in self.jobs.values() if job.due and job.due[0] <= self.now and job.receiver not in full]
            assert (self.jobs[delivery.id].due if delivery else None) == min(due, default=None)
            if delivery:
                job = self.jobs[delivery.id]
                job.due, job.tries = (self.now + HOLD_S, self.calls), job.tries + 1
                found = (delivery.receiver, delivery.url, delivery.tries)
                assert found == (job.receiver, f"{job.receiver}/{delivery.id}", job.tries)
                self.told.append(delivery)

    @precondition(lambda self: self.told)
    @rule(pick=st.randoms(use_true_random=False), again_in=st.sampled_from([None, 7.0, 49.0]))
    def settle(self, pick: Any, again_in: float | None) -> None:
        delivery = pick.choice(self.told[-6:])
        job = self.jobs[delivery.id]
        mine = job.due is not None and job.tries == delivery.tries
        assert self.do(pick.choice(self.stores).settle_delivery(delivery.id, delivery.tries, again_in)) == mine
        if mine:
            job.due = None if again_in is None else (self.now + again_in, self.calls)

    @invariant()
    def as_many_are_to_be_told(self) -> None:
        assert self.do(self.stores[0].counts()).deliveries == sum(job.due is not None for job in self.jobs.values())


KINDS = [pytest.param(kind, marks=[pytest.mark.slow] if kind == "redis" else []) for kind in STORES]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("histories", [Histories, Tellings])
def test_no_history_surprises(histories: type[Histories], kind: str) -> None:
    """Submissions, claims, silence, ends, cancelling, webhooks and time, in any order: states, attempts, fences, and who is
    told next are as promised."""
    machine = type("HistoriesOf", (histories,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=histories.examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
