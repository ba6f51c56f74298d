"""What the proofs of this folder share: requests whose right answers come from a local worker, and figures that are kept.

Knows: how to ask a local fleet of one, how to sum up a run, where figures go. Does not know: containers, what should happen.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fleet import Judge, ask_alone, bodies, percentiles
from benchmarks.users import Exchange, Request
from tests.fleet.live import Live, Traffic, load

RATE = 40.0
"""Requests a second of the open loop; three workers on two cores are about half busy with it."""
WINDOW_S = 10.0
TOLERANCE = 0.2
"""A share is fair when it is at most so much more or less than an equal one."""


@dataclass
class Known:
    """Requests with their right answers, each computed by a local worker; ``judge`` counts answers that are right, but not bit
    for bit."""

    requests: list[Request]
    judge: Judge


def ask_local(local: Live, lookback: int, horizon: int, different: int) -> Known:
    """Different requests of one shape, asked one by one."""
    asked = bodies(lookback, horizon, different)
    judge = Judge()
    alone = asyncio.run(ask_alone("127.0.0.1", local.port, asked))
    return Known([judge.request(body, answer) for body, answer in zip(asked, alone, strict=True)], judge)


@contextmanager
def steady(port: int, known: Known, rate: float = RATE) -> Iterator[Traffic]:
    """An open loop for as long as the block lasts: requests arrive whatever becomes of those before."""
    known.judge.inexact = 0
    with load(port, known.requests, users=4, pause=(0, 0), rate=rate) as traffic:
        yield traffic


def summary(traffic: Traffic, known: Known) -> dict[str, Any]:
    """A run in a few figures; latency in seconds, of the right answers."""
    good = [exchange for exchange in traffic.exchanges if not exchange.failure]
    return {
        "requests": len(traffic.exchanges), "failed": len(traffic.failures),
        "failures": dict(Counter(exchange.failure for exchange in traffic.failures)),
        "not_bit_for_bit": known.judge.inexact, "latency_s": percentiles(good),
    }  # fmt: skip


def shares(exchanges: Sequence[Exchange]) -> dict[str, float]:
    """Part of the right answers by worker, relative to a fair share."""
    counts = Counter(exchange.served_by for exchange in exchanges if not exchange.failure)
    return {name: round(count * len(counts) / counts.total(), 3) for name, count in sorted(counts.items())}


def fair_after(traffic: Traffic, since: float, workers: int) -> tuple[float, dict[str, float]]:
    """Seconds after ``since`` (perf_counter) until each of ``workers`` had its fair share of ``WINDOW_S``; and those shares.

    Raises AssertionError when that never was.
    """
    start = since - traffic.began
    last = max(exchange.begun for exchange in traffic.exchanges)
    began = start
    seen: dict[str, float] = {}
    while began + WINDOW_S <= last:
        seen = shares([exchange for exchange in traffic.exchanges if began <= exchange.begun < began + WINDOW_S])
        if len(seen) == workers and all(abs(share - 1) <= TOLERANCE for share in seen.values()):
            return began - start, seen
        began += 1
    raise AssertionError(f"never fair among {workers}; at last {seen}")


def outage(traffic: Traffic) -> float:
    """Seconds from the first failed exchange to the first right one after the last failed; 0.0 without failures."""
    if not traffic.failures:
        return 0.0
    first, last = (pick(each.begun for each in traffic.failures) for pick in (min, max))
    after = [each.begun for each in traffic.exchanges if not each.failure and each.begun > last]
    return min(after, default=float("inf")) - first


@dataclass
class Figures:
    """Figures of one test: printed, and kept as JSON for whoever writes the lab book."""

    test: str
    folder: Path
    kept: dict[str, Any]

    def keep(self, **named: Any) -> None:
        self.kept |= named
        for name, value in named.items():
            print(f"{name}: {value}")
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {"test": self.test, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **self.kept}
        (self.folder / f"{self.test}.json").write_text(json.dumps(document, indent=1) + "\n")
