"""Workers that do what a test says, behind a real nginx: a few lines of HTTP/1.1, on loopback addresses.

Knows: how to listen, answer, drain and die; notes every request and every connection. Does not know: gunicorn, the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as a worker saw it; ``connection`` counts the connections that this worker accepted."""

    worker: int
    connection: int
    method: str
    path: str
    version: str
    headers: Mapping[str, str]
    body: bytes


Behaviour = Callable[[Asked], Awaitable[bytes | None]]
"""The raw answer; None breaks the connection."""


def answer(status: int = 200, body: bytes = b'{"ok":true}', **headers: str) -> bytes:
    """A raw HTTP answer; ``retry_after="3"`` is the header Retry-After."""
    named = {"Content-Type": "application/json", "Content-Length": str(len(body)), "X-Served-By": "w"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body


async def well(asked: Asked) -> bytes | None:
    """Says which worker answered."""
    return answer(x_served_by=f"worker-{asked.worker}")


@dataclass
class Workers:
    """Worker n listens on 127.0.0.(10+n), all on one port, like containers."""

    port: int
    behave: Behaviour = well
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _servers: dict[int, asyncio.Server] = field(default_factory=dict)
    _open: dict[int, set[asyncio.StreamWriter]] = field(default_factory=dict)
    _answering: set[asyncio.StreamWriter] = field(default_factory=set)

    @staticmethod
    def address(number: int) -> str:
        return f"127.0.0.{10 + number}"

    def do(self, work: Awaitable[Any]) -> Any:
        """Run it where the workers live."""

        async def run() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def start(self, number: int) -> None:
        """Begin to listen."""
        serve = lambda reader, writer: self.serve(number, reader, writer)  # noqa: E731
        self._open[number] = set()
        self._servers[number] = await asyncio.start_server(serve, self.address(number), self.port, limit=2**26)

    async def refuse(self, number: int) -> None:
        """Accept no more. What was accepted a moment ago is begun first: asyncio loses a connection, and leaves it open, whose
        server is closed before."""
        server = self._servers.pop(number)
        for listening in server.sockets:
            self._loop.remove_reader(listening)
        await asyncio.sleep(0)
        server.close()

    async def kill(self, number: int) -> None:
        """Refuse connections, and break those that are open."""
        await self.refuse(number)
        for writer in self._open.pop(number):
            writer.transport.abort()

    async def drain(self, number: int) -> None:
        """As SIGTERM does to a worker: refuse connections, close idle ones at once and the others after their answer."""
        await self.refuse(number)
        for writer in self._open[number] - self._answering:
            writer.close()

    def listening(self) -> list[int]:
        """The workers that accept connections."""
        return list(self._servers)

    async def serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        self.connections += 1
        connection = self.connections
        self._open[number].add(writer)
        with suppress(OSError, EOFError, asyncio.CancelledError):  # cancelled by ``end``
            while number in self._servers:
                asked = await read(number, connection, reader)
                self._answering.add(writer)
                self.asked.append(asked)
                raw = await self.behave(asked)
                if raw is None:
                    break
                writer.write(raw)
                await writer.drain()
                self._answering.discard(writer)
        self._open.get(number, set()).discard(writer)
        self._answering.discard(writer)
        writer.close()

    def run(self) -> None:
        """Until ``stop``."""
        self._loop.run_forever()
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def idle(self) -> bool:
        """Every answer that was begun has been taken off the worker."""
        return not any(writer.transport.get_write_buffer_size() for each in self._open.values() for writer in each)

    def open(self) -> int:
        """Connections that nginx keeps to them."""
        return sum(map(len, self._open.values()))

    async def end(self) -> None:
        """Nobody listens, nobody is answered."""
        for number in list(self._servers):
            await self.kill(number)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def read(worker: int, connection: int, reader: asyncio.StreamReader) -> Asked:
    """One request. Raises EOFError when there is none."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, path, version = lines[0].split(" ", 2)
    return Asked(worker, connection, method, path, version, headers, body)
