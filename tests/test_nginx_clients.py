"""nginx.conf towards clients: what a slow, greedy, hostile or very busy one gets. Real nginx, scripted workers."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fleet.host import Answer
from tests.fleet.live import ask, wait_until
from tests.nginx_rig import PREDICT, Rig, rig, seconds, shipped
from tests.scripted_workers import Asked, answer, well

FASTER = 8
"""A minute of nginx.conf takes seven seconds here."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("clients") / "nginx") as found:
        yield found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The same with every duration divided by ``FASTER``."""
    with rig(tmp_path_factory.mktemp("quick") / "nginx", faster=FASTER) as found:
        yield found


@pytest.fixture(autouse=True)
def well_behaved(front: Rig, quick: Rig) -> Iterator[None]:
    yield
    for found in (front, quick):
        found.workers.behave = well
        found.workers.asked.clear()


def post(front: Rig, path: str = PREDICT, body: bytes = b"{}", **headers: str) -> Answer:
    return ask(front.port, "POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})


def until_closed(client: socket.socket) -> float:
    """Seconds until nginx hangs up."""
    began = time.monotonic()
    with suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    return time.monotonic() - began


@pytest.mark.slow
def test_a_head_that_trickles_is_cut_off(quick: Rig) -> None:
    """client_header_timeout counts the whole head: a byte now and then does not extend it."""
    bound = seconds("client_header_timeout") / FASTER
    with quick.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\n")
        ended = threading.Event()

        def trickle() -> None:
            with suppress(OSError):
                while not ended.wait(bound / 4):
                    client.sendall(b"X")

        trickling = threading.Thread(target=trickle)
        trickling.start()
        took = until_closed(client)
        ended.set()
        trickling.join()
    assert 0.8 * bound < took < 10 * bound


@pytest.mark.slow
def test_a_body_that_stops_is_cut_off_and_one_that_trickles_is_not(quick: Rig) -> None:
    """client_body_timeout is between two reads; no worker hears of a request whose body never came."""
    bound = seconds("client_body_timeout") / FASTER
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\nConnection: close\r\n\r\n".encode()
    with quick.connect() as client:
        client.sendall(head + b"{")
        assert 0.8 * bound < until_closed(client) < 10 * bound
    assert quick.workers.asked == []
    with quick.connect() as client:
        client.sendall(head)
        for byte in b'{"a": 1}':
            time.sleep(bound / 6)
            client.sendall(bytes([byte]))
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert [asked.body for asked in quick.workers.asked] == [b'{"a": 1}']


@pytest.mark.slow
def test_a_client_that_does_not_read_is_cut_off(quick: Rig) -> None:
    """send_timeout: an answer that nobody takes is given up, and the log has what was really sent."""
    large = 12 * 2**20

    async def much(asked: Asked) -> bytes | None:
        return answer(body=b"x" * large)

    quick.workers.behave = much
    bound = seconds("send_timeout") / FASTER
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", quick.port))
        client.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nX-Request-ID: idle\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        line = quick.logged("idle")
    assert bound * 0.8 < line["seconds"] < bound * 3 and line["bytes_out"] < large


@pytest.mark.slow
def test_an_idle_client_connection_is_kept_and_then_closed(quick: Rig) -> None:
    """keepalive_timeout, as told: not at once, and not for ever."""
    bound = seconds("keepalive_timeout") / FASTER
    with quick.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        assert 0.8 * bound < until_closed(client) < 1.5 * bound


@pytest.mark.slow
def test_a_refused_body_may_trickle_in_for_two_seconds(front: Rig) -> None:
    """lingering_timeout: the client gets to read its 413; then nginx is gone."""
    with front.connect() as client:
        client.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {17 * 2**20}\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 413")
        client.sendall(b"more")
        time.sleep(2 * seconds("lingering_timeout"))
        with pytest.raises(OSError):
            for _ in range(3):  # the first finds out, the next is told
                client.sendall(b"more")
                time.sleep(0.1)


def test_one_connection_serves_more_than_a_thousand_requests(front: Rig) -> None:
    """keepalive_requests: a busy client is never hung up on (the default would, after a thousand)."""
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with front.connect() as client:
        answers = b""
        client.sendall(request * 1100)
        while answers.count(b'{"status":"ok"}') < 1100 and (more := client.recv(65536)):
            answers += more
    assert answers.count(b"HTTP/1.1 200") == 1100 and b"Connection: close" not in answers


def test_there_is_room_for_thousands_of_connections(front: Rig) -> None:
    """worker_connections and worker_rlimit_nofile: 1,500 idle clients keep nobody out (the defaults would)."""
    assert len(front.children) == int(shipped("worker_processes")) > 1
    limits = Path(f"/proc/{front.children[0]}/limits").read_text()
    assert re.search(rf"Max open files +{shipped('worker_rlimit_nofile')} ", limits)
    clients = [front.connect() for _ in range(1500)]
    try:
        for client in clients:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert all(client.recv(12) == b"HTTP/1.1 200" for client in clients)
        assert post(front).status == 200
    finally:
        for client in clients:
            client.close()


def test_a_runaway_client_gets_429_and_when_to_come_back(front: Rig) -> None:
    """limit_req: a burst passes, the flood above the rate is refused in the one form of errors."""
    rate, burst = (int(found[0]) for found in (re.findall(r"rate=(\d+)r/s", shipped("limit_req_zone")),
                                               re.findall(r"burst=(\d+)", shipped("limit_req"))))  # fmt: skip
    began = time.monotonic()
    answers: list[bytes] = []
    request = b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /flood HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    flood = [threading.Thread(target=lambda: answers.append(front.raw(request * 999 + last))) for _ in range(4)]
    for thread in flood:
        thread.start()
    for thread in flood:
        thread.join()
    allowed = burst + rate * (time.monotonic() - began)
    said = b"".join(answers)
    passed, refused = said.count(b"HTTP/1.1 200"), said.count(b"HTTP/1.1 429")
    assert passed + refused == 4000 and burst < passed <= allowed + 4, (passed, refused, allowed)
    example = next(each for each in said.split(b"HTTP/1.1 ") if each.startswith(b"429"))
    assert b"Retry-After: 1\r\n" in example and b"application/problem+json" in example and b'"status":429' in example
    wait_until(lambda: post(front).status == 200, 5)


def test_workers_learn_who_asked_and_how(front: Rig) -> None:
    """Host, X-Forwarded-For (added to, not replaced), X-Forwarded-Proto, the request id; nothing hop-by-hop."""
    post(front, Host="example.org", X_Forwarded_For="203.0.113.9", X_Request_ID="who", Connection="close")
    (asked,) = front.workers.asked
    assert asked.headers["host"] == "example.org"
    assert asked.headers["x-forwarded-for"] == "203.0.113.9, 127.0.0.1"
    assert asked.headers["x-forwarded-proto"] == "http"
    assert asked.headers["x-request-id"] == "who"
    assert "connection" not in asked.headers


def test_the_version_of_nginx_is_not_told(front: Rig) -> None:
    """server_tokens: neither in a header nor in an error."""
    for found in (ask(front.port, "GET", "/healthz"), ask(front.port, "GET", "/metrics")):
        assert found.headers["server"] == "nginx" and b"nginx/" not in found.body


@pytest.mark.parametrize("spelling", ["/metrics", "/metrics?x=1", "/%6Detrics", "/./metrics", "/v1/../metrics", "/metrics#x"])
def test_metrics_stay_inside_however_they_are_spelled(front: Rig, spelling: str) -> None:
    """Everything that a worker could take for /metrics is denied, and no worker hears of it."""
    said = front.raw(f"GET {spelling} HTTP/1.0\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 403") and front.workers.asked == []


def test_a_path_means_what_it_says(front: Rig) -> None:
    """merge_slashes: a path with another spelling is another path, so it is not a prediction and is not tried again."""

    async def broken(asked: Asked) -> bytes | None:
        return answer(500)

    front.workers.behave = broken
    assert post(front, "/v1//predict/single").status == 500
    assert [asked.path for asked in front.workers.asked] == ["/v1//predict/single"]
    assert post(front, "/.problem").status == 404  # internal: the errors' own location is nobody's route


def test_usual_bodies_never_touch_the_disk_and_large_ones_stay_in_the_prefix(front: Rig) -> None:
    """client_body_buffer_size: 900 kB stay in memory, 3 MB pass whole by way of the prefix's own folder."""
    spilled = "a client request body is buffered to a temporary file"
    before = front.errors().count(spilled)
    assert post(front, body=b"x" * 900_000).status == 200
    assert front.errors().count(spilled) == before
    assert post(front, body=b"x" * 3_000_000).status == 200
    assert f"{spilled} {front.folder}/body-temp/" in front.errors()
    assert [len(asked.body) for asked in front.workers.asked] == [900_000, 3_000_000]


