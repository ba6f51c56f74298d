"""What the fleet is: its plan, its processes, and the one file that remembers them between verbs.

Knows: the shape of ``.run/fleet.json`` and the lock beside it. Does not know: whether a process still runs.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fleet.errors import BadSetting, Busy


@dataclass(frozen=True)
class Folders:
    """Where things are: ``root`` is the repository, ``run`` holds all state of one fleet."""

    root: Path
    run: Path

    @property
    def state(self) -> Path:
        return self.run / "fleet.json"

    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def nginx(self) -> Path:
        """The prefix: everything nginx reads and writes but its logs."""
        return self.run / "nginx"

    @property
    def logs(self) -> Path:
        return self.run / "logs"

    @property
    def jobs(self) -> Path:
        """What the workers of this fleet share of jobs; it outlives them."""
        return self.run / "jobs.db"

    @property
    def access_log(self) -> Path:
        return self.logs / "nginx-access.log"

    def log(self, name: str) -> Path:
        """The log of a worker, or of ``nginx``."""
        return self.logs / f"{name}.log"


@dataclass(frozen=True)
class Process:
    """One process for certain: a pid alone may be reused, with its start (ticks since boot) it is not."""

    pid: int
    started: int


@dataclass(frozen=True)
class Worker:
    """One supervised worker; its process is the supervisor and leads a session of its own.

    ``generation`` is that of the plan it was started from.
    """

    number: int
    port: int
    process: Process
    generation: int = 1

    @property
    def name(self) -> str:
        return f"worker-{self.number}"

    @property
    def full_name(self) -> str:
        """Also while there are two of this number."""
        return f"{self.name} (port {self.port})"


@dataclass(frozen=True)
class Plan:
    """What the operator asked for. Workers are started from it; a roll makes the next ``generation`` of it."""

    workers: int
    host: str
    port: int
    first_worker_port: int
    threads: int
    nginx: str
    nginx_version: tuple[int, ...]
    app: str
    gunicorn_conf: str
    inference_timeout_s: float
    startup_timeout_s: float
    settings: dict[str, str] = field(default_factory=dict)
    """The settings in the environment at ``up`` or ``roll``, given to each worker, also to those that ``scale`` adds."""
    generation: int = 1

    @property
    def contact(self) -> str:
        """The address at which this machine reaches its own nginx."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @property
    def url(self) -> str:
        return f"http://{self.contact}:{self.port}"


@dataclass(frozen=True)
class Fleet:
    """The plan and the processes started for it.

    ``workers`` serve or will serve, ``leaving`` are to be drained and stopped, ``nginx`` is its master. ``coming`` is
    the successor, not ready yet, of the worker with its number; a verb that finds one left by another stops it.
    """

    plan: Plan
    workers: tuple[Worker, ...] = ()
    leaving: tuple[Worker, ...] = ()
    nginx: Process | None = None
    coming: Worker | None = None

    @property
    def processes(self) -> dict[str, Process]:
        """Every process that leads a session, by name; nginx first, since it stops first."""
        front = {"nginx": self.nginx} if self.nginx else {}
        moving = [*self.leaving, *([self.coming] if self.coming else [])]
        return {
            **front,
            **{worker.full_name: worker.process for worker in moving},
            **{worker.name: worker.process for worker in self.workers},
        }

    @property
    def of_another_generation(self) -> list[str]:
        """Names of the workers that were not started from this plan: a roll began and did not end."""
        return [worker.name for worker in self.workers if worker.generation != self.plan.generation]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def from_json(text: str) -> Fleet:
    """The fleet that ``Fleet.to_json`` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    data = json.loads(text)
    plan = Plan(**{**data["plan"], "nginx_version": tuple(data["plan"]["nginx_version"])})
    workers, leaving = (tuple(map(_worker, data[key])) for key in ("workers", "leaving"))
    nginx = Process(**data["nginx"]) if data["nginx"] else None
    return Fleet(plan, workers, leaving, nginx, _worker(data["coming"]) if data["coming"] else None)


def _worker(data: dict[str, Any]) -> Worker:
    return Worker(**{**data, "process": Process(**data["process"])})


def load(folders: Folders) -> Fleet | None:
    """The remembered fleet, None when there is none. Raises BadSetting for a file that cannot be read."""
    try:
        return from_json(folders.state.read_text())
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise BadSetting(
            f"{folders.state} cannot be understood ({error!r})", f"look for what runs, stop it, remove {folders.run}"
        ) from error


@contextmanager
def locked(folders: Folders, verb: str) -> Iterator[None]:
    """Hold the fleet for one verb. Raises Busy when another verb holds it; the kernel frees it at any end."""
    folders.run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folders.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 100, 0).decode().strip() or "another command"
            raise Busy(f"{holder} is working on this fleet", "wait for it, or look: python -m fleet status") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"`fleet {verb}` (pid {os.getpid()})".encode(), 0)
        yield
    finally:
        os.close(descriptor)
