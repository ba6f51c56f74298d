"""One call of a webhook: where it is made to, how long it may take, what of the answer is read."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from app.jobs.post import LOOKUPS, HttpPoster
from app.jobs.targets import Targets
from app.jobs.webhooks import Forbidden, Unreachable
from tests.jobs.receivers import drip, flood, receiver, silent


def post(poster: HttpPoster, targets: Targets, url: str) -> int:
    async def call() -> int:
        try:
            return await poster.post(targets.read(url), {}, b"{}")
        finally:
            await poster.close()

    return asyncio.run(call())


def test_the_address_that_was_looked_at_is_the_one_that_is_called() -> None:
    """A name server that answers first so and then otherwise is asked once; what it says the second time nobody hears."""
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    with receiver() as there:
        targets = Targets(f"http://hooks.test:{there.port} 127.0.0.1/32")
        url = f"http://hooks.test:{there.port}/"
        assert post(HttpPoster(targets, 2.0, 1, rebinding), targets, url) == 204
        assert there.calls[0].headers["Host"] == f"hooks.test:{there.port}"
        assert next(answers) == ["169.254.169.254"]


@pytest.mark.parametrize("addresses", [["93.184.216.34", "127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"], ["::1"]])
def test_a_name_with_any_address_inside_is_refused(addresses: list[str]) -> None:
    """All are looked at before any is called."""

    async def mixed(host: str, port: int) -> list[str]:
        return addresses

    targets = Targets("http://hooks.test:9")
    with pytest.raises(Forbidden, match=r"hooks\.test leads to"):
        post(HttpPoster(targets, 2.0, 1, mixed), targets, "http://hooks.test:9/")


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    """A name with two addresses, the first of which refuses connections."""

    async def two(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    with receiver() as there:
        targets = Targets(f"http://hooks.test:{there.port} 127.0.0.0/8")
        assert post(HttpPoster(targets, 2.0, 1, two), targets, f"http://hooks.test:{there.port}/") == 204


def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would resolve names itself, and call whom it likes."""
    with receiver() as there, receiver() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.place)
        targets = Targets(there.place)
        assert post(HttpPoster(targets, 2.0, 1), targets, there.place) == 204
    assert (len(there.calls), len(proxy.calls)) == (1, 0)


@pytest.mark.parametrize("answer", [silent(3), drip], ids=["silent", "drip"])
def test_a_slow_receiver_is_left_in_time(answer: Callable[..., None]) -> None:
    """The time of a call has one bound, however the receiver spends it."""
    with receiver(answer) as there:
        targets = Targets(there.place)
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"within 0\.3 s"):
            post(HttpPoster(targets, 0.3, 1), targets, there.place)
        assert time.monotonic() - began < 2.5  # the receiver takes three


def test_a_receiver_that_never_finishes_tls_keeps_no_connection() -> None:
    """Not even until Python's collector of cycles comes by."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        targets = Targets(url)

        async def call() -> int:
            poster = HttpPoster(targets, 1.0, 1)
            with pytest.raises(Unreachable, match="no answer within 1 s"):
                await poster.post(targets.read(f"{url}/"), {}, b"{}")
            there, _ = await asyncio.to_thread(server.accept)
            with there:
                there.settimeout(5)
                return sum(len(part) for part in iter(lambda: there.recv(4096), b""))  # ends where the caller has closed

        gc.disable()
        try:
            assert asyncio.run(call()) > 0, "the greeting of TLS came"
        finally:
            gc.enable()


def test_of_the_answer_only_the_status_is_read() -> None:
    """A receiver that sends without end fills no memory and holds nobody."""
    with receiver(flood) as there:
        targets = Targets(there.place)
        began = time.monotonic()
        assert post(HttpPoster(targets, 5.0, 1), targets, there.place) == 200
        assert time.monotonic() - began < 4  # a call may take five


def test_nobody_there_is_told_as_such() -> None:
    """No listener, and no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = f"http://127.0.0.1:{listener.getsockname()[1]}"
    targets = Targets(free)
    with pytest.raises(Unreachable):
        post(HttpPoster(targets, 2.0, 1), targets, free)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def babble() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"SSH-2.0-x\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=babble)
        thread.start()
        targets = Targets(place)
        with pytest.raises(Unreachable):
            post(HttpPoster(targets, 2.0, 1), targets, place)
        thread.join()


