"""nginx.conf and upstream.conf towards workers: connections, second tries and their bounds. Real nginx, scripted workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.settings import Settings
from fleet.host import Answer
from tests.fleet.live import ask, wait_until
from tests.nginx_rig import PREDICT, Rig, rig, seconds, shipped
from tests.scripted_workers import Asked, Workers, answer, well

FASTER = 20


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path / "nginx", count=8) as found:
        yield found


async def dies(asked: Asked) -> bytes | None:
    """Takes the request and breaks the connection a moment later, as a process that crashes over it."""
    await asyncio.sleep(0.05)
    return None


def post(front: Rig, path: str = PREDICT, body: bytes = b"{}", **headers: str) -> Answer:
    return ask(front.port, "POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})


def at_once(front: Rig, count: int) -> list[Answer]:
    """``count`` predictions, all in flight together."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(post(front))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_connections_to_workers_are_kept_and_used_again(front: Rig) -> None:
    """keepalive, proxy_http_version, Connection: 400 requests, 20 at a time, over a few connections."""

    async def short(asked: Asked) -> bytes | None:
        await asyncio.sleep(0.01)
        return answer()

    front.workers.behave = short
    before = front.workers.connections
    for _ in range(20):
        assert all(found.status == 200 for found in at_once(front, 20))
    opened = front.workers.connections - before
    print(f"400 requests over {opened} connections")
    assert {asked.version for asked in front.workers.asked} == {"HTTP/1.1"}
    assert opened <= 100  # 20 in flight, spread over 8 workers and 2 processes that each keep their own


@pytest.mark.slow
def test_one_connection_to_a_worker_carries_more_than_a_thousand_requests(tmp_path: Path) -> None:
    """keepalive_requests of the upstream: one connection for all (the default would take two)."""
    with rig(tmp_path / "nginx", count=1) as front:
        before = front.workers.connections
        with front.connect() as client:
            for _ in range(2):
                client.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n" * 600)
                time.sleep(1)  # so that it is no flood
                client.recv(2**22)
        assert len([asked for asked in front.workers.asked if asked.path == "/x"]) == 1200
        assert front.workers.connections - before <= 1


@pytest.mark.slow
def test_nginx_closes_an_idle_connection_before_the_worker_does(tmp_path: Path) -> None:
    """keepalive_timeout of the upstream: closed on time, and shorter than the worker's own."""
    kept = shipped("keepalive_timeout", "upstream.conf")
    assert float(kept.removesuffix("s")) < Settings().keep_alive
    with rig(tmp_path / "nginx", count=1, changes={f"keepalive_timeout {kept}": "keepalive_timeout 3s"}) as front:
        assert post(front).status == 200
        time.sleep(1)
        assert front.workers.open() > 0
        wait_until(lambda: front.workers.open() == 0, 10)


def test_a_worker_that_does_not_accept_is_passed_over_after_a_second(tmp_path: Path) -> None:
    """proxy_connect_timeout: a black hole costs its first client a second; then it is left out."""
    with rig(tmp_path / "nginx", count=2) as front, ExitStack() as held:
        front.workers.do(front.workers.kill(0))
        hole = held.enter_context(socket.create_server((Workers.address(0), front.workers.port), backlog=0))
        for _ in range(3):  # fill its queue: the kernel drops what comes after
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(hole.getsockname())
        began = time.monotonic()
        assert {post(front).status for _ in range(6)} == {200}
        assert 0.9 < time.monotonic() - began < 5


def test_a_worker_that_does_not_take_the_body_is_passed_over(tmp_path: Path) -> None:
    """proxy_send_timeout: a body that gets stuck on its way goes to another worker."""
    with rig(tmp_path / "nginx", count=2, faster=FASTER) as front:
        front.workers.do(front.workers.kill(0))
        with socket.create_server((Workers.address(0), front.workers.port)):  # accepts, never reads
            began = time.monotonic()
            assert {post(front, body=b"x" * 15 * 2**20).status for _ in range(3)} == {200}
            bound = seconds("proxy_send_timeout") / FASTER
            assert 0.8 * bound < time.monotonic() - began < 3 * bound + 1


