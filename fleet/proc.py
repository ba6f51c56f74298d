"""What Linux knows about processes, read from ``/proc``.

Knows: state, session, start and memory of a process. Does not know: which of them are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

PROC = Path("/proc")


class Stat(NamedTuple):
    """Some fields of ``/proc/PID/stat`` (proc(5)): state letter, session id, start in clock ticks since boot."""

    state: str
    session: int
    started: int


def stat(pid: int) -> Stat | None:
    """None when there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return Stat(fields[0], int(fields[3]), int(fields[19]))


def pids() -> Iterator[int]:
    """Every process of the machine."""
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def pss_bytes(pid: int) -> int:
    """Proportional set size: own pages, and of each shared page the share. 0 when gone or not ours to read."""
    try:
        rollup = (PROC / str(pid) / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def listener(port: int) -> str:
    """A name for whoever listens on a TCP port, as far as we may see."""
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.pid is None:
            continue
        if connection.laddr.port == port:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                continue
    return "another program"


def cpu_seconds() -> float:
    """Seconds that all cores together have been busy since boot (user, nice, system, interrupts)."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)
