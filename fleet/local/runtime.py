"""The local fleet as a ``Runtime``: what each verb means for processes of this machine.

Knows: which order of steps a verb is. Does not know: how a step is done.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

from fleet import journal, proc
from fleet.desk import uninterrupted
from fleet.errors import BadSetting, DifferentFleet, NotUp
from fleet.local import commands, nginx, plan
from fleet.local.converge import converge, grace_s
from fleet.local.desk import LocalDesk
from fleet.local.roll import roll
from fleet.runtime import READY, Front, Look
from fleet.state import Fleet, Process, Worker, load

NOW_S = 3.0
"""What ``down --now`` grants: enough to end in order, not enough to finish a forecast."""
LOOKERS = 16


class Local:
    """The fleet remembered in ``desk.folders.run``."""

    command = "python -m fleet"

    def __init__(self, desk: LocalDesk) -> None:
        self.desk = desk

    def up(self, options: argparse.Namespace) -> Front | None:
        found = self._running()
        if found is not None:
            self._refuse_differences(found, options)
            return self._mend(found)
        fleet = Fleet(plan.make(options, self.desk.env, self.desk.folders))
        nginx.check_port(self.desk, fleet)
        if fleet.plan.nginx_version < commands.KEEPALIVE_MIN_TIMEOUT_SINCE:
            self.desk.say("This nginx may lose a request whenever workers change; 1.27.4 and newer do not", "yellow")
        try:
            return front(converge(self.desk, fleet, fleet.plan.workers))
        except BaseException:
            with uninterrupted():
                self.abandon()
            raise

    def abandon(self) -> None:
        """An ``up`` that did not succeed leaves nothing behind."""
        if self.desk.fleet is not None:
            self.desk.say("Stopping what was started")
            self._stop_all(self.desk.fleet, now=True)

    def scale(self, workers: int) -> int:
        fleet = self._needed(f"up --workers {workers}")
        cores = plan.cores()
        if workers * fleet.plan.threads > max(cores, workers):
            fair = plan.threads_per_worker(workers, cores)
            self.desk.say(
                f"{workers} workers × {fleet.plan.threads} threads are more than {cores} cores; "
                f"better afterwards: KRONOS_THREADS={fair} python -m fleet roll",
                "yellow",
            )
        converge(self.desk, fleet, workers)
        return len(fleet.workers)

    def roll(self, options: argparse.Namespace) -> None:
        fleet = self._needed("up")
        new = plan.renew(fleet.plan, options, self.desk.env, self.desk.folders)
        for change in plan.differences(fleet.plan, new):
            self.desk.say(change)
        roll(self.desk, fleet, new)

    def down(self, options: argparse.Namespace) -> bool:
        fleet = self._running()
        if fleet is None:
            self.desk.forget()
            return False
        self._stop_all(fleet, options.now)
        self.desk.say(f"Logs stay in {self.desk.folders.logs}")
        return True

    def front(self) -> Front:
        return front(self._needed("up"))

    def looks(self) -> list[Look]:
        fleet = self._needed("up")
        coming = [fleet.coming] if fleet.coming else []
        asked = [(worker, "") for worker in fleet.workers]
        asked += [(worker, "coming") for worker in coming] + [(worker, "leaving") for worker in fleet.leaving]
        with ThreadPoolExecutor(LOOKERS) as pool:  # one that hangs must not hold up the look at the others
            workers = list(pool.map(lambda pair: self._look(*pair), asked))
        return [*workers, self._look_at_nginx(fleet)]

    def memory(self) -> dict[str, int]:
        processes = self._needed("up").processes
        members = {name: self.desk.host.family(process) for name, process in processes.items()}
        return {name: sum(proc.pss_bytes(member.pid) for member in family) for name, family in members.items()}

    def advice(self, looks: list[Look]) -> str | None:
        broken = [look.name for look in looks if look.state in {"dead", "unsupervised"}]
        if broken:
            return f"{', '.join(broken)}: repair with python -m fleet up"
        fleet = self._running()
        if fleet and fleet.of_another_generation:
            return _unfinished(fleet)
        return None

    def logs(self, name: str | None, lines: int, follow: bool) -> Iterator[tuple[str, str]]:
        known = {path.stem: path for path in sorted(self.desk.folders.logs.glob("*.log"))}
        if name and name not in known:
            raise BadSetting(f"there is no log of {name}", f"python -m fleet logs {next(iter(known), '')}")
        if not known:
            raise NotUp("there are no logs yet", "python -m fleet up")
        chosen = {name: known[name]} if name else known
        last = ((each, line) for each, path in chosen.items() for line in journal.tail(path, lines))
        return chain(last, journal.follow(chosen) if follow else ())

    def _running(self) -> Fleet | None:
        """The remembered fleet if any process of it is alive."""
        fleet = load(self.desk.folders)
        if fleet is None or not any(self.desk.host.family(process) for process in fleet.processes.values()):
            return None
        self.desk.fleet = fleet
        return fleet

    def _needed(self, verb: str) -> Fleet:
        fleet = self._running()
        if fleet is None:
            raise NotUp("no fleet is up", f"python -m fleet {verb}")
        return fleet

    def _mend(self, fleet: Fleet) -> Front | None:
        """Bring up what is missing of a running fleet."""
        sound = [worker for worker in fleet.workers if self.desk.host.alive(worker.process)]
        whole = fleet.nginx is not None and self.desk.host.alive(fleet.nginx) and not fleet.leaving and not fleet.coming
        if whole and len(sound) == fleet.plan.workers:
            self.desk.say(f"Already up: {len(sound)} workers on {fleet.plan.url}", "green")
        else:
            fleet = converge(self.desk, fleet, fleet.plan.workers)
            self.desk.say(f"Mended: {len(fleet.workers)} workers on {fleet.plan.url}", "green")
        if fleet.of_another_generation:
            self.desk.say(_unfinished(fleet), "yellow")
        return None

    def _refuse_differences(self, fleet: Fleet, options: argparse.Namespace) -> None:
        """Raises DifferentFleet when options were given that the running fleet does not have."""
        up_now = f"{len(fleet.workers)} workers are up on {fleet.plan.url}"
        if options.workers not in {None, len(fleet.workers)}:
            raise DifferentFleet(up_now, f"python -m fleet scale {options.workers}")
        settings = fleet.plan.settings
        asked = {
            "--port": (options.port, fleet.plan.port, "down, then up again"),
            "--host": (options.host, fleet.plan.host, "down, then up again"),
            "--app": (options.app, fleet.plan.app, "down, then up again"),
            "--model": (plan.resolved(options.model), settings.get("KRONOS_MODEL"), f"roll --model {options.model}"),
            "--tokenizer": (
                plan.resolved(options.tokenizer), settings.get("KRONOS_TOKENIZER"), f"roll --tokenizer {options.tokenizer}",
            ),
        }  # fmt: skip
        for name, (wanted, has, verb) in asked.items():
            if wanted is not None and wanted != has:
                raise DifferentFleet(f"{up_now} with {name} {has or '(default)'}", f"python -m fleet {verb}")

    def _stop_all(self, fleet: Fleet, now: bool) -> None:
        """First nginx, which finishes what it has, then the workers. ``now``: answers under way are cut."""
        grace = NOW_S if now else grace_s(fleet)
        if fleet.nginx is not None:
            self.desk.stop({"nginx": fleet.nginx}, signal.SIGTERM if now else signal.SIGQUIT, grace)
        workers = {name: process for name, process in fleet.processes.items() if name != "nginx"}
        self.desk.stop(workers, signal.SIGTERM, grace)  # gunicorn's SIGQUIT is not heard by its uvicorn workers
        self.desk.forget()

    def _look(self, worker: Worker, moving: str) -> Look:
        """Ask the worker and the kernel; ``moving`` is "coming", "leaving" or nothing."""
        host = self.desk.host
        family = host.family(worker.process)
        children = [member.pid for member in family if member != worker.process]
        state, text = "dead", None
        if family:
            get = partial(host.get, commands.WORKER_HOST, worker.port)
            answer = get("/readyz")
            state = "no answer" if answer is None else READY if answer.status == 200 else "not ready"
            numbers = get("/metrics") if answer else None
            text = numbers.body.decode() if numbers else None
            state = "unsupervised" if worker.process not in family else moving or state
        place = {"arbiter": worker.process.pid, "pid": children[0] if children else None, "port": worker.port}
        name = worker.full_name if moving else worker.name
        return Look(name, True, state, time.monotonic(), text, place)

    def _look_at_nginx(self, fleet: Fleet) -> Look:
        family: list[Process] = self.desk.host.family(fleet.nginx) if fleet.nginx else []
        state = READY if fleet.nginx in family else "unsupervised" if family else "dead"
        pid = fleet.nginx.pid if fleet.nginx else None
        return Look("nginx", False, state, time.monotonic(), None, {"arbiter": pid, "port": fleet.plan.port})


def front(fleet: Fleet) -> Front:
    """What the plan says of itself."""
    threads, model = fleet.plan.threads, fleet.plan.settings.get("KRONOS_MODEL", "the default model")
    about = f"{len(fleet.workers)} workers × {threads} threads · {model}"
    return Front(fleet.plan.url, fleet.plan.inference_timeout_s, len(fleet.workers), about)


def _unfinished(fleet: Fleet) -> str:
    return f"{', '.join(fleet.of_another_generation)}: of a roll that did not end; complete it with python -m fleet roll"
