"""Scaling as README says it: edit ``replicas``, ``docker compose up -d``. Under a steady load, nobody notices."""

from __future__ import annotations

import time

import pytest

from tests.stack.proof import Figures, Known, fair_after, steady, summary
from tests.stack.stack import Stack, wait_until

RATE = 60.0
LOOK_S = 20.0


def scraped(stack: Stack) -> int:
    """The workers that Prometheus reaches."""
    found = stack.query('sum(up{job="worker"})')
    return int(float(found[0]["value"][1])) if found else 0


@pytest.mark.timeout(400)
def test_replicas_5_8_3_under_load_lose_nothing(stack: Stack, known: Known, figures: Figures) -> None:
    """0 failed; new workers get their share within 60 s; those that go lose nothing; Prometheus follows."""
    stack.up(5)
    with steady(stack.port, known, RATE) as traffic:
        time.sleep(10)
        edited: dict[int, float] = {}
        took: dict[int, float] = {}
        for workers in (8, 3):
            edited[workers] = time.perf_counter()
            stack.up(workers)
            took[workers] = round(time.perf_counter() - edited[workers], 1)
            followed = wait_until(lambda expected=workers: scraped(stack) == expected, 60)  # type: ignore[misc]
            figures.keep(**{f"prometheus_follows_to_{workers}_s": round(followed, 1)})
            time.sleep(LOOK_S if workers == 8 else 10)
    after, shares = fair_after(traffic, edited[8], 8)
    figures.keep(seconds_of_up=took, fair_after_s=round(after, 1), shares_of_8=shares, **summary(traffic, known))
    assert traffic.failures == [] and len(traffic.exchanges) > 60 * RATE * 0.9
    assert after <= 60
