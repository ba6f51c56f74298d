"""The services beside the workers: nginx, and what watches.

Knows: when one of them has to be made anew, and when it does its work. Does not know: workers.

A change of their settings, or of a single file they mount, means a new container: an editor that replaces a file
leaves the container with the old one. For nginx that is a stated outage: it finishes what it has, and new connections
are refused until the new one listens, about a second when it is idle. A change in a folder they mount (nginx/hosts,
prometheus) is read again on SIGHUP, which costs nothing: a mistake is refused, and what was before stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.compose import commands
from fleet.compose.containers import Container
from fleet.compose.engine import MARGIN_S, Engine
from fleet.compose.project import Project
from fleet.errors import NginxFailed
from fleet.journal import last_useful_line
from fleet.runtime import READY

READY_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.5
READ_AGAIN = (commands.NGINX, "prometheus")
"""Services that read their files again on SIGHUP."""


@dataclass(frozen=True)
class Rest:
    """The services of ``project`` on ``engine``, but for the workers."""

    engine: Engine
    project: Project

    def bring(self, services: Sequence[str]) -> None:
        """Start or renew ``services``, wait until nginx answers. Raises NginxFailed, EngineFailed."""
        stale = [each.service for each in self.outdated() if each.service in services]
        if commands.NGINX in stale:
            self.engine.desk.say("nginx has new settings: new connections are refused until its successor listens", "yellow")
        timeout_s = self.project.grace_s + 2 * MARGIN_S
        if stale:
            self.engine.call(commands.up_rest(self.engine.place, stale, fresh=True), timeout_s)
        self.engine.call(commands.up_rest(self.engine.place, services), timeout_s)
        self.reload()
        self._wait_for_nginx()
        self._wait_for_others([name for name in services if name != commands.NGINX])

    def outdated(self) -> list[Container]:
        """Containers whose settings, or singly mounted files, have changed since they were started."""
        found = self._running()
        if not found:
            return []
        hashes = self.engine.hashes([each.service for each in found])
        return [each for each in found if hashes.get(each.service) != each.config_hash or self._changed(each, folders=False)]

    def reload(self) -> None:
        """Where files in mounted folders are newer than the container: have them read again."""
        changed = [each for each in self._running() if each.service in READ_AGAIN and self._changed(each, folders=True)]
        for each in changed:
            self.engine.desk.say(f"{each.service} reads its files again")
            self.engine.call(commands.hang_up(each.full_name))

    def outdated_sentences(self) -> list[str]:
        """What is left to do for them, for the end of a roll, which is about workers."""
        cost = {commands.NGINX: "; new connections are refused for about a second"}
        return [
            f"{each.service} runs with other settings than its files say: {self.engine.command} up makes it anew"
            + cost.get(each.service, "")
            for each in self.outdated()
        ]

    def _running(self) -> list[Container]:
        return [each for each in self.engine.containers() if each.service in self.project.rest and each.status == "running"]

    def _changed(self, each: Container, folders: bool) -> bool:
        """Whether a file that it mounts, singly or in ``folders``, is newer than its start."""
        sources = [source for source, _ in self.project.mounts(each.service) if source.is_dir() == folders]
        return any(file.stat().st_mtime > each.started for source in sources for file in _files(source))

    def _wait_for_nginx(self) -> None:
        desk, project = self.engine.desk, self.project

        def answers() -> bool:
            answer = desk.host.get(project.contact, project.port, "/healthz")
            return answer is not None and answer.status == 200

        if not desk.host.wait("nginx answers", answers, READY_TIMEOUT_S):
            said = "\n".join(desk.host.lines(commands.logs(self.engine.place, [commands.NGINX], 50, False), desk.env))
            what = f"nginx does not answer on {project.contact}:{project.port}: {last_useful_line(said.partition(' | ')[2])}"
            raise NginxFailed(what, f"{self.engine.command} logs nginx")

    def _wait_for_others(self, services: Sequence[str]) -> None:
        """They watch: without them requests are served all the same, so one that does not come is only named."""

        def starting() -> list[Container]:
            return [each for each in self.engine.containers() if each.service in services and each.state == "starting"]

        if services:
            names = ", ".join(services)
            self.engine.desk.host.wait(f"{names} started", lambda: not starting(), READY_TIMEOUT_S, LOOK_EVERY_S)
        for each in self.engine.containers():
            if each.service in services and each.state != READY:
                self.engine.desk.say(f"{each.service} is {each.state}; look: {self.engine.command} logs {each.service}", "yellow")


def _files(source: Path) -> Iterator[Path]:
    return (path for path in (source.rglob("*") if source.is_dir() else [source]) if path.is_file())
