"""The worker's image in its other form: with torch, which serves where the CPU kernel cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.fleet import bodies, numbers
from fleet.forecast import ROUTE
from fleet.host import Answer, request
from tests.stack.stack import Container, Stack, command, wait_until

pytestmark = pytest.mark.timeout(1200)  # an image with torch is built

START_TIMEOUT_S = 120
TOLERANCE = 1e-3
"""Relative: another order of additions, and a draw that falls on the other side of a boundary is not to be had at this seed."""


@pytest.fixture
def without_kernel(project: Stack) -> Iterator[Container]:
    """A worker of an image built with pip's usual index, its kernel hidden."""
    project.env = {"TORCH_INDEX": "", "WORKER_IMAGE": "kronos-fleet-worker:torch"}
    project.compose("build", "worker")
    project.env = {}
    hidden = ("--tmpfs", "/srv/app/model/native/lib", "--read-only", "--tmpfs", "/tmp")
    name = command("docker", "run", "-d", *hidden, "kronos-fleet-worker:torch").strip()
    try:
        yield Container(json.loads(command("docker", "inspect", name))[0])
    finally:
        command("docker", "rm", "-f", name)


def test_with_torch_the_forecast_is_the_same(stack: Stack, without_kernel: Container) -> None:
    """The fallback says so in its log and forecasts what the kernel does."""

    def ask(method: str, path: str, body: bytes | None = None) -> Answer | None:
        return request(without_kernel.address, 8000, method, path, body=body, timeout_s=30)

    def ready() -> bool:
        answer = ask("GET", "/readyz")
        return answer is not None and answer.status == 200

    wait_until(ready, START_TIMEOUT_S)
    body = bodies(lookback=64, horizon=4, different=1)[0]
    found, expected = ask("POST", ROUTE, body), stack.ask("POST", ROUTE, body)
    assert found is not None and found.status == expected.status == 200
    np.testing.assert_allclose(numbers(found.body), numbers(expected.body), rtol=TOLERANCE)
    assert "falling back to torch" in command("docker", "logs", without_kernel.id)
