"""A full queue of jobs and an interactive request: what it costs the request, counted in steps of the engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.engine import Engine
from app.scheduler import Priority
from app.work import Embed, Float32, Forecast, Int32
from tests.caching import SINGLE
from tests.fakes import FakeRunner
from tests.jobs.asking import settings, sized, submitted
from tests.serving import engine_of, request, server, until

SLOTS, HORIZON, LOOKBACK = 4, 12, 17
JOBS_WAITING, STEP_S = 24, 0.002


class Counter(FakeRunner):
    """Counts the engine's steps from the submission of the interactive request (the only one with this horizon) to the step
    that makes its candles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(num_slots=SLOTS)
        self.steps = self.at_submission = self.at_end = 0
        step, submit = Engine.step, Engine._submit

        def count(engine: Engine) -> None:
            self.steps += 1
            step(engine)

        def note(engine: Engine, work: Forecast | Embed, priority: Priority, deadline: float) -> Any:
            if isinstance(work, Forecast) and len(work.future_stamps) == HORIZON:
                self.at_submission = self.steps
            return submit(engine, work, priority, deadline)

        monkeypatch.setattr(Engine, "step", count)
        monkeypatch.setattr(Engine, "_submit", note)

    def detokenise(self, history: Int32, generated: Int32) -> Float32:
        if generated.shape[1] == HORIZON:
            self.at_end = self.steps
        return super().detokenise(history, generated)

    def ask(self, url: str) -> int:
        """Steps that one interactive request took."""
        asked = request(LOOKBACK, overrides={"pred_len": HORIZON, "seed": 1})
        assert httpx.post(url + SINGLE, json=asked, headers={"cache-control": "no-cache"}, timeout=30).status_code == 200
        return self.at_end - self.at_submission


def added_steps(folder: Path, monkeypatch: pytest.MonkeyPatch, priority: str) -> int:
    """The most steps, of five requests, that a queue full of jobs adds to one."""
    model = Counter(monkeypatch)
    with server(settings(folder), model) as running, httpx.Client(base_url=running.url, timeout=30) as http:
        alone = min(model.ask(running.url) for _ in range(3))
        assert alone == HORIZON + 2  # prefill, a step for each candle, detokenise
        model.on_step = lambda _: time.sleep(STEP_S)  # long enough to come in the middle of one
        for seed in range(JOBS_WAITING):
            submitted(http, sized(300, seed=seed, sample_count=3) | {"priority": priority})
        assert until(lambda: engine_of(running.app).stats().slots_busy == SLOTS)
        return max(model.ask(running.url) for _ in range(5)) - alone


def test_a_full_queue_of_jobs_delays_a_request_by_at_most_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulk work makes room at once: a request needs its own steps, the one under way when it came, and no more."""
    assert added_steps(tmp_path, monkeypatch, "bulk") <= 1


@pytest.mark.slow
def test_interactive_jobs_would_delay_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: jobs of the same class do not make room, and the counting sees that."""
    assert added_steps(tmp_path, monkeypatch, "interactive") > 20
