"""What every test may rely on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where the suite runs in the background of a shell, which ignores it for its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def quick_model() -> Iterator[None]:
    """The latency model's long time is short: its answers are rougher, and no test here is about how rough they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fleet.tune.latency.LONG_RUN", 4_000)
        yield
