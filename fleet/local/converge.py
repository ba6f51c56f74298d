"""From the fleet as it is to the fleet as it should be, without losing a request.

The order is the whole point: start new workers, wait until they serve, give nginx the new list, wait until
nobody uses the old list, and only then stop what is not on it.

Knows: that order. Does not know: options, words on the screen beyond progress.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace

from fleet.desk import uninterrupted
from fleet.local import commands, nginx, workers
from fleet.local.desk import LocalDesk
from fleet.state import Fleet, Worker

GRACE_MARGIN_S = 5.0
"""A worker told to stop takes at most its inference timeout and 2 s; then nobody waits any longer."""


def grace_s(fleet: Fleet) -> float:
    """Seconds in which a healthy process ends: the longest answer and a margin."""
    return fleet.plan.inference_timeout_s + GRACE_MARGIN_S


def split(desk: LocalDesk, fleet: Fleet, target: int) -> tuple[list[Worker], list[Worker], list[int]]:
    """Workers that stay (supervised ones, lowest numbers first), workers that leave, numbers to start."""
    sound = [worker for worker in fleet.workers if desk.host.alive(worker.process)]
    stay = sound[:target]
    abandoned = [fleet.coming] if fleet.coming else []  # by a roll that did not end
    leave = [*fleet.leaving, *abandoned, *(worker for worker in fleet.workers if worker not in stay)]
    taken = {worker.number for worker in stay}
    free = [number for number in range(1, target + len(taken) + 1) if number not in taken]
    return stay, leave, free[: target - len(stay)]


def converge(desk: LocalDesk, fleet: Fleet, target: int) -> Fleet:
    """Make it ``target`` workers behind a running nginx. Raises WorkerFailed, NginxFailed, PortInUse, StillRunning.

    When new workers do not become ready they are stopped, and the old ones serve on. Interrupted later, it
    leaves a fleet that the next verb completes.
    """
    stay, leave, missing = split(desk, fleet, target)
    fleet = desk.remember(replace(fleet, workers=tuple(stay), leaving=tuple(leave), coming=None))
    if missing:
        fleet = add(desk, fleet, missing)
    fleet = desk.remember(replace(fleet, plan=replace(fleet.plan, workers=target)))
    return settle(desk, fleet, changed=bool(missing or leave))


def settle(desk: LocalDesk, fleet: Fleet, changed: bool) -> Fleet:
    """Give nginx the fleet's workers; when nobody uses the old list any more, stop those that are leaving."""
    fleet = list_workers(desk, fleet, changed)
    leave = fleet.leaving
    if leave:
        desk.say(f"Stopping {', '.join(worker.full_name for worker in leave)}")
        if not workers.wait_idle(desk, leave, grace_s(fleet)):
            desk.say("Still busy after their longest answer; stopping them all the same", "yellow")
        desk.stop({worker.full_name: worker.process for worker in leave}, signal.SIGTERM, grace_s(fleet))
    return desk.remember(replace(fleet, leaving=()))


def add(desk: LocalDesk, before: Fleet, missing: Sequence[int]) -> Fleet:
    """Start workers and wait until they serve; stop them again when they do not."""
    threads = before.plan.threads
    names = ", ".join(f"worker-{number}" for number in missing)
    desk.say(f"Starting {names} ({threads} {'thread' if threads == 1 else 'threads'} each)")
    try:
        fleet = workers.start(desk, before, missing)
        new = [worker for worker in fleet.workers if worker.number in missing]
        workers.wait_ready(desk, new, fleet.plan.startup_timeout_s)
    except BaseException:
        with uninterrupted():
            remembered = desk.fleet or before
            started = {w.name: w.process for w in remembered.workers if w not in before.workers}
            desk.stop(started, signal.SIGTERM, grace_s(before))
            desk.remember(before)
        raise
    return fleet


def list_workers(desk: LocalDesk, fleet: Fleet, changed: bool) -> Fleet:
    """Give nginx the list of workers, starting it when it does not run; returns when nobody uses the old list."""
    running = fleet.nginx is not None and desk.host.alive(fleet.nginx)
    if running and not changed:
        return fleet
    if not running:
        nginx.check_port(desk, fleet)
    nginx.render(desk, fleet, [worker.port for worker in fleet.workers])
    if not running or fleet.nginx is None:
        return nginx.start(desk, fleet)
    old = nginx.reload(desk, fleet.nginx)
    if fleet.leaving:
        bound = grace_s(fleet) + commands.KEEPALIVE_MIN_TIMEOUT_S
        if not nginx.wait_gone(desk, old, bound):
            desk.say(f"An old nginx process still has a client after {bound:g} s", "yellow")
    return fleet
