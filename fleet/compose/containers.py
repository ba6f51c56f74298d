"""What the engine says of containers, read into a shape of our own.

Knows: the documents of ``docker inspect`` and ``docker stats``. Does not know: how they are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fleet.compose.commands import LABEL, NGINX, WORKER
from fleet.runtime import READY

GONE = {"created", "exited", "dead", "removing"}
"""States in which nothing runs and nothing will by itself."""
UNITS = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Container:
    """One container of the fleet. ``status`` and ``health`` (None without a check) are the engine's words."""

    id: str
    full_name: str
    service: str
    number: int
    status: str
    health: str | None
    exit_code: int
    restarts: int
    image: str
    config_hash: str
    started: float
    """Seconds since the epoch."""
    published: tuple[str, int] | None = None

    @property
    def name(self) -> str:
        """As an operator says it: worker-3, nginx."""
        return f"{self.service}-{self.number}" if self.service == WORKER else self.service

    @property
    def short_id(self) -> str:
        """The host name inside, and so the ``X-Served-By`` of its answers."""
        return self.id[:12]

    @property
    def state(self) -> str:
        """One word: ready, starting, unhealthy, paused, restarting, exited (3), …"""
        if self.status == "running":
            return {"healthy": READY, None: READY}.get(self.health, self.health or "")
        return f"{self.status} ({self.exit_code})" if self.status == "exited" else self.status


def read(text: str) -> list[Container]:
    """From ``docker inspect``, in order of service and number."""
    found = [_read(each) for each in json.loads(text)]
    order = {WORKER: 0, NGINX: 1}
    return sorted(found, key=lambda each: (order.get(each.service, 2), each.service, each.number))


def _read(document: Mapping[str, Any]) -> Container:
    labels, state = document["Config"]["Labels"], document["State"]
    bound = [b for places in (document["NetworkSettings"].get("Ports") or {}).values() for b in places or ()]
    return Container(
        id=document["Id"],
        full_name=document["Name"].lstrip("/"),
        service=labels[f"{LABEL}.service"],
        number=int(labels[f"{LABEL}.container-number"]),
        status=state["Status"],
        health=(state.get("Health") or {}).get("Status"),
        exit_code=state["ExitCode"],
        restarts=document["RestartCount"],
        image=document["Image"],
        config_hash=labels[f"{LABEL}.config-hash"],
        started=_seconds(state["StartedAt"]),
        published=(bound[0]["HostIp"], int(bound[0]["HostPort"])) if bound else None,
    )


def _seconds(moment: str) -> float:
    """RFC 3339 with nanoseconds; the engine's "never" is the year 1."""
    if moment.startswith("0001"):
        return 0.0
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", moment).replace("Z", "+00:00")).timestamp()


def memory(text: str) -> dict[str, int]:
    """Bytes by full name, from the lines of ``docker stats``."""
    rows = (json.loads(line) for line in text.splitlines() if line.strip())
    return {row["Name"]: amount(row["MemUsage"].split("/")[0]) for row in rows}


def amount(text: str) -> int:
    """Bytes of "3.953MiB"; 0 for what says nothing ("--")."""
    found = re.fullmatch(r"([\d.]+)([A-Za-z]+)", text.strip())
    return int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
