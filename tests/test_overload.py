"""Three times what a fleet can, with two priorities (F11): who asks interactively does not notice, bulk is refused in time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.fleet import bodies
from benchmarks.overload import DIFFERENT, measure
from tests.fleet.live import live

pytestmark = pytest.mark.slow

WORKERS, SECONDS = 2, 12.0


@pytest.mark.timeout(300)
def test_interactive_requests_do_not_notice_an_overload_of_bulk(tmp_path: Path) -> None:
    """≥ 99.4 % of them are answered; all that the fleet can is done; refusals say when to come back, and nothing else fails.

    The control: what is added comes as interactive too, and then who asked before is refused like everybody.
    """
    with live(tmp_path / "run", app=()) as fleet:
        code, said = fleet.up(WORKERS, env={"KRONOS_MAX_QUEUE_WORK": "3000"})  # 25 forecasts: full in two seconds
        assert code == 0, said
        report = asyncio.run(measure(fleet.port, WORKERS, SECONDS, bodies(400, 120, DIFFERENT)))
    print(report)
    with_priorities, without = report["added bulk"], report["added interactive"]
    assert with_priorities["base"]["share"] >= 0.994
    assert without["base"]["share"] < 0.9
    for found in (with_priorities, without):
        assert found["more"]["refused"] > 0
        assert found["base"]["failed"] == found["more"]["failed"] == {}
        assert found["goodput"] > 0.4  # no collapse; the 90 % that are promised are measured on a quiet machine
