"""Posting a document to a target, at an address that was looked at.

The name is resolved once for each connection, or for those made at the same time, every address it has is judged, and the
connection is made to one of these very addresses: a name that changes between the look and the call gains nothing. Redirects
are not followed, no proxy is taken from the environment, and of the answer only the status is read.
Knows: DNS, HTTP. Does not know: what is posted, or when again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import httpcore2 as http

from app.jobs.targets import Target, Targets
from app.jobs.webhooks import Forbidden, Unreachable

LOOKUPS: Final = 2
"""Names looked up at a time: a name server that is silent must not take all threads of the pool ``io``."""

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of ``host``. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class HttpPoster:
    """Posts to targets of the list. Belongs to one event loop."""

    def __init__(
        self, targets: Targets, timeout_s: float, lanes: int, resolve: Resolve = resolve, trust: ssl.SSLContext | None = None
    ) -> None:
        """``timeout_s``: for one call, from the look-up of the name to the status. ``lanes``: calls at a time."""
        self._timeout_s = timeout_s
        self._pool = http.AsyncConnectionPool(
            ssl_context=trust or http.default_ssl_context(), max_connections=lanes, max_keepalive_connections=0,
            network_backend=_Guarded(targets, resolve),
        )  # fmt: skip

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the answer. Raises Forbidden or Unreachable."""
        scheme, host, port = target.origin
        url = http.URL(scheme=scheme, host=host, port=port, target=target.path)
        named = {"Host": target.origin.place, **headers}
        connections: list[http.AsyncNetworkStream] = []

        async def on_event(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                connections.append(info["return_value"])

        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._pool.stream(
                    "POST", url, headers=list(named.items()), content=body, extensions={"trace": on_event}
                ) as answer,
            ):
                return answer.status
        except TimeoutError as error:
            raise Unreachable(f"no answer within {self._timeout_s:g} s") from error
        except (http.NetworkError, http.ProtocolError, http.TimeoutException, OSError) as error:
            raise Unreachable(f"{type(error).__name__} {error}".strip()) from error
        finally:
            for connection in connections:
                await connection.aclose()  # the pool forgets one whose TLS was cut short, and leaves it open

    async def close(self) -> None:
        await self._pool.aclose()


class _Guarded(http.AsyncNetworkBackend):
    """Connects by TCP to permitted addresses, and to nothing else."""

    def __init__(self, targets: Targets, resolve: Resolve) -> None:
        self._targets = targets
        self._resolve = resolve
        self._network = http.AnyIOBackend()
        self._places = asyncio.Semaphore(LOOKUPS)
        self._asked: dict[str, asyncio.Future[list[str]]] = {}

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> http.AsyncNetworkStream:  # fmt: skip
        addresses = await self._look_up(host, port)
        for address in addresses:
            if not self._targets.permits(address):
                raise Forbidden(f"{host} leads to {address}, which is neither public nor in KRONOS_WEBHOOK_TARGETS")
        failed: Exception = OSError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except http.ConnectError as error:
                failed = error
        raise failed

    async def _look_up(self, host: str, port: int) -> list[str]:
        """The addresses of ``host``. A look-up that nobody waits for any more keeps its place until it ends.

        A name has one place at most: one whose name server is silent leaves the others to other names.
        """
        if host not in self._asked:
            await self._places.acquire()
            if host in self._asked:  # meanwhile
                self._places.release()
            else:
                found = self._asked[host] = asyncio.ensure_future(self._resolve(host, port))
                found.add_done_callback(partial(self._free, host))
        return await asyncio.shield(self._asked[host])

    def _free(self, host: str, found: asyncio.Future[list[str]]) -> None:
        del self._asked[host]
        self._places.release()
        if not found.cancelled():
            found.exception()  # it was told to whoever still waited

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
