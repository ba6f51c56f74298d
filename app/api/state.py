"""What the routes share: the settings, and the engine once it is there.

Knows: whether the worker is loading, ready or leaving. Does not know: who builds the engine, HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from app.api.prepare import Bounds
from app.cache import Cache
from app.engine import Engine
from app.errors import Draining, NotReady
from app.jobs.desk import Desk
from app.pools import Pools
from app.records import Sink
from app.settings import Settings

LOADING_PATIENCE_S: Final = 5.0
"""How long a request waits for a worker that loads. Several workers that start at once would otherwise refuse faster
than nginx can leave them out, and a request that meets one after the other runs out of tries."""
LOOK_EVERY_S: Final = 0.02


@dataclass(frozen=True)
class Served:
    """A running engine and the facts about its model that answers and bounds are made of."""

    engine: Engine
    model_version: str
    tokenizer_version: str
    max_context: int  # candles
    vocabulary: int  # s1 tokens
    device: str
    dtype: str
    build: str = ""  # what else decides the numbers: the runner's build, configurations of model and tokenizer

    @cached_property
    def identity(self) -> bytes:
        """32 bytes that name this model: the same for all workers whose answers are the same."""
        named = (self.model_version, self.tokenizer_version, self.max_context, self.device, self.dtype, self.build)
        return hashlib.sha256(repr(named).encode()).digest()


@dataclass
class Worker:
    """The state of this process."""

    settings: Settings
    cache: Cache = field(default_factory=Cache)
    sinks: tuple[Sink, ...] = ()
    served: Served | None = None
    pools: Pools = field(default_factory=Pools)
    desk: Desk | None = None  # for jobs, where there is a store for them
    leaving: bool = field(default=False)
    waiting: int = field(default=0)
    looking: int = field(default=0)

    def require(self) -> Served:
        """What is served. Raises NotReady while it is loading."""
        if self.served is None:
            raise NotReady()
        return self.served

    async def loaded(self) -> Served:
        """What is served, soon: waits at most ``LOADING_PATIENCE_S``, as many as may be admitted. Raises NotReady."""
        patience = time.monotonic() + LOADING_PATIENCE_S
        if self.waiting < self.settings.max_concurrency:
            self.waiting += 1
            try:
                while self.served is None and time.monotonic() < patience:
                    await asyncio.sleep(LOOK_EVERY_S)
            finally:
                self.waiting -= 1
        return self.require()

    def check_ready(self) -> None:
        """Raise NotReady or Draining unless new work is welcome."""
        if self.leaving:
            raise Draining()
        health = self.require().engine.health()
        if health.draining:
            raise Draining()
        if not health.ready:
            raise NotReady()

    def stuck(self) -> str | None:
        """Why this process is beyond help, or None. Loading has its own deadline."""
        if self.served is None:
            return None
        health = self.served.engine.health()
        if not health.alive and not self.leaving:
            return "the engine thread has ended"
        if health.stuck_s > self.settings.watchdog:
            return f"the engine has work and has not stepped for {health.stuck_s:.1f} s"
        return None

    def bounds(self) -> Bounds:
        """What one request may ask for."""
        served, limits = self.require(), self.settings
        return Bounds(
            max_candles=limits.max_candles,
            max_horizon=min(limits.max_horizon, served.max_context),
            max_samples=limits.max_samples,
            max_items=limits.max_items,
            max_work=limits.max_work,
            max_timeout=limits.inference_timeout,
            max_context=served.max_context,
            vocabulary=served.vocabulary,
        )
