"""What a fleet's containers, the host and the generator have used so far, read from their cgroups and from /proc.

Knows: cgroups of both versions, where docker says which containers there are. Does not know: when to look.

The cgroup of a container counts all its processes, also those that a worker's own /metrics does not know.
"""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psutil

from fleet import proc
from fleet.compose import commands

TIMEOUT_S = 20.0
FILES = {
    1: ("cpuacct/cpuacct.usage", "cpu/cpu.stat", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    2: ("cpu.stat", "memory.current", "memory.stat"),
}
READ = f"cd /sys/fs/cgroup; if [ -e cpu.stat ]; then cat {' '.join(FILES[2])}; else cat {' '.join(FILES[1])}; fi"
NANOSECONDS, MICROSECONDS = 1e-9, 1e-6


class Usage(msgspec.Struct, frozen=True):
    """Of one container since its start: seconds of CPU, periods of its quota, those in which it ran out. ``memory`` is now,
    in bytes, without file pages that can be dropped (as ``docker stats`` counts)."""

    cpu_s: float
    periods: float
    throttled: float
    memory: float


class Sample(msgspec.Struct, frozen=True):
    """One moment, ``at`` seconds after the run was begun. ``host_s`` and ``generator_s`` are CPU seconds so far."""

    at: float
    host_s: float
    generator_s: float
    containers: dict[str, Usage]


def usage(text: str) -> Usage:
    """From what ``READ`` prints. Version 1 begins with two bare numbers among the pairs, version 2 has one."""
    bare, pairs = [], {}
    for words in (line.split() for line in text.splitlines()):
        if len(words) == 1:
            bare.append(float(words[0]))
        elif len(words) == 2:
            pairs[words[0]] = float(words[1])
    cpu_s = pairs["usage_usec"] * MICROSECONDS if "usage_usec" in pairs else bare[0] * NANOSECONDS
    inactive = pairs.get("total_inactive_file", pairs.get("inactive_file", 0.0))
    return Usage(cpu_s, pairs.get("nr_periods", 0.0), pairs.get("nr_throttled", 0.0), bare[-1] - inactive)


class Clock:
    """Looks at the containers of one Compose project. Which ones there are is asked once."""

    def __init__(self, project: str, services: tuple[str, ...]) -> None:
        argv = ["docker", "ps", "--filter", f"label={commands.LABEL}.project={project}", "--format", "{{.Names}}"]
        names = [name.removeprefix(f"{project}-") for name in _said(argv).split()]
        self.project = project
        self.names = sorted(name for name in names if name.rpartition("-")[0] in services)

    def sample(self, begun: float, generator: psutil.Process) -> Sample:
        """Now. ``begun`` is on the monotonic clock. Raises psutil.NoSuchProcess once the generator has gone."""
        times = generator.cpu_times()  # first: it may go while the containers are asked
        with ThreadPoolExecutor(max(1, len(self.names))) as pool:
            containers = dict(zip(self.names, pool.map(self._look, self.names), strict=True))
        return Sample(time.monotonic() - begun, proc.cpu_seconds(), times.user + times.system, containers)

    def _look(self, name: str) -> Usage:
        return usage(_said(["docker", "exec", f"{self.project}-{name}", "sh", "-c", READ]))


def _said(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
