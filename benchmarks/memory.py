"""What the workers of a fleet weigh, over time.

Knows: proportional set sizes and their slope. Does not know: what the workers are doing.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from fleet import proc
from fleet.host import Machine
from fleet.state import Fleet

EVERY_S = 5.0


@dataclass
class Memory:
    """Pss of each worker (supervisor included), sampled every 5 s in a thread; MB = 10⁶ bytes."""

    fleet: Fleet
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        machine = Machine()
        pss = {
            worker.name: sum(proc.pss_bytes(member.pid) for member in machine.family(worker.process)) / 1e6
            for worker in self.fleet.workers
        }
        self.samples.append((time.monotonic(), pss))

    def watch(self) -> None:
        self.sample()
        while not self.ended.wait(EVERY_S):
            self.sample()
        self.sample()

    def report(self) -> dict[str, dict[str, float]]:
        """Start, end, and slope of the second half (the first may still be warming up)."""
        half = self.samples[len(self.samples) // 2 :]
        minutes = [(at - half[0][0]) / 60 for at, _ in half]
        found = {}
        for name, first in self.samples[0][1].items():
            later = [pss[name] for _, pss in half]
            slope = float(np.polyfit(minutes, later, 1)[0]) if len(half) > 2 else 0.0
            end = self.samples[-1][1][name]
            found[name] = {"start_mb": round(first, 1), "end_mb": round(end, 1), "mb_per_minute": round(slope, 3)}
        return found
