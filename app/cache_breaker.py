"""How long a server beside the way may be waited for: a little once, then not at all until it is swift again.

Waiting is paid from a purse: a swift answer fills it again, a slow one takes its time out of it. Whoever empties it, or
gets an error, opens the breaker; then nobody waits, and a probe in the background asks until an answer is swift.
Knows: seconds. Does not know: what is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

PURSE_S: Final = 0.05
"""What predictions may lose, in a row, to a server that is dead, silent or slow."""
SWIFT_S: Final = 0.01
FIRST_PROBE_S: Final = 1.0
LAST_PROBE_S: Final = 15.0

log = logging.getLogger(__name__)


class Breaker:
    """Stands before one server. ``probe`` asks it for the least there is."""

    def __init__(self, probe: Callable[[], Awaitable[object]], name: str) -> None:
        self.open = False
        self._probe = probe
        self._name = name
        self._purse_s = PURSE_S
        self._probing: asyncio.Task[None] | None = None

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """The reply, waited for as long as the purse allows; None when there is none."""
        if self.open:
            return None
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._purse_s):
                reply = await call()
        except Exception as error:  # whatever it is, no prediction fails for it
            self.trip(error)
            return None
        took = time.perf_counter() - began
        self._purse_s = PURSE_S if took < SWIFT_S else self._purse_s - took
        if self._purse_s <= 0:
            self.trip(TimeoutError("slow"))
        return reply

    def trip(self, error: Exception) -> None:
        """Wait for nothing until a probe is answered swiftly."""
        if not self.open:
            self.open = True
            log.warning("%s: %r; going on without it", self._name, error)
            self._probing = asyncio.get_running_loop().create_task(self._recover())

    async def close(self) -> None:
        """End the probing."""
        if self._probing:
            self._probing.cancel()

    async def _recover(self) -> None:
        pause = FIRST_PROBE_S
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PROBE_S)
            if await self._is_swift():
                break
        self.open, self._purse_s = False, PURSE_S
        log.info("%s: answers again", self._name)

    async def _is_swift(self) -> bool:
        """Two questions: the first may have to connect."""
        try:
            async with asyncio.timeout(2 * PURSE_S):
                await self._probe()
            async with asyncio.timeout(SWIFT_S):
                await self._probe()
        except Exception:  # as above
            return False
        return True
