"""The page pool: who holds which pages of the key-value cache.

Knows page numbers and reference counts only; the memory behind a page belongs to the model's cache.
A page holds ``PAGE_SIZE`` consecutive positions of one sequence in every layer. Sample paths of one series
share the full pages of their common history, so a page counts its holders.
"""

from __future__ import annotations

from collections.abc import Iterable

PAGE_SIZE = 32
"""Positions in a page. Two vectors of 16 lanes: one cache line of keys in bf16, two in float32."""


def pages_for(positions: int) -> int:
    """Number of pages that hold `positions` consecutive positions."""
    return -(-positions // PAGE_SIZE)


class PagePool:
    """A fixed number of pages with reference counts.

    The most recently freed page is handed out first, so that little more memory is ever touched than the
    work in flight needs.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages, each held once. Raises RuntimeError when the pool is too small: a bug, since
        the scheduler admits no more than the pool was sized for."""
        if count > len(self._free):
            raise RuntimeError(f"page pool exhausted: {count} wanted, {len(self._free)} of {self.num_pages} free")
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Hold pages once more, for another path that reads them."""
        for page in pages:
            if not self._holders[page]:
                raise RuntimeError(f"page {page} is free and cannot be shared")
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Let go of pages once; a page without holders is free again."""
        for page in pages:
            if not self._holders[page]:
                raise RuntimeError(f"page {page} released twice")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)

    def audit(self) -> None:
        """Check that free + held = total and no page is both. Raises RuntimeError naming what is wrong."""
        held = sum(1 for holders in self._holders if holders)
        if held + len(self._free) != self.num_pages:
            raise RuntimeError(f"page pool: {len(self._free)} free + {held} held ≠ {self.num_pages}")
        if len(set(self._free)) != len(self._free) or any(self._holders[page] for page in self._free):
            raise RuntimeError("page pool: a page is free twice, or free and held")
