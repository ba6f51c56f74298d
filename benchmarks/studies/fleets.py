"""The fleets of a study, side by side: brought up once, taken down however the study ends.

Knows: what is laid over docker-compose.yml for a study. Does not know: load.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.studies.study import Fleet, Study
from fleet import runtimes
from fleet.compose import commands
from fleet.desk import uninterrupted
from fleet.errors import BadSetting
from fleet.k6 import ROOT
from fleet.state import locked

FIRST_PORT = 21600
RUN = ".run/capacity"
COMPOSE = "docker-compose.yml"
CHECK = r"exec 3<>/dev/tcp/127.0.0.1/8000 && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && grep -q '200 OK' <&3"
HEALTH = {"test": ["CMD", "bash", "-c", CHECK], "interval": "5s"}
"""The image's own check starts a Python every 5 s: with a dozen fleets that only wait, that would be seen in the one that is
measured."""


@dataclass(frozen=True)
class Up:
    """A fleet that serves: where, and as which Compose project."""

    fleet: Fleet
    project: str
    url: str


def override(fleet: Fleet, mounts: dict[str, str]) -> dict[str, object]:
    """What is laid over docker-compose.yml. ``mounts``: edited file → where the container sees it."""
    every: dict[str, object] = {"healthcheck": HEALTH, "environment": fleet.env}
    others = {name: {**every, **service} for name, service in fleet.services.items()}
    nginx = {"volumes": [f"{source}:{target}:ro" for source, target in mounts.items()]}
    return {"services": {"worker": every, **others, **({"nginx": nginx} if mounts else {})}}


def edited(text: str, replacements: dict[str, str]) -> str:
    """Raises BadSetting when a text to be replaced is not there: the variant would be the same as the other one."""
    for old, new in replacements.items():
        if old not in text:
            raise BadSetting(f"there is no {old!r} to replace", "adapt benchmarks/studies/catalogue.py")
        text = text.replace(old, new)
    return text


def write_files(fleet: Fleet, folder: Path) -> Path:
    """The override and the files it mounts; those that stay the same are not touched, or nginx would be made anew."""
    folder.mkdir(parents=True, exist_ok=True)
    mounts = {}
    for path, replacements in fleet.edits.items():
        source = folder / Path(path).name
        _write(source, edited((ROOT / path).read_text(), replacements))
        mounts[str(source)] = f"/etc/nginx/templates/{Path(path).name}.template"
    text = json.dumps(override(fleet, mounts), indent=1)
    _write(folder / "override.yml", text.replace(f'"{COMPOSE}"', json.dumps(str(ROOT / COMPOSE))))
    return folder / "override.yml"


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


@contextmanager
def side_by_side(study: Study, wanted: Sequence[Fleet], console: Console) -> Iterator[dict[str, Up]]:
    """The fleets by name, until the block ends. Raises FleetError."""
    with ExitStack() as stack:
        yield {fleet.name: _bring(study, fleet, console, stack) for fleet in wanted}
        console.print("Taking the fleets down")


def _bring(study: Study, fleet: Fleet, console: Console, stack: ExitStack) -> Up:
    project = f"kc-{study.name}-{fleet.name}"
    file = write_files(fleet, ROOT / RUN / study.name / fleet.name)
    place = runtimes.Place(f"{RUN}/{study.name}", project, (str(ROOT / COMPOSE), str(file)))
    port = FIRST_PORT + study.fleets.index(fleet)
    env = {**os.environ, "PUBLISH_ADDRESS": "127.0.0.1", "PUBLISH_PORT": str(port), "WORKER_CPUS": f"{fleet.cpus:g}", **fleet.env}
    desk, runtime = runtimes.make("compose", place, env, console)
    without = ["grafana"] if study.prometheus else ["grafana", "prometheus"]
    stack.enter_context(locked(desk.folders, "capacity"))

    def down() -> None:
        with uninterrupted():
            runtime.down(argparse.Namespace(now=True, volumes=True))

    stack.callback(down)
    console.print(f"{fleet.name}: {fleet.workers} × {fleet.cpus:g} cores as {project} on port {port}", highlight=False)
    runtime.up(argparse.Namespace(workers=fleet.workers, without=without, no_build=True))
    return Up(fleet, project, runtime.front().url)


def services(fleet: Fleet) -> tuple[str, ...]:
    """The services of a fleet whose CPU is of interest."""
    return (commands.WORKER, *fleet.services, commands.NGINX)
