"""The places of a pool and the line before them: nothing is lost, nothing is counted twice, no bound is passed."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.line import OUTCOMES, Closed, Full, Line


class Named:
    """A task that notes what it was told."""

    def __init__(self, name: str = "task") -> None:
        self.name = name
        self.asked = 0.0
        self.began: float | None = None

    def begin(self) -> None:
        raise AssertionError("the line leaves this to its owner")

    def refuse(self, error: Exception) -> None:
        raise AssertionError("the line leaves this to its owner")


class Histories(RuleBasedStateMachine):
    """Any history of arrivals, ends, withdrawals and a closing, against a model of two lists."""

    @initialize(places=st.integers(1, 3), longest=st.integers(0, 4))
    def build(self, places: int, longest: int) -> None:
        self.line = Line(places, longest)
        self.active: list[Named] = []
        self.waiting: list[Named] = []
        self.ended = dict.fromkeys(OUTCOMES, 0)
        self.submitted = self.refused = 0
        self.closed = False

    @rule()
    def arrive(self) -> None:
        task = Named()
        if self.closed:
            with pytest.raises(Closed):
                self.line.enter(task)
        elif len(self.active) == self.line.places and len(self.waiting) == self.line.longest:
            with pytest.raises(Full):
                self.line.enter(task)
            self.refused += 1
        else:
            free = len(self.active) < self.line.places
            assert self.line.enter(task) == free
            (self.active if free else self.waiting).append(task)
            self.submitted += 1

    @precondition(lambda self: self.active)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def end(self, data: st.DataObject, outcome: str) -> None:
        task = data.draw(st.sampled_from(self.active))
        self.active.remove(task)
        after = self.line.leave(task, outcome)  # type: ignore[arg-type]  # one of them
        assert after is (self.waiting[0] if self.waiting else None), "the place goes to who came first"
        if self.waiting:
            self.active.append(self.waiting.pop(0))
        self.ended[outcome] += 1  # type: ignore[index]  # as above
        assert self.line.leave(task, "done") is None, "nobody gives a place back twice"

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(task)
        assert self.line.withdraw(task, "expired")
        assert not self.line.withdraw(task, "expired"), "nobody is taken out twice"
        self.ended["expired"] += 1

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def withdraw_too_late(self, data: st.DataObject) -> None:
        assert not self.line.withdraw(data.draw(st.sampled_from(self.active)), "cancelled")

    @rule()
    def close(self) -> None:
        self.line.close()
        self.closed = True

    @precondition(lambda self: self.closed)
    @rule()
    def clear(self) -> None:
        assert self.line.clear() == self.waiting
        self.ended["cancelled"] += len(self.waiting)
        self.waiting.clear()

    @invariant()
    def the_counts_add_up_and_the_bounds_hold(self) -> None:
        counts = self.line.counts()
        expected = {"active": len(self.active), "queued": len(self.waiting), "submitted": self.submitted, "refused": self.refused}
        assert counts == expected | self.ended
        assert counts["submitted"] == counts["active"] + counts["queued"] + sum(counts[outcome] for outcome in OUTCOMES)
        assert counts["active"] <= self.line.places and counts["queued"] <= self.line.longest
        assert not counts["queued"] or counts["active"] == self.line.places, "nobody waits while a place is free"
        assert self.line.empty == (not self.active and not self.waiting)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_ages_count_from_the_place_and_name_the_oldest_first() -> None:
    """Who waited long and began just now is young."""
    now = [10.0]
    line = Line(2, 1, clock=lambda: now[0])
    first, second, third = Named("first"), Named("second"), Named("third")
    line.enter(first)
    now[0] = 12.0
    line.enter(second)
    line.enter(third)
    now[0] = 15.0
    assert line.ages() == [("first", 5.0), ("second", 3.0)]
    line.leave(first, "done")
    now[0] = 16.0
    assert line.ages() == [("second", 4.0), ("third", 1.0)]


@pytest.mark.parametrize(("places", "longest"), [(0, 1), (1, -1)])
def test_a_line_without_places_is_refused(places: int, longest: int) -> None:
    """Sizes that could never work are an error where they are given."""
    with pytest.raises(ValueError, match="at least 1 and 0"):
        Line(places, longest)
