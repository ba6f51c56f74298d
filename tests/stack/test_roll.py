"""``python -m fleet --runtime compose roll`` under ten thousand requests.

What it says, and that a bad image or bad weights halt it unnoticed, is in test_operate.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.stack.proof import Figures, Known, steady, summary
from tests.stack.stack import ROOT, Stack

RATE = 150.0
"""Requests a second, or half of what this machine can, if that is less."""
REQUESTS = 10_000


def roll(stack: Stack) -> tuple[int, str]:
    """Exit code and what it said."""
    files = [part for file in stack.files for part in ("--file", str(file))]
    argv = [sys.executable, "-m", "fleet", "--runtime", "compose", "--run", str(stack.folder), "--project", stack.project, *files]
    done = subprocess.run(
        [*argv, "roll", "--no-build"], cwd=ROOT, env={**os.environ, **stack.environment},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def ids(stack: Stack) -> set[str]:
    return {container.id for container in stack.containers()}


@pytest.mark.timeout(900)
def test_a_roll_loses_none_of_ten_thousand(stack: Stack, known: Known, figures: Figures) -> None:
    """F1 in containers: every worker replaced, start-first, one at a time; 0 failed of at least 10,000."""
    before = ids(stack)
    with stack.load(known.requests, users=6, pause=(0.0, 0.0)) as most:
        time.sleep(5)
    rate = min(RATE, 0.5 * len(most.exchanges) / max(each.begun + each.seconds for each in most.exchanges))
    least_s = REQUESTS / rate + 2
    with steady(stack.port, known, rate) as base:
        time.sleep(8)
    alone = summary(base, known)
    with steady(stack.port, known, rate) as traffic:
        began = time.perf_counter()
        code, said = roll(stack)
        took = time.perf_counter() - began
        time.sleep(max(0.0, least_s - took))
    figures.keep(rate=round(rate), roll_s=round(took, 1), base_latency_s=alone["latency_s"], **summary(traffic, known))
    assert code == 0, said
    assert not before & ids(stack) and len(ids(stack)) == len(before)
    assert base.failures == traffic.failures == [] and len(traffic.exchanges) >= REQUESTS
