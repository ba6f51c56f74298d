"""A machine that follows a script, with a clock that only moves when somebody waits.

Knows: what a history says of each process: when it is ready, when it dies, how it takes a signal. Does not know:
real processes. ``journal`` keeps what was done, in order, in words.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleet.host import CALL_TIMEOUT_S, LOOK_EVERY_S, Answer, CommandFailed, Env, Heard, wait
from fleet.state import Process

NEVER = float("inf")


@dataclass(frozen=True)
class Life:
    """One process by script; seconds from its start, or from the signal.

    When the supervisor dies alone, its orphan lives on. ``immortal`` survives SIGKILL.
    """

    ready_after: float = 1.0
    dies_after: float = NEVER
    supervisor_dies_after: float = NEVER
    ends_after_term: float = 0.5
    immortal: bool = False
    busy_until: float = 0.0
    says: str = ""


@dataclass
class Being:
    """One process of the machine."""

    name: str
    process: Process
    port: int
    life: Life
    born: float
    ends: float


@dataclass
class Scripted:
    """``lives`` by name of the log: worker-2, its successor worker-2-next, nginx.

    A reload replaces nginx's child and ends the old one after ``old_nginx_lingers`` seconds. ``on_sleep`` is called
    whenever somebody waits.
    """

    lives: Mapping[str, Life] = field(default_factory=dict)
    old_nginx_lingers: float = 0.0
    refuses_config: str = ""
    taken_ports: frozenset[int] = frozenset()
    when: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    on_sleep: Callable[[], None] | None = None
    clock: float = 0.0
    journal: list[str] = field(default_factory=list)
    beings: dict[int, Being] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)
    nginx_children: list[tuple[Process, float]] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.journal.append(text)
        if text in self.when:
            self.when[text]()

    def write(self, path: Path, text: str) -> None:
        self.files[path] = text
        if path.name == "upstream.conf":
            ports = [line.split(":")[1].split()[0] for line in text.splitlines() if "max_fails=1" in line]
            self.note(f"list {' '.join(ports)}")

    def copy(self, source: Path, target: Path) -> None:
        self.files[target] = source.read_text()

    def remove(self, path: Path) -> None:
        self.files.pop(path, None)

    def set_aside(self, path: Path) -> None:
        pass

    def move(self, source: Path, target: Path) -> None:
        self.note(f"log {source.stem} becomes {target.stem}")

    def call(self, argv: Sequence[str], env: Env = None, timeout_s: float = CALL_TIMEOUT_S, heard: Heard = None) -> str:
        if self.refuses_config:
            raise CommandFailed(argv, self.refuses_config)
        return ""

    def ask(self, argv: Sequence[str], env: Env = None, cwd: Path | None = None) -> str:
        raise CommandFailed(argv, "nothing is asked here")

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
        name = log.stem  # of a worker, of a successor (worker-2-next), or nginx
        port = int(env.get("KRONOS_BIND", ":0").rpartition(":")[2])
        process = Process(100 + len(self.beings), int(self.clock))
        life = self.lives.get(name, Life())
        self.beings[process.pid] = Being(name, process, port, life, self.clock, self.clock + life.dies_after)
        if name == "nginx":
            self.nginx_children = [(Process(9000, 0), NEVER)]
        self.note(f"start {name}")
        return process

    def signal(self, process: Process, number: signal.Signals) -> None:
        being = self.beings[process.pid]
        if number == signal.SIGHUP:
            self.nginx_children = [(child, self.clock + self.old_nginx_lingers) for child, _ in self.nginx_children]
            self.nginx_children.append((Process(9000 + len(self.nginx_children), 0), NEVER))
            self.note("reload")
            return
        delay = 0.0 if number == signal.SIGKILL else being.life.ends_after_term
        being.ends = NEVER if being.life.immortal else min(being.ends, self.clock + delay)
        self.note(f"{number.name.removeprefix('SIG')} {being.name}")

    def wait(self, until: str, check: Callable[[], bool], timeout_s: float, every_s: float = LOOK_EVERY_S) -> bool:
        return wait(check, timeout_s, lambda: self.clock, self.sleep, every_s)

    def sleep(self, seconds: float, why: str = "") -> None:
        if self.on_sleep:
            self.on_sleep()
        self.clock += seconds

    def alive(self, process: Process) -> bool:
        if any(process == child and self.clock < ends for child, ends in self.nginx_children):
            return True
        being = self.beings.get(process.pid)
        if being is None or being.process != process:
            return False
        return self.clock < min(being.ends, being.born + being.life.supervisor_dies_after)

    def family(self, process: Process) -> list[Process]:
        being = self.beings[process.pid]
        if self.clock >= being.ends:
            return []
        children = [child for child, ends in self.nginx_children if self.clock < ends]
        return [process, *(children if being.name == "nginx" else [])]

    def port_holder(self, host: str, port: int) -> str | None:
        held = any(being.port == port and self.clock < being.ends for being in self.beings.values())
        return "somebody (pid 1)" if port in self.taken_ports or held else None

    def get(self, host: str, port: int, path: str) -> Answer | None:
        if path == "/healthz":
            return Answer(200, {}, b"")
        being = next((b for b in self.beings.values() if b.port == port and self.clock < b.ends), None)
        if being is None:
            return None
        if path == "/readyz":
            return Answer(200 if self.clock - being.born >= being.life.ready_after else 503, {}, b"")
        busy = self.clock < being.life.busy_until
        return Answer(200, {}, f"kronos_concurrent_requests {1 + int(busy)}\n".encode())

    def read_log(self, path: Path) -> str:
        return self.lives.get(path.stem, Life()).says

    def lines(self, argv: Sequence[str], env: Env = None) -> Iterator[str]:
        return iter(())
