"""A fleet of real containers for tests: the project's docker-compose.yml under another project name and port.

Knows: how to start it, ask it, look at its containers, ask its Prometheus, put it under load. Does not know: what
should happen. Grafana is left out: its image cannot be had everywhere the tests run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fleet import Judge, ask_alone, bodies
from benchmarks.users import Request
from fleet.host import Answer
from tests.fleet.live import Traffic, ask, load

ROOT = Path(__file__).resolve().parents[2]
COMMAND_TIMEOUT_S = 1000
"""Long enough for the build of an image on a slow machine; a test has its own patience."""
NO_GRAFANA = "services: { grafana: { profiles: [elsewhere] } }\n"


def missing_engine() -> str:
    """Why containers cannot be had here; empty when they can."""
    if shutil.which("docker") is None:
        return "there is no docker"
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True, check=False)
    if done.returncode:
        return "docker has no compose plugin"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    return f"no container engine runs: {done.stderr.strip()[-200:]}" if done.returncode else ""


def command(*argv: str, env: dict[str, str] | None = None) -> str:
    """Run to its end, return standard output. Raises RuntimeError with what it said."""
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} → {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


@dataclass(frozen=True)
class Container:
    """One container as ``docker inspect`` shows it."""

    facts: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return str(self.facts["Id"])

    @property
    def host_name(self) -> str:
        """What a worker puts into ``X-Served-By``."""
        return str(self.facts["Config"]["Hostname"])

    @property
    def name(self) -> str:
        return str(self.facts["Name"]).lstrip("/")

    @property
    def address(self) -> str:
        return next(str(network["IPAddress"]) for network in self.facts["NetworkSettings"]["Networks"].values())

    @property
    def healthy(self) -> bool:
        return bool(self.facts["State"].get("Health", {}).get("Status") == "healthy")


@dataclass
class Stack:
    """One Compose project. ``folder`` holds its copy of docker-compose.yml, to be edited as an operator would."""

    project: str
    port: int
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copy(ROOT / "docker-compose.yml", self.file)
        (self.folder / "no-grafana.yml").write_text(NO_GRAFANA)

    @property
    def file(self) -> Path:
        return self.folder / "docker-compose.yml"

    @property
    def files(self) -> tuple[Path, Path]:
        """What Compose reads, the later over the earlier."""
        return self.file, self.folder / "no-grafana.yml"

    @property
    def environment(self) -> dict[str, str]:
        """The dials: of .env, given by the environment, which comes first. Nothing is answered from the result cache, since the
        same few requests are asked again and again of workers that are to be at work."""
        return {"TORCH_INDEX": "none", "KRONOS_CACHE_TTL": "0", **self.env, "PUBLISH_PORT": str(self.port)}

    def compose(self, *arguments: str) -> str:
        """``docker compose …`` of this project."""
        files = [part for file in self.files for part in ("-f", str(file))]
        return command(
            "docker", "compose", "--project-directory", str(ROOT), *files, "-p", self.project, *arguments, env=self.environment
        )

    def edit_replicas(self, workers: int) -> None:
        """What an operator does in an editor."""
        text, edits = re.subn(r"(?m)^(\s+replicas: )\d+$", rf"\g<1>{workers}", self.file.read_text())
        if edits != 1:
            raise RuntimeError(f"docker-compose.yml has {edits} lines with `replicas: N`")
        self.file.write_text(text)

    def up(self, workers: int) -> None:
        """``replicas: workers``, then ``docker compose up -d``, then wait until all that has a health check is healthy."""
        self.edit_replicas(workers)
        self.compose("up", "-d", "--no-build", "--wait")

    def down(self) -> None:
        """Nothing of the project is left."""
        self.compose("down", "--volumes", "--timeout", "5", "--remove-orphans")

    def containers(self, service: str = "worker") -> list[Container]:
        """Running and paused containers of a service, by name; without those that go while they are looked at."""
        ids = self.compose("ps", "--quiet", service).split()
        if not ids:
            return []
        argv = ["docker", "inspect", *ids]
        looked = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
        found = [Container(facts) for facts in json.loads(looked.stdout)]
        return sorted(found, key=lambda container: (len(container.name), container.name))

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One request through the door."""
        return ask(self.port, method, path, body)

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The instant vector (or the scalar as one sample) that the live Prometheus answers."""
        parameters = urllib.parse.urlencode({"query": promql})
        answer = self.prometheus(f"/api/v1/query?{parameters}")["data"]
        if answer["resultType"] == "scalar":
            return [{"metric": {}, "value": answer["result"]}]
        result: list[dict[str, Any]] = answer["result"]
        return result

    def prometheus(self, path: str) -> dict[str, Any]:
        """A JSON document of Prometheus's HTTP API. Raises RuntimeError with Prometheus's own words."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/prometheus{path}", timeout=20) as answer:
                document: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path} → {error.code} {error.read().decode(errors='replace')[:500]}") from error
        return document

    def requests(self, lookback: int = 64, horizon: int = 4, different: int = 12) -> list[Request]:
        """Forecasts whose right answers are known: each was asked alone before."""
        asked = bodies(lookback, horizon, different)
        alone = asyncio.run(ask_alone("127.0.0.1", self.port, asked))
        judge = Judge()
        return [judge.request(body, answer) for body, answer in zip(asked, alone, strict=True)]

    @contextmanager
    def load(self, requests: Sequence[Request], users: int = 6, pause: tuple[float, float] = (0.02, 0.1)) -> Iterator[Traffic]:
        """Closed-loop users through the door for as long as the block lasts; each answer is compared."""
        with load(self.port, requests, users, pause) as traffic:
            yield traffic


def wait_until(check: Callable[[], bool], timeout_s: float, every_s: float = 0.25) -> float:
    """Seconds until ``check`` was true; raises TimeoutError."""
    began = time.monotonic()
    while not check():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"not within {timeout_s} s")
        time.sleep(every_s)
    return time.monotonic() - began
