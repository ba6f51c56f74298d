"""nginx/containers/upstream.conf while names change: workers come and go, and the DNS misbehaves, under load.

Known race (nginx issue 1656): a request that was sent to a worker of one list cannot be tried again once the list is
another one: "no live upstreams", 502. ``proxy_next_upstream`` does not help there; ``@again`` does.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.users import Request
from tests.fleet.live import Traffic, ask, load, wait_until
from tests.nginx_rig import NOERROR, NXDOMAIN, PREDICT, SERVFAIL, Rig, rig, seconds
from tests.scripted_workers import Asked, answer

pytestmark = pytest.mark.slow  # seconds pass until a DNS is believed again


async def echo(asked: Asked) -> bytes | None:
    """Takes a moment, and answers what was asked."""
    await asyncio.sleep(0.01)
    return answer(body=asked.body, x_served_by=f"worker-{asked.worker}")


def asking(number: int) -> Request:
    """With its own right answer."""
    body = json.dumps({"number": number}).encode()
    return Request(PREDICT, body, lambda found: "" if found == body else "wrong answer")


@contextmanager
def traffic(front: Rig, rate: float = 200) -> Iterator[Traffic]:
    """An open loop: what goes wrong in a stall is not hidden by waiting users."""
    front.workers.behave = echo
    with load(front.port, [asking(number) for number in range(50)], users=4, pause=(0, 0), rate=rate) as found:
        yield found


def wait_for_an_answer(front: Rig) -> None:
    """Until nginx has heard from the DNS once more: when it asks again it has taken the answer before."""
    seen = front.names.questions
    wait_until(lambda: front.names.questions > seen + 1, 20)


def change(front: Rig, numbers: list[int]) -> None:
    """As Docker does when replicas change: new ones listen, then are named; old ones lose their name and stop at once."""
    old = set(front.workers.listening())
    for number in set(numbers) - old:
        front.workers.do(front.workers.start(number))
    front.names.addresses = [front.workers.address(number) for number in numbers]
    for number in old - set(numbers):
        front.workers.do(front.workers.drain(number))


def test_workers_that_come_are_used_and_those_that_go_are_not_missed(tmp_path: Path) -> None:
    """2 → 5 → 1 → 3 → other three: nothing fails, and the requests go to those named, and to all of them, in seconds."""
    with rig(tmp_path / "nginx", count=2) as front, traffic(front) as found:
        for numbers in ([0, 1, 2, 3, 4], [0], [0, 1, 2], [2, 5, 6]):
            change(front, numbers)

            def all_asked(expected: set[int] = set(numbers)) -> bool:  # noqa: B006
                recent = {asked.worker for asked in front.workers.asked[-50:]}
                return recent == expected

            print(f"to {numbers} after {wait_until(all_asked, 10):.1f} s")
    assert found.failures == [] and len(found.exchanges) > 500


def test_newcomers_that_still_load_are_not_noticed(tmp_path: Path) -> None:
    """A name is known before its worker is ready: it answers 503, and another is asked; two newcomers leave one try."""
    with rig(tmp_path / "nginx", count=4) as front, traffic(front) as found:
        ready_at = time.monotonic() + 4

        async def loads(asked: Asked) -> bytes | None:
            if asked.worker >= 4 and time.monotonic() < ready_at:
                return answer(503, retry_after="1")
            return await echo(asked)

        front.workers.behave = loads
        change(front, [0, 1, 2, 3, 4, 5])
        time.sleep(4)
        wait_until(lambda: {asked.worker for asked in front.workers.asked[-50:]} == {0, 1, 2, 3, 4, 5}, 10)
    assert found.failures == [] and len(found.exchanges) > 500


def churn(front: Rig, seconds: float, seed: int = 1) -> None:
    """The list changes with every answer of the DNS, all of it now and then; nobody who is named ever stops serving."""
    own = random.Random(seed)
    for number in range(2, 8):
        front.workers.do(front.workers.start(number))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        front.names.addresses = [front.workers.address(number) for number in own.sample(range(8), own.randint(1, 3))]
        time.sleep(0.2)


def test_a_list_that_changes_all_the_time_loses_nothing(tmp_path: Path) -> None:
    """The race, provoked for five seconds at 400 requests a second."""
    with rig(tmp_path / "nginx", count=2) as front:
        with traffic(front, rate=400) as found:
            churn(front, 5)
        print(f"{len(found.failures)} of {len(found.exchanges)} failed")
    assert found.failures == [] and len(found.exchanges) > 1500


@pytest.mark.parametrize("protected", [True, False])
def test_a_worker_that_dies_after_the_list_changed_is_not_noticed(tmp_path: Path, protected: bool) -> None:
    """The race for certain: sent to a worker of the old list, which dies once there is a new one. Without ``@again``, all
    of its requests fail."""
    changes = {} if protected else {"error_page 502 = @again;": "error_page 502 /.problem;"}
    with rig(tmp_path / "nginx", count=2, changes=changes) as front:

        async def holds(asked: Asked) -> bytes | None:
            await asyncio.sleep(60 if asked.worker < 2 else 0)
            return answer()

        front.workers.behave = holds
        answers: list[int] = []

        def client() -> None:
            answers.append(ask(front.port, "POST", PREDICT, b"{}").status)

        threads = [threading.Thread(target=client) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len([asked for asked in front.workers.asked if asked.path == PREDICT]) == 20, 5)
        front.workers.do(front.workers.start(2))
        front.names.addresses = [front.workers.address(2)]
        wait_for_an_answer(front)
        for number in (0, 1):
            front.workers.do(front.workers.kill(number))
        for thread in threads:
            thread.join()
    print(f"{20 - answers.count(200)} of 20 failed")
    assert set(answers) == ({200} if protected else {502})


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "SERVFAIL"])
def test_a_dns_that_fails_for_a_while_is_not_noticed(tmp_path: Path, silent: bool) -> None:
    """No answer, or that it does not know: the workers known before go on answering."""
    with rig(tmp_path / "nginx", count=3) as front:
        with traffic(front) as found:
            time.sleep(0.5)
            front.names.rcode, front.names.silent = (NOERROR, True) if silent else (SERVFAIL, False)
            time.sleep(3)
            front.names.rcode, front.names.silent = NOERROR, False
            wait_for_an_answer(front)
        print(f"{len(found.failures)} of {len(found.exchanges)} failed")
    assert found.failures == [] and len(found.exchanges) > 500


@pytest.mark.parametrize("rcode", [NXDOMAIN, NOERROR], ids=["NXDOMAIN", "empty"])
def test_when_the_dns_says_that_nobody_is_there_clients_are_told_and_it_ends(tmp_path: Path, rcode: int) -> None:
    """That is an answer, not a failure: 502 at once with Retry-After, and 200 again soon after somebody is named."""
    with rig(tmp_path / "nginx", count=2) as front:
        known, front.names.addresses, front.names.rcode = front.names.addresses, [], rcode
        wait_until(lambda: ask(front.port, "POST", PREDICT, b"{}").status == 502, 10)
        found = ask(front.port, "POST", PREDICT, b"{}")
        assert found.headers["retry-after"] == "2" and json.loads(found.body)["title"] == "No worker answered"
        front.names.addresses, front.names.rcode = known, NOERROR
        took = wait_until(lambda: ask(front.port, "POST", PREDICT, b"{}").status == 200, 10)
        print(f"found again after {took:.1f} s")


def test_a_name_that_is_there_late_is_waited_for(tmp_path: Path) -> None:
    """nginx starts before any worker has a name, answers itself, and forwards as soon as one has."""
    with rig(tmp_path / "nginx", count=0) as front:
        assert ask(front.port, "GET", "/healthz").status == 200
        assert ask(front.port, "POST", PREDICT, b"{}").status == 502
        front.workers.do(front.workers.start(0))
        front.names.addresses = [front.workers.address(0)]
        took = wait_until(lambda: ask(front.port, "POST", PREDICT, b"{}").status == 200, 10)
        print(f"found after {took:.1f} s")


def test_a_neighbour_whose_name_is_not_answered_is_given_up(tmp_path: Path) -> None:
    """resolver_timeout: a dashboard that is gone costs its reader two seconds, and nobody else anything."""
    with rig(tmp_path / "nginx", count=1) as front:
        assert ask(front.port, "POST", PREDICT, b"{}").status == 200
        front.names.silent = True
        began = time.monotonic()
        assert ask(front.port, "GET", "/grafana/").status == 502
        bound = seconds("resolver_timeout", "upstream.conf")
        assert 0.8 * bound < time.monotonic() - began < 5 * bound
        assert ask(front.port, "POST", PREDICT, b"{}").status == 200


def test_the_door_of_another_host_gets_its_share(tmp_path: Path) -> None:
    """nginx/hosts: a file there is one more in the list, after a reload."""
    with rig(tmp_path / "nginx", count=1) as front:
        front.workers.do(front.workers.start(5))
        (front.folder / "hosts").mkdir()
        (front.folder / "hosts" / "other.conf").write_text(f"server {front.workers.address(5)}:{front.workers.port};\n")
        front.reload()

        def both_asked() -> bool:
            assert ask(front.port, "POST", PREDICT, b"{}").status == 200
            return {asked.worker for asked in front.workers.asked} == {0, 5}

        wait_until(both_asked, 5)