def test_a_slow_reader_holds_no_worker(tmp_path: Path) -> None:
    """proxy_buffers: an answer of 900 kB is taken off the worker at once, and never written to disk."""

    async def much(asked: Asked) -> bytes | None:
        return answer(body=b"x" * 900_000)

    small = {"listen 8080;": "listen 8080 sndbuf=4k;"}  # else the kernel would hold it all for nginx
    with rig(tmp_path / "nginx", count=1, changes=small) as front, socket.socket() as client:
        front.workers.behave = much
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", front.port))
        client.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
        wait_until(lambda: bool(front.workers.asked) and front.workers.idle(), 10)
        assert len(b"".join(iter(lambda: client.recv(65536), b""))) > 900_000
        assert "an upstream response is buffered to a temporary file" not in front.errors()


HOSTILE = ['/"},{"status":200', "/\\", "/\xff\xfe", "/%00%0a", "/é", "/\x7f", "/'${x}'", "/\t", "/\x01", "//", "*"]


def test_the_log_is_json_whatever_clients_send(front: Rig) -> None:
    """escape=json: no path, method or header breaks a line, forges one, or makes it anything but UTF-8."""
    before = len(front.log())
    for path in HOSTILE:
        front.raw(f'GET {path} HTTP/1.0\r\nUser-Agent: "\\\x02\r\nX-Request-ID: "}}\r\n\r\n'.encode("latin-1"))
    for nonsense in (b'G"T / HTTP/1.0\r\n\r\n', b"\x16\x03\x01\x02\x00\r\n\r\n", b"\r\n\r\n\0\r\n\r\n"):
        front.raw(nonsense)
    wait_until(lambda: len(front.log()) >= before + len(HOSTILE) + 2, 5)
    for line in front.log():
        assert isinstance(line["status"], int) and isinstance(line["seconds"], float)


