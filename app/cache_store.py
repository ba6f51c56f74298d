"""Outcomes that were computed already: the key of a piece of work, and a store bounded by age and bytes.

The key names all that decides an outcome, so nothing in the store is ever wrong: the time to live is for memory. What
changes only how an outcome is shown (quantiles, paths, repair, scale, names, times of the answer) is not in the key.
Knows: arrays and bytes. Does not know: who asks, HTTP, other workers. Belongs to one thread.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from app.work import Embed, Forecast, Outcome

KEY_BYTES: Final = 32
ENTRY_BYTES: Final = 800
"""What an entry weighs besides its numbers: key, objects, its place in the table."""
FORECAST: Final = struct.Struct("<cIIdIdIQ")


def key_of(identity: bytes, work: Forecast | Embed) -> bytes:
    """32 bytes that name the outcome of ``work`` by the model that ``identity`` (of fixed length) names.

    Work that differs in anything the model reads has another key. ``top_p`` is left out where ``top_k`` overrules it.
    """
    if isinstance(work, Forecast):
        head = FORECAST.pack(
            b"F", len(work.history), len(work.future_stamps), work.temperature, work.top_k,
            0.0 if work.top_k else work.top_p, work.sample_count, work.seed,
        )  # fmt: skip
        future = work.future_stamps.tobytes()
    else:
        head, future = b"E" + len(work.history).to_bytes(4, "little"), b""
    parts = (identity, head, work.history.tobytes(), work.history_stamps.tobytes(), future)
    return hashlib.blake2b(b"".join(parts), digest_size=KEY_BYTES).digest()


class Store:
    """Outcomes by key, for ``ttl`` seconds each, ``max_bytes`` in all; the least recently used goes first."""

    def __init__(self, ttl: float, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.ttl = ttl
        self.max_bytes = max_bytes
        self.bytes = 0
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[Outcome, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        """True if ``get`` would find it; does not count as use."""
        entry = self._entries.get(key)
        return entry is not None and entry[1] > self._clock()

    def get(self, key: bytes) -> Outcome | None:
        """The outcome, unless it is too old or not there."""
        if key not in self:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: bytes, outcome: Outcome, ttl: float | None = None) -> None:
        """Keep ``outcome`` for ``ttl`` seconds (default: the store's); its arrays must not change from now on."""
        self._drop(key)
        size = weight(outcome)
        if size > self.max_bytes:
            return
        for array in (outcome.paths, outcome.embedding):
            if array is not None:
                array.setflags(write=False)
        now = self._clock()
        self._entries[key] = outcome, now + (self.ttl if ttl is None else ttl)
        self.bytes += size
        while self.bytes > self.max_bytes or self._oldest_expired(now):
            self._drop(next(iter(self._entries)))

    def _oldest_expired(self, now: float) -> bool:
        return next(iter(self._entries.values()))[1] <= now

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry:
            self.bytes -= weight(entry[0])


def weight(outcome: Outcome) -> int:
    """Bytes that an entry with this outcome takes, about."""
    return ENTRY_BYTES + sum(array.nbytes for array in (outcome.paths, outcome.embedding) if array is not None)
