"""Makes a ``Runtime``: the one place that knows both.

Knows: which host, desk and folders each of them gets. Does not know: verbs.
"""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fleet.compose import commands
from fleet.compose.runtime import Containers
from fleet.desk import Desk
from fleet.host import Host, Machine
from fleet.local.desk import LocalDesk
from fleet.local.runtime import Local
from fleet.rehearsal import Rehearsal
from fleet.runtime import Runtime
from fleet.state import Folders

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Place:
    """Which fleet: ``run`` is the folder of its state (relative to the repository), ``project`` and ``files`` are
    Compose's."""

    run: str = ".run"
    project: str = commands.DEFAULT_PROJECT
    files: Sequence[str] = ()


def place(options: argparse.Namespace) -> Place:
    """As the options of ``python -m fleet`` say."""
    return Place(options.run, options.project or commands.DEFAULT_PROJECT, tuple(options.file or ()))


def make(name: str, place: Place, env: Mapping[str, str], console: Console, rehearsing: bool = False) -> tuple[Desk, Runtime]:
    """The runtime called ``name`` and its desk; ``rehearsing``: one that prints what it would do."""
    host: Host = Rehearsal(say_plainly, env) if rehearsing else Machine()
    run = (ROOT / place.run).resolve()
    if name == "compose":
        desk = Desk(host, Folders(ROOT, run / f"compose-{place.project}"), console, env)
        return desk, Containers(desk, commands.Place(ROOT, place.project, place.files))
    local = LocalDesk(host, Folders(ROOT, run), console, env, nginx_user(ROOT))
    return local, Local(local)


def say_plainly(line: str) -> None:
    """For ``--dry-run``: what is printed can be pasted into a shell."""
    sys.stdout.write(line + "\n")


def nginx_user(root: Path) -> str | None:
    """As root: the owner of the repository, so that nginx can reach its own files; else nobody can choose."""
    if os.geteuid() != 0:
        return None
    owner = root.stat()
    try:
        return f"{pwd.getpwuid(owner.st_uid).pw_name} {grp.getgrgid(owner.st_gid).gr_name}"
    except KeyError:
        return "root root"
