"""The order of things when a fleet changes, on a scripted machine with a fake clock."""

from __future__ import annotations

import io
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fleet.errors import NginxFailed, PortInUse, StillRunning, WorkerFailed
from fleet.local.converge import converge
from fleet.local.desk import LocalDesk
from fleet.state import Fleet, Folders, Plan, from_json
from tests.fleet.scripted import NEVER, Life, Scripted

ROOT = Path(__file__).resolve().parents[1]
PLAN = Plan(
    workers=3, host="127.0.0.1", port=8080, first_worker_port=8101, threads=1, nginx="nginx",
    nginx_version=(1, 30, 0), app="app.main:app", gunicorn_conf="app/gunicorn.conf.py",
    inference_timeout_s=30.0, startup_timeout_s=120.0,
)  # fmt: skip


def desk(machine: Scripted) -> LocalDesk:
    return LocalDesk(machine, Folders(ROOT, Path("run")), Console(file=io.StringIO()), {})


def up(machine: Scripted, workers: int = 3) -> tuple[LocalDesk, Fleet]:
    """A fleet that is up, with the journal of its start forgotten."""
    at = desk(machine)
    fleet = converge(at, Fleet(replace(PLAN, workers=workers)), workers)
    machine.journal.clear()
    return at, fleet


def test_nginx_starts_after_all_workers_are_ready() -> None:
    """No request can reach a worker that is not ready: nginx comes last, with all of them on its list."""
    machine = Scripted({"worker-2": Life(ready_after=7)})
    converge(desk(machine), Fleet(PLAN), 3)
    assert machine.journal == ["start worker-1", "start worker-2", "start worker-3", "list 8101 8102 8103", "start nginx"]
    assert machine.clock >= 7


def test_growing_adds_to_the_list_only_what_is_ready() -> None:
    """scale up: start, wait, list, reload; nobody is stopped."""
    machine = Scripted({"worker-4": Life(ready_after=5)})
    at, fleet = up(machine)
    fleet = converge(at, fleet, 4)
    assert machine.journal == ["start worker-4", "list 8101 8102 8103 8104", "reload"]
    assert [worker.number for worker in fleet.workers] == [1, 2, 3, 4]


@pytest.mark.parametrize("lingers, busy_until", [(0.0, 0.0), (12.0, 0.0), (0.0, 20.0), (9.0, 20.0)])
def test_shrinking_stops_only_what_nobody_uses(lingers: float, busy_until: float) -> None:
    """scale down: off the list, reload, old nginx processes gone, nothing in flight, and only then SIGTERM."""
    machine = Scripted({"worker-3": Life(busy_until=busy_until)}, old_nginx_lingers=lingers)
    at, fleet = up(machine)
    reloaded = machine.clock
    stopped: list[float] = []
    machine.when = {"TERM worker-3": lambda: stopped.append(machine.clock)}
    fleet = converge(at, fleet, 2)
    assert machine.journal == ["list 8101 8102", "reload", "TERM worker-3"]
    assert stopped[0] >= max(reloaded + lingers, busy_until)
    assert [worker.number for worker in fleet.workers] == [1, 2]
    assert fleet.leaving == ()


def test_a_worker_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    """SIGKILL comes only when the longest answer could have been sent, and it is noticed."""
    machine = Scripted({"worker-2": Life(ends_after_term=NEVER)})
    at, fleet = up(machine, 2)
    began = machine.clock
    converge(at, fleet, 1)
    assert machine.journal[-2:] == ["TERM worker-2", "KILL worker-2"]
    assert 30 < machine.clock - began < 60


def test_a_process_that_survives_sigkill_is_an_error_that_names_it() -> None:
    """Nothing is claimed to be stopped that is not."""
    machine = Scripted({"worker-2": Life(immortal=True)})
    at, fleet = up(machine, 2)
    with pytest.raises(StillRunning, match=f"pid {fleet.workers[1].process.pid}"):
        converge(at, fleet, 1)


@pytest.mark.parametrize(
    "life, words",
    [
        (Life(dies_after=2, ready_after=NEVER, says='{"level":"error","message":"no such folder x"}'), "no such folder x"),
        (Life(ready_after=NEVER, says="still loading"), "not ready after 120 s: still loading"),
    ],
    ids=["dies", "hangs"],
)
def test_a_failed_start_leaves_the_old_fleet_alone(life: Life, words: str) -> None:
    """A bad worker halts the change: what was started is stopped, what served serves on, nginx is not touched."""
    machine = Scripted({"worker-4": life})
    at, fleet = up(machine)
    with pytest.raises(WorkerFailed, match=words):
        converge(at, fleet, 5)
    assert "reload" not in machine.journal
    assert all(machine.alive(worker.process) for worker in fleet.workers)
    assert [being.name for being in machine.beings.values() if machine.clock < being.ends] == [
        "worker-1", "worker-2", "worker-3", "nginx",
    ]  # fmt: skip
    assert remembered(machine) == fleet


