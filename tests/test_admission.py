"""Admission: who is let in, who is refused first, and when the refused should come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.admission import MAX_RETRY_AFTER_S, RATE_SAMPLE_S, RATE_WINDOW_S, Admission, Limits
from app.errors import Overloaded
from app.scheduler import PRIORITIES, Priority

PATIENT_S = 1e6


def admission(max_requests: int = 4, max_work: int = 100, bulk_share: float = 0.5, max_wait_s: float = PATIENT_S) -> Admission:
    return Admission(Limits(max_requests, max_work, bulk_share, max_wait_s))


def measured(gate: Admission, units_per_s: float) -> Admission:
    """Let it measure one second at a rate, enough to be believed."""
    gate.measure(int(units_per_s * RATE_SAMPLE_S), RATE_SAMPLE_S)
    return gate


def test_requests_are_let_in_up_to_the_limit() -> None:
    """The limit itself is let in, one more is refused, and each that leaves makes room for one."""
    gate = admission(max_requests=3)
    for _ in range(3):
        gate.enter("interactive")
    with pytest.raises(Overloaded) as refusal:
        gate.enter("interactive")
    assert refusal.value.reason == "requests"
    gate.leave("interactive")
    gate.enter("interactive")


def test_bulk_is_refused_first() -> None:
    """Bulk fills its share only, while interactive goes on to the limit as if bulk were not there."""
    gate = admission(max_requests=4, bulk_share=0.5)
    gate.enter("bulk")
    gate.enter("bulk")
    with pytest.raises(Overloaded):
        gate.enter("bulk")
    for _ in range(4):
        gate.enter("interactive")
    with pytest.raises(Overloaded):
        gate.enter("interactive")


def test_bulk_stands_behind_interactive() -> None:
    """What interactive requests fill is not left to bulk."""
    gate = admission(max_requests=4, bulk_share=0.5)
    gate.enter("interactive")
    gate.enter("bulk")
    with pytest.raises(Overloaded):
        gate.enter("bulk")


def test_work_is_bounded() -> None:
    """Work is let in up to the limit; done or given up, it makes room again."""
    gate = admission(max_work=100)
    gate.add(60, "interactive", PATIENT_S)
    gate.add(40, "interactive", PATIENT_S)
    with pytest.raises(Overloaded) as refusal:
        gate.add(1, "interactive", PATIENT_S)
    assert refusal.value.reason == "work"
    assert gate.waiting_work() == 100
    gate.subtract(60, "interactive")
    gate.add(60, "interactive", PATIENT_S)


def test_a_full_queue_of_work_refuses_before_the_body_is_read() -> None:
    """Where no work fits any more, a request is refused at the door already."""
    gate = admission(max_work=10)
    gate.add(10, "interactive", PATIENT_S)
    with pytest.raises(Overloaded) as refusal:
        gate.enter("interactive")
    assert refusal.value.reason == "work"


def test_one_large_request_is_let_in_alone() -> None:
    """A request larger than the limit is let in when nothing is ahead of it, and only then."""
    gate = admission(max_work=10)
    gate.add(50, "interactive", PATIENT_S)
    with pytest.raises(Overloaded):
        gate.add(1, "interactive", PATIENT_S)
    busy = admission(max_work=10)
    busy.add(1, "interactive", PATIENT_S)
    with pytest.raises(Overloaded):
        busy.add(50, "interactive", PATIENT_S)


def test_bulk_work_is_refused_first() -> None:
    """Bulk work fits into its share behind all that is there; interactive work does not see it."""
    gate = admission(max_work=100, bulk_share=0.5)
    gate.add(50, "bulk", PATIENT_S)
    with pytest.raises(Overloaded):
        gate.add(1, "bulk", PATIENT_S)
    gate.add(100, "interactive", PATIENT_S)


def test_without_a_share_bulk_is_shut_out() -> None:
    """A share of 0 lets no bulk request in, whatever is free."""
    with pytest.raises(Overloaded):
        admission(bulk_share=0.0).enter("bulk")


def test_work_that_would_wait_beyond_its_deadline_is_refused() -> None:
    """With 100 units ahead at 10 a second, 9 s of patience are too few and 11 s are enough."""
    gate = measured(admission(max_work=1000), units_per_s=10)
    gate.add(100, "interactive", PATIENT_S)
    with pytest.raises(Overloaded) as refusal:
        gate.add(1, "interactive", 9.0)
    assert refusal.value.reason == "deadline"
    assert refusal.value.retry_after == pytest.approx(10.0)
    gate.add(1, "interactive", 11.0)


def test_a_queue_is_no_longer_than_anything_may_wait() -> None:
    """With 50 units ahead at 10 a second and a queue of 4 s, work is refused however patient it is, and the next request
    before its body is read; another class is asked about what is ahead of itself only."""
    gate = measured(admission(max_work=1000, max_wait_s=4.0), units_per_s=10)
    gate.add(50, "bulk", PATIENT_S)
    refusals: tuple[Callable[[], None], ...] = (lambda: gate.add(1, "bulk", PATIENT_S), lambda: gate.enter("bulk"))
    for refuse in refusals:
        with pytest.raises(Overloaded) as refusal:
            refuse()
        assert refusal.value.reason == "wait" and refusal.value.retry_after == pytest.approx(5.0)
    gate.enter("interactive")
    gate.add(1, "interactive", PATIENT_S)
    gate.subtract(11, "bulk")
    gate.add(1, "bulk", PATIENT_S)


def test_bulk_does_not_shorten_an_interactive_deadline() -> None:
    """Only what is really ahead counts: an interactive request waits for no bulk work."""
    gate = measured(admission(max_work=1000), units_per_s=10)
    gate.add(100, "bulk", PATIENT_S)
    gate.add(1, "interactive", 0.5)
    with pytest.raises(Overloaded):
        gate.add(1, "bulk", 9.0)


def test_work_past_its_deadline_is_not_called_overload() -> None:
    """With nothing ahead nobody is overloaded: the engine drops what is overdue, with the right error."""
    measured(admission(), units_per_s=10).add(1, "interactive", -1.0)


def test_an_unmeasured_rate_refuses_nobody() -> None:
    """Until a queue has been seen for a second, no deadline is judged and Retry-After is the least."""
    gate = admission(max_work=1000)
    gate.measure(1, 0.9 * RATE_SAMPLE_S)
    gate.add(1000, "interactive", PATIENT_S)
    with pytest.raises(Overloaded) as refusal:
        gate.enter("interactive")
    assert refusal.value.retry_after == 1.0


def test_retry_after_is_the_time_to_drain() -> None:
    """Units ahead divided by the measured rate, within 1 s and a minute."""
    gate = measured(admission(max_work=100), units_per_s=20)
    gate.add(100, "interactive", PATIENT_S)
    with pytest.raises(Overloaded) as refusal:
        gate.enter("interactive")
    assert refusal.value.retry_after == pytest.approx(5.0)
    for rate, wanted in ((1, MAX_RETRY_AFTER_S), (10_000, 1.0)):
        extreme = measured(admission(max_work=100), units_per_s=rate)
        extreme.add(100, "interactive", PATIENT_S)
        with pytest.raises(Overloaded) as refusal:
            extreme.enter("interactive")
        assert refusal.value.retry_after == wanted


def test_the_rate_follows_the_machine() -> None:
    """Old measurements fade: after several windows at a new rate, the new rate is what counts."""
    gate = admission(max_work=1000)
    for rate in (1000, 50):
        for _ in range(int(8 * RATE_WINDOW_S)):
            gate.measure(rate, 1.0)
    gate.add(1000, "interactive", PATIENT_S)
    with pytest.raises(Overloaded) as refusal:
        gate.enter("interactive")
    assert refusal.value.retry_after == pytest.approx(20.0, rel=0.01)


def test_a_refusal_tells_its_reason() -> None:
    """The label under which the refused request is counted."""
    full = admission(max_requests=0)
    late = measured(admission(), units_per_s=1)
    late.add(10, "interactive", PATIENT_S)
    long = measured(admission(max_wait_s=5.0), units_per_s=1)
    long.add(10, "interactive", PATIENT_S)
    refused: dict[str, Callable[[], None]] = {
        "requests": lambda: full.enter("interactive"),
        "work": lambda: late.add(91, "interactive", PATIENT_S),
        "wait": lambda: long.enter("interactive"),
        "deadline": lambda: late.add(1, "interactive", 1.0),
    }
    for reason, refuse in refused.items():
        with pytest.raises(Overloaded) as refusal:
            refuse()
        assert refusal.value.reason == reason


def test_a_refusal_counts_nothing_in() -> None:
    """Who is refused holds no place afterwards."""
    gate = admission(max_requests=1, max_work=10)
    gate.enter("interactive")
    gate.add(10, "interactive", PATIENT_S)
    for _ in range(5):
        with pytest.raises(Overloaded):
            gate.enter("interactive")
        with pytest.raises(Overloaded):
            gate.add(5, "interactive", PATIENT_S)
    gate.leave("interactive")
    gate.subtract(10, "interactive")
    assert gate.waiting_work() == 0
    gate.enter("interactive")


EVENTS = st.lists(st.tuples(st.booleans(), st.sampled_from(PRIORITIES), st.integers(1, 60)), max_size=60)


@settings(max_examples=80, deadline=None)
@given(events=EVENTS, share=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_counts_agree_with_a_naive_model(events: list[tuple[bool, Priority, int]], share: float) -> None:
    """Any history of arrivals and departures: work is let in exactly when the rules say."""
    gate = admission(max_work=100, bulk_share=share)
    held: list[tuple[int, Priority]] = []
    for arrives, priority, work in events:
        if not arrives and held:
            gate.subtract(*held.pop())
            continue
        ahead = sum(units for units, owner in held if priority == "bulk" or owner == "interactive")
        fits = not ahead or ahead + work <= (share if priority == "bulk" else 1.0) * 100
        if fits:
            gate.add(work, priority, PATIENT_S)
            held.append((work, priority))
        else:
            with pytest.raises(Overloaded):
                gate.add(work, priority, PATIENT_S)
        assert gate.waiting_work() == sum(units for units, _ in held)


class Lingering(float):
    """A limit that takes so long to read that every other thread comes by meanwhile."""

    def __rmul__(self, other: float) -> float:
        time.sleep(0.0005)
        return other * float(self)


def test_threads_lose_no_count() -> None:
    """Many threads at the door: never more than the limit inside, and nothing is left when all are gone."""
    gate = admission(max_work=50)
    gate.limits = Limits(Lingering(1), 50)  # type: ignore[arg-type]
    inside: set[int] = set()
    most: list[int] = []
    start = threading.Barrier(8)

    def come_and_go(number: int) -> None:
        start.wait()
        for _ in range(20):
            try:
                gate.enter("interactive")
            except Overloaded:
                continue
            inside.add(number)
            most.append(len(inside))
            time.sleep(0.0005)
            gate.add(7, "interactive", PATIENT_S)
            gate.subtract(7, "interactive")
            inside.discard(number)
            gate.leave("interactive")

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert gate.waiting_work() == 0
    gate.enter("interactive")
    with pytest.raises(Overloaded):
        gate.enter("interactive")
