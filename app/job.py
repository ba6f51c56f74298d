"""One piece of work on its way through the runner: what it has so far, and how each stage is done.

Knows the order of arrays and the stopwatch; not when a stage comes (the scheduler) nor who waits (the engine).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from app.scheduler import Path, Series
from app.work import Embed, Forecast, Int16, Int32, Outcome, Row, Runner, Sampling

Clock = Callable[[], float]


@dataclass(eq=False, slots=True)
class Job:
    """The notes on one series. `mark` is when the stage now in progress began, by the engine's clock."""

    work: Forecast | Embed
    series: Series
    mark: float
    future: Future[Outcome] = field(default_factory=Future)
    tokens: Int32 | None = None
    """Of the whole history, int32[L, 2]; the window is its end."""
    rows: dict[Path, Row] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None

    def prefill(self, runner: Runner, clock: Clock) -> None:
        """Encode the history and put all of its window but the last token into the cache."""
        series = self.series
        self._lap("queue", clock)
        self.tokens = runner.encode(self.work.history)
        self._lap("encode", clock)
        cached = series.window - 1
        window = self.tokens[-series.window :]
        runner.prefill(window[:cached], self._window_stamps()[:cached], series.shared + series.partial)
        self._lap("prefill", clock)

    def open(self, path: Path, runner: Runner) -> None:
        """Make a path's row, and its own copy of the page that the history fills in part."""
        series, work = self.series, self.work
        if not isinstance(work, Forecast) or self.tokens is None:
            raise RuntimeError("a path was opened for a series that has no tokens")
        if series.partial:
            runner.copy_page(series.partial[0], path.pages[len(series.shared)])
        tokens = np.zeros((series.window + series.horizon, 2), np.int32)
        tokens[: series.window] = self.tokens[-series.window :]
        self.rows[path] = Row(
            tokens=tokens,
            stamps=np.concatenate((self._window_stamps(), work.future_stamps)),
            draws=runner.draws(work.seed, path.index, series.horizon),
            pages=np.array(path.pages, np.int32),
            first=series.window - 1,
            sampling=Sampling(work.temperature, work.top_k, work.top_p),
        )

    def detokenise(self, runner: Runner, clock: Clock) -> None:
        """Turn all paths, by now complete, into candles."""
        self._lap("decode", clock)
        if self.tokens is None:
            raise RuntimeError("a series without tokens cannot be detokenised")
        rows = [self.rows[path] for path in sorted(self.rows, key=lambda path: path.index)]
        paths = runner.detokenise(self.tokens, np.stack([row.tokens[self.series.window :] for row in rows]))
        self._lap("detokenise", clock)
        rolled = self.series.window - 1 + self.series.horizon > runner.max_context
        self.outcome = Outcome(paths, None, self.stages, rolled)

    def embed(self, runner: Runner, clock: Clock) -> None:
        """Encode and embed; the model's share is booked as prefill."""
        self._lap("queue", clock)
        vector = runner.embed(self.work.history, self.work.history_stamps)
        self._lap("prefill", clock)
        self.outcome = Outcome(None, vector, self.stages, rolled=False)

    def _window_stamps(self) -> Int16:
        return self.work.history_stamps[len(self.work.history_stamps) - self.series.window :]

    def _lap(self, stage: str, clock: Clock) -> None:
        """Book the time since the last mark on a stage."""
        now = clock()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self.mark
        self.mark = now
