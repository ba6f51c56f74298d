"""The work: what the engine is asked, what it answers, and what it asks of a model runner. Shapes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.model.config import NUM_FEATURES, STAMP_TABLES

STAMP_ROWS = np.array([rows for _, rows in STAMP_TABLES], np.int16)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class Forecast:
    """`sample_count` paths of H candles after a history of L.

    history float32[L, 6] normalised and clipped; history_stamps int16[L, 5]; future_stamps int16[H, 5].
    """

    history: Float32
    history_stamps: Int16
    future_stamps: Int16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    sample_count: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for whatever would lead a runner outside its tables: the last line, behind the API."""
        _check_series(self.history, self.history_stamps)
        _check_stamps(self.future_stamps, len(self.future_stamps))
        if not len(self.future_stamps) or self.sample_count < 1:
            raise ValueError("a forecast has at least one candle and one path")
        if not (0 <= self.seed < 2**64 and self.temperature > 0):
            raise ValueError(f"seed {self.seed} or temperature {self.temperature} is out of range")


@dataclass(frozen=True, eq=False, slots=True)
class Embed:
    """One vector for a history of L: history float32[L, 6] normalised and clipped, history_stamps int16[L, 5]."""

    history: Float32
    history_stamps: Int16

    def __post_init__(self) -> None:
        """Raises ValueError, as `Forecast` does."""
        _check_series(self.history, self.history_stamps)


def _check_series(history: Float32, stamps: Int16) -> None:
    if history.dtype != np.float32 or history.ndim != 2 or history.shape[1] != NUM_FEATURES or not len(history):
        raise ValueError(f"a history is float32[L, {NUM_FEATURES}], not {history.dtype}{list(history.shape)}")
    _check_stamps(stamps, len(history))


def _check_stamps(stamps: Int16, count: int) -> None:
    if stamps.dtype != np.int16 or stamps.shape != (count, len(STAMP_ROWS)):
        raise ValueError(f"stamps are int16[{count}, {len(STAMP_ROWS)}], not {stamps.dtype}{list(stamps.shape)}")
    if (stamps < 0).any() or (stamps >= STAMP_ROWS).any():
        raise ValueError("a stamp has a field that no time table has a row for")


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """What became of the work. `paths` float32[sample_count, H, 6] in normalised space, or `embedding`
    float32[d]; seconds by stage (their sum is the time from submission); whether the window rolled."""

    paths: Float32 | None
    embedding: Float32 | None
    stages: dict[str, float]
    rolled: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn from the logits (goldens: temperature, then top_k, else top_p)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9


@dataclass(eq=False, slots=True, weakref_slot=True)
class Row:
    """One sample path as the model sees it: a window of history followed by what was generated so far.

    tokens  int32[window + horizon, 2]  s1 and s2; a step at position t reads row t and writes row t + 1
    stamps  int16[window + horizon, 5]  minute, hour, weekday, day, month of the same positions
    draws   float64[horizon, 2]         uniform numbers that draw s1 and s2, one row a step
    pages   int32[…]                    the cache pages of positions 0, PAGE_SIZE, 2 PAGE_SIZE, …
    first   the position whose step makes the first candle (window - 1)
    """

    tokens: Int32
    stamps: Int16
    draws: Float64
    pages: Int32
    first: int
    sampling: Sampling


class Runner(Protocol):
    """The model with its cache. One thread calls it."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda"."""

    @property
    def num_slots(self) -> int:
        """Rows that one `decode` may hold."""

    @property
    def max_context(self) -> int:
        """Positions the model sees at most."""

    def encode(self, history: Float32) -> Int32:
        """Normalised candles float32[L, 6] → tokens int32[L, 2]."""

    def prefill(self, tokens: Int32, stamps: Int16, pages: Sequence[int]) -> None:
        """Fill positions 0 … n-1 of the cache from tokens int32[n, 2] and stamps int16[n, 5]; n may be 0."""

    def copy_page(self, source: int, target: int) -> None:
        """Copy all layers of one cache page."""

    def decode(self, rows: Sequence[Row], positions: Sequence[int]) -> None:
        """One step of every row: feed the token at its position, write the drawn one behind it."""

    def roll(self, row: Row, position: int) -> None:
        """The same for one row whose position is past max_context: its window is recomputed from scratch."""

    def detokenise(self, history: Int32, generated: Int32) -> Float32:
        """Tokens of the history int32[n, 2] and of k paths int32[k, H, 2] → normalised candles float32[k, H, 6]."""

    def embed(self, history: Float32, stamps: Int16) -> Float32:
        """Normalised candles float32[L, 6] with stamps int16[L, 5] → mean of the last hidden states, float32[d]."""

    def draws(self, seed: int, path: int, steps: int) -> Float64:
        """The random stream of one path, float64[steps, 2]: depends on these arguments only."""
