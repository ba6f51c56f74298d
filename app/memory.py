"""How much memory this process may still take: what its container allows, and what the machine has.

Knows: cgroups (both versions) and /proc. Does not know: what the memory is for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
MEMINFO: Final = Path("/proc/meminfo")
STATM: Final = Path("/proc/self/statm")


def room_bytes() -> int | None:
    """The smaller of what is left of the container's limit and what is free on the machine; None where nobody knows."""
    known = [bound for bound in (_left_of_limit(), _available()) if bound is not None]
    return min(known, default=None)


def _left_of_limit() -> int | None:
    for path in LIMITS:
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        return None if limit == "max" else max(0, int(limit) - _resident())
    return None


def _resident() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
