"""The desk of a local fleet: also remembers its processes, and stops them gently.

Knows: the state file, sessions of processes. Does not know: verbs.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fleet.desk import Desk, deferred_signals
from fleet.errors import StillRunning
from fleet.state import Fleet, Process

KILL_TIMEOUT_S = 5.0


@dataclass
class LocalDesk(Desk):
    """``nginx_user`` is "name group" of nginx's own processes when root starts it, else None.

    ``fleet`` is what was remembered last: what a failed verb has to clean up.
    """

    nginx_user: str | None = None
    fleet: Fleet | None = None

    def remember(self, fleet: Fleet) -> Fleet:
        """Write the fleet down before anything else can go wrong."""
        self.fleet = fleet
        self.host.write(self.folders.state, fleet.to_json())
        return fleet

    def start(self, argv: Sequence[str], env: Mapping[str, str], known: Callable[[Process], Fleet], log: str) -> Fleet:
        """Start a process and remember the fleet that knows it, before even Ctrl-C can come between."""
        with deferred_signals():
            return self.remember(known(self.host.spawn(argv, env, self.folders.log(log))))

    def forget(self) -> None:
        """Nothing of the fleet runs any more."""
        self.fleet = None
        self.host.remove(self.folders.state)

    def stop(self, processes: Mapping[str, Process], number: signal.Signals, grace_s: float) -> None:
        """Ask all to end, wait ``grace_s`` seconds for them and their children, then kill what is left, by pid.

        Where a leader has died before, its orphans are asked themselves. Raises StillRunning.
        """
        if not processes:
            return
        for process in processes.values():
            for member in [process] if self.host.alive(process) else self.host.family(process):
                self.host.signal(member, number)
        names = ", ".join(processes)
        if self.host.wait(f"{names} ended", lambda: not self._left(processes), grace_s):
            return
        left = self._left(processes)
        self.say(f"Not ended after {grace_s:g} s, killing: {', '.join(left)}", "yellow")
        for members in left.values():
            for member in members:
                self.host.signal(member, signal.SIGKILL)
        if not self.host.wait(f"{names} killed", lambda: not self._left(processes), KILL_TIMEOUT_S):
            pids = [str(member.pid) for members in self._left(processes).values() for member in members]
            raise StillRunning(f"still running: pid {', '.join(pids)}", f"kill -9 {' '.join(pids)}")

    def _left(self, processes: Mapping[str, Process]) -> dict[str, list[Process]]:
        families = {name: self.host.family(process) for name, process in processes.items()}
        return {name: members for name, members in families.items() if members}
