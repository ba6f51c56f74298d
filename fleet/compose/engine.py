"""The container engine as the rest of this package speaks with it: questions answered in our own shapes.

Knows: how each command is run, and what its failure means. Does not know: what a verb is.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fleet.compose import commands, containers, project
from fleet.compose.containers import Container
from fleet.compose.project import Project
from fleet.desk import Desk
from fleet.errors import BadSetting, BuildFailed, EngineFailed, NoEngine
from fleet.host import CommandFailed
from fleet.journal import last_useful_line

BUILD_TIMEOUT_S = 3600.0
MARGIN_S = 60.0
"""What a command may take beyond the time that containers are granted."""
OLDEST_COMPOSE = 2
LOOKS = 5
GONE = "No such container"
INSTALL = "install Docker Engine with Compose v2 (https://docs.docker.com/engine/install), or leave out --runtime compose"


@dataclass
class Engine:
    """The fleet ``place`` on this machine's engine."""

    desk: Desk
    place: commands.Place

    @property
    def command(self) -> str:
        """How an operator calls this fleet."""
        return shlex.join(["python", "-m", "fleet", "--runtime", "compose", *self.place.flags])

    def check(self) -> None:
        """Raises NoEngine, with what to install or start."""
        try:
            found = self.desk.host.ask(commands.compose_version(), self.desk.env)
            if int(found.strip().lstrip("v").split(".")[0]) < OLDEST_COMPOSE:
                raise NoEngine(f"Compose {found.strip()} is older than v{OLDEST_COMPOSE}", INSTALL)
        except FileNotFoundError as error:
            raise NoEngine("there is no docker command on this machine", INSTALL) from error
        except (CommandFailed, ValueError) as error:
            raise NoEngine("docker has no Compose v2 (docker compose)", INSTALL) from error
        try:
            self.desk.host.ask(commands.version(), self.desk.env)
        except CommandFailed as error:
            said = last_useful_line(error.output)
            if "permission denied" in said.lower():
                raise NoEngine(said, "sudo usermod -aG docker $USER, then log in again") from error
            raise NoEngine(f"the Docker engine does not answer: {said}", "sudo systemctl start docker") from error

    def ask(self, argv: Sequence[str]) -> str:
        """What a command that only looks says. Raises EngineFailed."""
        try:
            return self.desk.host.ask(argv, self.desk.env)
        except CommandFailed as error:
            raise self.refused(argv, error) from error

    def call(self, argv: Sequence[str], timeout_s: float = MARGIN_S) -> None:
        """A command that changes something. Raises EngineFailed."""
        try:
            self.desk.host.call(argv, self.desk.env, timeout_s)
        except CommandFailed as error:
            raise self.refused(argv, error) from error

    def refused(self, argv: Sequence[str], error: CommandFailed) -> EngineFailed:
        """What docker said, and the command to see it say it."""
        return EngineFailed(f"docker refuses: {last_useful_line(error.output)}", shlex.join(argv))

    def project(self) -> Project:
        """The fleet as it should be. Raises BadSetting."""
        argv = commands.config(self.place)
        try:
            return project.read(json.loads(self.desk.host.ask(argv, self.desk.env)))
        except CommandFailed as error:
            what = f"docker-compose.yml or .env is wrong: {last_useful_line(error.output)}"
            raise BadSetting(what, f"correct it, then look: {shlex.join(argv)}") from error
        except (KeyError, ValueError) as error:
            what = f"docker-compose.yml or .env does not describe this fleet ({error!r})"
            raise BadSetting(what, f"look: {shlex.join(argv)}") from error

    def containers(self) -> list[Container]:
        """Every container of the fleet, workers first; asked again when one of them goes between the two questions."""
        for _ in range(LOOKS):
            ids = self.ask(commands.containers(self.place)).split()
            try:
                return containers.read(self.ask(commands.inspect(ids))) if ids else []
            except EngineFailed as error:
                refused = error
                if GONE not in error.what:
                    break
        raise refused

    def workers(self) -> list[Container]:
        """Those that serve predictions, in order of their numbers."""
        return [each for each in self.containers() if each.service == commands.WORKER]

    def hashes(self, services: Sequence[str]) -> dict[str, str]:
        """What the configuration of each service hashes to now."""
        lines = self.ask(commands.config_hash(self.place, services)).splitlines()
        return dict(line.split() for line in lines if len(line.split()) == 2)

    def image_id(self, name: str) -> str | None:
        """What an image's name means now; None when there is no such image."""
        try:
            return self.desk.host.ask(commands.image_id(name), self.desk.env).strip()
        except CommandFailed:
            return None

    def build(self, services: Sequence[str]) -> None:
        """Make the images of ``services``. Raises BuildFailed with the whole story in a log."""
        log = self.desk.folders.log("build")
        argv = commands.build(self.place, services)
        self.desk.say(f"Building {', '.join(services)}")
        try:
            with self.desk.console.status("building") as status:
                heard = lambda line: status.update(f"building: {line.strip()[:100]}")  # noqa: E731
                self.desk.host.call(argv, self.desk.env, BUILD_TIMEOUT_S, heard if self.desk.console.is_terminal else None)
        except CommandFailed as error:
            self.desk.host.write(log, error.output)
            what = f"{' or '.join(services)} could not be built, nothing has changed: {last_useful_line(error.output)}"
            raise BuildFailed(what, f"read {log}; correct the Dockerfile or its sources, then the same command") from error

    def images(self, services: Sequence[str], wanted: Project, build: bool) -> None:
        """Every image that ``services`` need: built where there is a source, unless they are to be taken as they are,
        else fetched where it is missing. Raises BuildFailed, EngineFailed, BadSetting; nothing was changed then."""
        own = [name for name in services if "build" in wanted.services[name]]
        missing = [name for name in services if self.image_id(wanted.services[name]["image"]) is None]
        if build and own:
            self.build(own)
        elif lacking := [name for name in missing if name in own]:
            what = f"there is no image {wanted.services[lacking[0]]['image']}"
            raise BadSetting(what, f"{self.command} up, without --no-build")
        if elsewhere := [name for name in missing if name not in own]:
            self.fetch(elsewhere)

    def fetch(self, services: Sequence[str]) -> None:
        """The images of ``services`` from their registries. Raises EngineFailed."""
        self.desk.say(f"Fetching the image of {', '.join(services)}")
        try:
            self.desk.host.call(commands.pull(self.place, services), self.desk.env, BUILD_TIMEOUT_S)
        except CommandFailed as error:
            what = f"cannot fetch the image of {' or '.join(services)}: {last_useful_line(error.output)}"
            needed = commands.NGINX in services
            leave_out = " ".join(f"--without {name}" for name in services)
            then = "see that the registry can be reached" if needed else f"{self.command} up {leave_out}"
            raise EngineFailed(what, then) from error
