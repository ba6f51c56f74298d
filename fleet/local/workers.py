"""Starting workers, waiting until they serve, waiting until they are idle.

Knows: one worker's life from outside: its process, its log, ``/readyz``, ``/metrics``. Does not know: nginx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fleet import metrics
from fleet.errors import PortInUse, WorkerFailed
from fleet.journal import last_useful_line
from fleet.local import commands
from fleet.local.desk import LocalDesk
from fleet.state import Fleet, Plan, Process, Worker

PORTS_TRIED = 1000
NEXT = "-next"
"""Ending of a successor's log while its predecessor, of the same name, still serves."""


def free_ports(desk: LocalDesk, fleet: Fleet, wanted: int) -> list[int]:
    """The first free ports from the plan's on. The workers' ports are the fleet's own business."""
    taken = {worker.port for worker in (*fleet.workers, *fleet.leaving)}
    first = fleet.plan.first_worker_port
    found: list[int] = []
    for port in range(first, min(first + PORTS_TRIED, 65536)):
        if len(found) == wanted:
            break
        if port not in taken and desk.host.port_holder(commands.WORKER_HOST, port) is None:
            found.append(port)
    if len(found) < wanted:
        raise PortInUse(f"no {wanted} free ports from {first} on", "python -m fleet up --worker-port 9101")
    return found


def start(desk: LocalDesk, fleet: Fleet, wanted: Sequence[int]) -> Fleet:
    """Start the workers with the numbers ``wanted``; the fleet remembers each as soon as it exists."""
    for number, port in zip(wanted, free_ports(desk, fleet, len(wanted)), strict=True):
        argv, env = _program(desk, fleet.plan, number, port)
        log = f"worker-{number}"
        desk.host.set_aside(desk.folders.log(log))
        fleet = desk.start(argv, env, partial(_with_worker, fleet, number, port), log)
    return fleet


def start_successor(desk: LocalDesk, fleet: Fleet, plan: Plan, number: int) -> Fleet:
    """Start another worker ``number`` from ``plan`` beside the one that serves; the fleet remembers it as coming."""
    [port] = free_ports(desk, fleet, 1)
    argv, env = _program(desk, plan, number, port)
    log = f"worker-{number}{NEXT}"
    desk.host.set_aside(desk.folders.log(log))

    def known(process: Process) -> Fleet:
        return replace(fleet, coming=Worker(number, port, process, plan.generation))

    return desk.start(argv, env, known, log)


def _program(desk: LocalDesk, plan: Plan, number: int, port: int) -> tuple[list[str], dict[str, str]]:
    return commands.worker_argv(plan, desk.folders), commands.worker_env(plan, f"worker-{number}", port, desk.env)


def _with_worker(fleet: Fleet, number: int, port: int, process: Process) -> Fleet:
    workers = [*fleet.workers, Worker(number, port, process, fleet.plan.generation)]
    return replace(fleet, workers=tuple(sorted(workers, key=lambda worker: worker.number)))


def take_over_log(desk: LocalDesk, name: str) -> None:
    """The successor's log gets the worker's name; what the predecessor still writes goes to the log set aside."""
    desk.host.set_aside(desk.folders.log(name))
    desk.host.move(desk.folders.log(name + NEXT), desk.folders.log(name))


def wait_ready(desk: LocalDesk, wanted: Sequence[Worker], timeout_s: float, ending: str = "") -> None:
    """Until each of them answers ``/readyz`` with 200. Raises WorkerFailed with the reason from its log, whose
    name is the worker's with ``ending``."""
    pending = list(wanted)
    with desk.bar() as bar:
        task = bar.add_task("waiting for workers", total=len(pending))

        def all_ready() -> bool:
            for worker in list(pending):
                if not desk.host.alive(worker.process):
                    raise failed(desk, worker, "ended before it was ready", ending)
                answer = desk.host.get(commands.WORKER_HOST, worker.port, "/readyz")
                if answer is not None and answer.status == 200:
                    pending.remove(worker)
                    bar.advance(task)
            names = ", ".join(worker.name for worker in pending)
            bar.update(task, description=f"waiting for {names}" if names else "all workers ready")
            return not pending

        names = ", ".join(worker.name for worker in pending)
        if not desk.host.wait(f"{names} ready", all_ready, timeout_s):
            raise failed(desk, pending[0], f"was not ready after {timeout_s:g} s", ending)


def failed(desk: LocalDesk, worker: Worker, how: str, ending: str) -> WorkerFailed:
    """The error of a worker that does not serve, with the reason from its log."""
    log = worker.name + ending
    reason = last_useful_line(desk.host.read_log(desk.folders.log(log)))
    return WorkerFailed(f"{worker.name} {how}: {reason}", f"python -m fleet logs {log}")


def wait_idle(desk: LocalDesk, leaving: Sequence[Worker], timeout_s: float) -> bool:
    """Until none of them has a request in flight, as far as they still answer."""

    def busy(worker: Worker) -> bool:
        if not desk.host.family(worker.process):
            return False
        answer = desk.host.get(commands.WORKER_HOST, worker.port, "/metrics")
        return answer is None or metrics.numbers(answer.body.decode()).in_flight > 0

    names = ", ".join(worker.name for worker in leaving)
    return desk.host.wait(f"{names} idle", lambda: not any(busy(worker) for worker in leaving), timeout_s)
