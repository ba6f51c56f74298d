"""``--dry-run``: a machine on which everything works and nothing happens.

Knows: how to say in a shell's words what would be done. Does not know: verbs.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleet.host import CALL_TIMEOUT_S, LOOK_EVERY_S, Answer, Env, Heard, Host, Machine
from fleet.state import Process


@dataclass
class Rehearsal:
    """Prints what would be done and believes that it would work. What runs is looked at for real."""

    say: Callable[[str], None]
    env: Mapping[str, str]
    machine: Host = field(default_factory=Machine)
    imagined: int = 0

    def write(self, path: Path, text: str) -> None:
        if path.suffix != ".json":  # the fleet's own memory is no news
            self.say("\n    ".join([f"write {path}", *text.splitlines()]))

    def copy(self, source: Path, target: Path) -> None:
        self.say(f"copy {source} {target}")

    def remove(self, path: Path) -> None:
        self.say(f"remove {path}")

    def set_aside(self, path: Path) -> None:
        pass  # says nothing about the fleet

    def move(self, source: Path, target: Path) -> None:
        pass  # a log: neither does this

    def call(self, argv: Sequence[str], env: Env = None, timeout_s: float = CALL_TIMEOUT_S, heard: Heard = None) -> str:
        self.say(f"run {shlex.join(argv)}")
        return ""

    def ask(self, argv: Sequence[str], env: Env = None, cwd: Path | None = None) -> str:
        return self.machine.ask(argv, env, cwd)

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
        own = [f"{key}={shlex.quote(value)}" for key, value in env.items() if self.env.get(key) != value]
        self.say(" ".join(["start", *own, shlex.join(argv), ">>", str(log)]))
        self.imagined += 1
        return Process(-self.imagined, 0)

    def signal(self, process: Process, number: signal.Signals) -> None:
        self.say(f"kill -{number.name.removeprefix('SIG')} {process.pid}")

    def wait(self, until: str, check: Callable[[], bool], timeout_s: float, every_s: float = LOOK_EVERY_S) -> bool:
        self.say(f"wait until {until} (at most {timeout_s:g} s)")
        return True

    def sleep(self, seconds: float, why: str) -> None:
        self.say(f"wait {seconds:g} s: {why}")

    def alive(self, process: Process) -> bool:
        return process.pid < 0 or self.machine.alive(process)

    def family(self, process: Process) -> list[Process]:
        return [] if process.pid < 0 else self.machine.family(process)

    def port_holder(self, host: str, port: int) -> str | None:
        return self.machine.port_holder(host, port)

    def get(self, host: str, port: int, path: str) -> Answer | None:
        return self.machine.get(host, port, path)

    def read_log(self, path: Path) -> str:
        return self.machine.read_log(path)

    def lines(self, argv: Sequence[str], env: Env = None) -> Iterator[str]:
        return self.machine.lines(argv, env)
