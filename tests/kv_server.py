"""A real Valkey or Redis for the tests, and servers that are none: silent, slow, absent.

Knows: how to start, stop and stall one on a free port of 127.0.0.1. Does not know: what it is used for.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.serving import until

PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server")
WHY_NOT = "" if PROGRAM else "needs valkey-server or redis-server on PATH (Debian packages of these names)"


@dataclass
class KeyValueServer:
    """A running server; what it holds outlives it only if its options say so."""

    port: int
    command: list[str]
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def stall(self) -> None:
        """Go on listening and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start it again, at the same port and with what it kept."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        assert until(lambda: _answers(self.port))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    return False


@contextmanager
def key_value_server(*options: str) -> Iterator[KeyValueServer]:
    """A server of one's own, gone at the end, however it comes."""
    port = free_port()
    command = [PROGRAM or "", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *options]
    server = KeyValueServer(port, command, subprocess.Popen(command, stdout=subprocess.DEVNULL))
    try:
        assert until(lambda: _answers(port))
        yield server
    finally:
        server.kill()


@dataclass
class BlackHole:
    """Accepts connections, reads what comes and never answers."""

    port: int
    accepted: int = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


@contextmanager
def black_hole() -> Iterator[BlackHole]:
    """A server that is there and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hole = BlackHole(listener.getsockname()[1])
        kept = []

        def swallow() -> None:
            with suppress(OSError):
                while True:
                    kept.append(listener.accept()[0])
                    hole.accepted += 1

        thread = threading.Thread(target=swallow, daemon=True)
        thread.start()
        yield hole
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in kept:
            connection.close()


@contextmanager
def slowed(port: int, delay_s: float) -> Iterator[str]:
    """The URL of a way to ``port`` on which every answer takes ``delay_s`` longer."""
    loop = asyncio.new_event_loop()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                await asyncio.sleep(delay)
                writer.write(data)
        writer.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, back, 0.0), carry(there, writer, delay_s))

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(between, "127.0.0.1", 0)

    server = loop.run_until_complete(listen())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def end() -> None:
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
