"""What docker-compose.yml, .env and the environment come to, read into a shape of our own.

Knows: the document of ``docker compose config --format json``. Does not know: what runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fleet.compose.commands import NGINX, WORKER
from fleet.settings import is_setting

SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
STOP_GRACE_S = 10.0
"""Docker's own, where nothing is said."""
PROXY_READ_TIMEOUT_S = 60.0
"""nginx's own."""


@dataclass(frozen=True)
class Project:
    """The fleet as it should be. ``settings`` are those given to workers; memory in bytes (0: no limit)."""

    services: Mapping[str, Mapping[str, Any]]
    replicas: int
    image: str
    memory: int
    cpus: float
    settings: Mapping[str, str]
    accepts: frozenset[str]
    """Every setting that would reach a worker."""
    address: str
    port: int
    read_timeout_s: float
    grace_s: float

    @property
    def rest(self) -> list[str]:
        """The services beside the workers."""
        return [name for name in self.services if name != WORKER]

    @property
    def contact(self) -> str:
        """The address at which this machine reaches nginx."""
        return "127.0.0.1" if self.address in {"", "0.0.0.0"} else self.address

    def mounts(self, service: str) -> list[tuple[Path, PurePosixPath]]:
        """(folder or file of this host, where the service sees it)."""
        volumes = self.services[service].get("volumes", [])
        return [(Path(v["source"]), PurePosixPath(v["target"])) for v in volumes if v["type"] == "bind"]

    def on_host(self, service: str, path: str) -> Path | None:
        """Where a path of the service's containers is on this host; None for what only the image has."""
        for source, target in self.mounts(service):
            if PurePosixPath(path).is_relative_to(target):
                return source / PurePosixPath(path).relative_to(target)
        return None


def read(document: Mapping[str, Any]) -> Project:
    """Raises KeyError for a document without the services worker and nginx."""
    worker, nginx = document["services"][WORKER], document["services"][NGINX]
    environment: Mapping[str, Any] = worker.get("environment") or {}
    deploy = worker.get("deploy", {})
    limits = deploy.get("resources", {}).get("limits", {})
    ports: Sequence[Mapping[str, Any]] = nginx.get("ports", [{}])
    return Project(
        services=document["services"],
        replicas=int(deploy.get("replicas", 1)),
        image=worker["image"],
        memory=int(limits.get("memory", 0)),
        cpus=float(limits.get("cpus", 0)),
        settings={key: str(value) for key, value in environment.items() if is_setting(key) and value is not None},
        accepts=frozenset(environment),
        address=ports[0].get("host_ip", ""),
        port=int(ports[0].get("published", 0)),
        read_timeout_s=seconds((nginx.get("environment") or {}).get("PROXY_READ_TIMEOUT"), PROXY_READ_TIMEOUT_S),
        grace_s=seconds(worker.get("stop_grace_period"), STOP_GRACE_S),
    )


def seconds(text: str | None, default: float) -> float:
    """Of a duration such as "45s", "1m30s" or "45"; ``default`` for none. Raises ValueError for anything else."""
    if text is None:
        return default
    if re.fullmatch(r"[\d.]+", text):
        return float(text)
    parts = re.findall(r"([\d.]+)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise ValueError(f"{text} is not a duration such as 45s")
    return sum(float(number) * SECONDS[unit] for number, unit in parts)


def names(env_file: str) -> list[str]:
    """The variables that a .env file sets."""
    found = (re.match(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=", line) for line in env_file.splitlines())
    return [match[1] for match in found if match]
