"""Waiting for jobs to end, for any number of clients at the price of one question at a time.

Knows: who waits for which job. Does not know: HTTP, why a job ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from app.jobs.store import Store, StoreFailed

LOOK_S: Final = 0.25
MOST: Final = 1000
"""Clients that may wait here at once; others are answered at once."""


class Watch:
    """Asks ``store`` for all who wait here; not once ``leaving``."""

    def __init__(self, store: Store, leaving: Callable[[], bool]) -> None:
        self._store = store
        self._leaving = leaving
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._number = 0

    async def wait(self, id: str, seconds: float) -> None:
        """Return when the job has ended, this worker leaves, or ``seconds`` have passed."""
        if self._number >= MOST:
            return
        ended = asyncio.Event()
        self._waiting.setdefault(id, set()).add(ended)
        self._number += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await ended.wait()
        finally:
            self._number -= 1
            self._waiting[id].discard(ended)
            if not self._waiting[id]:
                del self._waiting[id]

    def tell(self, id: str) -> None:
        """This job has ended."""
        for ended in self._waiting.get(id, ()):
            ended.set()

    async def run(self) -> None:
        """Look for ends, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for id in list(self._waiting) if self._leaving() else await self._ended():
                self.tell(id)

    async def _ended(self) -> set[str]:
        with suppress(StoreFailed):
            return await self._store.ended(list(self._waiting)) if self._waiting else set()
        return set()
