"""A receiver of webhooks on 127.0.0.1 that does what a test wants, and remembers.

Knows: HTTP. Does not know: what is sent to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler, int], None]
"""Answers one call; the number counts from 1."""


@dataclass
class Received:
    """One call as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Receiver:
    """What came, and where to send."""

    port: int
    calls: list[Received] = field(default_factory=list)

    @property
    def place(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def status(*codes: int, **headers: str) -> Answer:
    """Answer with these, one after the other, the last one for ever."""

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(codes[min(number, len(codes)) - 1])
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def silent(seconds: float) -> Answer:
    """Say nothing for so long."""

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(seconds)

    return answer


def drip(handler: BaseHTTPRequestHandler, number: int) -> None:
    """Begin an answer and never finish its headers."""
    handler.send_response(200)
    handler.flush_headers()
    for count in range(200):
        handler.send_header(f"X-{count}", "x")
        handler.flush_headers()
        time.sleep(0.05)


def flood(handler: BaseHTTPRequestHandler, number: int) -> None:
    """Answer 200, then send a body without an end."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 2**16)


TAKEN = status(204)


@contextmanager
def receiver(answer: Answer = TAKEN) -> Iterator[Receiver]:
    """Listens until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.calls.append(Received(self.path, dict(self.headers), body, time.monotonic()))
            with suppress(OSError):  # the caller may have gone
                answer(self, len(found.calls))

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Receiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