def test_a_silent_name_server_takes_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up cannot be stopped, only left; those that were left keep their places, and others do not pile up behind."""
    asked: list[str] = []
    answers = threading.Event()

    def silent_server(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        answers.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent_server)

    async def calls() -> None:
        names = [f"hooks-{number}.test" for number in range(8)]
        targets = Targets(" ".join(names))
        poster = HttpPoster(targets, 0.5, 8)
        called = [targets.read(f"https://{name}/") for name in names]
        for _ in range(2):
            found = await asyncio.gather(*(poster.post(target, {}, b"") for target in called), return_exceptions=True)
            assert all(isinstance(one, Unreachable) for one in found)
        assert len(asked) == LOOKUPS
        answers.set()
        with pytest.raises(Unreachable, match="has no address"):
            await poster.post(called[0], {}, b"")
        await poster.close()

    asyncio.run(calls())


@pytest.mark.slow
def test_a_name_whose_look_up_hangs_leaves_room_for_others() -> None:
    """However many calls to it wait, or were left; who still waits for it when it ends hears of it."""
    asked: list[str] = []
    answered = defaultdict[str, asyncio.Event](asyncio.Event)
    busy, silent, other = [f"busy-{number}.test" for number in range(LOOKUPS)], ["silent.test"] * 2 * LOOKUPS, ["other.test"]

    async def when_answered(host: str, port: int) -> list[str]:
        asked.append(host)
        await answered[host].wait()
        return []

    async def calls() -> None:
        targets = Targets(" ".join(busy + silent + other))
        poster = HttpPoster(targets, 2.0, 10 * LOOKUPS, when_answered)

        async def fail(names: list[str], why: str) -> None:
            found = await asyncio.gather(
                *(poster.post(targets.read(f"https://{name}/"), {}, b"") for name in names), return_exceptions=True
            )
            assert all(isinstance(one, Unreachable) and why in str(one) for one in found), found

        answered["other.test"].set()
        all_wait = asyncio.gather(fail(busy, "has no address"), fail(silent, "within"), fail(other, "has no address"))
        await asyncio.sleep(0.1)
        for name in busy:
            answered[name].set()
        await all_wait
        await asyncio.gather(fail(silent, "within"), fail(other, "has no address"))
        last = asyncio.create_task(fail(silent, "has no address"))
        await asyncio.sleep(0.1)
        answered["silent.test"].set()
        await last
        await poster.close()

    asyncio.run(calls())
    assert asked == [*busy, "silent.test", *other, *other]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a certificate of hooks.test."""
    folder = tmp_path_factory.mktemp("tls")
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    named = ["-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run([*made, *files, *named], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    ("host", "trusted", "passes"), [("hooks.test", True, True), ("hooks.test", False, False), ("other.test", True, False)]
)
def test_a_certificate_must_be_of_the_name_that_was_asked_for(certificate: Path, host: str, trusted: bool, passes: bool) -> None:
    """Connected to by address, verified by name: an impostor at the right address is found out."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    trust = ssl.create_default_context(cafile=str(certificate / "cert.pem")) if trusted else None

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def call() -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
        port = server.sockets[0].getsockname()[1]
        targets = Targets(f"{host}:{port} 127.0.0.1/32")
        poster = HttpPoster(targets, 5.0, 1, here, trust)
        try:
            return await poster.post(targets.read(f"https://{host}:{port}/"), {}, b"{}")
        finally:
            await poster.close()
            server.close()

    if passes:
        assert asyncio.run(call()) == 204
    else:
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            asyncio.run(call())