def test_ctrl_c_while_waiting_stops_what_was_started() -> None:
    """An interrupted change leaves nothing behind but the fleet from before, not even the process that was
    started in the very moment of the Ctrl-C."""
    machine = Scripted()
    at, fleet = up(machine)
    machine.when = {"start worker-5": lambda: signal.raise_signal(signal.SIGINT)}
    with pytest.raises(KeyboardInterrupt):
        converge(at, fleet, 6)
    assert machine.journal == ["start worker-4", "start worker-5", "TERM worker-4", "TERM worker-5"]
    assert remembered(machine) == fleet


def test_an_interrupted_shrinking_is_completed_by_the_next_verb() -> None:
    """Ctrl-C between the new list and the stopping: the leaving worker is remembered, and stopped next time."""
    machine = Scripted()
    at, fleet = up(machine)
    machine.when = {"TERM worker-3": lambda: signal.raise_signal(signal.SIGINT)}
    with pytest.raises(KeyboardInterrupt):
        converge(at, fleet, 2)
    machine.when = {}
    left = remembered(machine)
    assert [worker.name for worker in left.leaving] == ["worker-3"] and left.plan.workers == 2
    fleet = converge(at, left, left.plan.workers)
    assert fleet.leaving == () and [worker.name for worker in fleet.workers] == ["worker-1", "worker-2"]
    assert not any(machine.alive(worker.process) for worker in left.leaving)


def test_a_dead_supervisor_is_replaced_before_its_orphan_is_stopped() -> None:
    """A worker whose supervisor died may still serve: first a successor on another port, then it goes."""
    machine = Scripted({"worker-2": Life(supervisor_dies_after=60)})
    at, fleet = up(machine)
    machine.clock = 100
    machine.lives = {}
    fleet = converge(at, fleet, 3)
    assert machine.journal == ["start worker-2", "list 8101 8104 8103", "reload", "TERM worker-2"]
    assert [(worker.number, worker.port) for worker in fleet.workers] == [(1, 8101), (2, 8104), (3, 8103)]


def test_a_dead_nginx_is_started_again_with_the_same_list() -> None:
    """up repairs the front door without touching workers."""
    machine = Scripted({"nginx": Life(dies_after=60)})
    at, fleet = up(machine)
    machine.clock = 100
    fleet = converge(at, fleet, 3)
    assert machine.journal == ["list 8101 8102 8103", "start nginx"]


def test_nothing_to_do_does_nothing() -> None:
    """A second up is safe: no reload, no start, no signal."""
    machine = Scripted()
    at, fleet = up(machine)
    assert converge(at, fleet, 3) == fleet
    assert machine.journal == []


def test_ports_of_others_are_passed_over() -> None:
    """The workers' ports are the fleet's own business: taken ones are skipped without a word."""
    machine = Scripted(taken_ports=frozenset({8102}))
    fleet = converge(desk(machine), Fleet(PLAN), 3)
    assert [worker.port for worker in fleet.workers] == [8101, 8103, 8104]


def test_the_front_port_of_another_is_named() -> None:
    """The operator learns who holds the port and which command avoids it."""
    machine = Scripted(taken_ports=frozenset({8080}))
    with pytest.raises(PortInUse, match="port 8080 is in use by somebody") as caught:
        converge(desk(machine), Fleet(PLAN), 3)
    assert caught.value.then == "python -m fleet up --port 8081"


def test_a_refused_configuration_keeps_the_old_one_running() -> None:
    """nginx -t comes before the reload, and its own sentence is shown."""
    machine = Scripted()
    at, fleet = up(machine)
    machine.refuses_config = 'nginx: [emerg] unknown directive "x" in run/nginx/nginx.conf:3'
    with pytest.raises(NginxFailed, match="unknown directive"):
        converge(at, fleet, 4)
    assert "reload" not in machine.journal


@pytest.mark.parametrize("moment", ["start worker-2", "list 8101 8102 8103", "start nginx"])
def test_whatever_runs_is_remembered_before_anything_else_happens(moment: str) -> None:
    """Killed at any moment, the next verb finds in the state file every process that was started."""
    machine = Scripted()
    found: list[tuple[set[int], set[int]]] = []

    def compare() -> None:
        text = machine.files.get(Path("run/fleet.json"))
        known = {process.pid for process in from_json(text).processes.values()} if text else set()
        running = {pid for pid, being in machine.beings.items() if f"start {being.name}" != moment}
        found.append((running, known))

    machine.when = {moment: compare}
    converge(desk(machine), Fleet(PLAN), 3)
    running, known = found[0]
    assert running <= known


def remembered(machine: Scripted) -> Fleet:
    return from_json(machine.files[Path("run/fleet.json")])
