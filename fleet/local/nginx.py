"""The one nginx of the fleet: start, change its list of workers without losing a request, stop.

Knows: nginx's signals and processes. Does not know: workers, beyond their ports.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace

from fleet.errors import NginxFailed, PortInUse
from fleet.host import CommandFailed
from fleet.journal import last_useful_line
from fleet.local import commands
from fleet.local.desk import LocalDesk
from fleet.state import Fleet, Process

START_TIMEOUT_S = 10.0
RELOAD_TIMEOUT_S = 10.0


def render(desk: LocalDesk, fleet: Fleet, ports: Sequence[int]) -> None:
    """Write the configuration that sends requests to ``ports``. Raises NginxFailed when nginx refuses it."""
    folder, plan = desk.folders.nginx, fleet.plan
    desk.host.copy(desk.folders.root / "nginx" / "nginx.conf", folder / "nginx.conf")
    desk.host.write(folder / "door.conf", commands.door_conf(plan, desk.folders))
    desk.host.write(folder / "upstream.conf", commands.upstream_conf(plan, ports))
    try:
        desk.host.call(commands.nginx_argv(plan, desk.folders, desk.nginx_user, "-t", "-q"))
    except CommandFailed as error:
        raise NginxFailed(f"nginx refuses {folder}: {last_useful_line(error.output)}", "correct nginx/nginx.conf") from error


def check_port(desk: LocalDesk, fleet: Fleet) -> None:
    """Raises PortInUse unless nginx could listen where the plan says."""
    plan = fleet.plan
    try:
        holder = desk.host.port_holder(plan.host, plan.port)
    except OSError as error:
        raise PortInUse(
            f"cannot listen on {plan.host}:{plan.port}: {error.strerror}", "python -m fleet up --port 8080"
        ) from error
    if holder is not None:
        raise PortInUse(f"port {plan.port} is in use by {holder}", f"python -m fleet up --port {plan.port + 1}")


def start(desk: LocalDesk, fleet: Fleet) -> Fleet:
    """Start nginx and wait until it answers. Raises NginxFailed."""
    plan, log = fleet.plan, desk.folders.log("nginx")
    desk.host.set_aside(log)
    desk.host.set_aside(desk.folders.access_log)
    argv = commands.nginx_argv(plan, desk.folders, desk.nginx_user)
    fleet = desk.start(argv, desk.env, lambda process: replace(fleet, nginx=process), "nginx")

    def answers() -> bool:
        if fleet.nginx is None or not desk.host.alive(fleet.nginx):
            reason = last_useful_line(desk.host.read_log(log))
            raise NginxFailed(f"nginx ended: {reason}", "python -m fleet logs nginx")
        answer = desk.host.get(plan.contact, plan.port, "/healthz")
        return answer is not None and answer.status == 200

    if not desk.host.wait("nginx answers", answers, START_TIMEOUT_S):
        raise NginxFailed(f"nginx does not answer on {plan.url}", "python -m fleet logs nginx")
    return fleet


def reload(desk: LocalDesk, nginx: Process) -> list[Process]:
    """Make nginx read its configuration again; returns the old processes, which finish what they have."""
    old = children(desk, nginx)
    desk.host.signal(nginx, signal.SIGHUP)
    if not desk.host.wait("nginx reloaded", lambda: bool(set(children(desk, nginx)) - set(old)), RELOAD_TIMEOUT_S):
        raise NginxFailed("nginx did not take the new list of workers", "python -m fleet logs nginx")
    return old


def wait_gone(desk: LocalDesk, old: Sequence[Process], timeout_s: float) -> bool:
    """Until the processes from before a reload have sent their last answers and ended."""
    until = "the old nginx processes have sent their last answers"
    return desk.host.wait(until, lambda: not any(map(desk.host.alive, old)), timeout_s)


def children(desk: LocalDesk, nginx: Process) -> list[Process]:
    """The processes of nginx that handle requests."""
    return [member for member in desk.host.family(nginx) if member != nginx]
