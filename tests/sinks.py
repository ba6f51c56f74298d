"""What the tests of those who keep predictions ask of a worker, and how they read the counts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx

from tests.caching import SINGLE, value
from tests.serving import PATIENCE_S, Json, request, until


class Counts:
    """What became of the records that were offered to one sink since this was made."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        settled = {name: value("kronos_sink_records_total", sink=self._sink, outcome=name) for name in OUTCOMES}
        return settled | {"offered": value("kronos_sink_offered_total", sink=self._sink)}

    def __getitem__(self, name: str) -> int:
        """offered, written, failed, dropped, or held."""
        if name == "held":
            return int(value("kronos_sink_held_records", sink=self._sink))
        return int(self._now()[name] - self._before[name])

    def balance(self) -> int:
        """0 when every record is accounted for."""
        return self["offered"] - self["held"] - sum(self[name] for name in OUTCOMES)

    def all_settled(self, patience_s: float = PATIENCE_S) -> bool:
        """Wait until nothing is held."""
        return until(lambda: self["held"] == 0 and self["offered"] == sum(self[name] for name in OUTCOMES), patience_s)

    def __repr__(self) -> str:
        return ", ".join(f"{name} {self[name]}" for name in ("offered", *OUTCOMES, "held"))


OUTCOMES = ("written", "failed", "dropped")


def is_up(sink: str) -> bool:
    return value("kronos_sink_up", sink=sink) == 1


def ask(url: str, number: int, name: str = "series", **fields: Any) -> Json:
    """The answer of one prediction whose series is named by its number, computed by itself; it succeeds."""
    asked = request(10, series_id=f"{name}-{number}", overrides={"pred_len": 4, "seed": number}, **fields)
    answer = httpx.post(url + SINGLE, json=asked, timeout=20)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


class Users:
    """Predictions without a pause from a few threads, until the block ends; every answer and its seconds are kept."""

    def __init__(self, url: str, name: str = "series", threads: int = 2, pause_s: float = 0.01) -> None:
        self.answers: dict[str, Json] = {}
        self.seconds: list[float] = []
        self.errors: list[BaseException] = []
        self._url, self._name, self._threads, self._pause_s = url, name, threads, pause_s
        self._ended = threading.Event()

    def __enter__(self) -> Users:
        self._pool = ThreadPoolExecutor(self._threads)
        self._running = [self._pool.submit(self._use, number) for number in range(self._threads)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pool.shutdown()
        for each in self._running:
            with suppress(Exception):
                if error := each.exception():
                    self.errors.append(error)

    def _use(self, number: int) -> None:
        while not self._ended.wait(self._pause_s):
            began = time.perf_counter()
            answer = ask(self._url, number, self._name)
            self.seconds.append(time.perf_counter() - began)
            self.answers[answer["series_id"]] = answer
            number += self._threads
