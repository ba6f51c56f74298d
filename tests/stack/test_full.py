"""Valkey as containers beside real workers, twice: answers that all share and may be lost, jobs that may not.

The rest of `--profile full`, and all of it together: test_full_profile.py.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from tests.fleet.live import free_ports
from tests.serving import request
from tests.stack.stack import Stack, command, missing_engine, wait_until
from tests.stack.test_hardening import weaknesses

SHARED = {"KRONOS_CACHE_TTL": "60", "KRONOS_REDIS_URL": "redis://valkey:6379", "COMPOSE_PROFILES": "cache,jobs"}
SINGLE = "/v1/predict/single"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers that share their answers, and the server for jobs."""
    if reason := missing_engine():
        pytest.skip(reason)
    port = free_ports()
    found = Stack(f"kt-{port}", port, tmp_path_factory.mktemp("full"), SHARED)
    try:
        found.up(2)
        yield found
    finally:
        found.down()


def asked(seed: int) -> bytes:
    return json.dumps(request(40, overrides={"pred_len": 8, "seed": seed})).encode()


def answers(stack: Stack, seed: int, count: int = 12) -> list[tuple[str, str]]:
    """Who answered, and what the cache did, for the same request again and again."""
    found = [stack.ask("POST", SINGLE, asked(seed)) for _ in range(count)]
    assert [each.status for each in found] == [200] * count
    return [(each.headers["x-served-by"], each.headers["x-cache"]) for each in found]


def valkey(stack: Stack, service: str, *arguments: str) -> str:
    return command("docker", "exec", stack.containers(service)[0].id, "valkey-cli", *arguments).strip()


def test_a_repeat_is_known_to_every_worker(full: Stack) -> None:
    """Computed once in the whole fleet."""
    seeds = itertools.count(1)
    found: list[tuple[str, str]] = []

    def shared() -> bool:
        """On a machine that has just started seven containers a worker's first look may take longer than it is given."""
        found[:] = answers(full, next(seeds))
        return [result for _, result in found].count("miss") == 1

    wait_until(shared, 30, 1)
    assert len({worker for worker, _ in found}) == 2
    assert found[0][1] == "miss" and {result for _, result in found[1:]} <= {"hit", "coalesced"}
    assert int(valkey(full, "valkey", "dbsize")) >= 1


def test_without_the_server_workers_go_on(full: Stack) -> None:
    """Negative control: gone, all answers are right, and each worker computes for itself; back, they share again."""
    command("docker", "kill", full.containers("valkey")[0].id)
    found = answers(full, 99)
    assert [result for _, result in found].count("miss") == 2
    full.compose("up", "-d", "--no-build", "--wait", "valkey")
    seeds = itertools.count(100)
    wait_until(lambda: [result for _, result in answers(full, next(seeds), 6)].count("miss") == 1, 40, 1)


def test_jobs_outlive_a_restart_and_answers_do_not(full: Stack) -> None:
    """What is written is there again after the container is killed; the other server forgets, as it should."""
    for service in ("valkey", "valkey-jobs"):
        assert valkey(full, service, "set", "kept", "yes") == "OK"
    command("docker", "kill", *(full.containers(service)[0].id for service in ("valkey", "valkey-jobs")))
    full.compose("up", "-d", "--no-build", "--wait", "valkey", "valkey-jobs")
    assert valkey(full, "valkey-jobs", "get", "kept") == "yes" and valkey(full, "valkey", "get", "kept") == ""


@pytest.mark.parametrize("service", ["valkey", "valkey-jobs"])
def test_the_servers_have_nothing_they_do_not_need(full: Stack, service: str) -> None:
    """The security floor of all containers, seen in the engine's own facts."""
    [container] = full.containers(service)
    assert weaknesses(container.facts) == set()
    assert not container.facts["HostConfig"]["PortBindings"]
