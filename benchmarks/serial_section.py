"""app.main with a serial section: every forecast of every worker passes one lock, as a single shared connection would have it.

    python -m fleet up --app benchmarks.serial_section:app
"""

from __future__ import annotations

import fcntl
import tempfile
import time
from pathlib import Path
from typing import Any

from app.engine import Engine
from app.main import app

__all__ = ["app"]

HELD_S = 0.03
LOCK = Path(tempfile.gettempdir()) / "kronos-serial-section"
deliver = Engine._deliver


def one_at_a_time(engine: Engine, series: Any) -> None:
    """Deliver a forecast while nobody else does."""
    with LOCK.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        time.sleep(HELD_S)
    deliver(engine, series)


Engine._deliver = one_at_a_time  # type: ignore[method-assign, assignment]
