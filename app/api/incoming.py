"""The request as it arrives: headers that can be refused at once, the body within its limits, the client's leaving.

Knows: ASGI messages. Does not know: what a body means.
"""

from __future__ import annotations

import asyncio
from typing import Final, get_args

from starlette.requests import Request
from starlette.types import Receive

from app.api.schema import Priority
from app.errors import BodyTimeout, Cancelled, InvalidInput, TooLarge, UnsupportedMediaType

PRIORITY_HEADER: Final = "x-priority"
MEDIA_TYPE: Final = "application/json"
GONE: Final = "disconnected"  # label of kronos_cancelled_total


def check_headers(request: Request, max_bytes: int) -> Priority:
    """The priority that the headers ask for. Raises UnsupportedMediaType, TooLarge, InvalidInput."""
    headers = request.headers
    media_type = headers.get("content-type", MEDIA_TYPE).partition(";")[0].strip().lower()
    if media_type != MEDIA_TYPE:
        raise UnsupportedMediaType(f"the body must be {MEDIA_TYPE}, not {media_type[:80]}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("the body must not be compressed")
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    asked = headers.get(PRIORITY_HEADER, "interactive")
    for priority in get_args(Priority):
        if asked == priority:
            return priority  # type: ignore[no-any-return]  # one of the literals
    raise InvalidInput([("", f"the header X-Priority must be one of {', '.join(get_args(Priority))}")])


async def read_body(receive: Receive, max_bytes: int, timeout: float) -> bytes:
    """The whole body. Raises TooLarge, BodyTimeout after ``timeout`` seconds, Cancelled when the client leaves."""
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Cancelled(GONE)
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError as error:
        raise BodyTimeout(f"the body did not arrive within {timeout:g} s") from error


async def wait_until_gone(receive: Receive) -> str:
    """Return when the client has left, with the word for that. To be called once the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return GONE


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body has more than {max_bytes} bytes; send fewer series or candles at once")
