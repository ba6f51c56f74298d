"""A container engine that follows a script, with a clock that only moves when somebody waits.

Knows: the few ``docker`` commands that the fleet uses, and what a history says of each container: when it is healthy,
when it ends. Does not know: real containers. ``journal`` keeps what was changed, in order, in words.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from fleet.compose.commands import LABEL, Place
from fleet.compose.engine import Engine
from fleet.compose.runtime import Containers
from fleet.desk import Desk
from fleet.host import CALL_TIMEOUT_S, LOOK_EVERY_S, Answer, CommandFailed, Env, Heard, Host, wait
from fleet.state import Folders

ROOT = Path(__file__).resolve().parents[2]
RUN = Path("run")
NEVER = float("inf")
MEMORY = 16 * 2**30
NGINX_NUMBER = 0


@dataclass(frozen=True)
class Life:
    """One container by script; seconds from its start."""

    healthy_after: float = 5.0
    ends_after: float = NEVER
    unhealthy_after: float = NEVER
    says: str = ""


@dataclass
class Box:
    """One container of the engine; number 0 is nginx."""

    number: int
    life: Life
    born: float
    image: str
    hash: str
    status: str = "running"

    @property
    def name(self) -> str:
        return "kronos-nginx-1" if self.number == NGINX_NUMBER else f"kronos-worker-{self.number}"


def document(replicas: int = 2, **nginx: Any) -> dict[str, Any]:
    """What ``docker compose config --format json`` says of a small fleet."""
    limits = {"cpus": 1, "memory": str(2**30)}
    worker = {
        "image": "kronos:dev", "build": {"context": "."}, "environment": {"KRONOS_SLOTS": "8", "KRONOS_MODEL": None},
        "deploy": {"replicas": replicas, "resources": {"limits": limits}}, "stop_grace_period": "45s", "volumes": [],
    }  # fmt: skip
    door = {"host_ip": "127.0.0.1", "target": 8080, "published": "8080"}
    return {
        "services": {
            "worker": worker,
            "nginx": {"image": "nginx:1", "ports": [door], "environment": {"PROXY_READ_TIMEOUT": "34s"}, **nginx},
        }
    }


@dataclass
class Docker:
    """``lives`` by number of the worker. ``refuses`` maps words of a command to what docker says against it."""

    lives: Mapping[int, Life] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=document)
    refuses: dict[str, str] = field(default_factory=dict)
    absent: bool = False
    starts_nothing: bool = False
    image: str = "sha256:one"
    hash: str = "one"
    when: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    clock: float = 0.0
    boxes: list[Box] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    files: dict[Path, str] = field(default_factory=dict)

    def note(self, text: str) -> None:
        self.journal.append(text)
        if text in self.when:
            self.when[text]()

    def ask(self, argv: Sequence[str], env: Env = None, cwd: Path | None = None) -> str:
        self._refuse(argv)
        words = set(argv)
        if "inspect" in argv[1:3] and "image" not in words:
            return json.dumps([self._facts(box) for box in self.boxes if box.name in argv])
        if argv[1] == "ps":
            return "" if "publish=8080" in words else "\n".join(box.name for box in self.boxes)
        answers = {
            "config": json.dumps(self.config), "--hash": f"worker {self.hash}\nnginx {self.hash}\n", "image": f"{self.image}\n",
            "info": str(MEMORY), "version": "2.40.3", "exec": "kronos_concurrent_requests 1\n",
        }  # fmt: skip
        keys = ["--hash", "image", "config", "info", "exec", "version"]
        return next(answers[key] for key in keys if key in words)

    def call(self, argv: Sequence[str], env: Env = None, timeout_s: float = CALL_TIMEOUT_S, heard: Heard = None) -> str:
        self._refuse(argv)
        if "--scale" in argv:
            total = int(argv[argv.index("--scale") + 1].partition("=")[2])
            for _ in range(0 if self.starts_nothing else total - len(self.workers)):
                number = max((box.number for box in self.workers), default=0) + 1
                self.boxes.append(Box(number, self.lives.get(number, Life()), self.clock, self.image, self.hash))
                self.note(f"start worker-{number}")
        elif argv[1] in {"stop", "rm"}:
            if argv[1] == "rm":
                self.boxes = [box for box in self.boxes if box.name != argv[-1]]
            self.note(f"{argv[1]} {argv[-1].removeprefix('kronos-')}")
        elif "up" in argv:
            if not any(box.number == NGINX_NUMBER for box in self.boxes):
                self.boxes.append(Box(NGINX_NUMBER, Life(0), self.clock, self.image, self.hash))
            self.note(f"{'renew' if '--force-recreate' in argv else 'up'} {argv[-1]}")
        elif "down" in argv:
            self.boxes = []
            self.note("down")
        elif argv[1] == "tag":
            self.image = argv[2]
            self.note(f"tag {argv[2]}")
        else:
            self.note(" ".join(argv[-2:]))
        return ""

    @property
    def workers(self) -> list[Box]:
        return [box for box in self.boxes if box.number != NGINX_NUMBER]

    def _refuse(self, argv: Sequence[str]) -> None:
        if self.absent:
            raise FileNotFoundError(argv[0])
        for words, said in self.refuses.items():
            if words in " ".join(argv):
                raise CommandFailed(argv, said)

    def _facts(self, box: Box) -> dict[str, Any]:
        age = self.clock - box.born
        ended = age >= box.life.ends_after
        health = "healthy" if age >= box.life.healthy_after else "starting"
        health = "unhealthy" if age >= box.life.unhealthy_after else health
        nginx = box.number == NGINX_NUMBER
        labels = {"project": "kronos", "service": "nginx" if nginx else "worker", "config-hash": box.hash}
        labels["container-number"] = str(box.number or 1)
        return {
            "Id": box.name, "Name": f"/{box.name}", "Image": box.image, "RestartCount": 0,
            "Config": {"Labels": {f"{LABEL}.{key}": value for key, value in labels.items()}},
            "State": {
                "Status": "exited" if ended else box.status, "ExitCode": 3 * ended, "Health": {"Status": health},
                "StartedAt": "2026-01-01T00:00:00.123456789Z",
            },
            "NetworkSettings": {"Ports": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}] if nginx else None}},
        }  # fmt: skip

    def lines(self, argv: Sequence[str], env: Env = None) -> Iterator[str]:
        return iter(next((box.life.says.splitlines() for box in self.boxes if box.name == argv[-1]), []))

    def write(self, path: Path, text: str) -> None:
        self.files[path] = text

    def remove(self, path: Path) -> None:
        self.files.pop(path, None)

    def read_log(self, path: Path) -> str:
        return self.files.get(path, "")

    def wait(self, until: str, check: Callable[[], bool], timeout_s: float, every_s: float = LOOK_EVERY_S) -> bool:
        return wait(check, timeout_s, lambda: self.clock, lambda seconds: self.sleep(seconds, until), every_s)

    def sleep(self, seconds: float, why: str) -> None:
        self.clock += seconds

    def port_holder(self, host: str, port: int) -> str | None:
        return None

    def get(self, host: str, port: int, path: str) -> Answer | None:
        return Answer(200, {}, b"")


OPTIONS = argparse.Namespace(no_build=False, workers=None, without=None, dry_run=False, volumes=False, now=False)
"""Of ``up``, ``roll`` and ``down``, as they are when none is given."""


def engine(docker: Docker) -> Engine:
    """As the fleet speaks with it; what is said goes to a console of its own."""
    host = cast(Host, docker)  # all of it that containers need
    return Engine(Desk(host, Folders(ROOT, RUN), Console(file=io.StringIO()), {}), Place(ROOT))


def runtime(docker: Docker) -> Containers:
    """The verbs on a scripted engine."""
    at = engine(docker)
    return Containers(at.desk, at.place)
