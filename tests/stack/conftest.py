"""One fleet of containers for all tests of this folder: building and starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet.live import free_ports, live
from tests.stack.proof import Figures, Known, ask_local
from tests.stack.stack import ROOT, Stack, missing_engine

WORKERS = 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs containers."""
    for item in items:
        if "tests/stack/" in item.nodeid:
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A built image and a project that is certainly down afterwards."""
    if reason := missing_engine():
        pytest.skip(reason)
    port = free_ports()
    found = Stack(f"kt-{port}", port, tmp_path_factory.mktemp("stack"))
    found.compose("build")
    try:
        yield found
    finally:
        found.down()


@pytest.fixture
def stack(project: Stack) -> Stack:
    """Three healthy workers behind nginx, whatever the test before did to them."""
    project.up(WORKERS)
    return project


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    """Forecasts as a local worker makes them: some short, some that take ten times as long."""
    with live(tmp_path_factory.mktemp("local") / "run", app=()) as local:
        code, said = local.up(1)
        assert code == 0, said
        return {"short": ask_local(local, lookback=64, horizon=4, different=24), "long": ask_local(local, 256, 60, 12)}


@pytest.fixture
def known(shapes: dict[str, Known]) -> Known:
    """64 candles → 4: a few milliseconds of work."""
    return shapes["short"]


@pytest.fixture
def long(shapes: dict[str, Known]) -> Known:
    """256 candles → 60: long enough to be killed over."""
    return shapes["long"]


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Where a test leaves what it measured: on the screen and in reports/scratch/stack."""
    return Figures(request.node.name, ROOT / "reports" / "scratch" / "stack", {})