def test_the_log_has_the_method_of_the_request(front: Rig) -> None:
    """Also where nginx answers itself, whose own way to its error page is a GET."""

    async def broken(asked: Asked) -> bytes | None:
        return None

    front.workers.behave = broken
    assert post(front, X_Request_ID="post-that-failed").status == 502
    line = front.logged("post-that-failed")
    assert (line["method"], line["path"], line["status"]) == ("POST", PREDICT, 502)


def test_everything_nginx_writes_is_in_its_prefix(front: Rig) -> None:
    """pid and the temporary folders: a plain user with a read-only disk elsewhere can run it."""
    assert (front.folder / "nginx.pid").read_text().strip() == str(front.process.pid)
    assert {"body-temp", "proxy-temp", "unused-temp"} <= {each.name for each in front.folder.iterdir() if each.is_dir()}


def test_only_private_addresses_see_the_neighbours(tmp_path: Path) -> None:
    """Grafana, Prometheus (also its remote write) and thread pools are for the inside network; without them all else works."""
    real = {"listen 8080;": "set_real_ip_from 127.0.0.1; real_ip_header X-Test-From; listen 8080;"}
    with rig(tmp_path / "nginx", count=1, changes=real) as front:
        for path in ("/grafana/", "/prometheus/api/v1/write"):
            for inside in ("10.1.2.3", "172.16.0.1", "172.31.255.1", "192.168.1.1", "127.0.0.1"):
                assert post(front, path, X_Test_From=inside).status == 502  # let in, but nobody of that name is there
            for outside in ("8.8.8.8", "172.32.0.1", "192.169.0.1", "11.0.0.1"):
                found = post(front, path, X_Test_From=outside)
                assert found.status == 403 and json.loads(found.body)["title"] == "Not public"
        pools = "/health/thread-pools/log-status"
        assert post(front, pools, X_Test_From="10.1.2.3").status == 200
        assert post(front, pools, X_Test_From="8.8.8.8").status == 403
        assert post(front).status == 200


def test_the_neighbours_are_reached_by_name_when_they_are_there(tmp_path: Path) -> None:
    """The whole path and body arrive: both serve below their prefix themselves."""
    there = {"grafana:3000": "worker:8000", "prometheus:9090": "worker:8000"}
    with rig(tmp_path / "nginx", count=1, changes=there) as front:
        for path in ("/grafana/d/fleet?x=1", "/prometheus/api/v1/write"):
            assert post(front, path, b"abc").status == 200
            assert (front.workers.asked[-1].path, front.workers.asked[-1].body) == (path, b"abc")