def test_a_worker_that_never_answers_costs_the_deadline_once(tmp_path: Path) -> None:
    """proxy_read_timeout and proxy_next_upstream_timeout: 504 in the one form; no second worker for the same time again."""
    with rig(tmp_path / "nginx", count=3, read_timeout="1s") as front:

        async def silent(asked: Asked) -> bytes | None:
            await asyncio.sleep(5)
            return None

        front.workers.behave = silent
        began = time.monotonic()
        found = post(front)
        assert 0.9 < time.monotonic() - began < 4
        assert found.status == 504 and json.loads(found.body)["title"] == "Deadline passed"
        assert len(front.workers.asked) == 1


def test_a_request_that_kills_its_worker_reaches_three_at_most(front: Rig) -> None:
    """proxy_next_upstream_tries: whatever is poison for one worker is not fed to all of them, also not by the last try."""
    front.workers.behave = dies
    found = post(front)
    assert found.status == 502 and found.headers["retry-after"] == "2"
    assert len(front.workers.asked) <= int(shipped("proxy_next_upstream_tries")) == 3
    assert len({asked.worker for asked in front.workers.asked}) == len(front.workers.asked)


def test_what_may_change_something_is_sent_once_also_when_its_worker_dies(front: Rig) -> None:
    """Jobs are no predictions: nobody knows what the dead worker did, so the client decides. A GET changes nothing."""
    front.workers.behave = dies
    found = post(front, "/v1/jobs")
    assert found.status == 502 and [asked.path for asked in front.workers.asked] == ["/v1/jobs"]
    ask(front.port, "GET", "/v1/jobs/7")
    assert len([asked for asked in front.workers.asked if asked.method == "GET"]) > 1


