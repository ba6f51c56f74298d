"""API keys: when some are set, whoever asks for anything below ``/v1`` must show one.

A worker knows only the SHA-256 of each key. Keys are 256 random bits, so that nothing slower is needed to protect them.
Several are valid at a time: add the new one, let its users change over, take the old one away. Where none are set, a key
of one's own choice keeps one's jobs apart from others'.
Pure ASGI. Knows: headers and hashes. Does not know: what is asked. ``python -m app.api.keys`` makes a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Unauthorized

BEHIND: Final = "/v1/"
HEADER: Final = "X-API-Key"
SCHEME: Final = "bearer"
ANYBODY: Final = ""
"""The owner of what was asked for without a key."""
PREFIX: Final = "kronos-"  # so that a key that has leaked can be recognised
KEY_BYTES: Final = 32


class RequireKey:
    """ASGI middleware that lets nobody without a valid key pass, before anything of the request's body is read."""

    def __init__(self, app: ASGIApp, hashes: str) -> None:
        """``hashes``: SHA-256 of the valid keys in hex, with commas or blanks between them."""
        self.app = app
        self._hashes = re.findall("[0-9a-f]{64}", hashes.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(BEHIND):
            self._check(shown(Headers(scope=scope)))
        await self.app(scope, receive, send)

    def _check(self, key: str | None) -> None:
        if key is None:
            raise Unauthorized(f"this needs an API key, in Authorization: Bearer KEY or in {HEADER}")
        found = hash_of(key)
        # All are compared, each in constant time: how long it takes says nothing about any of them.
        if not sum(hmac.compare_digest(found, valid) for valid in self._hashes):
            raise Unauthorized("this API key is not valid here", fault="invalid_token")


def shown(headers: Headers) -> str | None:
    """The key in the headers of a request, if there is one."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return (key.strip() if scheme.lower() == SCHEME else headers.get(HEADER)) or None


def owner_of(request: Request) -> str:
    """Who asks: the hash of the key that is shown, else ``ANYBODY``."""
    key = shown(request.headers)
    return hash_of(key) if key else ANYBODY


def hash_of(key: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


if __name__ == "__main__":
    key = new_key()
    print(f"key (for who asks): {key}\nhash (for KRONOS_API_KEYS): {hash_of(key)}")
