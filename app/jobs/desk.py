"""All that a worker has for jobs, and its life: the store, who runs them, who waits for them, who is told.

Knows: what belongs together, in which order it starts and ends. Does not know: how any of it works.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from app.jobs.runner import Runner, Work
from app.jobs.store import Limits, Store
from app.jobs.watch import Watch
from app.jobs.webhooks import make_webhooks
from app.settings import Settings

log = logging.getLogger(__name__)

SQLITE: Final = "sqlite:"
PATIENCE_S: Final = 3.0
"""What jobs that are given back may take of a worker's leaving."""


class Desk:
    """Open between ``open`` and ``close``."""

    def __init__(
        self, store: Store, settings: Settings, work: Work, idle: Callable[[], int], leaving: Callable[[], bool]
    ) -> None:
        self.store = store
        self.watch = Watch(store, leaving)
        self.webhooks = make_webhooks(settings, store)
        self.runner = Runner(store, work, idle, settings.slots, settings.jobs_attempts, leaving, self._ended)
        self.num_submitting = 0
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Begin to run jobs."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(each.run()) for each in (self.runner, self.watch, self.webhooks)]
        for task in self._tasks:
            task.add_done_callback(_complain)

    async def close(self) -> None:
        """Give jobs back, and let go of the store."""
        await self.runner.leave(PATIENCE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.webhooks.close()
        await self.store.close()

    def _ended(self, id: str) -> None:
        self.watch.tell(id)
        self.webhooks.wake()


def _complain(task: asyncio.Task[None]) -> None:
    """What should go on until it is cancelled has ended: a bug, which must not be silent."""
    if not task.cancelled() and (error := task.exception()):
        log.critical("this worker does no more for jobs", exc_info=error)


def make_store(settings: Settings) -> Store | None:
    """Where the settings say that jobs are; None: nowhere."""
    url = settings.jobs_url
    if not url:
        return None
    limits = Limits(settings.jobs_visibility, settings.jobs_max_waiting, settings.jobs_max_bytes)
    if url.startswith(SQLITE):
        from app.jobs.sqlite_store import SqliteStore  # each is loaded only where it is used

        return SqliteStore(url.removeprefix(SQLITE), limits)
    from app.jobs.redis_store import RedisStore

    return RedisStore(url, limits)
