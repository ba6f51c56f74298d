"""The one layer that touches the machine: processes, files, ports, clock.

Knows: how to do and to look. Does not know: why; verbs decide. ``--dry-run`` puts a rehearsal in its place, tests
a scripted history.
"""

from __future__ import annotations

import errno
import http.client
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fleet import proc
from fleet.state import Process

HANDLED_SIGNALS = [signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
LOG_TAIL_BYTES = 65536
LOOK_EVERY_S = 0.1
CALL_TIMEOUT_S = 60.0
Env = Mapping[str, str] | None
Heard = Callable[[str], None] | None


class CommandFailed(Exception):
    """A program ended with an error. ``output`` is what it said."""

    def __init__(self, argv: Sequence[str], output: str) -> None:
        super().__init__(f"{shlex.join(argv)}: {output.strip()}")
        self.output = output


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Host(Protocol):
    """What a verb may do to, and ask of, the machine."""

    def write(self, path: Path, text: str) -> None:
        """Replace the whole file at once."""

    def copy(self, source: Path, target: Path) -> None:
        """Replace ``target`` at once."""

    def remove(self, path: Path) -> None:
        """Remove the file if it is there."""

    def set_aside(self, path: Path) -> None:
        """Rename a log, so that the next one starts empty."""

    def move(self, source: Path, target: Path) -> None:
        """Rename a log; who writes to it goes on."""

    def call(self, argv: Sequence[str], env: Env = None, timeout_s: float = CALL_TIMEOUT_S, heard: Heard = None) -> str:
        """Run a program that changes something to its end, return all it said; ``heard`` gets each line at once.

        Raises CommandFailed, also when it takes longer than ``timeout_s`` seconds (it is killed then), OSError when
        there is no such program.
        """

    def ask(self, argv: Sequence[str], env: Env = None, cwd: Path | None = None) -> str:
        """Run a program that only looks, return its standard output. Raises as ``call`` does."""

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
        """Start in a session of its own, output to ``log``."""

    def signal(self, process: Process, number: signal.Signals) -> None:
        """Send to exactly this process; nothing happens when it has gone."""

    def wait(self, until: str, check: Callable[[], bool], timeout_s: float, every_s: float = LOOK_EVERY_S) -> bool:
        """Whether ``check`` came true in time, looking every ``every_s`` seconds; what it raises passes through."""

    def sleep(self, seconds: float, why: str) -> None:
        """Let time pass."""

    def alive(self, process: Process) -> bool:
        """Running or stopped; a zombie is dead."""

    def family(self, process: Process) -> list[Process]:
        """Everything alive in the session that ``process`` leads or led; leader first."""

    def port_holder(self, host: str, port: int) -> str | None:
        """Who listens there, None for nobody. Raises OSError when this machine may not listen there at all."""

    def get(self, host: str, port: int, path: str) -> Answer | None:
        """The answer, or None when there is none in 2 s."""

    def read_log(self, path: Path) -> str:
        """The end of a log, empty when there is none."""

    def lines(self, argv: Sequence[str], env: Env = None) -> Iterator[str]:
        """What a program that only looks says, line by line, errors too; it is killed when nobody listens any more."""


class Machine:
    """The real one."""

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(text)
        draft.chmod(0o600)  # settings may be secret
        draft.replace(path)

    def copy(self, source: Path, target: Path) -> None:
        self.write(target, source.read_text())

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> None:
        if path.exists():
            path.replace(path.with_name(f"{path.name}.1"))

    def move(self, source: Path, target: Path) -> None:
        source.replace(target)

    def call(self, argv: Sequence[str], env: Env = None, timeout_s: float = CALL_TIMEOUT_S, heard: Heard = None) -> str:
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        said: list[str] = []
        # In a session of its own: Ctrl-C is handled here, and what the program has started is killed with it.
        with subprocess.Popen(argv, env=env, text=True, errors="replace", start_new_session=True, **pipes) as child:
            alarm = threading.Timer(timeout_s, _kill_session, [child.pid])
            alarm.start()
            try:
                for line in child.stdout or ():
                    said.append(line)
                    if heard:
                        heard(line.rstrip())
            except BaseException:
                _kill_session(child.pid)
                raise
            finally:
                alarm.cancel()
        if child.returncode:
            late = f"killed, perhaps after {timeout_s:g} s" if child.returncode == -signal.SIGKILL else ""
            raise CommandFailed(argv, "".join([*said, late]))
        return "".join(said)

    def ask(self, argv: Sequence[str], env: Env = None, cwd: Path | None = None) -> str:
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
        try:
            done = subprocess.run(argv, env=env, cwd=cwd, timeout=CALL_TIMEOUT_S, check=True, **pipes)
        except subprocess.CalledProcessError as error:
            raise CommandFailed(argv, error.stdout + error.stderr) from error
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(argv, f"no answer in {CALL_TIMEOUT_S} s") from error
        return str(done.stdout)

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
        log.parent.mkdir(parents=True, exist_ok=True)
        redirections = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        fresh: dict[str, Any] = {"setsid": True, "setsigdef": HANDLED_SIGNALS, "setsigmask": ()}
        pid = os.posix_spawn(argv[0], list(argv), dict(env), file_actions=redirections, **fresh)
        seen = proc.stat(pid)
        return Process(pid, seen.started if seen else 0)

    def signal(self, process: Process, number: signal.Signals) -> None:
        if self.alive(process):
            with suppress(ProcessLookupError):  # it may go between the look and the signal
                os.kill(process.pid, number)

    def wait(self, until: str, check: Callable[[], bool], timeout_s: float, every_s: float = LOOK_EVERY_S) -> bool:
        return wait(check, timeout_s, time.monotonic, time.sleep, every_s)

    def sleep(self, seconds: float, why: str) -> None:
        time.sleep(seconds)

    def alive(self, process: Process) -> bool:
        seen = proc.stat(process.pid)
        return seen is not None and seen.started == process.started and seen.state not in "ZX"

    def family(self, process: Process) -> list[Process]:
        # The kernel gives no new process the number of a session that still has members, so the number
        # alone is certain, unless another process leads it now.
        leader = proc.stat(process.pid)
        if leader is not None and leader.started != process.started:
            return []
        members = [
            Process(pid, seen.started)
            for pid in proc.pids()
            if (seen := proc.stat(pid)) is not None and seen.session == process.pid and seen.state not in "ZX"
        ]
        return sorted(members, key=lambda member: (member.pid != process.pid, member.pid))

    def port_holder(self, host: str, port: int) -> str | None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return proc.listener(port)
        return None

    def get(self, host: str, port: int, path: str) -> Answer | None:
        return request(host, port, "GET", path)

    def read_log(self, path: Path) -> str:
        try:
            with path.open("rb") as log:
                log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def lines(self, argv: Sequence[str], env: Env = None) -> Iterator[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(argv, env=env, text=True, errors="replace", start_new_session=True, **pipes) as child:
            try:
                for line in child.stdout or ():
                    yield line.rstrip("\n")
            finally:
                _kill_session(child.pid)


def _kill_session(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def wait(
    check: Callable[[], bool],
    timeout_s: float,
    now: Callable[[], float],
    sleep: Callable[[float], None],
    every_s: float = LOOK_EVERY_S,
) -> bool:
    """Look every ``every_s`` seconds until ``check`` is true; False after ``timeout_s``. Looks at least once."""
    end = now() + timeout_s
    while not check():
        if now() >= end:
            return False
        sleep(every_s)
    return True


def request(
    host: str, port: int, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None,
    timeout_s: float = 2.0,
) -> Answer | None:  # fmt: skip
    """One HTTP request on a connection of its own; None when no whole answer came in ``timeout_s`` seconds."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    kind = {"Content-Type": "application/json"} if body is not None else {}
    try:
        connection.request(method, path, body=body, headers={**kind, **(headers or {}), "Connection": "close"})
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
