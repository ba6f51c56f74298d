"""One fleet of containers for all tests of this folder: building and starting it takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet.live import free_ports
from tests.stack.stack import Stack, missing_engine

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
