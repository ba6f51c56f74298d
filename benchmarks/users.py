"""Closed-loop users: each sends, waits for the answer, thinks, sends again, on one keep-alive connection. Or an open loop:
requests arrive at a constant rate, whatever became of those before.

Knows: HTTP/1.1 as far as a client of the fleet needs it (about 0.1 ms of CPU a request, so that the generator is
not the limit), and how an exchange can fail. Does not know: what a right answer is; a check is given with each
request. A connection that the server closed while it was idle is opened again, as every client does; one that
breaks after a request was sent is a failure.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Check = Callable[[bytes], str]
"""What is wrong with the body of a 200, "" for nothing."""


@dataclass(frozen=True)
class Request:
    """One POST and how to judge its answer."""

    path: str
    body: bytes
    check: Check


@dataclass(frozen=True)
class Exchange:
    """What happened: begin (s since the run's), duration (s), status (0 = none), what failed ("" = nothing)."""

    begun: float
    seconds: float
    status: int
    failure: str
    served_by: str


@dataclass(frozen=True)
class Load:
    """How many users, how long, how they think (s, uniform), how long they wait for an answer (s).

    With a ``rate`` (1/s) it is an open loop: nobody thinks, and ``users`` are the connections it begins with.
    """

    host: str
    port: int
    users: int
    seconds: float
    pause: tuple[float, float] = (0.5, 2.0)
    timeout: float = 60.0
    seed: int = 1
    rate: float = 0.0


@dataclass
class Connection:
    """One keep-alive connection, opened when needed."""

    host: str
    port: int
    _reader: asyncio.StreamReader | None = field(default=None, repr=False)
    _writer: asyncio.StreamWriter | None = field(default=None, repr=False)

    async def post(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case), body. Raises OSError or EOFError when the connection breaks."""
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self.close()
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port, limit=2**24)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        content = await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), headers, content

    def close(self) -> None:
        """Safe to repeat."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def exchange(connection: Connection, request: Request, timeout: float, zero: float, due: float | None = None) -> Exchange:
    """Send one request and judge the answer. The time counts from when it was ``due``, by default now."""
    begun = time.perf_counter() if due is None else due
    status, served_by = 0, ""
    try:
        status, headers, body = await asyncio.wait_for(connection.post(request.path, request.body), timeout)
        served_by = headers.get("x-served-by", "")
        failure = request.check(body) if status == 200 else f"status {status}"
        if status in (429, 503) and "retry-after" not in headers:
            failure += " without Retry-After"
    except TimeoutError:
        failure = "timeout"
    except (OSError, EOFError) as error:
        failure = type(error).__name__
    if failure and status == 0:
        connection.close()
    return Exchange(begun - zero, time.perf_counter() - begun, status, failure, served_by)


async def run(load: Load, requests: Sequence[Request], stopped: Callable[[], bool] = lambda: False) -> list[Exchange]:
    """All exchanges of a run, in the order of their end. Each user draws requests and pauses of its own.

    Nobody begins another exchange after ``load.seconds``, or once ``stopped`` says so.
    """
    if load.rate:
        return await arrivals(load, requests, stopped)
    zero = time.perf_counter()
    done: list[Exchange] = []

    async def user(number: int) -> None:
        own = random.Random(load.seed * 1000 + number)
        connection = Connection(load.host, load.port)
        await asyncio.sleep(own.uniform(0, load.pause[1]))
        while time.perf_counter() - zero < load.seconds and not stopped():
            done.append(await exchange(connection, own.choice(requests), load.timeout, zero))
            await asyncio.sleep(own.uniform(*load.pause))
        connection.close()

    await asyncio.gather(*(user(number) for number in range(load.users)))
    return done


async def arrivals(load: Load, requests: Sequence[Request], stopped: Callable[[], bool]) -> list[Exchange]:
    """The open loop: one exchange begins every 1/rate s, over another connection when all are busy. None is dropped, and
    one that begins late counts from when it was due, so a server that stalls cannot hide it.
    """
    own = random.Random(load.seed)
    idle = [Connection(load.host, load.port) for _ in range(load.users)]
    zero = time.perf_counter()
    done: list[Exchange] = []
    under_way: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        connection = idle.pop() if idle else Connection(load.host, load.port)
        done.append(await exchange(connection, own.choice(requests), load.timeout, zero, due))
        idle.append(connection)

    due = zero
    while due - zero < load.seconds and not stopped():
        await asyncio.sleep(due - time.perf_counter())
        task = asyncio.create_task(one(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        due += 1 / load.rate
    await asyncio.gather(*under_way)
    for connection in idle:
        connection.close()
    return done