def test_nothing_is_sent_twice_once_the_answer_has_begun(front: Rig) -> None:
    """A worker that dies in the middle of its answer: the client sees a broken answer, never two halves."""

    async def breaks(asked: Asked) -> bytes | None:
        front.workers.behave = well
        asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(front.workers.kill(asked.worker)))
        return answer(body=b"x" * 1000)[:-500]

    front.workers.behave = breaks
    said = front.raw(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
    assert said.count(b"HTTP/1.1") == 1 and said.endswith(b"x" * 500)


@pytest.mark.parametrize("survivor", range(5))
def test_a_request_finds_the_one_worker_that_is_left(tmp_path: Path, survivor: int) -> None:
    """Four of five stop at one moment: idle connections close, new ones are refused, and the DNS still names all."""
    with rig(tmp_path / "nginx", count=5) as front:
        assert {found.status for found in at_once(front, 20)} == {200}  # connections are kept
        for number in {0, 1, 2, 3, 4} - {survivor}:
            front.workers.do(front.workers.drain(number))
        assert [post(front).status for _ in range(5)] == [200] * 5


@pytest.mark.parametrize("survivor", range(5))
def test_a_connection_that_closes_as_the_request_comes_is_no_death(tmp_path: Path, survivor: int) -> None:
    """The other side of the same moment: nginx has sent the request before it hears that the connection is closed."""
    with rig(tmp_path / "nginx", count=5) as front:

        async def closes(asked: Asked) -> bytes | None:
            return answer() if asked.worker == survivor else None

        front.workers.behave = closes
        assert [post(front).status for _ in range(5)] == [200] * 5


@pytest.mark.parametrize("protected", [True, False])
def test_the_last_resort_asks_somebody_although_all_are_left_out(tmp_path: Path, protected: bool) -> None:
    """@again: every worker failed a moment ago, and one is well again: clients notice nothing. Without it, they do."""
    changes = {} if protected else {"error_page 502 = @again;": "error_page 502 /.problem;"}
    with rig(tmp_path / "nginx", count=2, changes=changes) as front:
        for number in (0, 1):
            front.workers.do(front.workers.kill(number))
        assert post(front).status == 502  # and now nobody is in
        front.workers.do(front.workers.start(0))
        found = [post(front).status for _ in range(10)]
        assert (set(found) == {200}) == protected, found


@pytest.mark.parametrize("protected", [True, False])
def test_a_worker_that_fails_fast_gets_few_requests(tmp_path: Path, protected: bool) -> None:
    """max_fails: left out for two seconds after each failure. Without it, least_conn sends it the most of all."""
    changes = {} if protected else {"max_fails=1 fail_timeout=2s": "max_fails=0"}
    with rig(tmp_path / "nginx", count=3, changes=changes) as front:

        async def one_is_broken(asked: Asked) -> bytes | None:
            if asked.worker == 0:
                return answer(500)
            await asyncio.sleep(0.05)
            return answer()

        front.workers.behave = one_is_broken
        statuses = [found.status for _ in range(25) for found in at_once(front, 8)]
        tries = sum(asked.worker == 0 for asked in front.workers.asked)
    print(f"{statuses.count(500)} of {len(statuses)} failed; the broken worker was tried {tries} times")
    assert set(statuses) == {200}
    assert (tries <= 8 + 3) if protected else (tries > 60)


def test_the_worker_s_long_headers_pass(front: Rig) -> None:
    """proxy_buffer_size: 12 kB of headers are an answer (the default would make it a 502)."""

    async def long(asked: Asked) -> bytes | None:
        return answer(server_timing="x" * 12_000)

    front.workers.behave = long
    assert len(post(front).headers["server-timing"]) == 12_000


@pytest.mark.slow
def test_an_answer_in_flight_survives_a_reload(front: Rig) -> None:
    """The old processes go when their last answer is out, not before."""

    async def slow(asked: Asked) -> bytes | None:
        await asyncio.sleep(2)
        return answer()

    front.workers.behave = slow
    old = front.children
    asking = threading.Thread(target=lambda: answers.append(post(front)))
    answers: list[Answer] = []
    asking.start()
    wait_until(lambda: bool(front.workers.asked), 5)
    front.reload()
    assert set(old) & set(front.children)
    asking.join()
    assert answers[0].status == 200
    wait_until(lambda: not set(old) & set(front.children), 5)


@pytest.mark.slow
def test_a_stuck_answer_does_not_keep_an_old_process_for_ever(tmp_path: Path) -> None:
    """worker_shutdown_timeout, longer than the longest deadline a worker can be given."""
    longest = max(found.le for found in Settings.model_fields["inference_timeout"].metadata if hasattr(found, "le"))
    assert seconds("worker_shutdown_timeout") > longest
    shown = f"worker_shutdown_timeout {shipped('worker_shutdown_timeout')}"
    with rig(tmp_path / "nginx", count=1, changes={shown: "worker_shutdown_timeout 1s"}) as front:

        async def stuck(asked: Asked) -> bytes | None:
            await asyncio.sleep(30)
            return None

        old = front.children
        with front.connect() as client:
            front.workers.behave = stuck
            client.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            wait_until(lambda: bool(front.workers.asked), 5)
            front.reload()
            assert wait_until(lambda: not set(old) & set(front.children), 5) > 0.5


def test_sigquit_lets_answers_finish(front: Rig) -> None:
    """The stop signal of the container: no new connections, the answer in flight arrives, then nginx is gone."""

    async def slow(asked: Asked) -> bytes | None:
        await asyncio.sleep(1)
        return answer()

    front.workers.behave = slow
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(post(front)))
    asking.start()
    wait_until(lambda: bool(front.workers.asked), 5)
    os.kill(front.process.pid, signal.SIGQUIT)
    asking.join()
    assert answers[0].status == 200 and front.process.wait(5) == 0


def test_least_conn_counts_over_all_processes(front: Rig) -> None:
    """zone and least_conn: eight slow requests at once are one for each of eight workers, in whichever process they are."""

    async def slow(asked: Asked) -> bytes | None:
        await asyncio.sleep(0.5)
        return answer()

    front.workers.behave = slow
    at_once(front, 8)
    assert sorted(asked.worker for asked in front.workers.asked) == list(range(8))
