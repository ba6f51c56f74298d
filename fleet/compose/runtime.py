"""The container fleet as a ``Runtime``: what each verb means for containers.

Knows: which order of steps a verb is. Does not know: how a step is done.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fleet.compose import checks, commands, containers
from fleet.compose.change import Change
from fleet.compose.containers import Container
from fleet.compose.engine import MARGIN_S, Engine
from fleet.compose.project import Project
from fleet.compose.rest import Rest
from fleet.desk import Desk, uninterrupted
from fleet.errors import BadSetting, NotUp, RollHalted
from fleet.host import CommandFailed
from fleet.runtime import READY, Front, Look
from fleet.settings import effective_settings

NOW_S = 3.0
"""What ``down --now`` grants."""
LOOKERS = 8
"""Each look runs Python inside a container: more at once would only queue for the cores."""


@dataclass(frozen=True)
class Wanted:
    """The fleet as it should be: the project, and what its workers make of their settings."""

    project: Project
    effective: Mapping[str, Any]


class Containers:
    """The fleet called ``place.project`` on this machine's container engine."""

    def __init__(self, desk: Desk, place: commands.Place) -> None:
        self.desk = desk
        self.engine = Engine(desk, place)
        self.command = self.engine.command

    def up(self, options: argparse.Namespace) -> Front | None:
        wanted = self._checked()
        services = _without(wanted.project, options.without or [])
        running = self.engine.containers()
        target = options.workers or wanted.project.replicas
        have = len([each for each in running if each.service == commands.WORKER])
        checks.port(self.engine, wanted.project, running)
        checks.memory(self.engine, wanted.project, target, max(0, target - have))
        former = self.engine.image_id(wanted.project.image)
        self.engine.images([commands.WORKER, *services], wanted.project, build=not options.no_build)
        fresh = not any(each.status == "running" for each in running)
        try:
            self._workers(wanted, target, former)
            Rest(self.engine, wanted.project).bring(services)
        except BaseException:
            if fresh:
                with uninterrupted():
                    self.abandon()
            raise
        if fresh:
            return self._front(wanted)
        now = self.engine.containers()
        for sentence in self._troubles(now):
            self.desk.say(sentence, "yellow")
        same = {each.id for each in running} == {each.id for each in now}
        self.desk.say(f"{'Already up' if same else 'Mended'}: {target} workers on {self._front(wanted).url}", "green")
        return None

    def _workers(self, wanted: Wanted, target: int, former: str | None) -> None:
        """``target`` workers, all of the image and settings of now."""
        change = self._change(wanted)
        before = self.engine.workers()
        change.converge(target)
        change.forget()
        kept = {each.id for each in before}
        old = [each for each in self._outdated(self.engine.workers(), wanted.project) if each.id in kept]
        if old:
            self.desk.say(f"Other settings or another image than docker-compose.yml says: {', '.join(e.name for e in old)}")
            self._roll(wanted, old, target, former, "up")

    def abandon(self) -> None:
        self.desk.say("Stopping what was started")
        self.engine.call(commands.down(self.engine.place, False, NOW_S), 2 * MARGIN_S)

    def scale(self, workers: int) -> int:
        found = self._needed(f"up --workers {workers}")
        wanted = self._checked()
        have = len([each for each in found if each.service == commands.WORKER])
        checks.memory(self.engine, wanted.project, workers, max(0, workers - have))
        change = self._change(wanted)
        change.converge(workers)
        change.forget()
        if workers != wanted.project.replicas:
            replicas = wanted.project.replicas
            self.desk.say(f"docker-compose.yml says replicas: {replicas}; the next up, or docker compose up -d, returns to it")
        return have

    def roll(self, options: argparse.Namespace) -> None:
        self._needed("up")
        wanted = self._checked()
        former = self.engine.image_id(wanted.project.image)
        self.engine.images([commands.WORKER], wanted.project, build=not options.no_build)
        change = self._change(wanted)
        change.clean()
        target = change.remembered() or len(self.engine.workers())
        change.converge(target)
        self._roll(wanted, self.engine.workers(), target, former, "roll")
        rest = Rest(self.engine, wanted.project)
        rest.reload()
        for sentence in rest.outdated_sentences():
            self.desk.say(sentence, "yellow")

    def _roll(self, wanted: Wanted, old: Sequence[Container], target: int, former: str | None, verb: str) -> None:
        """Roll; when it halts, the image's name means again what the old workers run, for whoever starts one more."""
        try:
            self._change(wanted).roll(old, target, f"{self.command} {verb}")
        except RollHalted:
            name = wanted.project.image
            if former and former != self.engine.image_id(name):
                self.engine.call(commands.tag(former, name))
                self.desk.say(f"{name} is the former image again")
            raise

    def down(self, options: argparse.Namespace) -> bool:
        self.engine.check()
        found = self.engine.containers()
        if not found and not options.volumes:
            return False
        argv = commands.down(self.engine.place, options.volumes, NOW_S if options.now else None)
        self.engine.call(argv, 2 * self.engine.project().grace_s + MARGIN_S)  # nginx first, then the workers
        return True

    def front(self) -> Front:
        self._needed("up")
        return self._front(self._wanted())

    def looks(self) -> list[Look]:
        found = self._needed("up")
        project = self.engine.project()
        old = {each.id for each in self._outdated(found, project)}
        with ThreadPoolExecutor(LOOKERS) as pool:  # one that hangs must not hold up the look at the others
            return list(pool.map(lambda each: self._look(each, each.id in old), found))

    def memory(self) -> dict[str, int]:
        running = [each for each in self._needed("up") if each.status in {"running", "paused"}]
        used = containers.memory(self.engine.ask(commands.stats([each.id for each in running])))
        return {each.name: used.get(each.full_name, 0) for each in running}

    def advice(self, looks: list[Look]) -> str | None:
        sentences = self._troubles(self.engine.containers())
        old = [look.name for look in looks if look.place.get("settings") == "old"]
        if old:
            sentences.append(f"{', '.join(old)}: other settings or image than docker-compose.yml says; {self.command} up")
        return "\n".join(sentences) or None

    def logs(self, name: str | None, lines: int, follow: bool) -> Iterator[tuple[str, str]]:
        found = {each.name: each for each in self.engine.containers()}
        if name and name != commands.WORKER and name not in found:
            raise BadSetting(f"there is no container of {name}", f"{self.command} logs {next(iter(found), '')}")
        if not found:
            raise NotUp("there are no containers, so no logs", f"{self.command} up")
        if name in found:
            argv = commands.container_logs(found[name].full_name, lines, follow)
            return ((name, line) for line in self.desk.host.lines(argv, self.desk.env))
        argv = commands.logs(self.engine.place, [name] if name else [], lines, follow)
        split = (line.partition(" | ") for line in self.desk.host.lines(argv, self.desk.env))
        return ((who.strip(), said) for who, _, said in split)

    def _wanted(self) -> Wanted:
        project = self.engine.project()
        return Wanted(project, effective_settings(self.desk.env, project.settings, self.desk.folders.root))

    def _checked(self) -> Wanted:
        """The fleet as it should be, after every check that needs no running container."""
        self.engine.check()
        wanted = self._wanted()
        checks.dials(self.engine, wanted.project)
        checks.ladder(wanted.project, wanted.effective)
        checks.checkpoints(wanted.project, wanted.effective, self.engine)
        return wanted

    def _needed(self, verb: str) -> list[Container]:
        """All containers of a fleet that is up."""
        self.engine.check()
        found = self.engine.containers()
        if not any(each.status in {"running", "paused", "restarting"} for each in found):
            raise NotUp("no fleet is up", f"{self.command} {verb}")
        return found

    def _change(self, wanted: Wanted) -> Change:
        return Change(self.engine, float(wanted.effective["startup_timeout"]), wanted.project.grace_s)

    def _outdated(self, found: Sequence[Container], project: Project) -> list[Container]:
        """Workers of another image or other settings than a new one would have."""
        image = self.engine.image_id(project.image)
        hash_ = self.engine.hashes([commands.WORKER]).get(commands.WORKER)
        return [
            each for each in found
            if each.service == commands.WORKER and (each.image != image or each.config_hash != hash_)
        ]  # fmt: skip

    def _front(self, wanted: Wanted) -> Front:
        project, found = wanted.project, self.engine.containers()
        published = next((each.published for each in found if each.service == commands.NGINX and each.published), None)
        port = published[1] if published else project.port
        workers = len([each for each in found if each.service == commands.WORKER])
        about = f"{workers} workers × {project.cpus:g} cpu, {project.memory / 2**30:g} GiB · {wanted.effective['model']}"
        url = f"http://{project.contact}:{port}"
        return Front(url, float(wanted.effective["inference_timeout"]), workers, about)

    def _look(self, each: Container, old: bool) -> Look:
        """Ask the worker from inside, since this machine may not reach its address."""
        place: dict[str, str | int | None] = {"container": each.short_id, "restarts": each.restarts}
        text = None
        if each.service == commands.WORKER:
            if old:
                place["settings"] = "old"
            if each.status == "running":
                try:
                    text = self.desk.host.ask(commands.probe(each.full_name, "/metrics"), self.desk.env)
                except CommandFailed:
                    text = None
        return Look(each.name, each.service == commands.WORKER, each.state, time.monotonic(), text, place)

    def _troubles(self, found: Sequence[Container]) -> list[str]:
        """One sentence for each container that does not do its work, with what to do."""
        cures = {"paused": "docker unpause {}", "unhealthy": "docker restart {}", "restarting": "docker logs {}"}
        sentences = []
        for each in found:
            if each.state not in {READY, "starting"}:
                cure = cures.get(each.state, f"{self.command} up")
                sentences.append(f"{each.name} is {each.state}: {cure.format(each.full_name)}")
        return sentences


def _without(project: Project, left_out: Sequence[str]) -> list[str]:
    """The services beside the workers, but for those. Raises BadSetting for one that is none."""
    for name in left_out:
        if name not in project.rest or name == commands.NGINX:
            optional = ", ".join(each for each in project.rest if each != commands.NGINX)
            raise BadSetting(f"--without {name}: it can be one of {optional}", "python -m fleet --runtime compose up --help")
    return [name for name in project.rest if name not in left_out]
