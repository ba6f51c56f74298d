"""A model small enough to know by heart, with the runner's interface: what it answers can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from app.work import Float32, Float64, Int16, Int32, Row


class FakeRunner:
    """Echoes: token s1 is the history's first column rounded; each step adds 1 + path-dependent noise to s1 and
    puts the minute of the stamp it saw into s2. Detokenising returns s1 in the prices and s2 in the volumes."""

    device = "cpu"

    def __init__(
        self, num_slots: int = 4, max_context: int = 512, on_step: Callable[[int], None] | None = None,
        on_errand: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.num_slots = num_slots
        self.max_context = max_context
        self.on_step = on_step
        self.on_errand = on_errand
        self.batches: list[int] = []
        self.cached: dict[int, int] = {}
        self.errands: list[str] = []

    def encode(self, history: Float32) -> Int32:
        return np.stack((np.rint(history[:, 0]), np.zeros(len(history))), 1).astype(np.int32)

    def prefill(self, tokens: Int32, stamps: Int16, pages: Sequence[int]) -> None:
        self._errand("prefill")

    def copy_page(self, source: int, target: int) -> None:
        self._errand("copy")

    def decode(self, rows: Sequence[Row], positions: Sequence[int]) -> None:
        self.batches.append(len(rows))
        if self.on_step:
            self.on_step(len(rows))
        for row, position in zip(rows, positions, strict=True):
            step = position - row.first
            noise = int(row.draws[step, 0] * 10)
            row.tokens[position + 1] = row.tokens[position, 0] + 1 + noise, row.stamps[position, 0]

    def roll(self, row: Row, position: int) -> None:
        self._errand("roll")
        self.decode([row], [position])

    def detokenise(self, history: Int32, generated: Int32) -> Float32:
        self._errand("detokenise")
        candles = np.repeat(generated[..., :1], 6, axis=-1)
        candles[..., 4] = generated[..., 1]
        return candles.astype(np.float32)

    def embed(self, history: Float32, stamps: Int16) -> Float32:
        self._errand("embed")
        vector: Float32 = history.mean(0)
        return vector

    def draws(self, seed: int, path: int, steps: int) -> Float64:
        return np.random.Generator(np.random.Philox(key=[seed, path])).random((steps, 2))

    def _errand(self, name: str) -> None:
        self.errands.append(name)
        if self.on_errand:
            self.on_errand(name)
