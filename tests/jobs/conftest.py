"""What the tests of jobs share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from app.jobs.store import Limits, Store
from app.pools import Pools, installed
from tests.jobs.stores import STORES, Rig

VISIBILITY_S = 30.0
Script = Callable[[Store, Store, Callable[[float], None]], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture(params=STORES)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """An empty database, of each kind in turn."""
    with STORES[request.param](tmp_path) as found:
        yield found


@pytest.fixture
def play(rig: Rig) -> Play:
    """Runs a script for two workers that share a database, and for their clock."""

    def run(script: Script, limits: Limits | None = None) -> None:
        async def whole() -> None:
            stores = [rig.open(limits or Limits(visibility=VISIBILITY_S)) for _ in range(2)]
            try:
                await script(stores[0], stores[1], rig.advance)
            finally:
                for store in stores:
                    await store.close()

        with installed(Pools({"db": 4})):  # so that two workers are really two
            asyncio.run(whole())

    return run
