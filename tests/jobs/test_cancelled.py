"""Who asks a store for ever ends when it is cancelled, whenever that is: a worker that leaves waits for it."""

from __future__ import annotations

import asyncio
import random

from app.jobs.store import Limits
from app.pools import Pools, installed
from tests.jobs.stores import Rig


def test_a_loop_that_asks_ends_when_it_is_cancelled(rig: Rig) -> None:
    """Three hundred of them, each cancelled after its own number of turns of the event loop."""
    own = random.Random(1)

    async def whole() -> None:
        store = rig.open(Limits())

        async def ask_for_ever() -> None:
            while True:
                await store.counts()

        await store.counts()
        for _ in range(300):
            task = asyncio.create_task(ask_for_ever())
            for _ in range(own.randrange(60)):
                await asyncio.sleep(0)
            task.cancel()
            ended, _ = await asyncio.wait([task], timeout=2)
            assert ended
        await store.close()

    with installed(Pools()):
        asyncio.run(whole())
