"""Large bodies and answers are read and written in a thread, so that they do not hold the event loop; small ones are not.

A hand-over costs about a tenth of a millisecond when the worker is idle and several times that when it is busy, so what takes
less than about 5 ms is done where it is: NOTES.md has the figures.
Knows: what is large, and in which pool it goes. Does not know: what is done there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from app.jobs.store import Endpoint
from app.pool import Pool
from app.pools import current

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BODY: Final = 2**19
"""Bytes of a body: 2,048 candles have about 300 kB, so a larger one has several series."""
MANY_SERIES: Final = 16
"""Series of a request, each a third of a millisecond to prepare, or more."""
LARGE_ANSWER: Final = 20_000
"""Numbers in an answer, at a quarter of a microsecond each."""


def thread_for(endpoint: Endpoint) -> Pool | None:
    """The pool for this endpoint's large work, if it has a free thread.

    A prediction neither waits for a pool nor fails because of one: what holds its threads may be stuck.
    """
    pool = current()["embedding" if endpoint == "embeddings" else "cpu"]
    return pool if pool.line.num_active < pool.line.places else None


async def aside(endpoint: Endpoint, large: bool, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``fn`` returns or raises: from a thread when it is large and a thread is free, else here and now."""
    if large and (pool := thread_for(endpoint)):
        return await pool.run(fn, *args, **kwargs)  # type: ignore[no-any-return]  # what fn returns
    return fn(*args, **kwargs)
