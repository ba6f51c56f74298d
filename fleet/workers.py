"""Starting workers, waiting until they serve, waiting until they are idle.

Knows: one worker's life from outside: its process, its log, ``/readyz``, ``/metrics``. Does not know: nginx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rich import progress

from fleet import commands, metrics
from fleet.desk import Desk
from fleet.errors import PortInUse, WorkerFailed
from fleet.journal import last_useful_line
from fleet.state import Fleet, Process, Worker

PORTS_TRIED = 1000


def free_ports(desk: Desk, fleet: Fleet, wanted: int) -> list[int]:
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


def start(desk: Desk, fleet: Fleet, wanted: Sequence[int]) -> Fleet:
    """Start the workers with the numbers ``wanted``; the fleet remembers each as soon as it exists."""
    for number, port in zip(wanted, free_ports(desk, fleet, len(wanted)), strict=True):
        name = f"worker-{number}"
        log = desk.folders.log(name)
        desk.host.set_aside(log)
        argv = commands.worker_argv(fleet.plan, desk.folders)
        env = commands.worker_env(fleet.plan, name, port, desk.env)
        fleet = desk.start(argv, env, log, partial(_with_worker, fleet, number, port))
    return fleet


def _with_worker(fleet: Fleet, number: int, port: int, process: Process) -> Fleet:
    workers = [*fleet.workers, Worker(number, port, process)]
    return replace(fleet, workers=tuple(sorted(workers, key=lambda worker: worker.number)))


def wait_ready(desk: Desk, fleet: Fleet, numbers: Sequence[int]) -> None:
    """Until each of them answers ``/readyz`` with 200. Raises WorkerFailed with the reason from its log."""
    pending = [worker for worker in fleet.workers if worker.number in numbers]
    with bar_of_workers(desk) as bar:
        task = bar.add_task("waiting for workers", total=len(pending))

        def all_ready() -> bool:
            for worker in list(pending):
                if not desk.host.alive(worker.process):
                    raise failed(desk, worker, "ended before it was ready")
                answer = desk.host.get(commands.WORKER_HOST, worker.port, "/readyz")
                if answer is not None and answer.status == 200:
                    pending.remove(worker)
                    bar.advance(task)
            names = ", ".join(worker.name for worker in pending)
            bar.update(task, description=f"waiting for {names}" if names else "all workers ready")
            return not pending

        names = ", ".join(worker.name for worker in pending)
        if not desk.host.wait(f"{names} ready", all_ready, fleet.plan.startup_timeout_s):
            raise failed(desk, pending[0], f"was not ready after {fleet.plan.startup_timeout_s:g} s")


def bar_of_workers(desk: Desk) -> progress.Progress:
    """A bar that counts ready workers and seconds, gone when it is done."""
    columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.BarColumn())
    counts = (progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
    silent = not desk.console.is_terminal
    return progress.Progress(*columns, *counts, console=desk.console, transient=True, disable=silent)


def failed(desk: Desk, worker: Worker, how: str) -> WorkerFailed:
    """The error of a worker that does not serve, with the reason from its log."""
    reason = last_useful_line(desk.host.read_log(desk.folders.log(worker.name)))
    return WorkerFailed(f"{worker.name} {how}: {reason}", f"python -m fleet logs {worker.name}")


def wait_idle(desk: Desk, leaving: Sequence[Worker], timeout_s: float) -> bool:
    """Until none of them has a request in flight, as far as they still answer."""

    def busy(worker: Worker) -> bool:
        if not desk.host.family(worker.process):
            return False
        answer = desk.host.get(commands.WORKER_HOST, worker.port, "/metrics")
        return answer is None or metrics.numbers(answer.body.decode()).in_flight > 0

    names = ", ".join(worker.name for worker in leaving)
    return desk.host.wait(f"{names} idle", lambda: not any(busy(worker) for worker in leaving), timeout_s)
