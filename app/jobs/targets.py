"""Where webhooks may go: targets that the operator has listed, at public addresses or at listed ones.

A client chooses the URL that a worker calls. Without a list it could make workers talk to whatever they can reach, and a
name that is listed may resolve to an address inside. Knows: URLs and addresses. Does not know: DNS, HTTP.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import urlsplit

LONGEST_URL: Final = 2000
PORTS: Final = {"https": 443, "http": 80}
URL: Final = re.compile(r"[!-~]+", re.ASCII)
PLACE: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::(\d{1,5}))?", re.ASCII)
# Python takes (most of) these for public, but a gateway may lead from them to an address inside: IPv4 within IPv6, and the
# site-local addresses of old.
DOUBTFUL: Final = tuple(
    map(ipaddress.ip_network, ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "fec0::/10"))
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Origin(NamedTuple):
    """Whom to talk to. ``host``: a name in lower case, or an address in its usual form."""

    scheme: str
    host: str
    port: int

    @property
    def place(self) -> str:
        """``HOST`` or ``HOST:PORT``, as the header Host has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"


@dataclass(frozen=True)
class Target:
    """A URL in parts, read once, so that what is checked is what is called."""

    origin: Origin
    path: str  # with the query


class Targets:
    """The operator's list, with commas or blanks between the entries.

    ``HOST`` or ``HOST:PORT``: by https; with ``http://`` in front, in the clear. An address in place of a name is thereby
    permitted, public or not. ``NETWORK/BITS``: listed names may resolve into it.
    """

    def __init__(self, text: str) -> None:
        """Raises ValueError naming the entry that is neither."""
        self._origins: set[Origin] = set()
        self._networks: list[Network] = []
        for entry in re.split(r"[\s,]+", text.strip()):
            self._add(entry.lower())

    def _add(self, entry: str) -> None:
        scheme, mark, rest = entry.rpartition("://")
        try:
            if "/" in rest and not mark:
                self._networks.append(ipaddress.ip_network(rest))
                return
            origin = _origin(scheme or "https", rest)
        except ValueError as error:
            raise ValueError(f"{entry!r} is no HOST, HOST:PORT or NETWORK/BITS: {error}") from error
        self._origins.add(origin)
        if address := _address(origin.host):
            self._networks.append(ipaddress.ip_network(address))

    def read(self, url: str) -> Target:
        """The parts of ``url``. Raises ValueError saying why it is no target."""
        if len(url) > LONGEST_URL or not URL.fullmatch(url) or "\\" in url:
            raise ValueError(f"must be a URL of at most {LONGEST_URL} printable ASCII characters")
        parts = urlsplit(url)
        if parts.fragment:
            raise ValueError("must not have a fragment")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target = Target(_origin(parts.scheme, parts.netloc), path)
        if target.origin not in self._origins:
            raise ValueError("is not among the targets that this service may call (KRONOS_WEBHOOK_TARGETS)")
        return target

    def permits(self, address: str) -> bool:
        """Whether a connection may be made to ``address``: a public one, or a listed one."""
        found = ipaddress.ip_address(address)
        if any(found in network for network in self._networks):
            return True
        doubtful = found.is_multicast or any(found in network for network in DOUBTFUL)
        return found.is_global and not doubtful


def origin(url: str) -> Origin:
    """Whom ``url`` leads to, listed or not. Raises ValueError."""
    parts = urlsplit(url)
    return _origin(parts.scheme, parts.netloc)


def _origin(scheme: str, place: str) -> Origin:
    """Whom ``SCHEME://HOST[:PORT]`` names. Raises ValueError; a name and password before the host are refused too."""
    if scheme not in PORTS:
        raise ValueError("must begin with https:// or http://")
    found = PLACE.fullmatch(place.lower())
    port = int(found[2] or PORTS[scheme]) if found else 0
    if not found or not 0 < port < 2**16:
        raise ValueError("must have a HOST or HOST:PORT and no password")
    host = found[1].strip("[]")
    return Origin(scheme, str(_address(host) or host), port)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
