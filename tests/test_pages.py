"""The page pool against a naive model that counts holders in a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.pages import PAGE_SIZE, PagePool, pages_for

NUM_PAGES = 8


@pytest.mark.parametrize(("positions", "pages"), [(0, 0), (1, 1), (PAGE_SIZE, 1), (PAGE_SIZE + 1, 2), (10 * PAGE_SIZE, 10)])
def test_pages_for_counts_a_page_that_is_begun(positions: int, pages: int) -> None:
    """A page that holds a single position is a whole page."""
    assert pages_for(positions) == pages


def test_pages_come_out_once() -> None:
    """Pages handed out are distinct and exist; the pool knows how many are left."""
    pool = PagePool(NUM_PAGES)
    pages = pool.allocate(3) + pool.allocate(NUM_PAGES - 3)
    assert sorted(pages) == list(range(NUM_PAGES))
    assert pool.num_free == 0


def test_a_freed_page_is_the_next_one_out() -> None:
    """Memory in use stays small: the page freed last is taken first."""
    pool = PagePool(NUM_PAGES)
    pages = pool.allocate(4)
    pool.release([pages[1]])
    assert pool.allocate(1) == [pages[1]]


def test_a_shared_page_is_free_when_its_last_holder_lets_go() -> None:
    """Every holder releases once, in any order."""
    pool = PagePool(NUM_PAGES)
    pages = pool.allocate(1)
    pool.share(pages)
    pool.release(pages)
    assert pool.num_free == NUM_PAGES - 1
    pool.release(pages)
    assert pool.num_free == NUM_PAGES


def test_an_exhausted_pool_says_so_and_loses_nothing() -> None:
    """Asking for more than there is raises, names the numbers, and leaves the pool as it was."""
    pool = PagePool(2)
    pool.allocate(1)
    with pytest.raises(RuntimeError, match="2 wanted, 1 of 2 free"):
        pool.allocate(2)
    assert pool.num_free == 1
    pool.audit()


def test_a_page_is_not_released_twice() -> None:
    """The second release of a page held once raises and names it."""
    pool = PagePool(NUM_PAGES)
    pages = pool.allocate(1)
    pool.release(pages)
    with pytest.raises(RuntimeError, match=f"page {pages[0]} released twice"):
        pool.release(pages)
    pool.audit()


def test_a_free_page_cannot_be_shared() -> None:
    """Holding a page that nobody holds raises and names it."""
    with pytest.raises(RuntimeError, match="page 5 is free"):
        PagePool(NUM_PAGES).share([5])


def test_the_audit_finds_a_lost_page() -> None:
    """A page that is neither free nor held is reported."""
    pool = PagePool(NUM_PAGES)
    pool._free.pop()
    with pytest.raises(RuntimeError, match="7 free \\+ 0 held ≠ 8"):
        pool.audit()


def test_the_audit_finds_a_page_that_is_free_and_held() -> None:
    """Sums that agree do not satisfy the audit when a page is on both sides."""
    pool = PagePool(NUM_PAGES)
    held = pool.allocate(1)
    pool._free[0] = held[0]
    with pytest.raises(RuntimeError, match="free twice, or free and held"):
        pool.audit()


class PoolMachine(RuleBasedStateMachine):
    """Any history of calls leaves the pool and the dictionary of holders in agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.holders: dict[int, int] = {}

    def free(self) -> set[int]:
        return set(range(NUM_PAGES)) - set(self.holders)

    @rule(count=st.integers(0, NUM_PAGES + 1))
    def allocate(self, count: int) -> None:
        if count > len(self.free()):
            with pytest.raises(RuntimeError, match="exhausted"):
                self.pool.allocate(count)
            return
        pages = self.pool.allocate(count)
        assert len(set(pages)) == count
        assert set(pages) <= self.free()
        self.holders.update(dict.fromkeys(pages, 1))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.holders)), unique=True))
        self.pool.share(pages)
        for page in pages:
            self.holders[page] += 1

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.holders)), unique=True))
        self.pool.release(pages)
        for page in pages:
            self.holders[page] -= 1
        self.holders = {page: count for page, count in self.holders.items() if count}

    @precondition(lambda self: self.free())
    @rule(data=st.data())
    def misuse_a_free_page(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.free())))
        for misuse in (self.pool.share, self.pool.release):
            with pytest.raises(RuntimeError, match=f"page {page}"):
                misuse([page])

    @invariant()
    def agree(self) -> None:
        self.pool.audit()
        assert self.pool.num_free == len(self.free())


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
