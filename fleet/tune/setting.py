"""Settings of a grid on a real fleet: which environment variables they are, and how they get into all workers.

Knows: short names, that a roll brings a changed environment into the workers. Does not know: what a setting does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fleet.errors import BadSetting
from fleet.runtime import Runtime
from fleet.settings import is_setting
from fleet.tune.protocol import Setting

SHORT = {"threads": "KRONOS_THREADS", "slots": "KRONOS_SLOTS", "dtype": "KRONOS_DTYPE", "cpus": "WORKER_CPUS"}
"""Names that are quicker to type; ``cpus`` is the quota of a container."""


def variable(name: str) -> str:
    """The environment variable that a name of a grid means. Raises BadSetting."""
    found = SHORT.get(name, name)
    if not is_setting(found) and found not in SHORT.values():
        known = f"{', '.join(SHORT)}, or a name of README's table of settings"
        raise BadSetting(f"--grid {name}: the workers have no such setting", known)
    return found


@dataclass(frozen=True)
class Configuration:
    """``env`` is what the fleet's commands see; changing it and rolling changes the workers. ``fixed`` was there before."""

    names: Mapping[str, str]
    fixed: Mapping[str, str]
    env: dict[str, str]

    @classmethod
    def of(cls, grid: Sequence[Mapping[str, Setting]], env: Mapping[str, str]) -> Configuration:
        """For the names of a grid. Raises BadSetting."""
        names = {name: variable(name) for settings in grid for name in settings}
        fixed = dict(env)
        if names:
            fixed.setdefault(SHORT["threads"], "1")  # else a local roll would give each worker threads by their number
        return cls(names, fixed, dict(fixed))

    def changer(self, runtime: Runtime) -> Callable[[Mapping[str, Setting]], None] | None:
        """Brings settings into every worker, with one worker left: fewer to replace. None when there are none to change."""
        options = argparse.Namespace(model=None, tokenizer=None, no_build=True, dry_run=False)

        def change(settings: Mapping[str, Setting]) -> None:
            self.env.clear()
            self.env.update(self.fixed)
            self.env.update({self.names[name]: text(value) for name, value in settings.items()})
            runtime.scale(1)
            runtime.roll(options)

        return change if self.names else None


def text(value: Setting) -> str:
    """As it is written into an environment."""
    return f"{value:g}" if isinstance(value, float) else value
